"MiniWoB++: a real browser, oracles, designed mistakes, frozen panels, and the suites."

import gzip
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamgym.environments import make_task, play_episodes, start_tasks
from dreamgym.evaluation import page_digest, seen_parts
from dreamgym.experiments import split_seen
from dreamgym.pages import (
    Element,
    PageGrammar,
    check_action,
    parse_action,
    parse_state,
    render_state,
    sample_trajectories,
)
from dreamgym.rollouts import offline_data
from dreamgym.runs import Run, Scale, data_folder, load_suite
from dreamgym.suites import miniwob
from dreamgym.suites.miniwob import (
    CPU_KINDS,
    HELD_OUT_KINDS,
    KINDS,
    TRAINING_KINDS,
    UNSEEN_KINDS,
    Browser,
    BrowserMissing,
    MiniWobBatch,
    MiniWobEnvironment,
    MiniWobSuite,
    MiniWobUnseen,
    PanelError,
    collect_trajectories,
    find_browser,
    find_driver,
    goal_words,
    install_browser,
    kept_for_test,
    load_panel,
    make_panels,
    make_unseen_panels,
    open_words,
    oracle_action,
    panel_hash,
    quit_chrome,
    random_page_action,
    start_chrome,
    unseen_candidates,
    wrong_action,
)
from dreamgym.trajectories import END_STATE, FAILURE_STATE, DreamgymError, Task

browser_test = pytest.mark.browser


# ---------------------------------------------------------------- the browser


def test_a_batch_is_told_what_is_wrong_before_a_browser_starts(monkeypatch):
    monkeypatch.setattr(miniwob, "start_chrome", lambda: pytest.fail("a browser was started"))
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

    monkeypatch.setattr(miniwob, "start_chrome", broken)
    with MiniWobBatch(browsers=1) as environment, pytest.raises(DreamgymError, match="three times") as error:
        environment.reset_batch([make_task("login-user", 1)])
    assert len(attempts) == 3 and "\n" not in str(error.value)


def test_a_missing_browser_is_named_with_the_command_to_type(monkeypatch):
    monkeypatch.delenv("DREAMGYM_BROWSER", raising=False)
    monkeypatch.setattr(miniwob, "_NAMES", ("no-such-browser",))
    for look in (find_browser, lambda: MiniWobBatch(1).reset_batch([make_task("login-user", 1)])):
        with pytest.raises(BrowserMissing, match="apt-get install -y chromium chromium-driver"):
            look()
    monkeypatch.setattr(miniwob.os, "geteuid", lambda: 1000)
    with pytest.raises(BrowserMissing):
        install_browser()
    monkeypatch.setenv("DREAMGYM_BROWSER", sys.executable)
    assert find_browser() == install_browser() == sys.executable


@pytest.mark.parametrize("variable, look", [("DREAMGYM_BROWSER", find_browser), ("SE_CHROMEDRIVER", find_driver)])
def test_a_variable_that_names_no_program_is_named_and_nothing_installed(variable, look, monkeypatch, tmp_path):
    monkeypatch.setattr(miniwob.subprocess, "run", lambda *_, **__: pytest.fail("something was installed"))
    monkeypatch.setattr(miniwob.os, "geteuid", lambda: 0)
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
    monkeypatch.setattr(miniwob, "_NAMES", ("no-such-browser",))
    if look is find_driver:
        assert find_driver() is None


def test_half_a_surrogate_pair_on_a_real_page_is_replaced():
    row = {"id": 1, "tag": "select", "text": "a\ud83d", "options": ["\ude00b", "\ud83d\ude00"]}
    report = miniwob._read_report({"goal": "g\ud83d", "done": False, "raw": 0, "rows": [row]})
    assert report.goal == "g\ufffd" and parse_state(report.state)[0].options == ("\ufffdb", "\U0001f600")
    assert report.state.encode()


def test_half_marks_are_no_success():
    def read(raw, done=True):
        return miniwob._read_report({"goal": "g", "done": done, "raw": raw, "rows": []})

    assert [read(raw).success for raw in (1, 0.99, 0.5, 0, -1)] == [True, False, False, False, False]
    assert read(1).state == END_STATE and read(0, done=False).state == ""


