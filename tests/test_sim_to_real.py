"Budgets of real steps, and tables of results: what must hold whatever the agents do."

import csv
import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from dreamgym import sim_to_real as module
from dreamgym.environments import Suite
from dreamgym.experiments import (
    allowed_variants,
    curve_rows,
    fidelity_rows,
    plain_variants,
    result_rows,
    save_results,
    type_rows,
)
from dreamgym.rollouts import Rollout
from dreamgym.runs import Run, Scale
from dreamgym.sim_to_real import (
    AcrossSeeds,
    across_seeds,
    merge_rows,
    read_rows,
    real_budget,
    rollouts_within,
)
from dreamgym.trajectories import (
    DreamgymError,
    Task,
    Trajectory,
    Transition,
    atomic_write_json,
    write_trajectories,
)

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


def test_the_budget_depends_on_the_dream_alone(tmp_path):
    run = Run.open(tmp_path / "run", Scale.named("quick", iterations=2, transfer_share=0.1), 0)
    assert real_budget(run) == 0
    for number in (1, 2):
        iteration(run, "iterations", number, 100)
    assert real_budget(run) == 20
    for number in (1, 2):
        iteration(run, "real", number, 300)
        assert real_budget(run) == 20, "whatever else was run"


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

    replaced = {"dream_training": lambda run: before, "real_budget": lambda run: 16 * 12,
                "real_environment": lambda run, purpose: Pages(),
                "new_agent": lambda run, folder: SimpleNamespace(model=SimpleNamespace(load_adapter=adapters.append)),
                "Learner": Pupil,
                "start_tasks": lambda run: some_tasks(40) + some_tasks(40, "b"),
                "collect_rollouts": spending(lambda task: 4),
                "write_iteration": lambda path, *rest: path.mkdir(parents=True)}
    for name, value in replaced.items():
        monkeypatch.setattr(module, name, value)
    module.sim_to_real(run)
    (settings, rollouts), = updates
    assert adapters == [before], "from where the dream ended"
    kinds = Counter(r.trajectory.task.kind for r in rollouts[::run.scale.transfer_group_size])
    assert kinds == {"b": 10, "a": 2}, "in proportion to V, whatever counts in the dream"
    assert (settings.epochs, settings.minibatches) == (3, 1)
    assert settings.learning_rate == 0.5 * run.scale.policy_learning_rate
    assert sum(len(r.trajectory) for r in rollouts) == 192 and len(rollouts) == 48
    module.sim_to_real(run)
    assert len(updates) == 1, "once"


@pytest.mark.parametrize(("source", "playable", "baseline", "agents"), [
    ("oracle", True, True, ["warm_start", "imitation", "dream", "real", "sim_to_real"]),
    ("logs", True, False, ["warm_start", "imitation", "dream", "sim_to_real"]),
    ("logs", False, True, ["warm_start", "imitation", "dream"])])
def test_whom_a_run_compares(open_suite, source, playable, baseline, agents):
    class Going(Suite):
        name = "going"

    class Real(Going):
        def environment(self, parallel, maximum_steps):
            return Pages()

    run = open_suite(Real() if playable else Going(), source=source)
    assert allowed_variants(run, plain_variants(baseline)) == agents


@pytest.mark.parametrize("broken", [0, 3, 8])
def test_what_the_world_broke_teaches_nothing_in_the_transfer(tmp_path, monkeypatch, broken):
    run = Run.open(tmp_path / "run", Scale.named("quick", transfer_group_size=1), 0)
    taught, played_so_far = [], []

    def collect(agent, environment, tasks, *rest):
        found = spending(lambda task: 1)(agent, environment, tasks, *rest)
        spoilt = [r._replace(trajectory=r.trajectory.model_copy(update={"transitions": (
            r.trajectory.transitions[0].model_copy(update={"broken": i < broken}),)})) for i, r in enumerate(found)]
        played_so_far.extend(spoilt)
        return spoilt

    state = SimpleNamespace(values={}, load=lambda folder: None,
                            learner=SimpleNamespace(update=lambda rollouts, seed: taught.extend(rollouts) or {}))
    replaced = {"dream_training": lambda run: tmp_path / "agent", "real_budget": lambda run: 8 * Pages.maximum_steps,
                "real_environment": lambda run, purpose: Pages(), "start_tasks": lambda run: some_tasks(8),
                "new_agent": lambda run, folder: SimpleNamespace(model=None), "Learner": lambda *_: None,
                "LoopState": lambda *_: state, "collect_rollouts": collect,
                "write_iteration": lambda path, *rest: path.mkdir(parents=True)}
    for name, value in replaced.items():
        monkeypatch.setattr(module, name, value)
    module.sim_to_real(run)
    assert len(played_so_far) == 8 and len(taught) == (8 - broken or 8)
    assert broken == 8 or not any(r.trajectory.broken for r in taught)


