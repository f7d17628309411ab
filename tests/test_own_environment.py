"Environments and logs of one's own: README's script, suites around them, importers, and what is told about mistakes."

import contextlib
import io
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from test_replay_buffer import HashEmbedder

from dreamgym import experience_model, experiments, replay_buffer, runs
from dreamgym.environments import (
    BatchEnvironment,
    BatchOf,
    Grammar,
    make_task,
    play_episodes,
    start_tasks,
    suite_of,
)
from dreamgym.pages import PageGrammar, sample_trajectories
from dreamgym.rollouts import to_learn_from
from dreamgym.runs import load_suite
from dreamgym.suites import own
from dreamgym.suites.miniwob import MiniWobBatch, MiniWobEnvironment, _Episode
from dreamgym.suites.own import OwnSuite, RecordedSuite, import_trajectories, split_tasks, tasks_of, write_imported
from dreamgym.trajectories import DreamgymError, read_trajectories, write_trajectories

ROOT = Path(__file__).parent.parent


def readme_section() -> str:
    "What stands between the marks in README.md."
    return (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- library -->")[1].split("<!-- /library -->")[0]


def scripts(text: str) -> list[str]:
    "The blocks of Python in a text of Markdown."
    return [block.strip() for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


def script() -> str:
    "The first code between the marks in README.md."
    return scripts(readme_section())[0]


def test_readme_and_book_show_the_same_short_scripts():
    notebook = json.loads((ROOT / "nbs" / "30_own_environment.ipynb").read_text(encoding="utf-8"))
    (cell,) = [text for cell in notebook["cells"] if "run_method(suite" in (text := "".join(cell["source"]))]
    assert scripts(cell) == scripts(readme_section())
    lines = [len([line for line in text.splitlines() if line.strip()]) for text in scripts(cell)]
    assert len(lines) == 2 and lines[0] < 40 and lines[1] <= 3


def test_the_script_goes_through_the_whole_method(tiny_model_folder, tmp_path, monkeypatch):
    "With a tiny model and few tasks; what it prints is the table."
    small = dict(model=str(tiny_model_folder), lora_rank=2, offline_seeds_per_kind=4, log_episodes=1, imitation_epochs=1,
                 warm_start_epochs=1, fewest_demonstrations=2, experience_token_budget=2000, judgement_examples=2,
                 variation_examples=2, iterations=1, tasks_per_iteration=2, group_size=2, test_per_kind=3,
                 development_per_kind=2, transfer_share=4.0, transfer_group_size=2)
    whole = experiments.run_method
    monkeypatch.setattr(experiments, "run_method", lambda suite, **sizes: whole(suite, **sizes | small))
    monkeypatch.setenv("DREAMGYM_RUNS", str(tmp_path))
    for module in (experience_model, replay_buffer):
        monkeypatch.setattr(module, "Embedder", HashEmbedder)
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(compile(script(), "README.md", "exec"), {"__name__": "script"})
    for agent in experiments.PLAIN:
        assert re.search(rf"^{agent} .* 3  *\d of \d  *real ", told.getvalue(), re.M), told.getvalue()
    assert (tmp_path / "cafe-quick-0" / "gate_after.json").exists()


def guest(reset=("[1] button 'Go'", {"goal": "Go."}), step=("(end)", 1.0, True, False, {})):
    "A batch of one environment that returns what it is told to."
    class Guest:
        def reset(self, seed, options):
            return reset

        def step(self, action):
            return step

    return BatchOf(Guest, grammar=PageGrammar())


def test_a_goal_in_the_info_is_enough():
    started = guest().reset_batch([make_task("go", 0)])
    assert (started[0].goal, started[0].start_state) == ("Go.", "[1] button 'Go'")


PAGE = "[1] button 'Go'"
HALF = "half \ud83d"  # of a surrogate pair: no file in UTF-8 can hold it
TASK = make_task("go", 7)


def complaint_of(action, *arguments) -> str:
    "The one sentence of the error that a call raises."
    with pytest.raises(DreamgymError) as error:
        action(*arguments)
    sentence = str(error.value)
    assert "\n" not in sentence and ". " not in sentence.removesuffix("."), sentence
    sentence.encode()
    return sentence


@pytest.mark.parametrize(("reset", "complaint"), [
    (PAGE, "must return (state, info)"), ((1, {}), "a state as text"), (("<p>Go</p>", {}), "cannot be read"),
    ((PAGE, None), "must return (state, info)"), ((PAGE, [("goal", "Go.")]), "must return (state, info)"),
    ((PAGE,), "must return (state, info)"), ([PAGE, {}], "must return (state, info)"), (None, "must return (state, info)"),
    ((None, {}), "a state as text, not NoneType"), ((f"text {HALF}", {}), "a state as text that UTF-8 can hold"),
    ((PAGE, {"goal": None}), "a goal as text, not NoneType"), ((PAGE, {"goal": 3}), "a goal as text, not int"),
    ((PAGE, {"goal": HALF}), "a goal as text that UTF-8 can hold"), ((PAGE, {"goal": b"Go."}), "a goal as text, not bytes"),
    ((PAGE, {"task": "go/7"}), "a Task into info['task'], not str"), ((PAGE, {"task": {}}), "a Task into info['task']"),
    ((PAGE, {"task": None}), "a Task into info['task'], not NoneType"),
    ((PAGE, {"task": TASK.model_copy(update={"goal": None})}), "a goal as text, not NoneType"),
    ((PAGE, {"task": TASK.model_copy(update={"parent": HALF})}), "a parent as text that UTF-8 can hold"),
    ((PAGE, {"task": TASK.model_copy(update={"seed": 1.5})}), "a whole number as seed")])
def test_a_wrong_reset_is_explained(reset, complaint):
    batch = guest(reset=reset)
    sentence = complaint_of(batch.reset_batch, [TASK])
    assert complaint in sentence and "Guest.reset" in sentence and "go/7" in sentence
    assert "reset first" in complaint_of(batch.step_batch, ["click 1"])


END = ("(end)", 1.0, True, False, {})


@pytest.mark.parametrize(("step", "complaint"), [
    (END[:3], "must return (state, reward"), (END[:4], "must return (state, reward"), ((*END, 1), "must return (state, reward"),
    (list(END), "must return (state, reward"), (None, "must return (state, reward"), ((*END[:4], None), "must return (state"),
    (("(end)", 1.5, True, False, {}), "returned reward 1.5"), ((PAGE, 1.0, False, False, {}), "terminated=False"),
    (("(end)", float("nan"), True, False, {}), "returned reward nan"), (("(end)", "1", True, False, {}), "returned reward 1"),
    (("(end)", None, True, False, {}), "returned reward None"), (("(end)", -1, True, False, {}), "returned reward -1"),
    (("(end)", np.array([1, 0]), True, False, {}), "returned reward [1 0]"),
    (("(end)", 1.0, "False", False, {}), "returned terminated 'False'"), (("(end)", 1.0, True, None, {}), "truncated 'None'"),
    (("(end)", 1.0, np.array([True, True]), False, {}), "returned terminated"),
    ((None, 0.0, True, False, {}), "a state as text"), ((HALF, 0.0, True, False, {}), "a state as text that UTF-8"),
    (("<p>", 0.0, False, False, {}), "cannot be read")])
def test_a_wrong_step_is_explained(step, complaint):
    batch = guest(step=step)
    batch.reset_batch([TASK])
    sentence = complaint_of(batch.step_batch, ["click 1"])
    assert complaint in sentence and "Guest.step" in sentence and "go/7" in sentence


@pytest.mark.parametrize("action", [3, b"click 1", HALF, ["click 1"]])
def test_a_wrong_action_is_explained(action):
    batch, real = guest(), MiniWobBatch(browsers=1)
    batch.reset_batch([TASK])
    assert "go/7" in complaint_of(batch.step_batch, [action]) and batch.transitions == 0
    sentence = complaint_of(play_episodes, batch, [TASK], lambda *_: action)
    assert "Guest.step_batch takes an action as text" in sentence and "go/7" in sentence
    real.episodes = [_Episode(TASK)]
    assert "MiniWobBatch.step_batch takes an action as text" in complaint_of(real.step_batch, [action])


def test_a_step_before_a_reset_and_a_wrong_number_of_actions():
    batch = guest()
    assert "BatchOf.step_batch got 1 actions for 0 episodes: reset first" in complaint_of(batch.step_batch, ["click 1"])
    batch.reset_batch([TASK] * 2)
    for actions in ([], ["click 1"], ["click 1"] * 3):
        assert f"{len(actions)} actions for 2 episodes" in complaint_of(batch.step_batch, actions)
    assert "MiniWobBatch.step_batch got 1 actions" in complaint_of(MiniWobEnvironment().step, "click 1")


NUMBERS = [0, 1, 0.0, 1.0, True, False, *(kind(n) for kind in (np.int64, np.uint8, np.float32, np.float16, np.bool_)
                                           for n in (0, 1))]


@given(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS), st.sampled_from(NUMBERS), st.integers(0, 2**40))
def test_numbers_of_numpy_become_pythons(reward, ended, cut, seed):
    seed = np.int64(seed)
    batch = guest(step=("(end)" if ended else PAGE, reward if ended else 0, ended, cut, {}))
    played = play_episodes(batch, [make_task("go", seed)], lambda i, task, page, past: None if past else "click 1")
    (step,) = played[0].transitions
    assert (type(step.reward), type(step.done), type(played[0].truncated)) == (float, bool, bool)
    assert (step.reward, step.done) == (float(reward if ended else 0), bool(ended))
    with tempfile.TemporaryDirectory() as folder:
        write_trajectories(Path(folder) / "one.jsonl", played)
        assert read_trajectories(Path(folder) / "one.jsonl") == played
    assert played[0].task.seed == int(seed) and type(played[0].task.seed) is int


@pytest.mark.parametrize("seed", [True, np.bool_(True), 1.0, np.float64(1), "1", None, float("nan")])
def test_a_seed_is_a_whole_number(seed):
    assert "a whole number as a seed of go" in complaint_of(make_task, "go", seed)
    for kind in (np.int8, np.int64, np.uint32):
        assert make_task("go", kind(3)) == make_task("go", 3)
        assert make_task(np.str_("go"), kind(3)).model_dump_json() == make_task("go", 3).model_dump_json()
    assert "a task type as text" in complaint_of(make_task, None, 3) and complaint_of(make_task, HALF, 3)


def test_the_first_page_is_the_one_that_reset_returned():
    given = TASK.model_copy(update={"goal": "Go.", "start_state": "[9] link 'old'"})
    (started,) = guest(reset=(PAGE, {"task": given})).reset_batch([TASK])
    assert started == given.model_copy(update={"start_state": PAGE})


class Loose(BatchEnvironment):
    "A batch of one's own that answers what it is told to."

    def __init__(self, started=None, results=None):
        self.started, self.results = started, results

    def reset_batch(self, tasks):
        return [t.model_copy(update={"start_state": "free text"}) for t in tasks] if self.started is None else self.started

    def step_batch(self, actions):
        return self.results


@pytest.mark.parametrize(("started", "results", "complaint"), [
    ([], None, "reset_batch must return one task for each of 1 tasks"), ([TASK] * 2, None, "one task for each of 1"),
    (["x"], None, "reset_batch must return a Task for each task, not str"),
    ([TASK.model_copy(update={"goal": HALF})], None, "reset_batch must return a goal as text"),
    (None, [], "step_batch must return one result for each of 1 actions"), (None, None, "one result for each of 1 actions"),
    (None, [None], "step_batch must return (state, reward"), (None, [END[:4]], "step_batch must return (state, reward"),
    (None, [(1, *END[1:])], "a state as text"), (None, [("x", 1.5, True, False, {})], "returned reward 1.5"),
    (None, [(HALF, 0, True, False, {})], "a state as text that UTF-8")])
def test_a_batch_of_ones_own_is_checked_before_anything_is_recorded(started, results, complaint):
    sentence = complaint_of(play_episodes, Loose(started, results), [TASK], lambda *_: "go on")
    assert complaint in sentence and "Loose." in sentence


def test_pages_of_a_batch_may_be_any_text():
    (played,) = play_episodes(Loose(results=[("more free text", np.float32(1), np.True_, False, {})]), [TASK], lambda *_: "go")
    assert played.success and played.transitions[0].state == "free text"


# ---------------------------------------------------------------- suites of one's own


class Echo:
    "Say the word of the goal."

    def reset(self, seed, options):
        self.word = f"word{seed}"
        return "Speak.", {"goal": options["task"].goal or f"Say {self.word}."}

    def step(self, action):
        return "(end)", float(action == self.word), True, False, {}


@given(st.lists(st.sampled_from("abcde"), max_size=40))
def test_panels_are_disjoint_whole_and_frozen(kinds):
    tasks = [make_task(kind, number) for number, kind in enumerate(kinds)]
    panels = split_tasks(tasks)
    assert sorted(t.id for part in panels.values() for t in part) == sorted(t.id for t in tasks)
    for kind in set(kinds):
        count = kinds.count(kind)
        per_panel = [sum(t.kind == kind for t in panels[name]) for name in ("train", "development", "test")]
        assert sum(per_panel) == count and (count < 3 or min(per_panel) >= 1)
        if count > 2:
            assert max(abs(n - share * count) for n, share in zip(per_panel, (0.6, 0.2, 0.2), strict=True)) < 1
    more = split_tasks([*tasks, make_task("z", 0)])
    assert all(set(part) <= set(more[name]) for name, part in panels.items() if all(kinds.count(t.kind) > 2 for t in part))


@pytest.mark.parametrize(("tasks", "ids"), [
    (3, ["own/0", "own/1", "own/2"]), (np.int64(2), ["own/0", "own/1"]),
    (["Say a word.", "Say no word."], ["own/0", "own/1"]), (["open", "open", "shut"], ["open/0", "open/1", "shut/0"]),
    ({"a": 2, "b": ["Say it."]}, ["a/0", "a/1", "b/0"]), ([TASK], ["go/7"]), ((), [])])
def test_tasks_are_taken_as_they_come(tasks, ids):
    assert [task.id for task in tasks_of(tasks, "own")] == ids


@pytest.mark.parametrize(("change", "complaint"), [
    ({"tasks": True}, "a number of seeds"), ({"tasks": "Say it."}, "a number of seeds"), ({"tasks": [3]}, "not '3'"),
    ({"tasks": None}, "a number of seeds"), ({"tasks": 1}, "no task in its test panel"), ({"tasks": 0}, "train panel"),
    ({"tasks": [TASK, TASK, TASK]}, "name each task once"), ({"tasks": {"train": 3, "test": 2}}, "stands in the panels train"),
    ({"tasks": [" "]}, "text of its goal"), ({"make": 3}, "what makes an environment"), ({"name": "logs.jsonl"}, "suite's name"),
    ({"name": "a/b"}, "suite's name"), ({"name": ""}, "suite's name"), ({"name": None}, "suite's name")])
def test_a_suite_that_cannot_be_is_told(change, complaint):
    assert complaint in complaint_of(lambda: OwnSuite(**{"make": Echo, "tasks": 9} | change))


def test_given_panels_are_kept_and_goals_travel():
    suite = OwnSuite(Echo, {"train": ["Say a.", "Say b."], "test": [TASK]}, name="echo")
    assert [t.goal for t in suite.tasks("train")] == ["Say a.", "Say b."] and suite.tasks("test") == [TASK]
    assert suite.tasks("development") == [] == suite.tasks("held_out")
    with suite.environment(3, 2) as world:
        assert [t.goal for t in world.reset_batch(suite.tasks("train"))] == ["Say a.", "Say b."]
        assert world.forgiving and world.real and world.capacity == 32


def test_small_panels_leave_first_states_for_the_dream():
    sizes = OwnSuite(Echo, 30, maximum_steps=5, sizes={"test_per_kind": 4}).sizes("quick")
    assert sizes == {"maximum_steps": 5, "offline_seeds_per_kind": 12, "start_seeds_per_kind": 6, "test_per_kind": 4}
    assert OwnSuite(Echo, 1000).sizes("quick") == {"maximum_steps": 8}


def test_a_type_with_few_tasks_starts_dreams_too(tmp_path):
    suite = OwnSuite(Echo, {"many": 60, "few": 4}, name="uneven")
    run = experiments.open_experiment(suite, run=str(tmp_path / "run"))
    kinds = [task.kind for task in start_tasks(run)]
    assert kinds.count("many") == 12 and kinds.count("few") == 2


def test_a_run_keeps_the_name_of_a_suite_and_another_process_is_told(tmp_path, monkeypatch):
    run = experiments.open_experiment(OwnSuite(Echo, 9, name="echo"), run=str(tmp_path / "run"), iterations=1)
    assert (run.suite, suite_of(run).name, run.scale.iterations) == ("echo", "echo", 1)
    monkeypatch.setattr(runs, "_SUITES", {})
    assert "one that a script made is known in that script alone" in complaint_of(suite_of, run)
    assert "installed suite" in complaint_of(experiments.suite_name, OwnSuite(Echo, 9, name="miniwob"))
    assert "is no suite but a int" in complaint_of(experiments.suite_name, 3)
    assert "no size named" in complaint_of(lambda: experiments.open_experiment(OwnSuite(Echo, 9, name="echo"), nothing=1))
    assert "no variant 'dreams'" in complaint_of(experiments.run_method, "echo", "quick", 0, ["dreams"])


def test_a_wave_that_is_lost_by_chance_does_not_end_the_run():
    class Moody(Echo):
        def step(self, action):
            if self.word > "word4":
                raise ConnectionError("away")
            return super().step(action)

    world, waves = BatchOf(Moody, forgiving=True), [(0, 1), (5, 6), (2, 3), (7, 8), (5, 6)]
    for number, wave in enumerate(waves):
        world.reset_batch([make_task("echo", n) for n in wave])
        if number < 4:
            results = world.step_batch(["word0"] * 2)
            assert ["broken" in result[4] for result in results] == [n > 4 for n in wave]
    assert "failed in all of 2 episodes" in complaint_of(world.step_batch, ["word0"] * 2)  # the second in turn
    first = BatchOf(Moody, forgiving=True)
    first.reset_batch([make_task("echo", n) for n in (5, 6)])
    assert "failed in all of 2 episodes" in complaint_of(first.step_batch, ["word0"] * 2)


# ---------------------------------------------------------------- logs from elsewhere

USER, ACTS = {"role": "user", "content": "What is 2 + 3?"}, {"role": "assistant", "content": "5"}
CHAT = {"messages": [USER, ACTS], "reward": 1, "goal": "Add."}
STEP = ["closed", "open it", 1.0, True, False, "open"]
STEPS = {"goal": "Open the door.", "steps": [["far", "walk", 0, False, False, "closed"], STEP]}


def imported(path, *records, form="auto", document=False):
    text = json.dumps(list(records)) if document else "\n".join(r if isinstance(r, str) else json.dumps(r) for r in records)
    path.write_text(text, encoding="utf-8")
    return import_trajectories(path, form)


@pytest.mark.parametrize("document", [False, True])
def test_all_forms_are_read_and_counted(tmp_path, document):
    (ours,) = play_episodes(BatchOf(Echo), [make_task("echo", 3)], lambda *_: "word3")
    taken, report = imported(tmp_path / "logs.json", CHAT, STEPS, json.loads(ours.model_dump_json()), document=document)
    assert [[(s.state, s.action, s.next_state, s.reward, s.done) for s in t.transitions] for t in taken] == [
        [("What is 2 + 3?", "5", "(end)", 1.0, True)],
        [("far", "walk", "closed", 0.0, False), ("closed", "open it", "open", 1.0, True)],
        [("Speak.", "word3", "(end)", 1.0, True)]]
    assert [t.task.goal for t in taken] == ["Add.", "Open the door.", "Say word3."] and taken[2] == ours
    assert report == (3, 4, 3, {"recorded": 2, "echo": 1}, [])
    assert imported(tmp_path / "one.json", json.dumps(CHAT, indent=1))[0] == taken[:1], "one record over many lines"


def chat(*messages, **record):
    return {"goal": "Add.", "reward": 1, "messages": list(messages)} | record


def call(name, arguments):
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {
        "name": name, "arguments": arguments}}]}


