"Intervals that hold what they promise, and paired comparison."

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dreamgym.statistics import bootstrap_mean, compare, compare_over_seeds, exact_mcnemar, holm, tasks_needed, wilson
from dreamgym.trajectories import DreamgymError


# ---------------------------------------------------------------- intervals


@pytest.mark.parametrize("successes, episodes, low, high", [
    (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (1, 1, 0.2065, 1.0),
    (9, 15, 0.3575, 0.8018), (81, 263, 0.2553, 0.3662), (22, 165, 0.0898, 0.1937),
])
def test_wilson_against_known_values(successes, episodes, low, high):
    rate = wilson(successes, episodes)
    assert (rate.low, rate.high) == pytest.approx((low, high), abs=1e-3)
    assert (rate.mean, rate.successes, rate.episodes) == (successes / episodes, successes, episodes)


def test_wilson_solves_its_equation():
    "The ends are the rates p at which the observed share lies 1.96 standard errors of p away."
    for successes, episodes in ((3, 20), (12, 15), (50, 51)):
        for p in wilson(successes, episodes)[1:3]:
            assert abs(successes / episodes - p) == pytest.approx(1.96 * math.sqrt(p * (1 - p) / episodes))


def test_wilson_at_the_edges():
    assert wilson(0, 0) == (0.0, 0.0, 1.0, 0, 0), "nothing was seen, everything is possible"
    for episodes in (1, 7, 1000):
        none, all_ = wilson(0, episodes), wilson(episodes, episodes)
        assert none.low == 0.0 < none.high < 1 and all_.high == 1.0 > all_.low > 0
        assert none.high == pytest.approx(1 - all_.low)
        assert none.high == pytest.approx(1.96**2 / (episodes + 1.96**2))
    for wrong in ((-1, 5), (6, 5), (1, 0)):
        with pytest.raises(DreamgymError, match="cannot be"):
            wilson(*wrong)
    assert str(wilson(9, 15)) == "60% [36%, 80%]"
    assert json.loads(json.dumps(wilson(3, 4)._asdict()))["successes"] == 3


def test_wilson_holds_the_truth_where_the_textbook_does_not():
    random = np.random.default_rng(0)
    for rate, episodes in ((0.95, 15), (0.9, 10), (0.05, 20)):
        seen = random.binomial(episodes, rate, 20_000)
        wilson_holds, textbook_holds = [], []
        for successes in range(episodes + 1):
            _, low, high, *_ = wilson(successes, episodes)
            mean = successes / episodes
            half = 1.96 * math.sqrt(mean * (1 - mean) / episodes)
            wilson_holds.append(low <= rate <= high)
            textbook_holds.append(mean - half <= rate <= mean + half)
        assert np.mean(np.array(wilson_holds)[seen]) > 0.9 > 0.75 > np.mean(np.array(textbook_holds)[seen])


def test_the_bootstrap_holds_its_mean():
    random = np.random.default_rng(1)
    for size in (2, 3, 10, 40):
        values = random.normal(size=size)
        mean, low, high = bootstrap_mean(values, draws=2000)
        assert low < mean < high and mean == pytest.approx(values.mean())
        assert values.min() <= low and high <= values.max()
    assert bootstrap_mean([0.4]) == pytest.approx((0.4, 0.4, 0.4)), "one seed shows no spread"
    assert bootstrap_mean([1, 0, 1, 1], seed=3) == bootstrap_mean([1, 0, 1, 1], seed=3)
    values = [0.1, 0.9, 0.5, 0.7, 0.2, 0.3, 0.8, 0.6]
    width = [np.diff(bootstrap_mean(values * times)[1:])[0] for times in (1, 16)]
    assert width[1] == pytest.approx(width[0] / 4, rel=0.1), "sixteen times the seeds, a quarter of the width"
    with pytest.raises(DreamgymError, match="at least one value"):
        bootstrap_mean([])


# ---------------------------------------------------------------- comparing


def outcomes(text):
    return {f"task/{i}": float(letter) for i, letter in enumerate(text)}


@pytest.mark.parametrize("first, second, difference, split, p", [
    ("1100001001", "1111011011", 0.4, (0, 4), 0.125), ("10", "01", 0.0, (1, 1), 1.0), ("111", "111", 0.0, (0, 0), 1.0),
    ("000000", "111111", 1.0, (0, 6), 0.03125), ("11111000", "00000000", -0.625, (5, 0), 0.0625),
    ("1" * 9 + "0", "0" * 9 + "1", -0.8, (9, 1), 22 / 1024),
])
def test_comparison_by_hand(first, second, difference, split, p):
    result = compare(outcomes(first), outcomes(second))
    assert result.difference == pytest.approx(difference) and result.p_value == pytest.approx(p)
    assert ((result.only_first, result.only_second), result.tasks) == (split, len(first))
    assert result.low <= result.difference <= result.high and -1 <= result.low and result.high <= 1
    back = compare(outcomes(second), outcomes(first))
    assert back.difference == pytest.approx(-difference) and back.p_value == result.p_value
    assert back.low == pytest.approx(-result.high, abs=0.15)


def test_the_exact_test_is_the_binomial_one():
    for b in range(8):
        for c in range(8):
            chances = [math.comb(b + c, k) / 2 ** (b + c) for k in range(b + c + 1)]
            as_rare = sum(x for x in chances if x <= chances[b] * (1 + 1e-9))
            assert exact_mcnemar(b, c) == exact_mcnemar(c, b) == pytest.approx(as_rare)
    assert exact_mcnemar(2000, 2000) == 1.0 and 0 <= exact_mcnemar(0, 3000) < 1e-300


def test_pairs_see_more_than_two_intervals():
    "Hard tasks are hard for both: the rates overlap, the pairs do not."
    first = outcomes("1" * 20 + "0" * 30)
    second = outcomes("1" * 30 + "0" * 20)
    assert wilson(20, 50).high > wilson(30, 50).low
    result = compare(first, second)
    assert result.low > 0 and result.p_value < 0.01


def test_a_comparison_needs_the_same_tasks():
    for first, second in (({}, {}), (outcomes("11"), outcomes("111")), ({"a": 1.0}, {"b": 1.0})):
        with pytest.raises(DreamgymError, match="same tasks"):
            compare(first, second)
    assert compare({"a": 1.0, "b": 0.0}, {"b": 0.0, "a": 1.0}).difference == 0, "the order does not matter"
    assert compare(outcomes("1010"), outcomes("1110"), seed=2) == compare(outcomes("1010"), outcomes("1110"), seed=2)
    shares = compare({"a": 0.25, "b": 0.5}, {"a": 0.75, "b": 0.5})
    assert (shares.difference, shares.only_first, shares.only_second) == (0.25, 0, 1), "means over several episodes"


# ---------------------------------------------------------------- seeds and tasks, several claims


def outcomes_by_seed(random, seeds=4, tasks=12, rate=0.5):
    return {s: {f"task/{t}": float(random.random() < rate) for t in range(tasks)} for s in range(seeds)}


def test_methods_over_seeds_are_compared_fairly():
    random = np.random.default_rng(3)
    first, second = outcomes_by_seed(random), outcomes_by_seed(random, rate=0.8)
    there, back = compare_over_seeds(first, second), compare_over_seeds(second, first)
    assert there.difference == -back.difference and (there.seeds, there.pairs) == (4, 48)
    assert there.low <= there.difference <= there.high and (there.low, there.high) == pytest.approx((-back.high, -back.low))
    same = compare_over_seeds(first, first)
    assert same[:4] == (0.0, 0.0, 0.0, 1.0)
    assert compare_over_seeds(first, first, margin=0.05).p_value == 1e-4  # surely not five points worse
    assert compare_over_seeds(first, second, seed=1) == compare_over_seeds(first, second, seed=1)


def test_every_seed_weighs_the_same():
    first = {0: {"a": 0.0}, 1: {"a": 0.0, "b": 0.0, "c": 0.0}}
    second = {0: {"a": 1.0}, 1: {"a": 0.0, "b": 0.0, "c": 0.0}}
    assert compare_over_seeds(first, second).difference == 0.5


def test_the_spread_between_seeds_widens_the_interval():
    tasks = [f"task/{t}" for t in range(60)]
    none = {s: dict.fromkeys(tasks, 0.0) for s in range(4)}
    uneven = {s: {task: float(s % 2) for task in tasks} for s in range(4)}  # all or nothing, seed by seed
    even = {s: {task: float(i % 2) for i, task in enumerate(tasks)} for s in range(4)}
    apart, alike = compare_over_seeds(none, uneven), compare_over_seeds(none, even)
    assert apart.difference == alike.difference == 0.5
    assert apart.high - apart.low > 3 * (alike.high - alike.low)


@pytest.mark.parametrize(("first", "second", "told"), [({}, {}, "same seeds"), ({0: {"a": 1.0}}, {1: {"a": 1.0}}, "same seeds"),
                                                       ({0: {"a": 1.0}}, {0: {"b": 1.0}}, "same tasks")])
def test_other_seeds_or_tasks_are_refused(first, second, told):
    with pytest.raises(DreamgymError, match=told):
        compare_over_seeds(first, second)


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holms_correction_keeps_the_order_and_never_helps(p_values):
    corrected = holm(p_values)
    assert list(corrected) == list(p_values)
    for name, p in p_values.items():
        assert p <= corrected[name] <= min(1.0, len(p_values) * p)
    ranked = sorted(p_values, key=p_values.get)
    assert [corrected[name] for name in ranked] == sorted(corrected.values())


@given(st.floats(0.02, 1.0), st.floats(0.01, 1.0))
def test_smaller_differences_and_more_discord_need_more_tasks(discordant, share):
    difference = share * discordant
    assume(difference >= 0.005)
    count = tasks_needed(discordant, difference)
    assert count >= 1 and tasks_needed(discordant, difference / 2) >= count
    assert tasks_needed(discordant, difference, power=0.9) >= count == tasks_needed(discordant, -difference)
    with pytest.raises(DreamgymError):
        tasks_needed(discordant, 1.01 * discordant + 1e-6)
