"The bound between real and dreamed returns: exact in tables, measured on episodes, and read from a run."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_any_world import TINY, Cafe, WordEmbedder, cafe, waiter

from dreamgym import experience_model, replay_buffer
from dreamgym.environments import Grammar, InvalidAction, play_episodes
from dreamgym.experience_model import Imagined
from dreamgym.experiments import run_method, variant_run
from dreamgym.runs import Run, data_folder, load_suite
from dreamgym.suites.own import OwnSuite
from dreamgym.theory import (
    EpisodeErrors,
    TabularWorld,
    check_worlds,
    discounted_bound,
    episode_errors,
    expected_return,
    hybrid_returns,
    imagined_answers,
    improvement_bound,
    largest_error_bound,
    measured_terms,
    over_tasks,
    own_steps_bound,
    parting_share,
    played_checkpoints,
    recorded_checkpoints,
    state_values,
    step_shares,
    terms_table,
    theory_table,
    world_errors,
)
from dreamgym.trajectories import END_STATE, FAILURE_STATE, DreamgymError, Task, Trajectory, Transition
from dreamgym.trajectories import read_json, read_trajectories, write_trajectories

# ---------------------------------------------------------------- tables


def some_world(random, start, actions, sharp) -> TabularWorld:
    "Each action draws among the states, success and failure; a sharp world leaves nothing to chance."
    states = len(start)
    outcome = random.dirichlet(np.full(states + 2, 0.3), (states, actions))
    if sharp:
        outcome = np.eye(states + 2)[outcome.argmax(2)]
    return TabularWorld(start, outcome[..., :states], outcome[..., states])


@st.composite
def two_worlds(draw, sharp=None):
    "A world, a dream that is more or less like it, a policy, a new policy near it, a horizon."
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    states, actions, steps = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    start = random.dirichlet(np.ones(states))
    real, other = (some_world(random, start, actions, draw(st.booleans()) if sharp is None else sharp) for _ in "ab")
    if sharp:
        kept = random.random((states, actions)) < draw(st.sampled_from([0.0, 0.5, 0.9]))
        dream = TabularWorld(start, np.where(kept[..., None], real.after, other.after), np.where(kept, real.pays, other.pays))
    else:
        share = draw(st.sampled_from([0.0, 0.05, 0.5, 1.0]))
        dream = TabularWorld(start, *((1 - share) * a + share * b for a, b in zip(real[1:], other[1:], strict=True)))
    policy, new = random.dirichlet(np.ones(actions), (2, states))
    far = draw(st.sampled_from([0.0, 0.1, 1.0]))
    return real, dream, policy, policy + far * (new - policy), steps


def played(world, policy, steps, state, dream=None) -> tuple[float, float]:
    "Branch by branch from a state: the expected return, and (in worlds without chance) how often a dream's answers differ."
    value = parts = 0.0
    for action, chance in enumerate(policy[state] if steps else ()):
        value += chance * world.pays[state, action]
        differs = dream is not None and (world.pays[state, action] != dream.pays[state, action] or steps > 1 and (
            world.after[state, action] != dream.after[state, action]).any())
        parts += chance * differs
        for ahead in np.flatnonzero(world.after[state, action]):
            going = chance * world.after[state, action, ahead]
            later = played(world, policy, steps - 1, ahead, dream)
            value, parts = value + going * later[0], parts + going * later[1] * (not differs)
    return value, parts


@settings(deadline=None)
@given(two_worlds())
def test_values_are_those_of_every_branch(given):
    real, _, policy, _, steps = given
    by_branch = sum(chance * played(real, policy, steps, state)[0] for state, chance in enumerate(real.start))
    assert expected_return(real, policy, steps) == pytest.approx(by_branch, abs=1e-9)
    lived = step_shares(real, policy, steps)
    assert (lived * real.pays).sum() == pytest.approx(by_branch, abs=1e-9)
    assert lived[0].sum() == pytest.approx(1) and (np.diff(lived.sum((1, 2))) < 1e-9).all(), "episodes end and do not begin"
    assert state_values(real, policy, steps).min() >= 0 and state_values(real, policy, steps).max() <= 1 + 1e-9


