"Pages as text, actions, the contract, panels; then real pages in a real browser."

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamgym import environments
from dreamgym.environments import (
    BatchOf,
    InvalidAction,
    StateError,
    TextEnvironment,
    make_task,
    play_episodes,
    start_tasks,
)
from dreamgym.suites.miniwob import panel_hash
from dreamgym.pages import (
    Action,
    Element,
    check_action,
    one_line,
    parse_action,
    parse_state,
    quote,
    render_element,
    render_state,
    sample_trajectories,
    unquote,
)
from dreamgym.rollouts import offline_data
from dreamgym.suites.miniwob import (
    Browser,
    BrowserMissing,
    HELD_OUT_KINDS,
    KINDS,
    MiniWobBatch,
    MiniWobEnvironment,
    PanelError,
    TRAINING_KINDS,
    collect_trajectories,
    find_browser,
    find_driver,
    install_browser,
    load_panel,
    make_panels,
    oracle_action,
    quit_chrome,
    start_chrome,
    wrong_action,
)
from dreamgym.runs import Run, Scale, data_folder
from dreamgym.trajectories import (
    END_STATE,
    FAILURE_STATE,
    DreamgymError,
    Task,
    read_trajectories,
    write_trajectories,
)

PAGE = "text Username\n[1] input ''\n[2] password 'x'\n[3] select 'a' of 'a' | 'it\\'s'\n[4] checkbox 'b' off\n[5] button 'Go'"
browser_test = pytest.mark.browser


# ---------------------------------------------------------------- pages as text


def random_text(random) -> str:
    letters = list("ab'\\[]|\"19() é中") + ["on", " of ", "text "]
    return " ".join("".join(random.choice(letters, size=random.integers(0, 9))).split())


def random_element(random, number: int) -> Element:
    text = random_text(random)
    match random.integers(4):
        case 0:
            return Element(None, "text", text or "x")
        case 1:
            return Element(number, "checkbox", text, on=bool(random.integers(2)))
        case 2:
            return Element(number, "select", text, options=tuple(random_text(random) for _ in range(1 + number % 4)))
    return Element(number, "button", text)


def test_a_page_can_be_read_back():
    random = np.random.default_rng(0)
    for _ in range(500):
        elements = [random_element(random, number) for number in range(1, 2 + random.integers(8))]
        assert parse_state(render_state(elements)) == elements
    for state in (PAGE, ""):
        assert render_state(parse_state(state)) == state


PLAIN = st.text(st.characters(codec="utf-8")).map(one_line)
QUOTED = PLAIN.map(str.strip)
TAGS = st.sampled_from(["button", "link", "input", "checkbox", "select", "text", "icon"])
TEXTS = PLAIN.map(lambda text: Element(None, "text", text))
THINGS = st.builds(Element, st.integers(0, 9999), TAGS, QUOTED, st.sampled_from([None, True, False]),
                   st.lists(QUOTED, max_size=3).map(tuple))


@given(st.lists(TEXTS | THINGS, max_size=6, unique_by=lambda e: e if e.id is None else e.id))
def test_whatever_a_page_can_hold_survives(elements):
    assert parse_state(render_state(elements)) == elements


@given(st.lists(st.text(st.characters(codec="utf-8")), max_size=3))
def test_white_space_is_the_only_thing_that_a_page_changes(texts):
    page = render_state([Element(None, "text", text) for text in texts])
    assert parse_state(page) == [Element(None, "text", one_line(text)) for text in texts]
    assert len(page.split("\n")) == max(1, len(texts))
    button = parse_state(render_element(Element(1, "select", " ".join(texts), None, tuple(texts))))[0]
    assert (button.text, button.options) == (one_line(" ".join(texts)).strip(), tuple(one_line(t).strip() for t in texts))


def test_empty_texts_are_texts():
    elements = [Element(None, "text", ""), Element(1, "select", "", options=("", "a")), Element(None, "text", "")]
    assert parse_state(render_state(elements)) == elements and parse_state(render_state(elements[:1])) == elements[:1]
    assert parse_state(render_state([])) == []


