"The loop: what an iteration does, what a variation must survive, and that an interruption changes no number."

import json

import pytest
import torch

import dreamgym.training_loop as module
from dreamgym.environments import ANY_TEXT, BatchEnvironment, BatchOf, Grammar, Suite, make_task
from dreamgym.experience_model import Imagined
from dreamgym.fast_model import LanguageModel
from dreamgym.language_model import Sample
from dreamgym.pages import PageGrammar, check_action, parse_action
from dreamgym.policy_optimization import Learner
from dreamgym.rollouts import Agent, Rollout
from dreamgym.runs import Run, Scale
from dreamgym.trajectories import END_STATE, FAILURE_STATE, DreamgymError, Task, atomic_write_json, read_trajectories
from dreamgym.training_loop import (
    LoopState,
    _train,
    dream_training,
    groups_of,
    invent_tasks,
    iteration_metrics,
    real_training,
    run_iteration,
    settings_of,
    try_out_in,
)

SCALE = Scale.named("quick", tasks_per_iteration=3, group_size=4, policy_learning_rate=1e-2, variations=2)


class Letters:
    "One page with two buttons; which of them wins depends on the seed. Anything that is no click fails."

    maximum_steps = 2

    def reset(self, seed, options):
        self.right = 1 + seed % 2
        return "[1] button 'a'\n[2] button 'b'", {"goal": f"Press {'ab'[seed % 2]}."}

    def step(self, action):
        check_action(move := parse_action(action), "[1] button 'a'\n[2] button 'b'")
        return END_STATE, float(move.element == self.right), True, False, {}


class Clicker:
    "An agent without a model: rollout after rollout it clicks the first, then the second button."

    grammar = PageGrammar()

    def prompt(self, task, state, history=()):
        return [1, 2, 3]

    def act(self, prompts, temperature=1.0, seed=0):
        return [(f"click {1 + i % 2}", Sample([7], [-0.5])) for i in range(len(prompts))]


class Counting:
    "A learner that only counts."

    def __init__(self):
        self.seen = []

    def update(self, rollouts, seed=0, watch=None):
        self.seen.append([r.reward for r in rollouts])
        return {"return": 0.5}


class Buffer:
    "A buffer that keeps what it is given."

    embedder = type("", (), {"embed": staticmethod(lambda texts: pytest.fail("only PPO groups tasks by their goals"))})

    def __init__(self):
        self.groups, self.solved = [], set()

    def enrich(self, groups):
        self.groups += groups
        return 2 * len(groups)

    def prune(self, solved):
        self.solved |= solved
        return 1


class World:
    "An experience model by rule: a page with a button named `broken` has no answer, one named `lost` only fails."

    grammar = PageGrammar()

    def __init__(self, texts=()):
        self.texts, self.parents = list(texts), []

    def imagine(self, queries):
        return [Imagined("", FAILURE_STATE, 0.0, True, valid=False) if "broken" in q.state
                else Imagined("It ends.", END_STATE, float("lost" not in q.state), True) for q in queries]

    def invent(self, parents, seed=0):
        self.parents = list(parents)
        return [self.texts[i % len(self.texts)] for i in range(len(parents))]


def tasks_named(*numbers) -> list[Task]:
    return [make_task("letters", n) for n in numbers]


def test_trajectories_are_put_together_by_group():
    state = LoopState(Clicker(), Counting(), None)
    rollouts = run_iteration(state, BatchOf(Letters), tasks_named(0, 1, 2), SCALE, 0).rollouts
    mixed = rollouts[::2] + rollouts[1::2]
    groups = groups_of(mixed)
    assert [len(group) for group in groups] == [4, 4, 4]
    assert [{t.task.id for t in group} for group in groups] == [{"letters/0"}, {"letters/1"}, {"letters/2"}]
    assert groups_of([]) == []


@pytest.mark.parametrize(("names", "problem"), [
    ("ab", ""), (("broken", "b"), "the experience model has no answer"), (("lost", "lost2"), "every action fails")])
def test_a_variation_is_tried_before_it_is_used(names, problem):
    state = "\n".join(f"[{i}] button '{name}'" for i, name in enumerate(names, 1))
    task = make_task("letters", 5).model_copy(update={"goal": "Press a.", "start_state": state})
    assert try_out_in(World())([task]) == [problem]