@settings(deadline=None)
@given(two_worlds())
def test_every_bound_holds_and_each_is_below_the_next(given):
    real, dream, policy, _, steps = given
    check_worlds(real, dream)
    gap = abs(expected_return(real, policy, steps) - expected_return(dream, policy, steps))
    reward, transition = world_errors(real, dream)
    assert reward.max(initial=0) <= 1 + 1e-9 and transition.min() >= 0 and transition.max() <= 1 + 1e-9
    own = own_steps_bound(real, dream, policy, steps)
    chain = [gap, parting_share(real, dream, policy, steps), own.total,
             largest_error_bound(reward.max(), transition.max(), steps).total]
    assert (np.diff(chain) >= -1e-9).all(), chain
    assert chain[1] <= 1 + 1e-9 and own.vacuous == (own.total >= 1)


@settings(deadline=None)
@given(two_worlds())
def test_one_answer_after_the_other_leads_from_the_dream_to_the_world(given):
    "Two neighbours differ by no more than the errors of the step that separates them."
    real, dream, policy, _, steps = given
    hybrids = hybrid_returns(real, dream, policy, steps)
    lived, errors = step_shares(real, policy, steps), world_errors(real, dream)
    assert hybrids[0] == pytest.approx(expected_return(dream, policy, steps), abs=1e-9)
    assert hybrids[-1] == pytest.approx(expected_return(real, policy, steps), abs=1e-9)
    for step, change in enumerate(np.diff(hybrids)):
        limit = (lived[step] * errors[0]).sum() + (step + 1 < steps) * (lived[step] * errors[1]).sum()
        assert abs(change) <= limit + 1e-9
    same = hybrid_returns(real, real, policy, steps)
    assert np.ptp(same) == pytest.approx(0, abs=1e-9)


@settings(deadline=None)
@given(two_worlds(sharp=True))
def test_without_chance_the_share_that_parts_is_counted_on_real_episodes(given):
    "What `episode_errors` counts is what the tables say."
    real, dream, policy, _, steps = given
    counted = sum(chance * played(real, policy, steps, state, dream)[1] for state, chance in enumerate(real.start))
    assert parting_share(real, dream, policy, steps) == pytest.approx(counted, abs=1e-9)


@settings(deadline=None)
@given(two_worlds())
def test_the_policy_gains_what_is_guaranteed(given):
    real, dream, policy, new, steps = given
    promise, price = improvement_bound(dream, policy, new, steps)
    dreamed = expected_return(dream, new, steps) - expected_return(dream, policy, steps)
    assert dreamed >= promise - price - 1e-9
    gaps = sum(own_steps_bound(real, dream, each, steps).total for each in (policy, new))
    assert expected_return(real, new, steps) - expected_return(real, policy, steps) >= promise - price - gaps - 1e-9
    assert improvement_bound(dream, policy, policy, steps) == pytest.approx((0, 0), abs=1e-9)


def test_the_price_is_half_of_the_horizon_squared_times_the_divergence():
    world = TabularWorld(np.ones(1), np.zeros((1, 2, 1)), np.array([[1.0, 0.0]]))
    promise, price = improvement_bound(world, np.array([[0.5, 0.5]]), np.array([[0.75, 0.25]]), 4)
    divergence = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert (promise, price) == pytest.approx((0.25, 12 * divergence / 2))
    sure = improvement_bound(world, np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]]), 4)
    assert sure == pytest.approx((1.0, 12.0)), "an action that the old policy never took: the total variation is 1 at most"


