"The script that trains an agent in an environment of its own: README.md and the book show the same one, and it learns."

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from dreamgym.environments import BatchOf, make_task
from dreamgym.trajectories import DreamgymError

ROOT = Path(__file__).parent.parent


def script() -> str:
    "The code between the marks in README.md."
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- library -->")[1].split("<!-- /library -->")[0]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1].strip()


def test_readme_and_book_show_the_same_short_script():
    notebook = json.loads((ROOT / "nbs" / "11_training_loop.ipynb").read_text(encoding="utf-8"))
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


@pytest.mark.parametrize(("reset", "complaint"), [
    ("[1] button 'Go'", "must return (page, info)"), ((1, {}), "a page as text"), (("<p>Go</p>", {}), "cannot be read"),
    (("[1] button 'Go'", None), "must return (page, info)")])
def test_a_wrong_reset_is_explained(reset, complaint):
    with pytest.raises(DreamgymError, match=re.escape(complaint)):
        guest(reset=reset).reset_batch([make_task("go", 0)])


@pytest.mark.parametrize(("step", "complaint"), [
    (("(end)", 1.0, True), "must return (page, reward"), (("(end)", 0.5, True, False, {}), "returned reward 0.5"),
    (("[1] button 'Go'", 1.0, False, False, {}), "terminated=False"), ((None, 0.0, True, False, {}), "a page as text")])
def test_a_wrong_step_is_explained(step, complaint):
    batch = guest(step=step)
    batch.reset_batch([make_task("go", 0)])
    with pytest.raises(DreamgymError, match=re.escape(complaint)):
        batch.step_batch(["click 1"])


@pytest.mark.slow
def test_the_script_learns():
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        exec(compile(script(), "README.md", "exec"), {"__name__": "script"})
    before, after = map(int, re.search(r"(\d+)% before, (\d+)% after", told.getvalue()).groups())
    assert after >= before + 20, told.getvalue()
