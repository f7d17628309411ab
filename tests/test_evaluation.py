"Panels, rows that can be compared later, and the gate that notices a flattering dream."

import json
from types import SimpleNamespace

import numpy as np
import pytest

from dreamgym import evaluation as module
from dreamgym.environments import BatchOf, Suite, make_task, suite_of
from dreamgym.evaluation import (
    Fidelity,
    development_tasks,
    evaluate,
    evaluation,
    first_gate,
    measure_fidelity,
    model_quality,
    real_environment,
    summarise,
)
from dreamgym.evaluation import test_tasks as panel_of_tests  # another name, or pytest would call it
from dreamgym.experience_model import ExperienceExample, Imagined, Query
from dreamgym.language_model import Sample
from dreamgym.pages import PageGrammar, check_action, parse_action
from dreamgym.replay_buffer import BufferError, ReplayBuffer
from dreamgym.rollouts import Agent, Rollout
from dreamgym.statistics import compare, wilson
from dreamgym.suites.miniwob import HELD_OUT_KINDS, MiniWobSuite, load_panel
from dreamgym.trajectories import END_STATE, DreamgymError, Task, Trajectory, Transition

PAGE = "[1] button 'right'\n[2] button 'wrong'\n[3] button 'wait'"


# ---------------------------------------------------------------- panels


def played(task_id, won, steps=1):
    kind, _, number = task_id.partition("/")
    path = [Transition(state=PAGE, action="click 3", next_state=PAGE, reward=0.0, done=False)] * (steps - 1)
    last = Transition(state=PAGE, action="click 1", next_state=END_STATE, reward=float(won), done=True)
    return Rollout(Trajectory(task=make_task(kind, int(number)), transitions=(*path, last), source="agent"), (), 0)


def test_a_summary_counts_each_type():
    result = summarise([played("a/1", 1, 3), played("a/2", 0), played("b/1", 1), played("a/1", 0, 2)])
    assert result.overall == wilson(2, 4) and result.by_kind == {"a": wilson(1, 3), "b": wilson(1, 1)}
    assert result.transitions == 7 and result.outcomes == {"a/1": 0.5, "a/2": 0.0, "b/1": 1.0}
    row = json.loads(json.dumps(result.row()))
    assert row["overall"]["successes"] == 2 and set(row) == {"overall", "by_kind", "transitions"}
    nothing = summarise([])
    assert nothing.overall == wilson(0, 0) and nothing.by_kind == {} and nothing.transitions == 0


def test_the_test_panel_is_frozen_and_disjoint(quick_run):
    tests, development = panel_of_tests(quick_run), development_tasks(quick_run)
    sizes = quick_run.scale
    own, held_out = load_panel("test", sizes.kinds, sizes.test_per_kind), load_panel("test", HELD_OUT_KINDS, sizes.held_out_per_kind)
    assert tests == own + held_out and 0 < sizes.held_out_per_kind <= sizes.test_per_kind
    assert len(tests) == len(sizes.kinds) * sizes.test_per_kind + len(HELD_OUT_KINDS) * sizes.held_out_per_kind
    assert len(development) == len(sizes.kinds) * sizes.development_per_kind
    training = {t.id for t in load_panel("train")}
    assert not {t.id for t in tests} & ({t.id for t in development} | training)
    assert not {t.kind for t in development} & set(HELD_OUT_KINDS)


def test_held_out_types_may_have_fewer_tasks(quick_run):
    few = quick_run.variant("few", (), held_out_per_kind=3)
    own = len(quick_run.scale.kinds) * quick_run.scale.test_per_kind
    assert panel_of_tests(few)[:own] == panel_of_tests(quick_run)[:own], "the own types are all there"
    assert [t.kind for t in panel_of_tests(few)[own:]] == [kind for kind in HELD_OUT_KINDS for _ in range(3)]


# ---------------------------------------------------------------- little worlds


class Quiz:
    "The right button wins; waiting goes on. Half of the agents' guesses are wrong, by the seed."

    maximum_steps = 3

    def reset(self, seed, options):
        return PAGE, {"task": options["task"].model_copy(update={"goal": f"Guess {seed}.", "start_state": PAGE})}

    def step(self, action):
        touched = check_action(parse_action(action), PAGE)
        if touched.id == 3:
            return PAGE, 0.0, False, False, {}
        return END_STATE, float(touched.id == 1), True, False, {}