def test_an_iteration_updates_counts_and_fills_the_buffer():
    buffer, learner = Buffer(), Counting()
    world = World([" Press c.\nPage:\n[1] button 'c'\n[2] button 'd'", "nonsense"])
    environment = BatchOf(Letters)
    environment.model = world
    state = LoopState(Clicker(), learner, buffer, invented=tasks_named(9))
    tasks = [t.model_copy(update={"synthetic": n == 2}) for n, t in enumerate(tasks_named(0, 1, 2))]
    result = run_iteration(state, environment, tasks, SCALE, seed=1)
    assert len(result.rollouts) == 12 and learner.seen == [[r.reward for r in result.rollouts]]
    assert {r.reward for r in result.rollouts} == {0.0, 1.0}
    found = result.metrics
    assert (found["return"], found["transitions"], found["invalid"], found["synthetic_tasks"]) == (0.5, 12, 0, 1)
    assert len(buffer.groups) == 3 and buffer.solved == set() and found["buffer_added"] == 6
    assert found["tasks_accepted"] + found["tasks_rejected"] == len(result.judged) == len(world.parents) == 2
    assert found["tasks_rejected"] >= 1, "nonsense is no task"
    assert [t.id for t in state.invented][-1] == "letters/9", "earlier inventions stay, new ones come first"
    assert len(state.invented) == 1 + found["tasks_accepted"]
    assert state.values == {"letters": 0.25}, "of four rollouts a task, two press the right button"


@pytest.mark.parametrize(("stubborn", "left"), [(False, [7, 8, 9]), (True, [7])])
def test_an_invented_task_leaves_when_its_rollouts_end_alike(stubborn, left):
    class Stubborn(Clicker):
        def act(self, prompts, temperature=1.0, seed=0):
            return [("click 1", Sample([7], [-0.5])) for _ in prompts]

    environment = BatchOf(Letters)
    environment.model = World(["nonsense"])
    state = LoopState(Stubborn() if stubborn else Clicker(), Counting(), Buffer(), invented=tasks_named(7, 8, 9))
    run_iteration(state, environment, tasks_named(0, 8, 9), SCALE, seed=1)  # 8 is always solved, 9 never, 7 not played
    assert [t.id for t in state.invented] == [f"letters/{n}" for n in left]


def test_on_real_pages_nothing_is_invented():
    state = LoopState(Clicker(), Counting(), None)
    result = run_iteration(state, BatchOf(Letters), tasks_named(0, 1), SCALE, seed=1)
    assert result.judged == [] and "buffer_added" not in result.metrics and state.invented == []
    assert state.values == {}, "the baseline draws task types in turn"


def test_the_state_survives(tmp_path, new_state):
    state = new_state()
    state.invented, state.values = tasks_named(3, 4), {"letters": 0.125}
    state.save(tmp_path / "state")
    again = new_state()
    again.load(tmp_path / "state")
    assert (again.invented, again.values) == (state.invented, state.values)


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c", "\r"])
def test_line_separators_in_an_invented_task_survive(tmp_path, new_state, sign):
    state = new_state()
    state.invented = [task.model_copy(update={"goal": f"Press{sign}a.", "start_state": f"text a{sign}b\n[1] button 'a'"})
                      for task in tasks_named(3, 4)]
    state.save(tmp_path / "state")
    again = new_state()
    again.load(tmp_path / "state")
    assert again.invented == state.invented