def test_quotes_are_escaped_and_white_space_is_one_space():
    for text in ("it's", "\\", "\\'", "''", "'", "a\\"):
        assert unquote(quote(text)) == text
    assert quote(" a\n\t b\u2028c ") == "'a b c'"


@pytest.mark.parametrize("line", [
    "Login", "text", "texts ", "[1] button", "[1] button Go", "[1] button 'Go", "[1] button 'it's'", "[1]button 'a'",
    "[a] button 'a'", "[12345] button 'a'", "[-1] button 'a'", "[١] button 'a'", "[1] Button 'a'", "[1] button 'a' ",
    "[1] checkbox 'a' yes", "[1] select 'a' of", "[1] select 'a' of b", "[1] select 'a' of 'a' |", "goal: [1] a 'b'",
    "[1] button 'a'\n\n[2] button 'b'", "[1] button 'a'\n[1] button 'b'", "<b>bold</b>",
])
def test_anything_else_is_no_page(line):
    with pytest.raises(StateError):
        parse_state(line)


def test_the_two_special_pages_have_no_elements():
    assert parse_state(END_STATE) == parse_state(FAILURE_STATE) == []


# ---------------------------------------------------------------- actions


def test_actions_are_parsed():
    assert parse_action("click 12") == Action("click", 12)
    assert parse_action("type 3 two  words '") == Action("type", 3, "two  words '")
    assert parse_action("select 4 it's\n") == Action("select", 4, "it's")


@pytest.mark.parametrize("text", [
    "", "click", "click one", "click 1 2", "click  1", "Click 1", "click 12345", "click -1", "click 1.0", "click ١",
    "type 1", "type 1 ", "type 1  x", "select 2", "press 1", "click 1\nclick 2", "type 1 a\nb", "click(1)", "[click 1]",
])
def test_anything_else_is_no_action(text):
    with pytest.raises(InvalidAction) as error:
        parse_action(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text, allowed", [
    ("click 1", True), ("click 4", True), ("click 5", True), ("click 6", False), ("click 0", False),
    ("type 1 a", True), ("type 2 a", True), ("type 4 a", False), ("type 5 a", False), ("type 3 a", False),
    ("select 3 a", True), ("select 3 it's", True), ("select 3 b", False), ("select 1 a", False),
])
def test_the_page_decides_what_can_be_done(text, allowed):
    if allowed:
        assert check_action(parse_action(text), PAGE).id == int(text.split()[1])
    else:
        with pytest.raises(InvalidAction):
            check_action(parse_action(text), PAGE)
    with pytest.raises(InvalidAction):
        check_action(parse_action(text), END_STATE)


# ---------------------------------------------------------------- the contract


class Counter(TextEnvironment):
    "Click until the number of the seed is reached; a guest that does the least it may."

    maximum_steps = 3

    def reset(self, *, seed=None, options=None):
        self.left = seed
        return f"[1] button '{self.left}'", {}

    def step(self, action):
        check_action(parse_action(action), "[1] button 'x'")
        self.left -= 1
        return (END_STATE, 1, True, False, {}) if not self.left else (f"[1] button '{self.left}'", 0, False, False, {})


def test_any_environment_can_be_batched():
    environment = BatchOf(Counter)
    tasks = environment.reset_batch([make_task("count", n) for n in (1, 2, 9, 5)])
    assert [t.start_state for t in tasks] == ["[1] button '1'", "[1] button '2'", "[1] button '9'", "[1] button '5'"]
    first = environment.step_batch(["click 1", "click 1", "click 1", "jump"])
    assert first[0] == (END_STATE, 1.0, True, False, {}) and first[3][:4] == (FAILURE_STATE, 0.0, True, False)
    assert "invalid" in first[3][4]
    second = environment.step_batch([None, "click 1", "click 1", None])
    assert second[0] is None and second[1][2] and second[2][2:4] == (False, False)
    assert environment.step_batch([None, None, "click 1", None])[2][2:4] == (False, True), "cut at its own limit"
    assert environment.transitions == 7 and environment.maximum_steps == 3
    for actions in ([], ["click 1"], ["click 1"] * 5):
        with pytest.raises(DreamgymError, match=f"{len(actions)} actions for 4 episodes: reset first"):
            environment.step_batch(actions)
    assert environment.transitions == 7