@settings(deadline=None)
@given(two_worlds(), st.sampled_from([0.0, 0.5, 0.9, 0.99]))
def test_the_bound_of_the_paper_holds_for_discounted_returns(given, discount):
    real, dream, policy, *_ = given

    def discounted(world):
        stays = np.einsum("sa,sap->sp", policy, world.after)
        return world.start @ np.linalg.solve(np.eye(len(stays)) - discount * stays, (policy * world.pays).sum(1))

    reward, transition = world_errors(real, dream)
    limit = discounted_bound(reward.max(), transition.max(), discount)
    assert abs(discounted(real) - discounted(dream)) <= limit + 1e-9
    assert discounted_bound(0.0, 0.0, discount) == 0.0


def test_a_bound_can_be_reached():
    "One step, and the dream pays for nothing: gap, bound and share are all 1."
    real = TabularWorld(np.ones(1), np.zeros((1, 1, 1)), np.zeros((1, 1)))
    dream = real._replace(pays=np.ones((1, 1)))
    policy = np.ones((1, 1))
    assert own_steps_bound(real, dream, policy, 1) == (1.0, 0.0)
    assert parting_share(real, dream, policy, 1) == 1.0 and own_steps_bound(real, dream, policy, 1).vacuous
    assert largest_error_bound(0.25, 0.5, 3) == (0.75, 1.0)


@pytest.mark.parametrize("change", [
    {"pays": np.full((2, 1), 0.6)}, {"start": np.array([0.5, 0.4])}, {"after": np.zeros((2, 2, 2))},
    {"pays": np.full((2, 1), -0.1)}, {"pays": np.full((2, 1), np.nan)}, {"pays": np.zeros(2)}, {"start": np.array([1.0, 0.0])},
])
def test_tables_that_are_no_worlds_are_refused(change):
    good = TabularWorld(np.full(2, 0.5), np.full((2, 1, 2), 0.25), np.full((2, 1), 0.5))
    check_worlds(good, good)
    with pytest.raises(DreamgymError, match="table|shapes|first states"):
        check_worlds(good, good._replace(**change))
    with pytest.raises(DreamgymError, match="discount"):
        discounted_bound(0.1, 0.1, 1.0)


# ---------------------------------------------------------------- episodes

TASK = Task(id="do/1", kind="do", seed=1, goal="Do it.", start_state="a")
GO, WIN, FAIL = Imagined("", "b", 0.0, False), Imagined("", END_STATE, 1.0, True), Imagined("", END_STATE, 0.0, True)


def episode(*ends: str, truncated: bool = False) -> Trajectory:
    "Steps a, b, c ...; the last word says how it ends: won, lost, invalid, or nothing of that."
    *_, last = ends
    names = "abcdefgh"
    steps = [Transition(state=names[i], action="go", next_state=names[i + 1], reward=0.0, done=False)
             for i in range(len(ends) - 1)]
    ending = {"won": dict(next_state=END_STATE, reward=1.0, done=True),
              "lost": dict(next_state=END_STATE, reward=0.0, done=True),
              "half": dict(next_state=END_STATE, reward=0.5, done=True, success=False),
              "invalid": dict(next_state=FAILURE_STATE, reward=0.0, done=True, invalid=True)}
    steps.append(Transition(**{"state": names[len(ends) - 1], "action": "go", "next_state": names[len(ends)], "reward": 0.0,
                               "done": False, **ending.get(last, {})}))
    return Trajectory(task=TASK, transitions=tuple(steps), truncated=truncated)


