"Budgets of real steps, and tables of results: what must hold whatever the agents do."

import csv
import json

import pytest

from dreamgym.runs import Run, Scale
from dreamgym.sim_to_real import (
    AcrossSeeds,
    across_seeds,
    curve_rows,
    fidelity_rows,
    merge_rows,
    real_budget,
    save_results,
    type_rows,
)
from dreamgym.trajectories import atomic_write_json

KEYS = ("scale", "seed", "agent")


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