def test_play_episodes_records_any_environment():
    tasks = [make_task("count", n) for n in (2, 9)]
    solved, cut = play_episodes(BatchOf(Counter), tasks, lambda *_: "click 1", "test")
    assert (solved.success, solved.truncated, len(solved), solved.source) == (True, False, 2, "test")
    assert (cut.success, cut.truncated, len(cut), cut.real) == (False, True, 3, False)
    none, stopped = play_episodes(BatchOf(Counter), tasks, lambda i, task, page, past: "click 1" if i and not past else None)
    assert none is None and stopped.truncated and len(stopped) == 1


def test_a_batch_is_told_what_is_wrong_before_a_browser_starts(monkeypatch):
    monkeypatch.setattr(environments, "start_chrome", lambda: pytest.fail("a browser was started"))
    with MiniWobBatch(browsers=1) as environment:
        with pytest.raises(DreamgymError, match="reset first"):
            environment.step_batch(["click 1"])
        with pytest.raises(DreamgymError, match="invented and has no real page"):
            environment.reset_batch([Task(id="login-user/1~a", kind="login-user", synthetic=True)])
        for kind in ("no-such-task", "../miniwob/login-user", ""):
            with pytest.raises(DreamgymError, match="has no task type"):
                environment.reset_batch([Task(id="x", kind=kind)])
    with pytest.raises(DreamgymError, match="Pass the task"):
        MiniWobEnvironment().reset()


def test_a_browser_that_never_starts_is_tried_three_times(monkeypatch):
    from selenium.common.exceptions import WebDriverException

    attempts = []

    def broken():
        attempts.append(1)
        raise WebDriverException("cannot connect\nto chrome")

    monkeypatch.setattr(environments, "start_chrome", broken)
    with MiniWobBatch(browsers=1) as environment, pytest.raises(DreamgymError, match="three times") as error:
        environment.reset_batch([make_task("login-user", 1)])
    assert len(attempts) == 3 and "\n" not in str(error.value)


def test_a_missing_browser_is_named_with_the_command_to_type(monkeypatch):
    monkeypatch.delenv("DREAMGYM_BROWSER", raising=False)
    monkeypatch.setattr(environments, "_NAMES", ("no-such-browser",))
    for look in (find_browser, lambda: MiniWobBatch(1).reset_batch([make_task("login-user", 1)])):
        with pytest.raises(BrowserMissing, match="apt-get install -y chromium chromium-driver"):
            look()
    monkeypatch.setattr(environments.os, "geteuid", lambda: 1000)
    with pytest.raises(BrowserMissing):
        install_browser()
    monkeypatch.setenv("DREAMGYM_BROWSER", sys.executable)
    assert find_browser() == install_browser() == sys.executable


@pytest.mark.parametrize("variable, look", [("DREAMGYM_BROWSER", find_browser), ("SE_CHROMEDRIVER", find_driver)])
def test_a_variable_that_names_no_program_is_named_and_nothing_installed(variable, look, monkeypatch, tmp_path):
    monkeypatch.setattr(environments.subprocess, "run", lambda *_, **__: pytest.fail("something was installed"))
    monkeypatch.setattr(environments.os, "geteuid", lambda: 0)
    (tmp_path / "plain").write_text("no program")
    for wrong in ("no-such-program", "/no/such/program", str(tmp_path), str(tmp_path / "plain"), "~/no/program", " "):
        monkeypatch.setenv(variable, wrong)
        for search in (look, install_browser) if look is find_browser else (look,):
            with pytest.raises(BrowserMissing, match=f"^{variable} is '{wrong}'.*unset it"):
                search()
    program = tmp_path / "program"
    program.write_text("#!/bin/sh")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for right in ("./program", "~/program", str(program)):
        monkeypatch.setenv(variable, right)
        assert look() == str(program)
    monkeypatch.setenv(variable, "")
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(environments, "_NAMES", ("no-such-browser",))
    if look is find_driver:
        assert find_driver() is None