@pytest.mark.parametrize(("record", "states", "actions"), [
    (chat({"role": "system", "content": "Be brief."}, USER, ACTS), ["Be brief.\nWhat is 2 + 3?", "(end)"], ["5"]),
    (chat({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, ACTS),
     ["a\nb", "(end)"], ["5"]),
    (chat(USER, call("add", '{"a": 2}'), {"role": "tool", "content": "2"}, ACTS, {"role": "user", "content": "Thanks."}),
     ["What is 2 + 3?", "2", "Thanks."], ['{"name": "add", "arguments": {"a": 2}}', "5"]),
    (chat(USER, call("add", "2, 3"), ACTS), ["What is 2 + 3?", "(end)"], ['{"name": "add", "arguments": "2, 3"} 5']),
    (chat(USER, {"role": "assistant", "content": "Thought: easy.\r\n\nAction: 5"}), ["What is 2 + 3?", "(end)"],
     ["Thought: easy. Action: 5"]),
    (chat(USER, ACTS, USER, truncated=True, reward=0), ["What is 2 + 3?", "What is 2 + 3?"], ["5"])])
def test_conversations_vary(tmp_path, record, states, actions):
    ((trajectory,), report) = imported(tmp_path / "logs.jsonl", record)
    path = trajectory.transitions
    assert [path[0].state, *(s.next_state for s in path)] == states and [s.action for s in path] == actions
    assert trajectory.success is not trajectory.truncated and not report.refused


def test_names_of_steps_vary(tmp_path):
    first = {"obs": "far", "action": {"tool": "walk"}, "reward": 0, "done": False, "next_obs": "closed"}
    last = {"observation": "closed", "action": 3, "reward": True, "terminated": True}
    ((trajectory,), _) = imported(tmp_path / "logs.jsonl", {"task": "Open.", "steps": [first, last]})
    assert [s.action for s in trajectory.transitions] == ['{"tool": "walk"}', "3"] and trajectory.task.goal == "Open."
    del first["next_obs"], last["terminated"]
    ((trajectory,), _) = imported(tmp_path / "logs.jsonl", {"goal": "Open.", "task": "doors", "steps": [
        first, last | {"reward": 0, "next_observation": "open"}]})
    assert trajectory.truncated and trajectory.transitions[0].next_state == "closed" and trajectory.task.kind == "doors"


HALF_JSON = json.dumps(HALF)


@pytest.mark.parametrize(("record", "reason"), [
    ("{", "no JSON"), ("[" * 100_000, "nested too deeply"), ("3", "no episode"), ("null", "no episode"), ("[]", "no episode"),
    ('{"reward": NaN, "steps": []}', "NaN is no number"), ({"goal": "x"}, "no transitions or messages or steps"),
    (CHAT | {"reward": 3}, "reward is '3'"), (CHAT | {"reward": -1}, "reward is '-1'"), (CHAT | {"reward": "1"}, "reward is"),
    (CHAT | {"reward": None}, "reward is 'None'"), ('{"messages": [], "reward": 1e999}', "messages has no state"),
    (CHAT | {"messages": "hello"}, "messages is no list"), (CHAT | {"messages": [ACTS]}, "no state with an action"),
    (CHAT | {"messages": [ACTS, USER]}, "no state with an action"), (CHAT | {"messages": [USER]}, "no state with an action"),
    (CHAT | {"messages": [USER, "5"]}, "messages.1.role"), (CHAT | {"messages": [USER, {"role": "gpt"}]}, "messages.1.role"),
    (CHAT | {"messages": [USER, {"role": ["user"]}]}, "messages.1.role"),
    (CHAT | {"messages": [USER, {"role": "assistant", "content": " "}]}, "an assistant's turn is empty"),
    (CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ACTS]}, "messages.0.content.0 is no text"),
    (CHAT | {"messages": [USER, {"role": "assistant", "tool_calls": [3]}]}, "messages.1.tool_calls.0 names no function"),
    (CHAT | {"truncated": True, "reward": 0}, "last state of a truncated episode is missing"),
    (CHAT | {"messages": [USER, ACTS, USER], "truncated": True}, "a reward belongs to the last step only"),
    (CHAT | {"goal": HALF}, "goal holds half of a surrogate pair"),
    (CHAT | {"messages": [{"role": "user", "content": HALF}, ACTS]}, "messages.0.content holds half"),
    ({"steps": [STEP]}, "goal is missing"), (STEPS | {"steps": 3}, "steps is no list"), (STEPS | {"steps": []}, "no list of steps"),
    (STEPS | {"steps": [STEP[:5]]}, "steps.0 has not the values"), (STEPS | {"steps": [STEP, STEP]}, "is done but is not the last"),
    (STEPS | {"steps": [["a", "b", 0.5, False, False, "c"], STEP]}, "a reward belongs to the last step only"),
    (STEPS | {"steps": [["a", "b", 0, False, False, "c"], STEP]}, "does not start in the state"),
    (STEPS | {"steps": [["a", "b", 0, False, True, "closed"], STEP]}, "steps.0 is truncated but is not the last"),
    (STEPS | {"steps": [["a", "b", 0, "no", False, "c"]]}, "steps.0.terminated is 'no'"),
    (STEPS | {"steps": [[None, "b", 0, True, False, "c"]]}, "steps.0.state is missing"),
    (STEPS | {"steps": [["", "b", 0, True, False, "c"]]}, "first state is empty"),
    (STEPS | {"steps": [["a", "\n", 0, True, False, "c"]]}, "steps.0.action is empty"),
    (STEPS | {"steps": [["a", "b", 2, True, False, "c"]]}, "steps.0.reward is '2'"),
    (STEPS | {"steps": [{"state": "a", "action": "b", "done": True}]}, "steps.0.reward is 'None'"),
    ({"transitions": []}, "task: Field required"), (f'{{"goal": {HALF_JSON}, "transitions": [], "task": {{}}}}', ":")])