def test_the_gates_become_rows(tmp_path):
    run = Run.open(tmp_path / "run", "quick", 3)
    assert fidelity_rows(run) == []
    shares = dict.fromkeys(("balanced_reward_accuracy", "success_recognised", "failure_recognised",
                            "termination_accuracy", "state_exact"), 0.91234)
    gate = shares | {"real": {"successes": 5, "episodes": 8}, "dreamed": {"successes": 6, "episodes": 8},
                     "transitions": 30, "gap": 0.125, "verdict": "doubtful"}
    for name in ("gate.json", "gate_after.json"):
        atomic_write_json(run.path / name, gate)
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
        save_results(run, tmp_path / "out")
    lines = {p.name: len(p.read_text().splitlines()) for p in (tmp_path / "out").iterdir()}
    assert lines == {"agents.csv": 2, "types.csv": 3, "curves.csv": 4}


# ---------------------------------------------------------------- numbers that are not known


GATE = dict.fromkeys(("balanced_reward_accuracy", "success_recognised", "failure_recognised", "termination_accuracy",
                      "state_exact"), 0.91234) | {"real": {"successes": 0, "episodes": 8}, "verdict": "not measured",
                                                  "dreamed": {"successes": 6, "episodes": 8}, "transitions": 30}


def finished(tmp_path) -> Run:
    "What the stages of a run leave, without anything in metrics.json."
    run = Run.open(tmp_path / "run", Scale.named("quick", iterations=2, fewest_demonstrations=2, source="oracle"), 3)
    write_trajectories(run.path / "offline.jsonl", [t.model_copy(update={"source": source}) for task in some_tasks(3)
                                                    for source in ("oracle", "branch") for t in [played(task, 1)]])
    (run.path / "agent" / "warm_start").mkdir(parents=True)
    (run.path / "evaluation").mkdir()
    rate = {"mean": 0.5, "low": 0.2, "high": 0.8, "successes": 2, "episodes": 4}
    none = {"mean": 0.0, "low": 0.0, "high": 1.0, "successes": 0, "episodes": 0}
    for agent in ("warm_start", "dream", "sim_to_real", "real", "mine"):
        atomic_write_json(run.path / "evaluation" / f"{agent}.json", {
            "agent": agent, "own": {"overall": rate, "by_kind": {"a": rate}}, "held_out": {"overall": none, "by_kind": {}}})
    for folder, steps in (("iterations", 100), ("real", 300)):
        for number in (1, 2):
            iteration(run, folder, number, steps)
    iteration(run, "transfer", 1, 20)
    for name in ("gate.json", "gate_after.json"):
        atomic_write_json(run.path / name, GATE)
    return run


def test_rows_need_no_metrics_file(tmp_path):
    run = finished(tmp_path)
    spent = {"warm_start": 2, "dream": "", "sim_to_real": "", "real": "", "mine": ""}
    assert {r["variant"]: r["steps_real"] for r in result_rows(run)} == spent, "without starts nobody knows the first pages"
    (run.path / "starts.jsonl").write_text("".join(task.model_dump_json() + "\n" for task in some_tasks(5)))
    spent |= {"dream": 2 + 4 + 5 + 60, "sim_to_real": 2 + 4 + 5 + 60 + 20, "real": 2 + 5 + 600}
    assert {r["variant"]: r["steps_real"] for r in result_rows(run)} == spent, "two gates of 30 steps"
    assert [r["when"] for r in fidelity_rows(run)] == ["before", "after"]
    (run.path / "metrics.json").write_text('{"warm_start": ')
    assert {r["variant"]: r["steps_real"] for r in result_rows(run)} == spent, "a damaged one is not asked"
    assert all(r["held_out_episodes"] == 0 and r["minutes"] == r["peak_megabytes"] == "" for r in result_rows(run))


def test_what_is_lost_is_empty_and_never_zero(tmp_path):
    run = finished(tmp_path)
    (run.path / "transfer" / "0001" / "metrics.json").unlink()
    assert [r["steps_rl"] for r in result_rows(run) if r["variant"] == "sim_to_real"] == [""]
    (run.path / "offline.jsonl").unlink()
    assert {r["steps_real"] for r in result_rows(run)} == {""}, "and nothing is collected again"
    atomic_write_json(run.path / "gate.json", GATE | {"success_recognised": None, "balanced_reward_accuracy": None})
    (run.path / "gate_after.json").write_text(json.dumps(GATE | {"state_exact": float("nan")}))
    first, last = fidelity_rows(run)
    assert (first["success_recognised"], first["balanced_reward_accuracy"], first["failure_recognised"]) == ("", "", 0.9123)
    assert (last["state_exact"], last["verdict"]) == ("", "not measured") and list(first) == list(last)