def test_half_a_surrogate_pair_on_a_real_page_is_replaced():
    row = {"id": 1, "tag": "select", "text": "a\ud83d", "options": ["\ude00b", "\ud83d\ude00"]}
    report = environments._read_report({"goal": "g\ud83d", "done": False, "raw": 0, "rows": [row]})
    assert report.goal == "g\ufffd" and parse_state(report.state)[0].options == ("\ufffdb", "\U0001f600")
    assert report.state.encode()


def test_half_marks_are_no_success():
    def read(raw, done=True):
        return environments._read_report({"goal": "g", "done": done, "raw": raw, "rows": []})

    assert [read(raw).success for raw in (1, 0.99, 0.5, 0, -1)] == [True, False, False, False, False]
    assert read(1).state == END_STATE and read(0, done=False).state == ""


# ---------------------------------------------------------------- panels and sample


def test_panels_are_disjoint_and_held_out_kinds_are_tested_only():
    panels = {name: load_panel(name) for name in ("train", "development", "test")}
    ids = [task.id for tasks in panels.values() for task in tasks]
    assert len(ids) == len(set(ids))
    assert {t.kind for t in panels["train"]} == {t.kind for t in panels["development"]} == set(TRAINING_KINDS)
    assert {t.kind for t in panels["test"]} == set(KINDS) and len(TRAINING_KINDS) >= 14 and len(HELD_OUT_KINDS) >= 2
    for tasks in panels.values():
        assert all(task == make_task(task.kind, task.seed) for task in tasks)


def test_the_frozen_file_is_the_one_of_the_book():
    assert json.loads((data_folder() / "panels.json").read_text()) == make_panels()
    assert panel_hash() == make_panels()["sha256"] and len(panel_hash()) == 64


def test_parts_of_a_panel():
    tasks = load_panel("train", ["login-user", "enter-text"], 3, offset=10)
    assert [t.id for t in tasks] == [f"{kind}/{n}" for kind in ("login-user", "enter-text") for n in (10, 11, 12)]
    assert len(load_panel("test", ["login-user"], 10_000)) == 50
    for name, kinds, says in (("exam", None, "No panel named"), ("train", HELD_OUT_KINDS, "no task type"),
                              ("test", ["golf"], "no task type")):
        with pytest.raises(PanelError, match=says):
            load_panel(name, kinds)


@pytest.mark.parametrize("damage", [
    lambda text: text[:100], lambda text: text.replace("2050", "2049"), lambda text: "[]", lambda text: "{}",
    lambda text: text.replace('"sha256": "', '"sha256": "0'), lambda text: "",
])
def test_a_changed_panel_file_is_noticed(tmp_path, monkeypatch, damage):
    (tmp_path / "panels.json").write_text(damage((data_folder() / "panels.json").read_text()))
    monkeypatch.setattr(environments, "data_folder", lambda: tmp_path)
    for use in (panel_hash, lambda: load_panel("test")):
        with pytest.raises(PanelError, match="panels.json .*restore it"):
            use()
    (tmp_path / "panels.json").unlink()
    with pytest.raises(PanelError, match="restore it"):
        panel_hash()


@pytest.mark.parametrize("name", ["quick", "cpu", "gpu", "paper"])
def test_every_scale_leaves_its_tasks_steps_enough(name):
    scale = Scale.named(name)
    needed = {t.task.kind: len(t) for t in sample_trajectories() if t.source == "oracle" and t.task.kind in scale.kinds}
    assert set(needed) == set(scale.kinds), "a scale trains on kinds that the sample shows"
    assert max(needed.values()) < scale.maximum_steps, "one step at least is left for a mistake"