@pytest.mark.parametrize(("real", "answers", "longest", "wrong"), [
    (episode("", "won"), [GO, WIN], 8, (0, 0)),
    (episode("", "won"), [GO, FAIL], 8, (1, 0)),  # it ends in both: all ends are one state
    (episode("", "lost"), [GO, WIN], 8, (1, 0)),
    (episode("", "lost"), [GO, GO], 8, (0, 1)),  # the dream goes on
    (episode("", "lost"), [GO, GO], 2, (0, 0)),  # and is cut here in any case
    (episode("", "won"), [GO, GO], 2, (1, 0)),
    (episode("", "won"), [GO._replace(state="x"), WIN], 8, (0, 1)),
    (episode("", "won"), [FAIL, WIN], 8, (0, 1)),  # the dream ends at once
    (episode("", "won"), [WIN, FAIL], 8, (2, 1)),
    (episode("", "half"), [GO, WIN], 8, (0.5, 0)),  # partial credit
    (episode("", "invalid"), [GO, Imagined("", FAILURE_STATE, 0.0, True, False)], 8, (0, 0)),
    (episode("", "", truncated=True), [GO, GO], 2, (0, 0)),  # cut at the horizon: the next page counts for nothing
    (episode("", "", truncated=True), [GO, WIN], 2, (1, 0)),
    (episode("", "", truncated=True), [GO, GO._replace(state="c")], 8, (0, 1)),  # the world cut it: the dream would go on
    (episode("", "", truncated=True), [GO, FAIL], 8, (0, 0)),
    (episode("", ""), [GO, GO._replace(state="c")], 8, (0, 0)),  # a record that stops before the end
    (episode("", ""), [GO, GO._replace(state="x")], 8, (0, 1)),
])
def test_errors_of_an_episode_by_hand(real, answers, longest, wrong):
    found = episode_errors(real, answers, longest)
    assert (found.reward, found.transition) == wrong and found.parted == any(wrong)
    assert (found.task, found.steps, found.real) == ("do/1", len(real), real.total_reward)


def test_answers_come_with_the_history_and_what_is_refused_is_not_asked():
    class Strict(Grammar):
        def check_action(self, action, state):
            if state == "b":
                raise InvalidAction("No.")

        def describe(self, action, state):
            return f"{action} in {state}"

    class Model:
        grammar, asked = Strict(), []

        def imagine(self, queries):
            self.asked += queries
            return [GO for _ in queries]

    model = Model()
    found = imagined_answers(model, [episode("", "", "won"), episode("lost")])
    assert [len(row) for row in found] == [3, 1]
    assert [(q.state, q.history) for q in model.asked] == [("a", ()), ("c", ("go in a", "go in b")), ("a", ())]
    assert (found[0][1].valid, found[0][1].done, found[0][1].state) == (False, True, FAILURE_STATE)
    assert imagined_answers(model, []) == []


# ---------------------------------------------------------------- means


def some_errors(random, tasks=40):
    rows = [(f"t/{n}", random.integers(1, 6), random.random() < 0.2, int(random.random() < 0.3))
            for n in range(tasks) for _ in "ab"]
    return [EpisodeErrors(task, int(steps), float(reward), moved, float(random.random() < 0.5))
            for task, steps, reward, moved in rows]


def test_the_bound_is_the_steps_of_an_episode_times_both_errors():
    episodes = some_errors(np.random.default_rng(0))
    terms = measured_terms(episodes)
    length = terms.steps / terms.episodes
    assert terms.bound.mean == pytest.approx(length * (terms.reward_error.mean + terms.transition_error.mean))
    assert terms.parted.mean <= terms.bound.mean and terms.parted.successes == sum(e.parted for e in episodes)
    assert terms.gap is None and terms.dreamed is None and terms.row()["gap_low"] is None
    for interval in (terms.reward_error, terms.transition_error, terms.bound):
        assert interval.low < interval.mean < interval.high


def test_an_interval_over_tasks_is_wider_than_one_over_episodes():
    "Two episodes of a task that go alike are worth one."
    random = np.random.default_rng(0)
    wrong = random.random(60) < 0.3
    tasks, amounts = [f"t/{n}" for n in range(60) for _ in "ab"], np.repeat(wrong, 2).astype(float)
    whole = over_tasks(tasks, amounts, np.ones(120))
    single = over_tasks([f"e/{n}" for n in range(120)], amounts, np.ones(120))
    assert whole.mean == single.mean and whole.high - whole.low > 1.25 * (single.high - single.low)
    assert over_tasks(["a", "b"], [0, 0], [3, 4]) == (0.0, 0.0, 0.0)
    with pytest.raises(DreamgymError, match="at least one episode"):
        over_tasks([], [], [])