def test_an_iteration_that_measured_less_keeps_the_columns(tmp_path):
    run = finished(tmp_path)
    atomic_write_json(run.path / "iterations" / "0001" / "metrics.json", {"transitions": 100.0, "return": 0.5,
                                                                          "entropy": 0.25, "update_kl": None})
    save_results(run, tmp_path)
    first, second, *_ = read_rows(tmp_path / "curves.csv", ("scale", "seed", "where", "iteration"))
    assert (first["entropy"], first["update_kl"], second["entropy"], second["transitions"]) == ("0.25", "", "", "100")
    (run.path / "iterations" / "0002" / "metrics.json").write_text("{")
    with pytest.raises(DreamgymError, match="metrics.json in 0002 is damaged"):
        curve_rows(run)


def test_files_that_are_not_ours_make_no_rows(tmp_path):
    run = finished(tmp_path)
    before = result_rows(run), type_rows(run), curve_rows(run)
    (run.path / "evaluation" / "._dream.json").write_bytes(b"\0\5\x16\7")
    (run.path / "iterations" / "._0001").mkdir()
    (run.path / "iterations" / "0002 copy").mkdir()
    assert (result_rows(run), type_rows(run), curve_rows(run)) == before


# ---------------------------------------------------------------- tables that others have touched


TABLE = "scale,seed,agent,success\nquick,0,dream,0.5\nquick,1,dream,0.25\n"


@pytest.mark.parametrize("content", [
    TABLE.encode(), b"\xef\xbb\xbf" + TABLE.encode(), TABLE.replace("\n", "\r\n").encode(), (TABLE + "\n\n").encode(),
    (TABLE + ",,,\n").encode(), (TABLE + " , ,,\n").encode(), ("\n,,,,,\n" + TABLE).encode(),
    TABLE.replace("success", "success,,").encode(), TABLE.rstrip().encode(), TABLE.replace(".5\n", ".5,,\n").encode(),
    b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode() + b"\r\n"])
def test_a_table_is_read_whatever_an_editor_did_to_it(tmp_path, content):
    path = tmp_path / "quick.csv"
    path.write_bytes(content)
    merge_rows(path, [row(1, "dream", 0.75)], KEYS)
    assert path.read_text() == TABLE.replace("0.25", "0.75"), "one row of a name"


def test_a_cell_may_hold_any_line_separator_and_may_be_missing(tmp_path):
    path, text = tmp_path / "quick.csv", "a\u2028b\u2029c\x85d\ne,\"f"
    merge_rows(path, [row(0, "dream", 0.5, versions=text)], KEYS)
    assert read_rows(path, KEYS)[0]["versions"] == text
    path.write_text("scale,seed,agent,success,minutes\nquick,0,dream,0.5\n")
    assert read_rows(path, KEYS) == [row("0", "dream", "0.5", minutes="")]


@pytest.mark.parametrize("content, problem", [
    (TABLE + "quick,2\n", "line 4 has no proper agent"), (TABLE + ",3,dream,0.5\n", "line 4 has no proper scale"),
    (TABLE + "quick,x,dream,0.5\n", "line 4 has no proper seed"), (TABLE.replace(",", ";"), "line 2 has no proper scale"),
    (TABLE + "quick,2,dream,0.5,9\n", "line 4 has more cells"), (TABLE + '"quick', "unexpected end"), ("\0\xff", "utf-8")])
def test_a_row_without_its_name_is_refused_by_line(tmp_path, content, problem):
    path = tmp_path / "quick.csv"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DreamgymError, match=f"quick.csv cannot be read .*{problem}") as error:
        merge_rows(path, [row(1, "dream", 0.75)], KEYS)
    assert str(error.value).count(". ") == 0 and path.read_bytes() == content.encode("latin-1")
    with pytest.raises(DreamgymError):
        read_rows(tmp_path / "absent.csv")


@pytest.mark.parametrize("name", ["ablations/lookups", "main/miniwob-cpu", "main/textworld-quick"])
def test_the_stored_tables_are_merged_with_nothing_byte_by_byte(tmp_path, name):
    folder = Path(__file__).parent.parent / "results" / name
    for part, key in (("agents", "agent"), ("fidelity", "when"), ("types", "agent"), ("curves", "where")):
        stored = (folder / f"{part}.csv").read_bytes()
        (tmp_path / "table.csv").write_bytes(stored)
        merge_rows(tmp_path / "table.csv", [], ("scale", "seed", key))
        assert (tmp_path / "table.csv").read_bytes() == stored


def test_a_cell_is_a_text_and_stays_the_one_it_was(tmp_path):
    "Nothing becomes a number, a date or a missing value on its way through."
    path = tmp_path / "quick.csv"
    cells = ["NA", "nan", "None", "007", "1e3", "0.10", "true", " x ", "2024-01-02", "=1", "\x00", "'", "a,b"]
    old = [row(str(seed), "dream", "0.50", versions=cell) for seed, cell in enumerate(cells)]
    merge_rows(path, old, KEYS)
    for _ in range(2):
        merge_rows(path, [row(99, "dream", 0.5, versions="")], KEYS)
        assert read_rows(path, KEYS) == [*old, row("99", "dream", "0.5", versions="")]