def test_the_sample_covers_all_training_kinds_with_both_outcomes():
    sample = sample_trajectories()
    assert (data_folder() / "sample_trajectories.jsonl").stat().st_size <= 300_000
    assert {t.task.kind for t in sample} == set(TRAINING_KINDS)
    assert 0.35 < np.mean([t.success for t in sample]) < 0.65
    train = {task.id for task in load_panel("train")}
    assert all(t.task.id in train and t.real for t in sample)
    for step in (s for t in sample for s in t.transitions):
        assert render_state(parse_state(step.state)) == step.state and len(step.state) < 1000
        if step.invalid:
            assert step.next_state == FAILURE_STATE
        else:
            check_action(parse_action(step.action), step.state)


def test_oracles_know_the_way_on_recorded_pages():
    for t in sample_trajectories():
        if t.source == "oracle":
            past = [s.action for s in t.transitions]
            for number, step in enumerate(t.transitions):
                assert oracle_action(t.task.kind, t.task.goal, step.state, past[:number]) == step.action


def test_a_wrong_action_is_possible_and_wrong():
    random = np.random.default_rng(0)
    for t in sample_trajectories():
        if t.source == "oracle":
            for step in t.transitions:
                for _ in range(5):
                    wrong = wrong_action(step.action, t.task, step.state, random)
                    check_action(parse_action(wrong), step.state)
                    only_one = sum(e.id is not None for e in parse_state(step.state)) == 1  # nothing else to click
                    assert only_one or wrong != step.action, (t.task.id, step.action)


def test_boxes_are_often_submitted_too_early():
    "Else the experience model takes an unmarked box for a marked one, and an agent learns to submit at once."
    random, page = np.random.default_rng(0), "[1] radio 'ok' off\n[2] radio 'no' off\n[3] button 'Submit'"
    task = make_task("click-option", 0).model_copy(update=dict(goal="Select ok and click Submit."))
    early = np.mean([wrong_action("click 1", task, page, random) == "click 3" for _ in range(400)])
    assert 0.4 < early < 0.6
    rivals = page.replace("radio", "button").replace(" off", "").replace("button 'Submit'", "link 'Submit'")
    assert np.mean([wrong_action("click 1", task, rivals, random) == "click 3" for _ in range(400)]) < 0.35


def test_fields_beside_the_buttons_are_touched_too():
    "Else the experience model never learns that nothing ends there."
    random, page = np.random.default_rng(0), "[1] button 'ok'\n[2] input ''\n[3] button 'no'\n[4] input ''"
    task = make_task("click-button", 0).model_copy(update=dict(goal='Click on the "ok" button.'))
    wrong = [parse_action(wrong_action("click 1", task, page, random)) for _ in range(200)]
    fields = [a for a in wrong if a.element in (2, 4)]
    assert {(a.kind, a.element) for a in fields} == {("click", 2), ("click", 4), ("type", 2), ("type", 4)}
    assert 20 < len(fields) < 60 and all(a.text in ("Click", "on", "the", "ok", "button") for a in fields if a.kind == "type")
    no_goal = task.model_copy(update=dict(goal=""))
    assert all(wrong_action("click 1", no_goal, page, random) != "click 1" for _ in range(50))


STRANGE = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"  # all that `str.splitlines` takes for the end of a line


def test_strange_white_space_in_a_goal_splits_no_record(quick_run, tmp_path):
    tasks = [make_task("enter-text", n).model_copy(update=dict(goal=STRANGE, start_state="[1] input ''")) for n in (0, 1)]
    (quick_run.path / "starts.jsonl").write_text("".join(t.model_dump_json() + "\n" for t in tasks), encoding="utf-8")
    assert start_tasks(quick_run) == tasks
    assert render_element(Element(None, "text", STRANGE)) == "text a b c d e f g"

    class Strange(Counter):
        def reset(self, *, seed=None, options=None):
            return super().reset(seed=seed)[0], {"goal": STRANGE}

    played = play_episodes(BatchOf(Strange), [make_task("count", 2)], lambda *_: "click 1")
    write_trajectories(tmp_path / "one.jsonl", played)
    assert read_trajectories(tmp_path / "one.jsonl") == played and played[0].task.goal == STRANGE