def test_what_is_no_episode_is_refused_by_place_and_reason(tmp_path, record, reason):
    taken, report = imported(tmp_path / "logs.jsonl", STEPS, "", record, CHAT)
    assert [t.task.goal for t in taken] == ["Open the door.", "Add."] and len(report.refused) == 1
    assert report.refused[0].place == "line 3" and reason in report.refused[0].reason
    assert "\n" not in report.refused[0].reason and len(report.refused[0].reason) < 400


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(
                        "goal task kind messages steps transitions role content reward success tool_calls truncated".split()),
                        inner, max_size=5), max_leaves=30)


@given(st.lists(JSON, min_size=1, max_size=4), st.booleans())
def test_no_json_raises(records, document):
    with tempfile.TemporaryDirectory() as folder:
        taken, report = imported(Path(folder) / "logs.json", *map(json.dumps, records)) if not document else imported(
            Path(folder) / "logs.json", *records, document=True)
        assert document or records == [[]] or len(taken) + len(report.refused) >= 1


@given(st.binary(max_size=300))
def test_no_bytes_raise(data):
    with tempfile.TemporaryDirectory() as folder:
        (path := Path(folder) / "logs.jsonl").write_bytes(data)
        assert import_trajectories(path)[0] == []


def test_long_lines_and_documents_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "LONGEST_LINE", 400)
    taken, report = imported(tmp_path / "logs.jsonl", STEPS, CHAT | {"goal": "x" * 2000}, CHAT)
    assert len(taken) == 2 and report.refused == [("line 2", "longer than 400 bytes")]
    monkeypatch.setattr(own, "LONGEST_DOCUMENT", 100)
    taken, report = imported(tmp_path / "logs.json", CHAT, document=True)
    assert taken == [] and "one episode a line" in report.refused[0].reason