def test_an_interval_holds_the_truth():
    random, held = np.random.default_rng(1), 0
    for number in range(200):
        hard = np.repeat(random.beta(1, 3, 50), 2)  # 0.25 on average, alike within a task
        amounts = random.random(100) < hard
        found = over_tasks(np.repeat(np.arange(50), 2).astype(str), amounts, np.ones(100), 400, number)
        held += found.low <= 0.25 <= found.high
    assert 180 <= held <= 199


def test_the_gap_pairs_tasks():
    episodes = [EpisodeErrors("a", 1, 0.0, 0, 1.0), EpisodeErrors("a", 1, 0.0, 0, 0.0), EpisodeErrors("b", 1, 1.0, 0, 0.0)]
    terms = measured_terms(episodes, [("a", 1.0), ("b", 1.0), ("b", 0.0), ("c", 1.0)])
    assert (terms.real, terms.dreamed, terms.gap.mean) == pytest.approx((1 / 3, 2.5 / 3, 1.5 / 3))
    assert terms.gap.low == pytest.approx(0.5) and terms.gap.high == pytest.approx(0.5)
    assert not terms.vacuous and measured_terms([EpisodeErrors("a", 2, 1.0, 1, 0.0)]).vacuous
    assert measured_terms(episodes, [("z", 1.0)]).gap is None


def test_checkpoints_without_a_sound_episode_are_left_out():
    part = {"horizon": 3, "real_steps": 4, "episodes": [EpisodeErrors("a", 1, 0.0, 0, 1.0)._asdict()], "dreamed": [["a", 0.0]]}
    table = terms_table({"empty": part | {"episodes": []}, "one": part})
    assert list(table.index) == ["one"] and table.loc["one", "gap"] == -1.0 and table.loc["one", "real_steps"] == 4
    assert len(terms_table({})) == 0


# ---------------------------------------------------------------- runs


@pytest.fixture
def no_weights(monkeypatch):
    for module in (experience_model, replay_buffer):
        monkeypatch.setattr(module, "Embedder", WordEmbedder)