def test_the_action_for_an_absent_element_is_absent():
    random, page = np.random.default_rng(0), "text a\u2028b\n[1] button 'x'"
    drawn = {environments._invalid_action(page, random) for _ in range(60)}
    assert "click 22" in drawn and len(drawn) == 4


@pytest.mark.parametrize("rest", ["", "\n", '{"id": "a", "kind": "a"}\n\n'])
def test_a_list_of_first_pages_with_empty_lines_is_damaged(quick_run, rest):
    (quick_run.path / "starts.jsonl").write_text(rest)
    with pytest.raises(DreamgymError, match="is damaged"):
        start_tasks(quick_run)


def test_a_damaged_list_of_first_pages_is_named(quick_run):
    (quick_run.path / "starts.jsonl").write_text('{"id": "a"}\n{"id')
    with pytest.raises(DreamgymError, match="starts.jsonl is damaged; delete it"):
        start_tasks(quick_run)


# ---------------------------------------------------------------- real pages


@pytest.fixture(scope="module")
def real():
    "Two browsers for all tests of this file."
    with MiniWobBatch(browsers=2) as environment:
        yield environment


def oracle(i, task, page, past):
    return oracle_action(task.kind, task.goal, page, past)


@browser_test
def test_every_oracle_solves_nine_of_ten(real):
    episodes = play_episodes(real, [make_task(kind, 3000 + n) for kind in KINDS for n in range(10)], oracle)
    solved = {kind: sum(t.success for t in episodes if t.task.kind == kind) for kind in KINDS}
    assert {kind: n for kind, n in solved.items() if n < 9} == {}
    assert real.mismatches == 0


@browser_test
def test_recorded_episodes_happen_again(real):
    "The committed sample, step by step: pages depend on the seed and the actions alone, on every machine."
    sample = [t for t in sample_trajectories() if t.task.seed == 0]
    plans = [[s.action for s in t.transitions] for t in sample]
    again = play_episodes(real, [make_task(t.task.kind, t.task.seed) for t in sample],
                          lambda i, task, page, past: plans[i][len(past)] if len(past) < len(plans[i]) else None)
    different = [old.task.id for old, new in zip(sample, again, strict=True)
                 if (old.task, old.transitions) != (new.task, new.transitions)]
    assert different == [] and real.mismatches == 0


@browser_test
def test_a_slow_agent_scores_what_a_quick_one_does(real):
    "MiniWoB++ ends an episode after ten seconds and pays less every second; here nobody is hurried."
    tasks = [make_task(kind, n) for kind in ("click-option", "enter-text", "click-dialog-2") for n in (1, 2)]

    def slow(i, task, page, past):
        time.sleep(11 if i == 0 and not past else 0)
        return oracle(i, task, page, past)

    outcomes = [[(t.success, t.total_reward) for t in play_episodes(real, tasks, agent)] for agent in (oracle, slow)]
    assert outcomes[0] == outcomes[1] == [(True, 1.0)] * len(tasks)


@browser_test
def test_a_killed_browser_is_replaced_and_its_episode_repeated(real):
    tasks = real.reset_batch([make_task("login-user", n) for n in (1, 2)])
    before, starts = real.transitions, [b.starts for b in real.browsers]
    pages = [task.start_state for task in tasks]
    for step in range(3):
        if step == 1:
            os.kill(real.browsers[0].driver.capabilities["goog:processID"], signal.SIGKILL)
        if step == 2:
            real.browsers[1].driver.service.process.kill()
        results = real.step_batch([oracle_action(t.kind, t.goal, page) for t, page in zip(tasks, pages, strict=True)])
        pages = [result[0] for result in results]
    assert [result[:3] for result in results] == [(END_STATE, 1.0, True)] * 2
    assert real.transitions - before == 6, "repeated steps are no new experience"
    assert [b.starts for b in real.browsers] == [n + 1 for n in starts] and real.mismatches == 0