def test_a_form_can_be_asked_for(tmp_path):
    taken, report = imported(tmp_path / "logs.jsonl", CHAT, STEPS, form="chat")
    assert len(taken) == 1 and report.refused == [("line 2", "no episode, because it has no messages")]
    assert "There is no form 'csv'" in complaint_of(import_trajectories, tmp_path / "logs.jsonl", "csv")
    assert "Cannot read" in complaint_of(import_trajectories, tmp_path / "nothing.jsonl")
    assert "Cannot read" in complaint_of(import_trajectories, tmp_path)


def test_imported_logs_are_written_whole_or_not_at_all(tmp_path):
    taken, report = imported(tmp_path / "logs.jsonl", CHAT, STEPS, "{")
    assert write_imported(tmp_path / "logs.jsonl", tmp_path / "ours.jsonl") == report
    assert read_trajectories(tmp_path / "ours.jsonl") == taken
    imported(tmp_path / "bad.jsonl", "{", "nothing")
    sentence = complaint_of(write_imported, tmp_path / "bad.jsonl", tmp_path / "ours.jsonl")
    assert "line 1: no JSON" in sentence and read_trajectories(tmp_path / "ours.jsonl") == taken
    (tmp_path / "bad.jsonl").write_text("")
    assert "it is empty" in complaint_of(write_imported, tmp_path / "bad.jsonl", tmp_path / "ours.jsonl")


