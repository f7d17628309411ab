"The curriculum: the value of a task, strict parsing of invented tasks, their judgement, and the cap."

import numpy as np
import pytest

from dreamgym.curriculum import (
    balanced,
    choose_seed_tasks,
    judge_variations,
    kind_values,
    mix_tasks,
    parse_variation,
    reward_variance,
    structural_problem,
    task_values,
)
from dreamgym.environments import Grammar, StateError
from dreamgym.pages import PageGrammar, parse_state
from dreamgym.trajectories import DreamgymError, Task

PAGES = PageGrammar()
PARENT = Task(id="click-button/7", kind="click-button", seed=7, goal='Click on the "Ok" button.',
              start_state="[1] button 'Ok'\n[2] button 'No'\ntext lorem ipsum")
LOGIN = Task(id="login-user/3", kind="login-user", seed=3,
             goal='Enter the username "vina" and the password "US" into the text fields and press login.',
             start_state="text Username\n[1] input ''\ntext Password\n[2] password ''\n[3] button 'Login'")
LIST = Task(id="choose-list/1", kind="choose-list", seed=1, goal="Select Dora from the list and click Submit.",
            start_state="[1] select 'Ada' of 'Ada' | 'Dora'\n[2] button 'Submit'")
BOXES = Task(id="click-checkboxes/1", kind="click-checkboxes", seed=1, goal="Select a and click Submit.",
             start_state="[1] checkbox 'a' off\n[2] checkbox 'b' off\n[3] button 'Submit'")
FIELDS = Task(id="focus-text-2/1", kind="focus-text-2", goal="Focus into the 3rd input textbox.",
              start_state="[1] input ''\n[2] input ''\n[3] input ''")
GOOD = "Click on the \"Yes\" button.\nPage:\n[1] button 'Later'\n[2] button 'Yes'\ntext dolor"


def real(kind, count):
    return [Task(id=f"{kind}/{i}", kind=kind, seed=i) for i in range(count)]


# ---------------------------------------------------------------- values


def test_the_value_is_the_population_variance():
    random = np.random.default_rng(0)
    for _ in range(200):
        rewards = random.integers(0, 2, size=random.integers(1, 30)).tolist()
        value, share = reward_variance(rewards), np.mean(rewards)
        assert value == pytest.approx(np.var(rewards)) == pytest.approx(share * (1 - share))
        assert 0 <= value <= 0.25, "no threshold above 0.25 can select anything"
    assert isinstance(reward_variance((1, 0)), float)
    with pytest.raises(DreamgymError, match="at least one rollout"):
        reward_variance([])


def test_values_are_taken_task_by_task():
    rollouts = [("a", 1.0), ("b", 0.0), ("a", 0.0), ("b", 0.0)]
    assert task_values(rollouts) == {"a": 0.25, "b": 0.0} and task_values([]) == {}


def test_seed_tasks_are_the_most_undecided():
    values = {"c": 0.25, "a": 0.25, "b": 0.2, "low": 0.05, "zero": 0.0}
    assert choose_seed_tasks(values, 10) == ["a", "c", "b"], "ties by name, so that runs repeat"
    assert choose_seed_tasks(values, 1) == ["a"] and choose_seed_tasks(values, 0) == []
    assert choose_seed_tasks(values, 10, 0.25) == ["a", "c"] and choose_seed_tasks({}, 3) == []


# ---------------------------------------------------------------- parsing


def test_a_variation_hangs_on_the_real_task():
    task = parse_variation(f"  {GOOD}\n", PARENT, "a1", PAGES)
    assert (task.id, task.parent, task.kind, task.seed) == ("click-button/7~a1", "click-button/7", "click-button", 7)
    assert task.synthetic and task.goal == 'Click on the "Yes" button.' and len(parse_state(task.start_state)) == 3
    assert parse_variation(GOOD, task, "b2", PAGES).id == "click-button/7~b2"


@pytest.mark.parametrize("text", [
    "", "Page:", "Click it.", "Click it.\nPage:", "\nPage:\n[1] button 'x'", "One.\nTwo.\nPage:\n[1] button 'x'",
    "Click it.\nPage:\n<b>x</b>", "Click it.\nPage:\n[1] button x", "Click it.\nPage:\n[1] button 'x'\n\n[2] button 'y'",
    "Click it.\nPage:\n[1] button 'x'\n[1] button 'y'", "Click it.\nPage: [1] button 'x'",
])
def test_what_is_no_task_is_refused(text):
    with pytest.raises(StateError):
        parse_variation(text, PARENT, "x", PAGES)


def test_any_text_is_parsed_or_refused():
    random = np.random.default_rng(1)
    letters = list("Pag:e\n\n[]1'\" bú→\t\0|") + ["\nPage:\n", "[1] button 'x'", "text a\n"]
    for _ in range(500):
        text = "".join(random.choice(letters, size=random.integers(0, 20)))
        try:
            task = parse_variation(text, PARENT, "x", PAGES)
        except StateError:
            continue
        assert task.goal and "\n" not in task.goal and parse_state(task.start_state) is not None


