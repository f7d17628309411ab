"Budgets of real steps, and tables of results: what must hold whatever the agents do."

import csv
import json
from collections import Counter
from types import SimpleNamespace

import pytest

from dreamgym import sim_to_real as module
from dreamgym.rollouts import Rollout
from dreamgym.runs import Run, Scale
from dreamgym.sim_to_real import (
    AcrossSeeds,
    across_seeds,
    curve_rows,
    fidelity_rows,
    merge_rows,
    real_budget,
    rollouts_within,
    save_results,
    type_rows,
)
from dreamgym.trajectories import Task, Trajectory, Transition, atomic_write_json

KEYS = ("scale", "seed", "agent")
PAGE = "[1] button 'Go'"


def read(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def row(seed, agent, success, scale="quick", **more):
    return {"scale": scale, "seed": seed, "agent": agent, "success": success} | more


def test_rows_of_the_same_name_are_replaced_and_others_stay(tmp_path):
    path = tmp_path / "new" / "table.csv"
    merge_rows(path, [row(1, "dream", 0.5), row(0, "dream", 0.25)], KEYS)
    merge_rows(path, [row(1, "dream", 0.75), row(10, "real", 1.0), row(2, "dream", 0.0, "cpu")], KEYS)
    assert [(r["scale"], r["seed"], r["agent"], r["success"]) for r in read(path)] == [
        ("cpu", "2", "dream", "0.0"), ("quick", "0", "dream", "0.25"), ("quick", "1", "dream", "0.75"),
        ("quick", "10", "real", "1.0")]


def test_a_new_column_and_no_rows_lose_nothing(tmp_path):
    path = tmp_path / "table.csv"
    merge_rows(path, [row(0, "dream", 0.25)], KEYS)
    before = path.read_bytes()
    merge_rows(path, [], KEYS)
    assert path.read_bytes() == before
    merge_rows(path, [row(1, "dream", 0.5, minutes=9.5)], KEYS)
    assert [(r["success"], r["minutes"]) for r in read(path)] == [("0.25", ""), ("0.5", "9.5")]
    merge_rows(tmp_path / "none.csv", [], KEYS)
    assert not (tmp_path / "none.csv").exists()


def test_a_table_that_cannot_be_written_is_left_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    merge_rows(path, [row(0, "dream", 0.25)], KEYS)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(Exception, match="space|full"):
        merge_rows(path, [row(0, "dream", 1.0)], KEYS)
    assert path.read_bytes() == before


def test_agents_are_compared_with_the_warm_start_of_their_seed():
    rows = [row(n, agent, value) for n, values in enumerate([(0.5, 0.7), (0.6, 0.6), (0.4, 0.1), (0.3, 0.9)])
            for agent, value in zip(("warm_start", "dream"), values, strict=True)]
    found = across_seeds([*rows, row(0, "dream", 0.0, "cpu")], "quick")
    assert found["dream"][3:] == (4, 2, 1) and found["dream"].mean == pytest.approx(0.575)
    assert found["dream"].low < 0.575 < found["dream"].high
    text = [{name: str(value) for name, value in entry.items()} for entry in rows]
    assert across_seeds(text, "quick") == found, "rows that were read from a file count the same"
    assert across_seeds(rows, "cpu") == {}
    assert across_seeds([row(0, "dream", 0.5)], "quick")["dream"] == AcrossSeeds(0.5, 0.5, 0.5, 1, 0, 0)


def iteration(run, folder, number, steps):
    path = run.path / folder / f"{number:04d}"
    path.mkdir(parents=True)
    atomic_write_json(path / "metrics.json", {"transitions": steps})


def test_the_budget_follows_the_baseline_where_it_was_run(tmp_path):
    run = Run.open(tmp_path / "run", Scale.named("quick", iterations=2, transfer_share=0.1), 0)
    assert real_budget(run) == 0
    for number in (1, 2):
        iteration(run, "iterations", number, 100)
    assert real_budget(run) == 20
    iteration(run, "real", 1, 300)
    assert real_budget(run) == 20, "half a baseline is none"
    iteration(run, "real", 2, 300)
    assert real_budget(run) == 60


def played(task, steps):
    "One episode of so many steps."
    step = Transition(state=PAGE, action="click 1", next_state=PAGE, reward=0.0, done=False)
    return Trajectory(task=task, transitions=(step,) * steps, source="agent", real=True, truncated=True)


def spending(steps, calls=None):
    "A `collect_rollouts` whose episodes take as many steps as `steps` says of their task."
    def collect(agent, environment, tasks, group_size, temperature, seed):
        (calls if calls is not None else []).append(len(tasks))
        return [Rollout(played(task, steps(task)), (), i) for i, task in enumerate(tasks) for _ in range(group_size)]

    return collect


class Pages:
    "Where episodes end after four steps at the latest."

    maximum_steps = 4

    def __init__(self, *sizes):
        self.sizes = sizes

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def some_tasks(count, kind="a"):
    return [Task(id=f"{kind}/{n}", kind=kind, seed=n, goal=f"Do {n}.", start_state=PAGE) for n in range(count)]


@pytest.mark.parametrize("budget", [0, 7, 8, 9, 40, 41, 100, 1000])
@pytest.mark.parametrize("steps", [lambda task: 4, lambda task: 1, lambda task: 1 + task.seed % 4])
def test_a_budget_is_spent_and_never_exceeded(budget, steps, monkeypatch):
    calls, tasks = [], some_tasks(30)
    monkeypatch.setattr(module, "collect_rollouts", spending(steps, calls))
    rollouts = rollouts_within(None, Pages(), tasks, 2, budget)
    groups = [r.group for r in rollouts]
    assert groups == [n for n in range(len(groups) // 2) for _ in range(2)]
    assert [r.trajectory.task for r in rollouts[::2]] == tasks[:len(groups) // 2]
    rest = budget - sum(len(r.trajectory) for r in rollouts)
    assert 0 <= rest and (rest < 2 * Pages.maximum_steps or len(groups) == 60)
    assert len(calls) <= 1 + len(groups) // 4, "groups that surely fit are played together"


def test_the_transfer_asks_most_for_what_the_dream_is_unsure_of(tmp_path, monkeypatch):
    run = Run.open(tmp_path / "run", Scale.named("quick", transfer_epochs=3, transfer_rate=0.5, smallest_value=0.12), 0)
    before = tmp_path / "0006" / "agent"
    before.mkdir(parents=True)
    atomic_write_json(before.parent / "kind_values.json", {"a": 0.05, "b": 0.25})
    (before.parent / "invented.jsonl").touch()
    updates, adapters = [], []

    class Pupil:
        def __init__(self, model, settings):
            self.settings = settings

        def load(self, folder):
            assert folder == before.parent

        def update(self, rollouts, seed):
            updates.append((self.settings, rollouts))
            return {}

    replaced = {"dream_training": lambda run: before, "real_budget": lambda run: 16 * 12, "MiniWobBatch": Pages,
                "new_agent": lambda run, folder: SimpleNamespace(model=SimpleNamespace(load_adapter=adapters.append)),
                "Learner": Pupil,
                "start_tasks": lambda run: some_tasks(40) + some_tasks(40, "b"),
                "collect_rollouts": spending(lambda task: 4),
                "_write_iteration": lambda path, *rest: path.mkdir(parents=True)}
    for name, value in replaced.items():
        monkeypatch.setattr(module, name, value)
    module.sim_to_real(run)
    (settings, rollouts), = updates
    assert adapters == [before], "from where the dream ended"
    kinds = Counter(r.trajectory.task.kind for r in rollouts[::run.scale.transfer_group_size])
    assert kinds == {"b": 10, "a": 2}, "in proportion to V, whatever counts in the dream"
    assert (settings.epochs, settings.minibatches) == (3, 1)
    assert settings.learning_rate == 0.5 * run.scale.policy_learning_rate
    assert run.metrics()["sim_to_real"] == {"budget": 192, "transitions": 192, "episodes": 48}
    module.sim_to_real(run)
    assert len(updates) == 1, "once"


def test_the_gates_become_rows(tmp_path):
    run = Run.open(tmp_path / "run", "quick", 3)
    assert fidelity_rows(run) == []
    shares = dict.fromkeys(("balanced_reward_accuracy", "success_recognised", "failure_recognised",
                            "termination_accuracy", "state_exact"), 0.91234)
    gate = shares | {"real": {"successes": 5, "episodes": 8}, "dreamed": {"successes": 6, "episodes": 8},
                     "transitions": 30, "gap": 0.125, "verdict": "doubtful"}
    run.record("fidelity", before=gate, after=gate)
    rows = fidelity_rows(run)
    assert [r["when"] for r in rows] == ["before", "after"]
    assert (rows[0]["balanced_reward_accuracy"], rows[0]["real_successes"], rows[0]["dreamed_successes"],
            rows[0]["episodes"], rows[0]["seed"]) == (0.9123, 5, 6, 8, 3)


def test_task_types_and_curves_become_rows(tmp_path):
    run = Run.open(tmp_path / "run", Scale.named("quick", iterations=2), 4)
    assert type_rows(run) == curve_rows(run) == []
    rate = {"mean": 0.5, "low": 0.2, "high": 0.8, "successes": 2, "episodes": 4}
    parts = {"own": {"overall": rate, "by_kind": {"click-button": rate}},
             "held_out": {"overall": rate, "by_kind": {"click-test": rate | {"successes": 3}}}}
    (run.path / "evaluation").mkdir()
    (run.path / "evaluation" / "dream.json").write_text(json.dumps({"agent": "dream"} | parts))
    iteration(run, "iterations", 1, 100)
    iteration(run, "iterations", 2, 60)
    iteration(run, "real", 1, 30)
    assert [(r["type"], r["panel_part"], r["successes"]) for r in type_rows(run)] == [
        ("click-button", "own", 2), ("click-test", "held_out", 3)]
    assert [(r["where"], r["iteration"], r["transitions"]) for r in curve_rows(run)] == [
        ("dream", "0001", 100), ("dream", "0002", 60), ("real", "0001", 30)]
    for _ in range(2):  # a second time replaces
        save_results(run, tmp_path / "out" / "quick.csv")
    lines = {p.name: len(p.read_text().splitlines()) for p in (tmp_path / "out").iterdir()}
    assert lines == {"quick.csv": 2, "quick_types.csv": 3, "quick_curves.csv": 4}