# ---------------------------------------------------------------- panels, oracles, designed mistakes


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
    monkeypatch.setattr(miniwob, "data_folder", lambda: tmp_path)
    for use in (panel_hash, lambda: load_panel("test")):
        with pytest.raises(PanelError, match="panels.json .*restore it"):
            use()
    (tmp_path / "panels.json").unlink()
    with pytest.raises(PanelError, match="restore it"):
        panel_hash()


@pytest.mark.parametrize("name", ["quick", "cpu", "gpu", "paper"])
def test_every_scale_leaves_its_tasks_steps_enough(name):
    scale = Scale.named(name, **MiniWobSuite().sizes(name))
    needed = {t.task.kind: len(t) for t in sample_trajectories() if t.source == "oracle" and t.task.kind in scale.kinds}
    assert set(needed) == set(scale.kinds), "a scale trains on kinds that the sample shows"
    assert max(needed.values()) < scale.maximum_steps, "one step at least is left for a mistake"


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


def test_the_action_for_an_absent_element_is_absent():
    random, page = np.random.default_rng(0), "text a\u2028b\n[1] button 'x'"
    drawn = {miniwob._invalid_action(page, random) for _ in range(60)}
    assert "click 22" in drawn and len(drawn) == 4


# ---------------------------------------------------------------- panels in which unseen is the rule


@pytest.fixture(scope="module")
def recorded() -> dict[str, Task]:
    "The candidates of the unseen panels with the goals that were read from real pages, by id."
    goals = json.loads(gzip.decompress((data_folder() / "miniwob_goals.json.gz").read_bytes()))
    tasks = zip(unseen_candidates(), sum(goals.values(), []), strict=True)
    return {task.id: task.model_copy(update={"goal": goal}) for task, goal in tasks}


def asked(recorded, *panels) -> list[Task]:
    "Tasks of panels with their goals."
    return [recorded[task.id] for name in panels for task in MiniWobUnseen().panel(name)]


def test_what_varies_between_goals_is_open():
    goals = [f"Press {word}, then press the {place} box." for word in map(str, range(100, 200)) for place in ("1st", "2nd")]
    assert open_words(goals) == [{word} for word in map(str, range(100, 200)) for _ in range(2)]
    assert open_words(['Take "Tea".'] * 15 + ["Take 'tea'!"] * 5) == [set()] * 20, "one word, however it is written"
    assert not any(open_words([f"Press {n % 20}." for n in range(100)])), "each in one goal of twenty"
    assert all(open_words([f"Press {n % 25}." for n in range(100)]))
    words = [f"word{n}" for n in range(2000)]
    assert 0.22 < np.mean([kept_for_test(word) for word in words]) < 0.28
    assert [word for word in ("anna", "bob", "carl", "dora", "emil") if kept_for_test(word)] == ["emil"]


def test_the_unseen_panels_follow_from_the_goals_that_were_read(recorded):
    frozen = json.loads((data_folder() / "panels_unseen.json").read_text())
    assert make_unseen_panels(list(recorded.values())) == frozen
    assert frozen["sha256"] == "74bb87f618f41088a95602989cb734c5460501031dae0ac1fbceebbb948c25a4"
    assert set(frozen["panels"]["train"]) == set(frozen["panels"]["test"]) == set(UNSEEN_KINDS) < set(CPU_KINDS)
    for name, size in (("train", 100), ("development", 50), ("test", 50)):
        assert {kind: len(seeds) for kind, seeds in frozen["panels"][name].items()} == dict.fromkeys(UNSEEN_KINDS, size)
    ids = [task.id for task in asked(recorded, "train", "development", "test")]
    plain = {task.id for name in ("train", "development", "test") for task in load_panel(name)}
    assert len(set(ids)) == len(ids) and not set(ids) & plain


def test_a_type_with_few_words_has_no_unseen_panel(recorded):
    for kind in set(CPU_KINDS) - set(UNSEEN_KINDS):
        goals = [set(goal_words(task.goal)) for task in recorded.values() if task.kind == kind]
        words = set.union(*goals) - set.intersection(*goals)
        assert 1 < len(words) <= 8, "three dialogs, three places, five widgets, eight buttons"