# ---------------------------------------------------------------- judging


@pytest.mark.parametrize("goal, page, problem", [
    ('Click on the "Yes" button.', "[1] button 'Yes'\n[2] button 'No'\ntext x", ""),
    (PARENT.goal, PARENT.start_state, "not new"),
    ('Click on the "Yes" button.', "text Yes", "nothing to act on"),
    ('Click on the "Yes" button.', "(end)", "nothing to act on"),
    ('Press the "Yes" button.', "[1] button 'Yes'\ntext x", "another type of task"),
    ('Click on the "Yes" button.', "[1] link 'Yes'\ntext x", "another kind of page"),
    ('Click on the "Maybe" button.', "[1] button 'Yes'\ntext x", "the page lacks what the goal names"),
])
def test_the_structure_is_checked(goal, page, problem):
    task = PARENT.model_copy(update={"id": "click-button/7~x", "goal": goal, "start_state": page})
    assert structural_problem(task, PARENT, grammar=PAGES) == problem


def test_names_that_the_page_never_shows_are_fine():
    other = LOGIN.model_copy(update={"goal": LOGIN.goal.replace("vina", "karrie").replace("US", "x1")})
    assert structural_problem(other, LOGIN, grammar=PAGES) == ""
    short = LOGIN.model_copy(update={"goal": 'Enter the username "vina" and press login.'})
    assert structural_problem(short, LOGIN, grammar=PAGES) == "another type of task"


@pytest.mark.parametrize("parent, goal, page", [
    (LIST, "Select Ada from the list and click Submit.", "[1] select 'Bo' of 'Ada' | 'Bo'\n[2] button 'Submit'"),
    (BOXES, "Select a, c and click Submit.", "[1] checkbox 'a' off\n[2] checkbox 'c' off\n[3] button 'Submit'"),
    (FIELDS, "Focus into the 2nd input textbox.", "[1] input ''\n[2] input ''"),
])
def test_other_names_lists_and_places_are_the_same_type(parent, goal, page):
    task = parent.model_copy(update={"id": f"{parent.id}~x", "goal": goal, "start_state": page})
    assert structural_problem(task, parent, grammar=PAGES) == ""


def test_known_tasks_are_not_new():
    task = parse_variation(GOOD, PARENT, "x", PAGES)
    assert structural_problem(task, PARENT, {(task.goal, task.start_state)}, PAGES) == "not new"


def test_judging_tries_out_the_survivors_only():
    tried = []

    def try_out(tasks):
        tried.extend(task.id for task in tasks)
        return ["every click fails"] * len(tasks)

    judged = judge_variations([GOOD, "nonsense", GOOD], [PARENT] * 3, try_out, seed=4, grammar=PAGES)
    assert [j.problem.split(" ")[0] for j in judged] == ["every", "An", "not"]
    assert judged[1].task is None and [j.text for j in judged] == [GOOD, "nonsense", GOOD]
    assert tried == [judged[0].task.id]
    assert judge_variations([GOOD], [PARENT], seed=4, grammar=PAGES)[0].task == judged[0].task, "the seed decides the name"
    assert judge_variations([], []) == []
    with pytest.raises(ValueError):
        judge_variations([GOOD], [])


def test_a_world_of_free_text_takes_any_new_task_with_a_first_state():
    maze = Task(id="maze/1", kind="maze", seed=1, goal="Find the way out.", start_state="A hall.\nDoors lead north and east.")
    text = "Find the lamp.\nPage:\nA cellar.\nIt is dark."
    task = parse_variation(text, maze, "x")
    assert (task.goal, task.start_state, task.parent) == ("Find the lamp.", "A cellar.\nIt is dark.", "maze/1")
    same = f"{maze.goal}\nPage:\n{maze.start_state}"
    assert [j.problem for j in judge_variations([text, same, text, "nonsense"], [maze] * 4)][:3] == ["", "not new", "not new"]
    assert structural_problem(task.model_copy(update={"start_state": ""}), maze) == "no first state"

    class Dry(Grammar):
        def variation_problem(self, task, parent):
            return "too dark" if "dark" in task.start_state else ""

    assert judge_variations([text], [maze], grammar=Dry())[0].problem == "too dark"


# ---------------------------------------------------------------- mixing


def test_the_cap_holds_for_all_sizes():
    random = np.random.default_rng(2)
    invented = [Task(id=f"a/0~{i}", kind="a", synthetic=True, parent="a/0") for i in range(12)]
    pool = real("a", 9) + real("b", 3)
    for trial in range(400):
        share, count = float(random.choice([0, 0.2, 0.5, 0.9, 1, random.random()])), int(random.integers(0, 12))
        mixture = mix_tasks(pool[: random.integers(0, 13)], invented[: random.integers(0, 13)], count, share, trial)
        assert sum(t.synthetic for t in mixture) <= share * len(mixture) + 1e-9 and len(mixture) <= count
        assert len({t.id for t in mixture}) == len(mixture)