def test_a_run_tells_its_terms_after_every_update(no_weights, tiny_model_folder, tmp_path):
    "Recorded episodes first; agents inside the dream play for real only where that is asked for, once."
    names = ("dream", "real", "sim_to_real", "real_few", "no_doubt")
    run = run_method(cafe, run=str(tmp_path / "run"), variants=names, **TINY, model=str(tiny_model_folder))
    table = theory_table(run)
    assert list(table.index) == ["logs", "real-0001", "real-0002", "transfer-0001"]
    assert not table["real_steps"].any() and table["gap"].notna().tolist() == [False, True, True, True]
    for checkpoint in recorded_checkpoints(run)[1:]:
        row, folder = table.loc[checkpoint.name], checkpoint.name.replace("-", "/")
        played = read_trajectories(run.path / folder / "rollouts.jsonl")
        assert row["episodes"] == len(played) and row["steps"] == sum(map(len, played))
        assert row["real"] == pytest.approx(np.mean([t.total_reward for t in played]))
        assert row["gap"] == pytest.approx(row["dreamed"] - row["real"])
    agents = {c.name: c.agent for c in recorded_checkpoints(run)}
    assert agents["real-0001"] == run.path / "agent" / "warm_start"
    assert agents["real-0002"] == run.path / "real" / "0001" / "agent"
    assert agents["logs"] is None and agents["transfer-0001"] == run.path / "iterations" / "0002" / "agent"
    stages = len(run.stages())
    whole = theory_table(run, measure=True)
    assert list(whole.index) == [*table.index, "dream-0000", "dream-0001", "dream-0002"]
    assert (whole.loc["dream-0000":, "real_steps"] == whole.loc["dream-0000":, "steps"]).all()
    assert len(run.stages()) == stages + 3
    assert theory_table(run).equals(whole) and len(run.stages()) == stages + 3, "what was measured is not measured again"
    bound = whole["steps"] / whole["episodes"] * (whole["reward_error"] + whole["transition_error"])
    assert whole["bound"].to_numpy() == pytest.approx(bound.to_numpy()) and (whole["parted"] <= whole["bound"] + 1e-9).all()

    view = variant_run(run, "no_doubt")
    assert [c.agent.parts[-4:-2] for c in played_checkpoints(view)[1:]] == [("no_doubt", "iterations")] * 2
    theory_table(view)
    assert sorted(p.name for p in (run.path / "variants" / "no_doubt" / "theory").iterdir())[0] == "logs.json"
    few = variant_run(run, "real_few")
    assert recorded_checkpoints(few)[-1].agent == run.path / "agent" / "warm_start", "it has not dreamed"
    before = read_json(run.path / "theory" / "transfer-0001.json")
    theory_table(few)
    assert (run.path / "variants" / "real_few" / "theory" / "transfer-0001.json").exists()
    assert read_json(run.path / "theory" / "transfer-0001.json") == before, "its few steps are not those of sim-to-real"
    logs = read_json(run.path / "theory" / "logs.json")
    assert logs["horizon"] == 3 and {e["task"] for e in logs["episodes"]} <= {t.id for t in cafe.tasks("train")}


def test_recordings_alone_have_errors_and_no_gap(no_weights, tiny_model_folder, tmp_path):
    logs, many = tmp_path / "logs.jsonl", OwnSuite(Cafe, tasks=60, name="many", oracle=waiter, maximum_steps=3)
    with many.environment(3, 3) as world:
        tasks = [task for name in ("train", "development", "test") for task in many.tasks(name)]
        write_trajectories(logs, [*play_episodes(world, tasks, lambda i, task, state, past: waiter(task, state, past)),
                                  *play_episodes(world, tasks, lambda i, task, state, past: "serve")])
    run = run_method(str(logs), run=str(tmp_path / "alone"), variants=("dream",), **TINY, model=str(tiny_model_folder))
    table = theory_table(run, measure=True)
    assert list(table.index) == ["logs"] and table["gap"].isna().all() and table.loc["logs", "episodes"] >= 2


def test_a_run_without_a_dream_is_told(tmp_path):
    run = Run.open(tmp_path / "empty", scale="quick", seed=0)
    with pytest.raises(DreamgymError, match="offline.jsonl yet"):
        theory_table(run)
    assert not (run.path / "theory").exists()


def test_the_recorded_errors_are_those_of_whole_episodes():
    "The file of the chapter: every sum fits the horizon, every measuring paid for its steps, every task is a development task."
    recorded = read_json(data_folder() / "theory_errors.json")
    development = {task.id for task in load_suite("miniwob").panel("development")}
    table = terms_table(recorded["checkpoints"])
    assert {f"dream-000{n}" for n in range(5)} <= set(table.index)
    for name, part in recorded["checkpoints"].items():
        rows = [EpisodeErrors(**row) for row in part["episodes"]]
        assert part["horizon"] == recorded["horizon"] and {task for task, _ in part["dreamed"]} <= {e.task for e in rows}
        assert all(1 <= e.steps <= part["horizon"] and e.transition <= min(e.steps, part["horizon"] - 1) for e in rows)
        assert part["real_steps"] == (sum(e.steps for e in rows) if name.startswith("dream-") else 0)
        assert not name.startswith("dream-") or {e.task for e in rows} <= development and len(rows) == 48