def test_no_open_word_of_a_test_goal_occurs_in_training(recorded):
    taught = {word for task in asked(recorded, "train", "development") for word in goal_words(task.goal)}
    for kind in UNSEEN_KINDS:
        tasks = [task for task in recorded.values() if task.kind == kind]
        found = dict(zip([task.id for task in tasks], open_words([task.goal for task in tasks]), strict=True))
        tests = [task for task in asked(recorded, "test") if task.kind == kind]
        assert all(found[task.id] and not found[task.id] & taught for task in tests), kind
        assert len({task.goal for task in tests[:10]}) == 10, "few tasks show many goals"
        assert len(set().union(*(found[task.id] for task in tests))) >= 10
        if kind not in ("click-option", "click-checkboxes", "enter-password"):  # drawn letter by letter: new by themselves
            assert np.mean([not found[task.id] & taught for task in tasks]) < 0.6, "chance would not do it"


def test_every_test_goal_of_the_unseen_suite_is_counted_as_unseen(recorded):
    known = {task.goal for task in asked(recorded, "train", "development")}, {page_digest("")}
    rows = []
    for task in [*asked(recorded, "test"), *asked(recorded, "train")]:
        goal, page = seen_parts({"goal": task.goal, "page": page_digest("")}, known)
        rows.append({"held_out": False, "seen_goal": goal, "seen_page": page, "success": False, "panel": task.id})
    count = len(UNSEEN_KINDS) * 50
    assert split_seen(rows[:count]) | {"unseen_episodes": 0} == dict.fromkeys(split_seen(rows), 0)
    assert split_seen(rows[:count])["unseen_episodes"] == count and split_seen(rows[count:])["seen_episodes"] == 2 * count


def test_too_few_goals_are_an_error(recorded):
    with pytest.raises(PanelError, match="goals of enter-text .*read more goals"):
        make_unseen_panels([task for task in recorded.values() if task.kind == "enter-text"][:150])


def test_the_unseen_suite_differs_in_its_panels_alone():
    unseen, plain = MiniWobUnseen(), MiniWobSuite()
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["dreamgym.suites"][unseen.name] == "dreamgym.suites.miniwob:MiniWobUnseen"
    assert unseen.panel("held_out") == plain.panel("held_out") and unseen.playable()
    assert plain.panel_hash() == "d9f4cad59701953e9ba1bc3dc00bfa6b0c9f12e1ecdcc15733bb9b14ac1ff85b"
    assert unseen.panel_hash() == "6a22fd94216910c2fa8564d21b2a0a7bdbb17fbbd6f5e80c178d311f06bf9856"
    for name in ("quick", "cpu", "gpu", "paper"):
        scale = Scale.named(name, **unseen.sizes(name))
        assert scale.source == "logs" and set(scale.kinds) <= set(UNSEEN_KINDS)
        assert scale.offline_seeds_per_kind + scale.start_seeds_per_kind <= 100, "first pages that no log has seen"
        needed = {t.task.kind: len(t) for t in sample_trajectories() if t.source == "oracle"}
        assert max(needed[kind] for kind in scale.kinds) < scale.maximum_steps


# ---------------------------------------------------------------- the suite


def test_the_suite_of_the_book():
    suite = load_suite("miniwob")
    assert isinstance(suite, MiniWobSuite) and isinstance(suite.grammar, PageGrammar) and suite.playable()
    assert suite.tasks("train", ["login-user"], 3, 10) == load_panel("train", ["login-user"], 3, 10)
    assert {t.kind for t in suite.panel("test")} == set(TRAINING_KINDS) and suite.packages == ("miniwob",)
    assert {t.kind for t in suite.panel("held_out")} == set(HELD_OUT_KINDS)
    tests = [t.id for name in ("test", "held_out") for t in suite.panel(name)]
    assert sorted(tests) == sorted(t.id for t in load_panel("test")), "the frozen test panel in two parts"
    ids = [t.id for name in ("train", "development", "test", "held_out") for t in suite.panel(name)]
    assert len(ids) == len(set(ids)) and len(suite.panel_hash()) == 64
    assert suite.panel_hash(["login-user"]) != suite.panel_hash(["enter-text"])
    assert complaint_of(suite.tasks, "train", ["click-test-2"]).startswith("The train panel of miniwob has no task type")


