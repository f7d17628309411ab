"Rates with intervals, agents compared in pairs, and the fidelity gate on a scripted dream."

import numpy as np
import pytest

from dreamgym.evaluation import (
    Fidelity,
    bootstrap_mean,
    compare,
    exact_mcnemar,
    summarise,
    wilson,
)
from dreamgym.rollouts import Rollout
from dreamgym.trajectories import END_STATE, DreamgymError, Task, Trajectory, Transition


@pytest.mark.parametrize(("successes", "episodes", "low", "high"), [
    (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (22, 165, 0.0898, 0.1934)])
def test_wilson_has_the_known_values(successes, episodes, low, high):
    rate = wilson(successes, episodes)
    assert (rate.low, rate.high) == (pytest.approx(low, abs=5e-4), pytest.approx(high, abs=5e-4))


def test_wilson_without_episodes_says_nothing_and_refuses_the_impossible():
    assert wilson(0, 0)[:3] == (0.0, 0.0, 1.0)
    for successes, episodes in ((3, 2), (-1, 2), (1, 0)):
        with pytest.raises(DreamgymError, match="cannot be"):
            wilson(successes, episodes)


def test_wilson_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    for p in (0.1, 0.5, 0.9):
        rates = [wilson(int(k), 30) for k in random.binomial(30, p, 2000)]
        assert 0.92 < np.mean([rate.low <= p <= rate.high for rate in rates]) < 0.99


def test_the_bootstrap_is_deterministic_and_holds_its_mean():
    values = [0.2, 0.4, 0.9, 0.5]
    mean, low, high = bootstrap_mean(values)
    assert low <= mean <= high and mean == pytest.approx(0.5) and bootstrap_mean(values) == (mean, low, high)
    with pytest.raises(DreamgymError, match="at least one"):
        bootstrap_mean([])


@pytest.mark.parametrize(("first", "second", "p"), [(0, 0, 1.0), (0, 5, 0.0625), (5, 0, 0.0625), (1, 1, 1.0), (1, 9, 22 / 1024)])
def test_mcnemar_counts_coins(first, second, p):
    assert exact_mcnemar(first, second) == pytest.approx(p)


def test_a_comparison_is_the_second_minus_the_first():
    first, second = {"a": 0.0, "b": 0.0, "c": 1.0, "d": 1.0}, {"d": 1.0, "c": 0.0, "b": 1.0, "a": 1.0}
    found = compare(first, second)
    assert (found.difference, found.only_first, found.only_second, found.tasks) == (0.25, 1, 2, 4)
    assert compare(second, first).difference == -0.25
    for other in ({}, {"a": 1.0}, {**second, "e": 1.0}):
        with pytest.raises(DreamgymError, match="same tasks"):
            compare(first, other)


def rollout(kind: str, number: int, reward: float, steps: int = 1) -> Rollout:
    "An episode of so many steps."
    page = "[1] button 'Go'"
    path = [Transition(state=page, action="click 1", next_state=page, reward=0.0, done=False)] * (steps - 1)
    last = Transition(state=page, action="click 1", next_state=END_STATE, reward=reward, done=True)
    task = Task(id=f"{kind}/{number}", kind=kind, seed=number, goal="Go.", start_state=page)
    return Rollout(Trajectory(task=task, transitions=(*path, last)), (), number)


def test_a_summary_counts_by_task_type():
    found = summarise([rollout("a", 0, 1.0), rollout("a", 1, 0.0, 3), rollout("b", 2, 1.0), rollout("b", 2, 0.0)])
    assert (found.overall.successes, found.overall.episodes, found.transitions) == (2, 4, 6)
    assert {kind: rate.mean for kind, rate in found.by_kind.items()} == {"a": 0.5, "b": 0.5}
    assert found.outcomes == {"a/0": 1.0, "a/1": 0.0, "b/2": 0.5}
    assert found.row()["overall"]["successes"] == 2


@pytest.mark.parametrize(("balanced", "real", "dreamed", "verdict"), [
    (0.95, 10, 11, "trustworthy"), (0.95, 10, 16, "doubtful"), (0.85, 10, 10, "doubtful"), (0.79, 10, 10, "flattering")])
def test_the_verdict_asks_for_endings_and_for_the_gap(balanced, real, dreamed, verdict):
    gate = Fidelity(balanced, balanced, balanced, 1.0, 1.0, wilson(real, 20), wilson(dreamed, 20), 50)
    assert gate.verdict == verdict and gate.row()["verdict"] == verdict
    assert gate.gap == pytest.approx((dreamed - real) / 20)