class Guesser(Agent):
    "Solves the even tasks, fails the odd ones; every third task takes a turn of waiting first."

    def __init__(self):
        super().__init__(SimpleNamespace(encode=lambda text: list(text.encode())), grammar=PageGrammar())
        self.temperatures = []

    def act(self, prompts, temperature=1.0, seed=0):
        self.temperatures.append(temperature)
        output = []
        for prompt in (bytes(p).decode() for p in prompts):
            number = int(prompt.partition("Guess ")[2].partition(".")[0])
            wait = number % 3 == 0 and "Past" not in prompt
            output.append(("click 3" if wait else "click 1" if number % 2 == 0 else "click 2", Sample([1], [0.0])))
        return output


class Dream:
    "An experience model by a rule: (task, action) -> said to be a success?"

    grammar = PageGrammar()

    def __init__(self, says):
        self.says, self.asked = says, []

    def imagine(self, queries):
        self.asked += queries
        return [Imagined("", PAGE, 0.0, False) if q.action == "click 3"
                else Imagined("", END_STATE, float(self.says(q.task.seed, q.action)), True) for q in queries]


TASKS = [make_task("quiz", n) for n in range(20)]


def test_one_greedy_episode_a_task():
    agent = Guesser()
    result = evaluate(agent, BatchOf(Quiz, real=True), TASKS)
    assert result.overall == wilson(10, 20) and set(agent.temperatures) == {0.0}
    assert list(result.outcomes) == [t.id for t in TASKS] and result.transitions == 20 + 7
    assert all(result.outcomes[f"quiz/{n}"] == (n % 2 == 0) for n in range(20))


@pytest.mark.parametrize("name, says, balanced, gap, verdict", [
    ("true", lambda seed, action: action == "click 1", 1.0, 0.0, "trustworthy"),
    ("flattering", lambda seed, action: True, 0.5, 0.5, "flattering"),
    ("gloomy", lambda seed, action: False, 0.5, -0.5, "flattering"),
    ("one mistake", lambda seed, action: action == "click 1" or seed == 5, 0.95, 0.05, "trustworthy"),
    ("three mistakes", lambda seed, action: action == "click 1" or seed in (1, 5, 7), 0.85, 0.15, "doubtful"),
])
def test_the_gate_names_what_a_dream_is_worth(name, says, balanced, gap, verdict):
    dream = Dream(says)
    fidelity = measure_fidelity(Guesser(), dream, BatchOf(Quiz, real=True), TASKS)
    assert fidelity.balanced_reward_accuracy == pytest.approx(balanced) and fidelity.gap == pytest.approx(gap)
    assert fidelity.verdict == verdict and fidelity.real == wilson(10, 20) and fidelity.transitions == 27
    assert fidelity.termination_accuracy == fidelity.state_exact == 1.0
    assert len(dream.asked) == 27 + 27, "the very steps of the real episodes, then an episode in the dream each"
    row = json.loads(json.dumps(fidelity.row()))
    assert (row["verdict"], row["real"]["successes"]) == (verdict, 10) and row["gap"] == pytest.approx(gap)


def test_verdicts_at_their_limits():
    def verdict(accuracy, dreamed):
        return Fidelity(accuracy, 1, 1, 1, 1, wilson(50, 100), wilson(dreamed, 100), 0).verdict

    assert [verdict(a, 50) for a in (0.9, 0.89, 0.8, 0.79)] == ["trustworthy", "doubtful", "doubtful", "flattering"]
    assert [verdict(0.95, d) for d in (58, 42, 65, 35)] == ["trustworthy", "trustworthy", "doubtful", "doubtful"]
    assert verdict(None, 50) == "not measured", "nothing was judged, so nothing is trusted"


@pytest.mark.parametrize("solves", [0, 1])
def test_a_gate_without_a_success_or_a_failure_measures_nothing(solves):
    tasks = [task for task in TASKS if (task.seed % 2 == 0) == bool(solves)]
    fidelity = measure_fidelity(Guesser(), Dream(lambda seed, action: True), BatchOf(Quiz, real=True), tasks)
    row = json.loads(json.dumps(fidelity.row(), allow_nan=False))
    assert row["verdict"] == fidelity.verdict == "not measured" and row["balanced_reward_accuracy"] is None
    known, unknown = ("success", "failure") if solves else ("failure", "success")
    assert row[f"{unknown}_recognised"] is None and row[f"{known}_recognised"] == float(solves)