def complaint_of(action, *arguments) -> str:
    with pytest.raises(DreamgymError) as error:
        action(*arguments)
    return str(error.value)


def test_sizes_of_the_suite():
    for name in ("quick", "cpu", "gpu", "paper", "of one's own"):
        sizes = MiniWobSuite().sizes(name)
        assert {"kinds", "maximum_steps"} <= set(sizes) <= set(vars(Scale.named("quick")))
        assert Scale.named("quick", **sizes).source == "logs", "few users have an oracle"
        assert set(sizes["kinds"]) <= set(TRAINING_KINDS)


def test_the_suite_opens_as_many_browsers_as_it_is_told(monkeypatch):
    monkeypatch.setattr(miniwob, "start_chrome", lambda: pytest.fail("a browser was started"))
    with MiniWobSuite().environment(2, 5) as environment:
        assert isinstance(environment, MiniWobBatch) and environment.real
        assert (len(environment.browsers), environment.maximum_steps) == (2, 5)


def test_a_missing_browser_is_what_the_suite_lacks(monkeypatch):
    monkeypatch.delenv("DREAMGYM_BROWSER", raising=False)
    monkeypatch.setattr(miniwob, "_NAMES", (sys.executable,))
    assert MiniWobSuite().missing() == []
    monkeypatch.setattr(miniwob, "_NAMES", ("no-such-browser",))
    (sentence,) = MiniWobSuite().missing()
    assert "apt-get install -y chromium" in sentence


def test_the_oracle_of_the_suite_says_nothing_where_it_knows_no_way():
    suite, task = MiniWobSuite(), make_task("click-button", 1).model_copy(update={"goal": 'Click on the "ok" button.'})
    assert suite.oracle(task, "[1] button 'no'\n[2] button 'ok'", ()) == "click 2"
    for state in ("[1] button 'no'", "", END_STATE, FAILURE_STATE):
        assert suite.oracle(task, state, ()) is None


WORDS = st.text(st.characters(codec="utf-8"), max_size=9).map(lambda text: " ".join(text.split()))
FORMS = st.builds(Element, st.integers(0, 9999), st.sampled_from(["button", "input", "textarea", "select"]), WORDS,
                  st.none(), st.lists(WORDS, max_size=3).map(tuple))


@given(st.lists(FORMS, max_size=4, unique_by=lambda e: e.id), WORDS, st.integers(0, 99))
def test_random_play_is_always_valid(elements, goal, seed):
    page, task = render_state(elements), make_task("a", 0).model_copy(update={"goal": goal})
    action = MiniWobSuite().random_action(task, page, np.random.default_rng(seed))
    assert (action is None) == (not elements)
    if action is not None:
        PageGrammar().check_action(action, page)


def test_random_play_clicks_chooses_and_types():
    random, page = np.random.default_rng(0), "[1] button 'Go'\n[2] input ''\n[3] select 'a' of 'a' | 'b'\ntext no"
    task = make_task("a", 0).model_copy(update={"goal": "Enter it's-me, please."})
    drawn = {random_page_action(task, page, random) for _ in range(400)}
    assert drawn == {"click 1", "click 2", "click 3", "select 3 a", "select 3 b", "type 2 Enter", "type 2 it's-me",
                     "type 2 please"}


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
    assert real.differences == []


@browser_test
def test_recorded_episodes_happen_again(real):
    "The committed sample, step by step: pages depend on the seed and the actions alone, on every machine."
    sample = [t for t in sample_trajectories() if t.task.seed == 0]
    plans = [[s.action for s in t.transitions] for t in sample]
    again = play_episodes(real, [make_task(t.task.kind, t.task.seed) for t in sample],
                          lambda i, task, page, past: plans[i][len(past)] if len(past) < len(plans[i]) else None)
    different = [old.task.id for old, new in zip(sample, again, strict=True)
                 if (old.task, old.transitions) != (new.task, new.transitions)]
    assert different == [] and real.differences == []


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
    assert [b.starts for b in real.browsers] == [n + 1 for n in starts] and real.differences == []


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