def living(group: int) -> list[str]:
    "Processes of a group that are neither gone nor dead and waiting to be taken note of."
    found = []
    for number in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc/self") else []):
        try:
            with open(f"/proc/{number}/stat") as file:
                state, _, its_group, *_ = file.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        found += [number] if int(its_group) == group and state not in "ZX" else []
    return found


@browser_test
@pytest.mark.parametrize("which", ["chrome", "driver", "all"])
def test_a_stopped_browser_is_replaced_and_its_episode_repeated(which, monkeypatch):
    "Stopped, not dead: it never answers, and it cannot be asked to quit."
    monkeypatch.setattr(environments, "_PATIENCE", 3.0)
    monkeypatch.setattr(environments, "_FAREWELL", 1.0)
    with MiniWobBatch(browsers=1) as environment:
        task = environment.reset_batch([make_task("login-user", 1)])[0]
        page, driver = task.start_state, environment.browsers[0].driver
        group = driver.service.process.pid
        for step in range(3):
            if step == 1:
                stop = os.killpg if which == "all" else os.kill
                stop(driver.capabilities["goog:processID"] if which == "chrome" else group, signal.SIGSTOP)
            start = time.monotonic()
            result = environment.step_batch([oracle_action(task.kind, task.goal, page)])[0]
            assert time.monotonic() - start < 20
            page = result[0]
        assert result[:3] == (END_STATE, 1.0, True)
        assert (environment.transitions, environment.browsers[0].starts, environment.mismatches) == (3, 2, 0)
        assert not living(group) and not os.path.exists(driver.profile)


@browser_test
@pytest.mark.parametrize("which", ["chrome", "driver"])
def test_a_stopped_browser_can_be_quit(which, monkeypatch):
    monkeypatch.setattr(environments, "_FAREWELL", 1.0)
    driver = start_chrome()
    group = driver.service.process.pid
    os.kill(driver.capabilities["goog:processID"] if which == "chrome" else group, signal.SIGSTOP)
    start = time.monotonic()
    quit_chrome(driver)
    assert time.monotonic() - start < 10 and not os.path.exists(driver.profile)
    assert not living(group)


def test_a_command_has_half_a_minute():
    assert environments._PATIENCE + environments._FAREWELL <= 30