def test_the_gate_names_flattered_task_types():
    def flattered(**by_kind):
        return Fidelity(0.9, 1, 1, 1, 1, wilson(5, 10), wilson(6, 10), 0, by_kind).flattered

    assert flattered(a=(0, 4, 8), b=(0, 3, 8), c=(8, 0, 8), d=(0, 8, 8)) == ["a", "d"] and flattered() == []
    fidelity = measure_fidelity(Guesser(), Dream(lambda seed, action: True), BatchOf(Quiz, real=True), TASKS)
    assert fidelity.by_kind == {TASKS[0].kind: (10, 20, 20)} and fidelity.flattered == [TASKS[0].kind]
    assert json.loads(json.dumps(fidelity.row()))["flattered"] == [TASKS[0].kind]


def test_the_gate_plays_groups_of_the_tasks_it_saw():
    dream = Dream(lambda seed, action: action == "click 1")
    fidelity = measure_fidelity(Guesser(), dream, BatchOf(Quiz, real=True), TASKS[:4], group_size=3, temperature=1.0)
    assert fidelity.real.episodes == fidelity.dreamed.episodes == 12 and fidelity.transitions == 3 * 6
    assert {q.task.start_state for q in dream.asked} == {PAGE}, "dreams start at the real first pages"


# ---------------------------------------------------------------- stages


@pytest.fixture
def small_run(quick_run, monkeypatch):
    "A run whose agent guesses and whose pages are a quiz."
    monkeypatch.setattr(module, "new_agent", lambda run, adapter=None: Guesser())
    monkeypatch.setattr(module, "start_agent", lambda run: run.path / "agent" / "warm_start")
    monkeypatch.setattr(MiniWobSuite, "environment", lambda self, parallel, maximum_steps: BatchOf(Quiz, real=True))
    return quick_run


def test_what_is_held_out_is_told_by_tasks_not_by_types(small_run, monkeypatch):
    seeds = {"test": range(4), "held_out": range(10, 13)}
    monkeypatch.setattr(MiniWobSuite, "panel", lambda self, name: [make_task("quiz", n) for n in seeds.get(name, ())])
    monkeypatch.setattr(MiniWobSuite, "tasks", lambda self, name, *_, **__: self.panel(name))
    row = evaluation(small_run, "guesser", small_run.path)
    assert (row["own"]["overall"]["episodes"], row["held_out"]["overall"]["episodes"]) == (4, 3), "of one and the same type"


def test_the_row_of_an_evaluation(small_run):
    row = evaluation(small_run, "guesser", small_run.path)
    tasks = panel_of_tests(small_run)
    assert set(row) == {"agent", "suite", "panel", "panel_hash", "own", "held_out", "episodes", "broken", "commit"}
    measured = suite_of(small_run).panel_hash(small_run.scale.kinds)
    assert (row["agent"], row["panel"], row["panel_hash"]) == ("guesser", "test", measured)
    assert (row["suite"], row["broken"]) == ("miniwob", 0)
    assert [e["task"] for e in row["episodes"]] == [t.id for t in tasks]
    assert all(e["reward"] == (t.seed % 2 == 0) and e["steps"] == 1 + (t.seed % 3 == 0)
               for e, t in zip(row["episodes"], tasks, strict=True))
    assert set(row["own"]["by_kind"]) == set(small_run.scale.kinds)
    assert set(row["held_out"]["by_kind"]) == set(HELD_OUT_KINDS), "apart: they must not flatter or drag the others"
    for part in ("own", "held_out"):
        counts = row[part]["overall"]
        assert counts["episodes"] == sum(k["episodes"] for k in row[part]["by_kind"].values())
        assert counts["low"] <= counts["mean"] <= counts["high"]
    recorded = small_run.metrics()["evaluation"]
    assert (recorded["guesser"], recorded["guesser_held_out"]) == (row["own"]["overall"], row["held_out"]["overall"])
    assert json.loads((small_run.path / "evaluation" / "guesser.json").read_text()) == row
    same = {e["task"]: e["reward"] for e in row["episodes"]}
    assert compare(same, same).p_value == 1.0, "rows can be compared"