def test_the_cap_is_used_up():
    invented = [Task(id=f"a/0~{i}", kind="a", synthetic=True, parent="a/0") for i in range(5)]
    assert sum(t.synthetic for t in mix_tasks(real("a", 20), invented, 10, 0.2)) == 2
    assert sum(t.synthetic for t in mix_tasks(real("a", 20), invented, 10, 0.3)) == 3
    assert len(mix_tasks(real("a", 20), [], 10, 0.3)) == 10
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(DreamgymError, match="between 0 and 1"):
            mix_tasks([], [], 3, share)


def test_mixing_depends_on_the_seed_only():
    first, again, other = (mix_tasks(real("a", 30), [], 10, 0.2, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_drawing_is_balanced_over_task_types():
    drawn = balanced(real("a", 20) + real("b", 2) + real("c", 20), 11, np.random.default_rng(0))
    counts = {kind: sum(t.kind == kind for t in drawn) for kind in "abc"}
    assert counts["b"] == 2 and sorted(counts.values()) == [2, 4, 5] and len({t.id for t in drawn}) == 11
    assert balanced([], 3, np.random.default_rng(0)) == []
    assert len(balanced(real("a", 2), 5, np.random.default_rng(0))) == 2


def test_goals_of_a_type_take_turns():
    goals = ["OK"] * 12 + ["Cancel"] * 3 + ["x"] * 3
    pool = [t.model_copy(update={"goal": goal}) for t, goal in zip(real("a", 18), goals, strict=True)]
    for seed in range(20):
        drawn = [t.goal for t in balanced(pool, 6, np.random.default_rng(seed))]
        assert sorted(drawn[:3]) == sorted(drawn[3:]) == ["Cancel", "OK", "x"]
    assert len(balanced(pool, 18, np.random.default_rng(0))) == 18


def test_types_that_teach_more_are_drawn_more():
    pool = real("a", 20) + real("b", 20) + real("c", 20)
    drawn = balanced(pool, 12, np.random.default_rng(0), {"a": 0.3, "b": 0.2, "c": 0.1})
    assert [sum(t.kind == kind for t in drawn) for kind in "abc"] == [6, 4, 2]
    alike = balanced(pool, 12, np.random.default_rng(0), dict.fromkeys("abc", 0.1))
    assert alike == balanced(pool, 12, np.random.default_rng(0))
    assert len(balanced(real("a", 1) + real("b", 9), 8, np.random.default_rng(0), {"a": 9.0, "b": 1.0})) == 8


def test_values_of_types_follow_what_was_played_last():
    tasks, values = real("a", 2) + real("b", 1), {"a/0": 0.25, "a/1": 0.15, "b/0": 0.0}
    assert kind_values(tasks, values) == pytest.approx({"a": 0.2, "b": 0.0})
    assert kind_values(tasks, values, {"a": 0.0, "c": 0.1}) == pytest.approx({"a": 0.1, "b": 0.0, "c": 0.1})
    assert kind_values(tasks, values, {"a": 0.1}, memory=0.0)["a"] == pytest.approx(0.2)
    before = {"a": 0.1}
    kind_values(tasks, values, before)
    assert before == {"a": 0.1}, "what is handed in stays as it was"


def test_no_type_is_forgotten_by_the_mixture():
    pool = real("a", 30) + real("b", 30) + real("c", 30)
    mixture = mix_tasks(pool, [], 16, 0.2, 0, {"a": 0.25, "b": 0.0})
    counts = [sum(t.kind == kind for t in mixture) for kind in "abc"]
    assert 1 <= counts[1] < 4 and abs(counts[0] - counts[2]) <= 1, "an unknown type counts as one that teaches"
    assert mix_tasks(pool, [], 9, 0.2, 0, {}) == mix_tasks(pool, [], 9, 0.2, 0)
    mixture = mix_tasks(pool, [], 15, 0.2, 0, {"a": 0.25, "b": 0.0}, smallest=0.25)
    assert [sum(t.kind == kind for t in mixture) for kind in "abc"] == [5, 5, 5], "all count alike"


# ---------------------------------------------------------------- texts that were cut


def test_a_text_that_was_cut_off_is_no_task():
    judged = judge_variations([GOOD, None, GOOD], [PARENT] * 3, lambda tasks: [""] * len(tasks), seed=4, grammar=PAGES)
    assert [j.problem for j in judged] == ["", "cut off at its token limit", "not new"]
    assert judged[1] == (None, "cut off at its token limit", "")
    assert judge_variations([GOOD] * 2, [PARENT] * 2, seed=4, grammar=PAGES)[0].task == judged[0].task, "names of the others stay"