def test_a_cut_text_and_a_mean_of_nothing_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(LoopState, "save", lambda self, folder: None)
    environment = BatchOf(Letters)
    environment.model = World([None])
    result = run_iteration(LoopState(Clicker(), Counting(), Buffer()), environment, tasks_named(0, 1), SCALE, 1)
    result.metrics |= {"value": float("nan"), "kl": float("inf")}
    module.write_iteration(tmp_path / "iterations" / "0001", LoopState(None, None, None), result)
    judged = json.loads((tmp_path / "iterations" / "0001" / "judged.json").read_text())
    assert judged and all(row == {"problem": "cut off at its token limit", "text": "", "task": None} for row in judged)
    text = (tmp_path / "iterations" / "0001" / "metrics.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert [json.loads(text)[name] for name in ("value", "kl", "return")] == [None, None, 0.5]


def test_as_many_variations_are_written_as_the_next_iteration_can_use():
    tasks = tasks_named(*range(20))
    scale = Scale.named("quick", group_size=4, variations=3, synthetic_share=0.2)
    rollouts = run_iteration(LoopState(Clicker(), Counting(), None), BatchOf(Letters), tasks, scale, 0).rollouts
    world = World(["nonsense"])
    invent_tasks(world, tasks, rollouts, scale, seed=0)
    assert len(world.parents) == 9, "four can be used, about half are discarded, and each seed task has three"


def test_solved_tasks_leave_the_buffer_and_hopeless_ones_are_not_varied():
    class Sure(Clicker):
        def act(self, prompts, temperature=1.0, seed=0):
            return [("click 1", Sample([7], [-0.5])) for _ in prompts]

    environment, buffer = BatchOf(Letters), Buffer()
    environment.model = World(["nonsense"])
    result = run_iteration(LoopState(Sure(), Counting(), buffer), environment, tasks_named(0, 1), SCALE, 0)
    assert buffer.solved == {"letters/0"}
    assert result.judged == [], "no rewards vary: nothing is worth a variation"


def test_the_tasks_whose_rewards_vary_most_are_varied():
    tasks, rewards = tasks_named(0, 1, 2, 3), [(1, 1, 1, 0), (1, 0, 1, 0), (0, 0, 0, 0), (1, 1, 1, 1)]
    made = run_iteration(LoopState(Clicker(), Counting(), None), BatchOf(Letters), tasks, SCALE, 0).rollouts
    rollouts = []
    for i, rollout in enumerate(made):
        last = rollout.trajectory.transitions[-1].model_copy(update={"reward": float(rewards[i // 4][i % 4])})
        trajectory = rollout.trajectory.model_copy(update={"transitions": (last,)})
        rollouts.append(Rollout(trajectory, rollout.turns, rollout.group))
    world = World(["nonsense"])
    invent_tasks(world, tasks, rollouts, SCALE, seed=0)
    assert [t.id for t in world.parents] == ["letters/1", "letters/1"]


# --- stages


@pytest.fixture
def new_state(tiny_model_folder):
    "A function that makes the same small agent and learner each time."
    def make() -> LoopState:
        model = LanguageModel.load(str(tiny_model_folder), rank=3, device="cpu", dtype="float32")
        generator = torch.Generator().manual_seed(1)
        for layer in model.adapted.values():
            layer.lora_b.data.normal_(0, 0.1, generator=generator)
        return LoopState(Pressing(model, maximum_tokens=4, grammar=PageGrammar()), Learner(model, settings_of(SCALE)), None)

    return make


class Pressing(Agent):
    "Its first token decides which button it clicks, so that a random model wins about half the time."

    def act(self, prompts, temperature=1.0, seed=0):
        drawn = self.model.sample(prompts, 1, temperature, seed)
        return [(f"click {1 + sample.tokens[0] % 2}", sample) for sample in drawn]


class Interrupted(BatchEnvironment):
    "Real pages until the power goes, at the given start of a batch."

    def __init__(self, at=None):
        self.inner, self.at, self.starts = BatchOf(Letters, real=True), at, 0
        self.maximum_steps, self.real = 2, True

    def reset_batch(self, tasks):
        self.starts += 1
        if self.starts == self.at:
            raise KeyboardInterrupt
        return self.inner.reset_batch(tasks)

    def step_batch(self, actions):
        return self.inner.step_batch(actions)


def trained(path, new_state, environment):
    run = Run.open(path, SCALE, 0)
    pick = lambda state, seed: tasks_named(*(seed % 100 + n for n in range(3)))  # noqa: E731
    _train(run, "real", new_state(), environment, pick, 3)
    return run, run.path / "real" / "0003" / "agent"


def test_an_interruption_changes_no_number(tmp_path, new_state):
    whole, adapter = trained(tmp_path / "whole", new_state, Interrupted())
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "cut", new_state, Interrupted(at=3))
    finished = sorted(path.name for path in (tmp_path / "cut" / "real").iterdir() if not path.name.startswith("."))
    assert finished == ["0001", "0002"]
    again = Interrupted()
    cut, same = trained(tmp_path / "cut", new_state, again)
    assert again.starts == 1, "finished iterations are not made again"
    assert iteration_metrics(cut, "real") == iteration_metrics(whole, "real")
    assert len(iteration_metrics(whole, "real")) == 3
    weights = "adapter_model.safetensors"
    assert (same / weights).read_bytes() == (adapter / weights).read_bytes()
    first, last = ((whole.path / "real" / n / "agent" / weights).read_bytes() for n in ("0001", "0003"))
    assert first != last, "something was learned"


def test_each_iteration_leaves_its_evidence(tmp_path, new_state):
    run, _ = trained(tmp_path / "run", new_state, Interrupted())
    for number, metrics in enumerate(iteration_metrics(run, "real"), 1):
        folder = run.path / "real" / f"{number:04d}"
        episodes = read_trajectories(folder / "rollouts.jsonl")
        assert len(episodes) == 12 and all(t.real for t in episodes)
        assert metrics["transitions"] == sum(map(len, episodes))
        assert json.loads((folder / "judged.json").read_text()) == []
    assert iteration_metrics(run, "nowhere") == []


def test_a_finished_training_loads_nothing(tmp_path, monkeypatch):
    run = Run.open(tmp_path / "run", SCALE, 0)
    for folder in ("iterations", "real"):
        for number in range(1, SCALE.iterations + 1):
            (run.path / folder / f"{number:04d}" / "agent").mkdir(parents=True)
            atomic_write_json(run.path / folder / f"{number:04d}" / "metrics.json", {"transitions": 5.0})
    monkeypatch.setattr(module, "first_gate", lambda run: {"verdict": "doubtful"})
    for name in ("simulator_of", "first_state"):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("a model or a browser was started"))
    monkeypatch.setattr(module, "start_tasks", lambda run: [])
    assert dream_training(run) == run.path / "iterations" / f"{SCALE.iterations:04d}" / "agent"
    assert real_training(run) == run.path / "real" / f"{SCALE.iterations:04d}" / "agent"
    assert run.transitions() == run.transitions("real") == 5 * SCALE.iterations


def test_what_the_world_broke_teaches_nothing():
    class Torn(Letters):
        def step(self, action):
            if self.right == 2:
                raise OSError("the line is dead")
            return super().step(action)

    learner = Counting()
    result = run_iteration(LoopState(Clicker(), learner, None), BatchOf(Torn, forgiving=True), tasks_named(0, 1, 2), SCALE, 0)
    assert result.metrics["broken"] == 4 and [len(seen) for seen in learner.seen] == [8]
    assert result.metrics["invalid"] == 0 and len(result.rollouts) == 12, "they are recorded all the same"


def test_a_real_training_needs_a_real_world(open_suite, monkeypatch):
    class Recorded(Suite):
        name = "recorded-letters"

    monkeypatch.setattr(module, "start_tasks", lambda run: tasks_named(0, 1))
    with pytest.raises(DreamgymError, match="has recordings but no environment, so training on real pages is not possible"):
        real_training(open_suite(Recorded()))


def test_a_world_of_free_text_tries_what_its_grammar_knows():
    class Rooms(Grammar):
        def trials(self, task, count):
            return ["go north", "go south"][:count]

    class Told(World):
        def __init__(self, grammar):
            super().__init__()
            self.grammar, self.asked = grammar, []

        def imagine(self, queries):
            self.asked += [q.action for q in queries]
            return super().imagine(queries)

    tasks = [make_task("rooms", n).model_copy(update={"goal": "Out.", "start_state": state})
             for n, state in enumerate(("a hall", "a lost hall", "a broken hall"))]
    plain, rooms = Told(ANY_TEXT), Told(Rooms())
    assert try_out_in(plain)(tasks) == ["", "", ""] and plain.asked == [], "nothing is known to try"
    assert try_out_in(rooms)(tasks) == ["", "every action fails", "the experience model has no answer"]
    assert rooms.asked == ["go north", "go south"] * 3 and try_out_in(rooms, 1)(tasks[:1]) == [""]


def test_a_flattering_dream_is_told_again_with_every_use(tmp_path, monkeypatch):
    run = Run.open(tmp_path / "run", SCALE, 0)
    (run.path / "iterations" / f"{SCALE.iterations:04d}" / "agent").mkdir(parents=True)
    atomic_write_json(run.path / "iterations" / f"{SCALE.iterations:04d}" / "metrics.json", {"transitions": 1.0})
    gate = {"verdict": "flattering", "balanced_reward_accuracy": 0.61}
    monkeypatch.setattr(module, "first_gate", lambda run: gate)
    with pytest.warns(UserWarning, match="61%.*flattering dream"):
        dream_training(run)
    gate.update(verdict="doubtful", flattered=["click-option", "click-checkboxes"])
    with pytest.warns(UserWarning, match="far more in the dream.*click-option, click-checkboxes"):
        dream_training(run)


def test_a_gate_that_measured_nothing_is_told(tmp_path, monkeypatch):
    run = Run.open(tmp_path / "run", SCALE, 0)
    (run.path / "iterations" / f"{SCALE.iterations:04d}" / "agent").mkdir(parents=True)
    monkeypatch.setattr(module, "first_gate",
                        lambda run: {"verdict": "not measured", "balanced_reward_accuracy": None, "flattered": []})
    with pytest.warns(UserWarning, match="has not measured"):
        dream_training(run)