PROXIES = [name for word in ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy") for name in (word, word.upper())]


@browser_test
def test_a_browser_needs_no_proxy_and_no_short_folder_and_leaves_nothing(monkeypatch, tmp_path):
    "A proxy that nobody serves, a folder for temporary files whose path is too long for a socket, no home."
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    for name in PROXIES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("HOME", "/dev/null/home")
    monkeypatch.setattr(tempfile, "tempdir", None)
    browser = Browser()
    try:
        assert browser.start(make_task("click-button", 0)).goal and len(browser.driver.profile) < 64
        start = time.monotonic()
    finally:
        browser.close()
    assert time.monotonic() - start < 10 and list(folder.iterdir()) == []
    assert all(os.environ[name] == "http://127.0.0.1:9" for name in PROXIES), "the user's own variables stay"


@browser_test
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
def test_no_browser_outlives_its_python(tmp_path):
    program = ("import os, signal\nfrom dreamgym.environments import Browser, make_task\n"
               "b = Browser()\nb.start(make_task('click-link', 1))\n"
               "print(b.driver.profile, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    profile = done.stdout.strip()
    assert done.returncode == -signal.SIGKILL and profile

    def alive() -> list[str]:
        found = []
        for number in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{number}/cmdline") as file:
                    found += [number] if profile in file.read() else []
            except OSError:
                pass
        return found

    deadline = time.monotonic() + 60
    while (alive() or os.path.exists(profile)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert alive() == [] and not os.path.exists(profile)


@browser_test
def test_typing_replaces_and_strange_text_survives(real):
    real.reset_batch([make_task("enter-text", 3)])
    for text in ("Ada", "it's \"quoted\" \\ [1] | é 中", "<b>&amp;</b>"):
        state = real.step_batch([f"type 1 {text}"])[0][0]
        assert parse_state(state)[0] == Element(1, "input", text)


@browser_test
def test_invalid_actions_end_on_the_error_page(real):
    actions = ["click 99", "type 3 x", "select 1 x", "hello", ""]
    real.reset_batch([make_task("login-user", 3)] * len(actions))
    results = real.step_batch(actions)
    assert all(r[:4] == (FAILURE_STATE, 0.0, True, False) and r[4]["invalid"] for r in results)
    after = real.step_batch(["click 1", *[None] * (len(actions) - 1)])
    assert after[0][0] == FAILURE_STATE and after[1:] == [None] * (len(actions) - 1), "nothing follows the error page"


@browser_test
def test_half_a_form_fails_on_a_real_page(real):
    task = real.reset_batch([make_task("click-checkboxes", 3)])[0]
    boxes = [e for e in parse_state(task.start_state) if e.tag == "checkbox"]
    wanted = [e for e in boxes if e.text in task.goal]
    for element in wanted[:-1]:
        real.step_batch([f"click {element.id}"])
    assert real.step_batch([f"click {boxes[-1].id + 1}"])[0][:3] == (END_STATE, 0.0, True)


@browser_test
def test_one_episode_as_gymnasium_knows_it():
    environment = MiniWobEnvironment(maximum_steps=2)
    assert isinstance(environment, gymnasium.Env)
    try:
        state, info = environment.reset(options={"task": make_task("enter-text", 3)})
        assert info["task"].start_state == state and "Myron" in info["task"].goal
        assert environment.reset(seed=3, options={"task": make_task("enter-text", 9)})[0:1] == (state,)
        assert environment.step("type 1 Myron")[1:4] == (0.0, False, False)
        assert environment.step("click 2")[:4] == (END_STATE, 1.0, True, False)
        environment.reset(options={"task": make_task("enter-text", 3)})
        assert [environment.step("click 1")[3] for _ in range(2)] == [False, True], "cut at the limit"
    finally:
        environment.close()


@browser_test
def test_other_task_types_of_the_benchmark_can_be_read():
    browser = Browser()
    try:
        for kind in ("email-inbox", "use-autocomplete", "order-food", "unicode-test", "form-sequence-3", "book-flight"):
            report = browser.start(make_task(kind, 1))
            assert report.goal and not report.done and render_state(parse_state(report.state)) == report.state
            assert report == browser.start(make_task(kind, 1)), kind
    finally:
        browser.close()


@browser_test
def test_collecting_is_balanced_and_repeatable(real):
    tasks = load_panel("train", ["click-option", "login-user", "enter-text"], 3)
    watched = []
    first = collect_trajectories(real, tasks, branches=3, seed=1, watch=lambda *count: watched.append(count))
    assert first == collect_trajectories(real, tasks, branches=3, seed=1)
    assert first != collect_trajectories(real, tasks, branches=3, seed=2)
    assert len(first) == 36 and watched[-1] == (36, 36)
    assert all(t.success for t in first if t.source == "oracle")
    assert 0.3 < np.mean([t.success for t in first]) < 0.7
    assert np.mean([t.truncated for t in first]) < 0.1, "nearly every episode has an ending"


@browser_test
def test_the_offline_stage_is_built_once(tmp_path):
    scale = Scale.named("quick", kinds=("click-button",), offline_seeds_per_kind=2, start_seeds_per_kind=2, branches=1,
                        browsers=1)
    run = Run.open(tmp_path / "run", scale, 0)
    path = offline_data(run)
    starts = start_tasks(run)
    stamp = path.stat().st_mtime_ns
    assert offline_data(run) == path and path.stat().st_mtime_ns == stamp and start_tasks(run) == starts
    assert [t.id for t in starts] == ["click-button/2", "click-button/3"] and all(t.goal and t.start_state for t in starts)
    assert run.metrics()["offline"]["trajectories"] == 4