def test_an_agent_is_measured_once(small_run, monkeypatch):
    row = evaluation(small_run, "guesser", small_run.path)
    monkeypatch.setattr(module, "new_agent", lambda *_: pytest.fail("measured a second time"))
    assert evaluation(small_run, "guesser", small_run.path) == row


class Vectors:
    "Texts to unit vectors, by their bytes."

    width = 8

    def embed(self, texts):
        vectors = np.array([np.bincount([b % 8 for b in t.encode()], minlength=8) for t in texts], np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def grounded(small_run, monkeypatch):
    "A dream with a buffer behind it; whoever asks it tries to write into the buffer."
    buffer = ReplayBuffer(Vectors(), k=1)
    buffer.add([played("quiz/100", 1).trajectory])
    attempts = []

    class Writing(Dream):
        retrieve, reasoning = None, True

        def forget(self):
            pass

        def imagine(self, queries):
            try:
                buffer.add([played(f"quiz/{200 + len(attempts)}", 1).trajectory])
            except BufferError as error:
                attempts.append(str(error))
            return super().imagine(queries)

    dream = Writing(lambda seed, action: action == "click 1")
    dream.retrieve = buffer.demonstrations
    monkeypatch.setattr(module, "simulator_of", lambda run: (dream, buffer))
    return SimpleNamespace(run=small_run, dream=dream, buffer=buffer, attempts=attempts)


def test_the_gate_freezes_the_retrieval_index(grounded):
    row = first_gate(grounded.run)
    assert grounded.buffer.frozen and len(grounded.buffer) == 1 and len(grounded.attempts) >= 2
    assert all("frozen" in attempt for attempt in grounded.attempts)
    assert row["verdict"] == "trustworthy" and row == grounded.run.metrics()["fidelity"]["before"]
    assert row["real"]["episodes"] == len(development_tasks(grounded.run))
    asked = len(grounded.dream.asked)
    assert first_gate(grounded.run) == row and len(grounded.dream.asked) == asked, "a stage: built once"


def test_quality_asks_four_variants_of_the_same_steps(grounded, monkeypatch):
    def step(number, action):
        task = Task(id=f"quiz/{number}", kind="quiz", seed=number, goal=f"Guess {number}.", start_state=PAGE)
        real = Transition(state=PAGE, action=action, next_state=END_STATE, reward=float(action == "click 1"), done=True)
        return ExperienceExample(Query(task, PAGE, action, ("waits",)), real, 0)

    held = [step(n, f"click {1 + n % 2}") for n in range(60)]
    monkeypatch.setattr(module, "recorded_steps", lambda run: (held[:3], held))
    calls = []
    ask = grounded.dream.imagine

    def imagine(queries):
        calls.append((queries, grounded.dream.retrieve is not None, grounded.dream.reasoning))
        return ask(queries)

    monkeypatch.setattr(grounded.dream, "imagine", imagine)
    quality = model_quality(grounded.run)
    assert list(quality) == ["full", "every success believed", "without history", "without retrieval",
                             "without reasoning"]
    assert [(retrieves, reasons) for _, retrieves, reasons in calls] == [
        (True, True), (True, True), (False, True), (True, False)]
    count = grounded.run.scale.quality_steps
    assert all(len(queries) == count for queries, *_ in calls)
    assert [{q.history for q in queries} for queries, *_ in calls] == [{("waits",)}, {()}, {("waits",)}, {("waits",)}]
    assert len({tuple(q.task.id for q in queries) for queries, *_ in calls}) == 1, "the same steps for all"
    assert all(q["balanced_reward_accuracy"] == 1.0 and q["steps"] == count for q in quality.values())
    asked = [q.task.seed for q in calls[0][0]]
    assert all(q["word_for_word"] == sum(seed < 3 for seed in asked) for q in quality.values())
    assert grounded.buffer.frozen and len(grounded.buffer) == 1
    assert grounded.run.metrics()["experience_model"]["quality"] == quality["full"]


# ---------------------------------------------------------------- recordings only


class Recorded(Suite):
    "A quiz of which there are recordings, and no world to ask."

    name, grammar = "recorded-quiz", PageGrammar()

    def panel(self, name):
        numbers = {"train": range(20, 30), "development": range(10, 16), "test": range(6)}.get(name, ())
        return [make_task("quiz", n).model_copy(update={"goal": f"Guess {n}.", "start_state": PAGE}) for n in numbers]


@pytest.fixture
def recorded(open_suite, monkeypatch):
    "A run over recordings: a guesser, a dream that is right, four held-out recordings, and one to learn from."
    shown = [played(f"quiz/{n}", won) for n, won in ((1, 1), (4, 1), (3, 0), (7, 0), (24, 1))]
    shown = [r.trajectory.model_copy(update={"task": r.trajectory.task.model_copy(
        update={"goal": f"Guess {r.trajectory.task.seed}."})}) for r in shown]
    agent, dream = Guesser(), Dream(lambda seed, action: action == "click 1")
    agent.model = SimpleNamespace(encode=lambda text: list(text.encode()), end=0,
                                  decode=lambda tokens: bytes(filter(None, tokens)).decode())
    monkeypatch.setattr(Recorded, "recordings", lambda self: shown)
    run = open_suite(Recorded())
    held = [ExperienceExample(Query(t.task, PAGE, t.transitions[0].action), t.transitions[0], i) for i, t in enumerate(shown[:4])]
    monkeypatch.setattr(module, "new_agent", lambda run, adapter=None: agent)
    monkeypatch.setattr(module, "start_agent", lambda run: run.path / "agent" / "warm_start")
    monkeypatch.setattr(module, "simulator_of", lambda run: (dream, ReplayBuffer(Vectors(), k=1)))
    monkeypatch.setattr(module, "held_out_steps", lambda run: held)
    return SimpleNamespace(run=run, dream=dream, held=held)


def test_recordings_are_measured_in_the_dream_and_say_so(recorded):
    row = evaluation(recorded.run, "guesser", recorded.run.path)
    assert (row["real"], row["suite"], row["panel"]) == (False, "recorded-quiz", "test (dreamed, not real)")
    assert [e["success"] for e in row["episodes"]] == [n % 2 == 0 for n in range(6)]
    assert row["own"]["overall"]["successes"] == 3 and row["held_out"]["overall"]["episodes"] == 0
    assert (row["agreement"]["successes"], row["agreement"]["episodes"]) == (1, 2), "4 is clicked right, 1 is not"
    assert row["panel_hash"] == suite_of(recorded.run).panel_hash()


@pytest.mark.parametrize("says, verdict", [
    (lambda seed, action: True, "flattering"), (lambda seed, action: seed in (1, 4), "doubtful")])
def test_the_gate_of_recordings_never_calls_a_dream_trustworthy(recorded, says, verdict):
    recorded.dream.says = says
    recorded.held[2:] = [step._replace(query=step.query._replace(action="click 2")) for step in recorded.held[2:]]
    row = first_gate(recorded.run)
    assert (row["verdict"], row["recorded"], row["gap"], row["transitions"]) == (verdict, 4, None, 0)
    assert row["real"]["episodes"] == 0 and row["dreamed"]["episodes"] == 6
    json.dumps(row, allow_nan=False)


def test_the_gate_of_recordings_without_a_failure_measures_nothing(recorded):
    del recorded.held[2:]
    assert first_gate(recorded.run)["verdict"] == "not measured"


def test_recordings_have_no_world_and_a_sentence_says_so(recorded):
    with pytest.raises(DreamgymError, match="^The suite 'recorded-quiz' has recordings but no environment, so a test is not"):
        real_environment(recorded.run, "a test")


def test_failures_of_the_world_are_counted_in_the_row(small_run, monkeypatch):
    class Leaky(Quiz):
        def reset(self, seed, options):
            self.dead = seed % 2
            return super().reset(seed, options)

        def step(self, action):
            if self.dead:
                raise ConnectionError("the line is dead")
            return super().step(action)

    world = lambda self, parallel, maximum_steps: BatchOf(Leaky, real=True, forgiving=True)  # noqa: E731
    monkeypatch.setattr(MiniWobSuite, "environment", world)
    row = evaluation(small_run, "guesser", small_run.path)
    assert row["broken"] == len(row["episodes"]) // 2 and all(e["reward"] == 0 for e in row["episodes"][1::2])