def test_recordings_make_a_suite(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_SUITES", {})
    path, records = tmp_path / "logs.jsonl", [CHAT | {"goal": f"Add {n % 6}."} for n in range(12)]
    imported(path, *records, "{")
    with pytest.warns(UserWarning, match="1 records refused .first: line 13, no JSON"):
        suite = load_suite(str(path))
    assert [len(suite.tasks(name)) for name in ("train", "development", "test")] == [4, 1, 1]
    assert len(suite.recordings()) == 12 and len({t.task.id for t in suite.recordings()}) == 6
    assert not suite.playable() and suite.environment(1, 8) is None and type(suite.grammar) is Grammar
    assert suite.sizes("quick") == {"maximum_steps": 1, "offline_seeds_per_kind": 0}
    learned = {t.task.id for t in to_learn_from(suite, suite.recordings())}
    assert learned == {t.id for t in suite.tasks("train")}
    imported(path, CHAT, CHAT)
    assert "no task in its test panel" in complaint_of(RecordedSuite, path)


def test_a_copy_of_a_test_task_is_not_learned_from(tmp_path):
    "Another name, the same goal and first state."
    ours = play_episodes(BatchOf(Echo, real=True), [make_task(kind, n) for kind in ("a", "b") for n in range(6)], lambda *_: "word3")
    write_trajectories(tmp_path / "logs.jsonl", ours)
    suite = RecordedSuite(tmp_path / "logs.jsonl")
    tested = {t.goal for t in suite.tasks("test")}
    assert tested and not tested & {t.task.goal for t in to_learn_from(suite, suite.recordings())}
    write_trajectories(tmp_path / "logs.jsonl", [t.model_copy(update={"real": False}) for t in ours])
    assert "no real episode with a goal" in complaint_of(RecordedSuite, tmp_path / "logs.jsonl")


def test_recorded_pages_are_read_as_pages(tmp_path):
    write_trajectories(tmp_path / "pages.jsonl", sample_trajectories())
    suite = RecordedSuite(tmp_path / "pages.jsonl")
    assert isinstance(suite.grammar, PageGrammar) and suite.maximum_steps == max(map(len, sample_trajectories()))
    assert {t.kind for t in suite.tasks("test")} == {t.task.kind for t in sample_trajectories()}