def be_impatient(driver, seconds: float = 3.0) -> None:
    driver.command_executor.client_config.timeout = seconds
    driver.set_script_timeout(0.8 * seconds)
    driver.set_page_load_timeout(0.8 * seconds)


@browser_test
@pytest.mark.parametrize("which", ["chrome", "driver", "all"])
def test_a_stopped_browser_is_replaced_and_its_episode_repeated(which, monkeypatch):
    "Stopped, not dead: it never answers, and it cannot be asked to quit."
    monkeypatch.setattr(miniwob, "_FAREWELL", 1.0)
    with MiniWobBatch(browsers=1) as environment:
        task = environment.reset_batch([make_task("login-user", 1)])[0]
        page, driver = task.start_state, environment.browsers[0].driver
        group = driver.service.process.pid
        for step in range(3):
            if step == 1:
                be_impatient(driver)  # with a browser that never answers, and no other: a busy machine may be slow
                stop = os.killpg if which == "all" else os.kill
                stop(driver.capabilities["goog:processID"] if which == "chrome" else group, signal.SIGSTOP)
            start = time.monotonic()
            result = environment.step_batch([oracle_action(task.kind, task.goal, page)])[0]
            assert time.monotonic() - start < 110  # selenium itself waits for two minutes
            page = result[0]
        assert result[:3] == (END_STATE, 1.0, True)
        assert (environment.transitions, environment.browsers[0].starts, environment.differences) == (3, 2, [])
        assert not living(group) and not os.path.exists(driver.profile)


@browser_test
@pytest.mark.parametrize("which", ["chrome", "driver"])
def test_a_stopped_browser_can_be_quit(which, monkeypatch):
    monkeypatch.setattr(miniwob, "_FAREWELL", 1.0)
    driver = start_chrome()
    group = driver.service.process.pid
    os.kill(driver.capabilities["goog:processID"] if which == "chrome" else group, signal.SIGSTOP)
    start = time.monotonic()
    quit_chrome(driver)
    assert time.monotonic() - start < 110 and not os.path.exists(driver.profile)
    assert not living(group)


def test_a_command_has_half_a_minute():
    assert miniwob._PATIENCE + miniwob._FAREWELL <= 30


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
    assert time.monotonic() - start < 110 and list(folder.iterdir()) == []
    assert all(os.environ[name] == "http://127.0.0.1:9" for name in PROXIES), "the user's own variables stay"


@browser_test
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks for processes in /proc")
def test_no_browser_outlives_its_python(tmp_path):
    program = ("import os, signal\nfrom dreamgym.environments import make_task\nfrom dreamgym.suites.miniwob import Browser\n"
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

    deadline = time.monotonic() + 120
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
@pytest.mark.slow
def test_real_pages_ask_what_was_recorded(real, recorded):
    suite = MiniWobUnseen()
    tasks = [task for name in ("train", "development", "test") for task in suite.tasks(name, UNSEEN_KINDS, 2, 17)]
    episodes = play_episodes(real, tasks, oracle, "oracle")
    assert [t.task.goal for t in episodes] == [recorded[task.id].goal for task in tasks]
    assert np.mean([t.success for t in episodes]) >= 0.9
    kept = [any(map(kept_for_test, goal_words(t.task.goal))) for t in episodes[-len(UNSEEN_KINDS) * 2:]
            if t.task.kind in ("enter-text", "login-user", "click-link")]
    assert len(kept) == 6 and all(kept)


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
                        parallel=1, source="oracle")
    run = Run.open(tmp_path / "run", scale, 0)
    path = offline_data(run)
    starts = start_tasks(run)
    stamp = path.stat().st_mtime_ns
    assert offline_data(run) == path and path.stat().st_mtime_ns == stamp and start_tasks(run) == starts
    assert [t.id for t in starts] == ["click-button/2", "click-button/3"] and all(t.goal and t.start_state for t in starts)
    assert run.metrics()["offline"]["trajectories"] == 4
