"The script that trains an agent in an environment of its own: README.md and the book show the same one, and it learns."

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

from dreamgym.environments import BatchEnvironment, BatchOf, make_task, play_episodes
from dreamgym.suites.miniwob import MiniWobBatch, MiniWobEnvironment, _Episode
from dreamgym.trajectories import DreamgymError, read_trajectories, write_trajectories

ROOT = Path(__file__).parent.parent


def script() -> str:
    "The code between the marks in README.md."
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- library -->")[1].split("<!-- /library -->")[0]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1].strip()


def test_readme_and_book_show_the_same_short_script():
    notebook = json.loads((ROOT / "nbs" / "24_training_loop.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    shown = [cell.removeprefix("#| eval: false\n") for cell in cells if cell.startswith("#| eval: false\n")]
    assert "\n\n\n".join(shown) == script()  # imports stand in a cell of their own
    assert len([line for line in script().splitlines() if line.strip()]) < 30


def guest(reset=("[1] button 'Go'", {"goal": "Go."}), step=("(end)", 1.0, True, False, {})):
    "A batch of one environment that returns what it is told to."
    class Guest:
        def reset(self, seed, options):
            return reset

        def step(self, action):
            return step

    return BatchOf(Guest)


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
    (PAGE, "must return (page, info)"), ((1, {}), "a page as text"), (("<p>Go</p>", {}), "cannot be read"),
    ((PAGE, None), "must return (page, info)"), ((PAGE, [("goal", "Go.")]), "must return (page, info)"),
    ((PAGE,), "must return (page, info)"), ([PAGE, {}], "must return (page, info)"), (None, "must return (page, info)"),
    ((None, {}), "a page as text, not NoneType"), ((f"text {HALF}", {}), "a page as text that UTF-8 can hold"),
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
    (END[:3], "must return (page, reward"), (END[:4], "must return (page, reward"), ((*END, 1), "must return (page, reward"),
    (list(END), "must return (page, reward"), (None, "must return (page, reward"), ((*END[:4], None), "must return (page"),
    (("(end)", 0.5, True, False, {}), "returned reward 0.5"), ((PAGE, 1.0, False, False, {}), "terminated=False"),
    (("(end)", float("nan"), True, False, {}), "returned reward nan"), (("(end)", "1", True, False, {}), "returned reward 1"),
    (("(end)", None, True, False, {}), "returned reward None"), (("(end)", -1, True, False, {}), "returned reward -1"),
    (("(end)", np.array([1, 0]), True, False, {}), "returned reward [1 0]"),
    (("(end)", 1.0, "False", False, {}), "returned terminated 'False'"), (("(end)", 1.0, True, None, {}), "truncated 'None'"),
    (("(end)", 1.0, np.array([True, True]), False, {}), "returned terminated"),
    ((None, 0.0, True, False, {}), "a page as text"), ((HALF, 0.0, True, False, {}), "a page as text that UTF-8"),
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
    assert "BatchOf.step_batch takes an action as text" in sentence and "go/7" in sentence
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
    (None, [None], "step_batch must return (page, reward"), (None, [END[:4]], "step_batch must return (page, reward"),
    (None, [(1, *END[1:])], "a page as text"), (None, [("x", 0.5, True, False, {})], "returned reward 0.5"),
    (None, [(HALF, 0, True, False, {})], "a page as text that UTF-8")])
def test_a_batch_of_ones_own_is_checked_before_anything_is_recorded(started, results, complaint):
    sentence = complaint_of(play_episodes, Loose(started, results), [TASK], lambda *_: "go on")
    assert complaint in sentence and "Loose." in sentence


def test_pages_of_a_batch_may_be_any_text():
    (played,) = play_episodes(Loose(results=[("more free text", np.float32(1), np.True_, False, {})]), [TASK], lambda *_: "go")
    assert played.success and played.transitions[0].state == "free text"


@pytest.mark.slow
def test_the_script_learns():
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(compile(script(), "README.md", "exec"), {"__name__": "script"})
    before, after = map(int, re.search(r"(\d+)% before, (\d+)% after", told.getvalue()).groups())
    assert after >= before + 20, told.getvalue()
