"Rollouts: exact records, batches that shrink, groups, one function for every world, and the warm start."

import math
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ScriptedModel

from dreamgym import rollouts as module
from dreamgym.environments import BatchEnvironment, BatchOf, InvalidAction, Suite
from dreamgym.experience_model import DreamBatch, Imagined
from dreamgym.fast_model import LanguageModel
from dreamgym.language_model import Example, choose_placement
from dreamgym.pages import PageGrammar, check_action, ids_last, parse_action
from dreamgym.rollouts import (
    Agent,
    Rollout,
    Turn,
    agent_prompt,
    collect_logs,
    collect_rollouts,
    demonstrations,
    imitation,
    imitation_examples,
    new_agent,
    offline_data,
    preference_loss,
    preference_pairs,
    preference_step,
    train_preferences,
    warm_start,
)
from dreamgym.trajectories import (
    END_STATE,
    FAILURE_STATE,
    DreamgymError,
    Task,
    Trajectory,
    Transition,
    read_trajectories,
    write_trajectories,
)

PAGE = "[1] button 'ring'\n[2] button 'leave'"
PAGES = PageGrammar()


def bell(number):
    return Task(id=f"bell/{number}", kind="bell", seed=number, goal=f"Ring {number} times.", start_state=PAGE)


class Bell:
    "Ring as often as the seed says, then it is a success; leaving is a failure."

    maximum_steps = 5

    def reset(self, seed, options):
        self.left = seed
        return PAGE, {"task": options["task"]}

    def step(self, action):
        touched = check_action(parse_action(action), PAGE)
        if touched.id == 2:
            return END_STATE, 0.0, True, False, {"reasoning": "It leaves."}
        self.left -= 1
        return (PAGE, 0.0, False, False, {}) if self.left else (END_STATE, 1.0, True, False, {"reasoning": "It rang."})


def scripted(rule=lambda prompt: "click 1"):
    "A model that answers with the actions of a rule, in the form of an action's tokens."
    return ScriptedModel(lambda prompt: f" {rule(prompt)}")


@pytest.fixture
def tiny(make_tiny_model, tiny_tokenizer):
    "An agent with a random tiny model whose adapter is no longer zero."
    model = LanguageModel(make_tiny_model(3).requires_grad_(False), tiny_tokenizer, choose_placement("cpu", "float32"))
    model.add_adapter(4)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in model.adapted.values():
            layer.lora_b.normal_(std=0.1)
    return Agent(model, maximum_tokens=9)


class Patient(BatchEnvironment):
    "Any action goes on; episodes end by their own number, as successes. It keeps what it was asked."

    def __init__(self, maximum_steps=4, real=False):
        self.maximum_steps, self.real, self.asked = maximum_steps, real, []

    def reset_batch(self, tasks):
        self.tasks, self.steps = list(tasks), [0] * len(tasks)
        return self.tasks

    def step_batch(self, actions):
        self.asked.append(list(actions))
        output = []
        for i, action in enumerate(actions):
            if action is None:
                output.append(None)
                continue
            self.steps[i] += 1
            over = self.steps[i] >= self.tasks[i].seed
            cut = not over and self.steps[i] >= self.maximum_steps
            output.append((END_STATE if over else PAGE, float(over), over, cut, {}))
        return output


# ---------------------------------------------------------------- the prompt


def test_a_prompt_shows_the_newest_page_and_a_short_past():
    task = bell(2)
    text = agent_prompt(task, PAGE, ["first", "second", "third"], 2, PAGES)
    assert text == f"Task: Ring 2 times.\nPage:\n{ids_last(PAGE)}\nPast: second; third\nTask: Ring 2 times.\nAction:"
    bare = f"Task: Ring 2 times.\nPage:\n{ids_last(PAGE)}\nTask: Ring 2 times.\nAction:"
    assert agent_prompt(task, PAGE, ["first"], 0, PAGES) == agent_prompt(task, PAGE, grammar=PAGES) == bare
    assert agent_prompt(task, PAGE) == bare.replace(ids_last(PAGE), PAGE), "any text is shown as it is"
    assert "first; second; third" in agent_prompt(task, PAGE, ["first", "second", "third"], 9)


@pytest.mark.parametrize("length", [0, 1, 2])
def test_history_is_as_long_as_asked(length):
    model = scripted()
    collect_rollouts(Agent(model, history_length=length, grammar=PAGES), BatchOf(Bell), [bell(4)])
    pasts = [prompt.partition("Past: ")[2].split("\nTask")[0] for (prompt,), *_ in model.calls]
    assert [past.count("clicks button ring") for past in pasts] == [min(turn, length) for turn in range(4)]


def test_a_grammar_of_its_own_stays_readable_in_the_past():
    model = scripted(lambda prompt: "go north")
    (rollout,) = collect_rollouts(Agent(model), Patient(), [bell(2)])
    assert "Past: go north\n" in model.calls[1][0][0] and not rollout.trajectory.transitions[0].invalid


# ---------------------------------------------------------------- the record


def test_sampled_ids_and_log_probabilities_are_carried_through(tiny, monkeypatch):
    seen, original = {}, LanguageModel.sample

    def sample(self, prompts, *arguments):
        answers = original(self, prompts, *arguments)
        seen.setdefault("turns", []).append([(list(p), *s) for p, s in zip(prompts, answers, strict=True)])
        return answers

    monkeypatch.setattr(LanguageModel, "sample", sample)
    rollouts = collect_rollouts(tiny, Patient(), [bell(1), bell(3)], group_size=2, seed=5)
    by_round = [[tuple(r.turns[n]) for r in rollouts if len(r.turns) > n] for n in range(3)]
    assert by_round == seen["turns"] and [len(turns) for turns in by_round] == [4, 2, 2]
    assert all(isinstance(token, int) for r in rollouts for t in r.turns for token in t.action)


def test_a_second_tokenisation_would_give_other_ids(tiny):
    "Why the ids are kept: what a model samples is seldom the usual spelling of its text."
    rollouts = collect_rollouts(tiny, Patient(), [bell(2)] * 4, seed=1)
    pairs = [(s.action, t.action) for r in rollouts for s, t in zip(r.trajectory.transitions, r.turns, strict=True)]
    again = [tiny.model.encode(f" {text}") + [tiny.model.end] for text, _ in pairs]
    assert sum(a != ids for a, (_, ids) in zip(again, pairs, strict=True)) > len(pairs) / 2
    assert [tiny.model.decode(ids).strip() for _, ids in pairs] == [text for text, _ in pairs]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_record_equals_a_scoring_of_its_ids(tiny, temperature):
    rollouts = collect_rollouts(tiny, Patient(), [bell(n) for n in (1, 3, 9)], 3, temperature, seed=2)
    turns = [turn for r in rollouts for turn in r.turns]
    scores = tiny.model.log_probabilities([Example(t.prompt, t.action) for t in turns], temperature)
    for turn, score in zip(turns, scores, strict=True):
        assert len(turn.action) == len(turn.log_probabilities)
        np.testing.assert_allclose(score.numpy(), turn.log_probabilities, atol=1e-4)


def test_every_transition_has_its_turn(tiny):
    for rollout in collect_rollouts(tiny, Patient(), [bell(1), bell(9)], 2):
        assert isinstance(rollout, Rollout) and all(isinstance(turn, Turn) for turn in rollout.turns)
        assert len(rollout.turns) == len(rollout.trajectory)
        texts = [tiny.model.decode(turn.action).strip() for turn in rollout.turns]
        assert texts == [step.action for step in rollout.trajectory.transitions]
        assert [tiny.model.decode(turn.prompt).splitlines()[0] for turn in rollout.turns] == [
            f"Task: {rollout.trajectory.task.goal}"] * len(rollout.turns)


def test_the_same_seed_gives_the_same_rollouts(tiny):
    first, second, other = (collect_rollouts(tiny, Patient(), [bell(2), bell(3)], 3, 1.0, seed) for seed in (7, 7, 8))
    assert first == second and [r.turns for r in first] != [r.turns for r in other]
    greedy = [collect_rollouts(tiny, Patient(), [bell(2)], 3, 0.0, seed) for seed in (1, 2)]
    assert greedy[0] == greedy[1] and len({r.turns[0].action[0] for r in greedy[0]}) == 1
    turns = {tuple(r.turns[0].action) for r in first}
    assert len(turns) > 1, "the members of a group draw for themselves"


def test_every_turn_has_a_seed_of_its_own():
    model = scripted()
    collect_rollouts(Agent(model), BatchOf(Bell), [bell(3)], temperature=0.5, seed=4)
    assert len({seed for *_, seed in model.calls}) == 3 and {t for _, t, _ in model.calls} == {0.5}


# ---------------------------------------------------------------- the batch


def test_who_is_done_leaves_the_batch():
    model, environment, told = scripted(), Patient(), []
    rollouts = collect_rollouts(Agent(model), environment, [bell(1), bell(3), bell(2)],
                                watch=lambda done, total: told.append((done, total)))
    assert [len(prompts) for prompts, *_ in model.calls] == [3, 2, 1]
    assert [[a is not None for a in actions] for actions in environment.asked] == [
        [True, True, True], [False, True, True], [False, True, False]]
    assert [len(r.turns) for r in rollouts] == [1, 3, 2] and told == [(1, 3), (2, 3), (3, 3)]


def test_episodes_are_cut_at_the_limit():
    cut, solved = collect_rollouts(Agent(scripted()), BatchOf(Bell), [bell(9), bell(5)])
    assert cut.trajectory.truncated and len(cut.turns) == 5 and cut.reward == 0.0
    assert not cut.trajectory.transitions[-1].done
    assert not solved.trajectory.truncated and len(solved.turns) == 5 and solved.reward == 1.0


@pytest.mark.parametrize("action", ["click 7", "sing", "", "type 1 a", "click 1\nclick 1"])
def test_an_invalid_action_ends_the_episode(action):
    model = scripted(lambda prompt: action if "Ring 2" in prompt else "click 1")
    failed, other = collect_rollouts(Agent(model), BatchOf(Bell), [bell(2), bell(3)])
    (step,) = failed.trajectory.transitions
    assert (step.invalid, step.next_state, step.reward, step.done) == (True, FAILURE_STATE, 0.0, True)
    assert len(failed.turns) == 1 and failed.turns[0].action[-1] == 0, "its tokens are kept: they must be unlearned"
    assert other.reward == 1.0 and [len(prompts) for prompts, *_ in model.calls] == [2, 1, 1]


def test_the_reasoning_of_a_dream_is_kept():
    (rollout,) = collect_rollouts(Agent(scripted(lambda prompt: "click 2")), BatchOf(Bell), [bell(3)])
    assert rollout.trajectory.transitions[0].reasoning == "It leaves." and rollout.reward == 0.0
    assert rollout.trajectory.source == "agent"


def test_a_world_with_little_room_is_played_in_waves():
    model, small, told = scripted(), BatchOf(Bell, capacity=2), []
    tasks = [bell(n) for n in (1, 2, 3)]
    waves = collect_rollouts(Agent(model), small, tasks, 2, seed=3, watch=lambda *count: told.append(count))
    whole = collect_rollouts(Agent(scripted()), BatchOf(Bell), tasks, 2, seed=3)
    assert [(r.trajectory, r.group) for r in waves] == [(r.trajectory, r.group) for r in whole]
    assert [len(prompts) for prompts, *_ in model.calls] == [2, 2, 2, 2, 2, 2] and told[-1] == (6, 6)
    assert len({seed for *_, seed in model.calls}) == 6, "every wave draws for itself"


def test_a_world_that_fails_is_recorded_as_broken():
    class Faulty(Bell):
        def step(self, action):
            if self.left == 3:
                raise OSError("the rope is torn")
            return super().step(action)

    torn, rung = collect_rollouts(Agent(scripted()), BatchOf(Faulty, forgiving=True), [bell(3), bell(2)])
    assert torn.trajectory.broken and not torn.trajectory.transitions[-1].invalid and torn.reward == 0.0
    assert not rung.trajectory.broken and rung.reward == 1.0


def test_groups_stand_together():
    rollouts = collect_rollouts(Agent(scripted()), Patient(), [bell(1), bell(2), bell(1)], group_size=3)
    assert [r.group for r in rollouts] == [0] * 3 + [1] * 3 + [2] * 3, "a task named twice has two groups"
    assert [r.trajectory.task.seed for r in rollouts] == [1] * 3 + [2] * 3 + [1] * 3
    with pytest.raises(DreamgymError, match="at least one rollout"):
        collect_rollouts(Agent(scripted()), Patient(), [bell(1)], group_size=0)
    assert collect_rollouts(Agent(scripted()), Patient(), []) == []


class Imagining:
    "An experience model that has learned the bell by heart."

    grammar = PAGES

    def imagine(self, queries):
        answers = []
        for query in queries:
            if query.action == "click 2":
                answers.append(Imagined("It leaves.", END_STATE, 0.0, True))
            else:
                over = len(query.history) + 1 >= query.task.seed
                answers.append(Imagined("It rang." if over else "", END_STATE if over else PAGE, float(over), over))
        return answers


def test_a_dream_and_a_real_world_are_interchangeable():
    "The same agent, tasks and seed in two worlds that answer alike: the same rollouts, but for where they happened."
    def rule(prompt):
        return "click 2" if "Ring 3" in prompt and "Past" in prompt else "shout" if "Ring 4" in prompt else "click 1"

    tasks = [bell(n) for n in (1, 2, 3, 4, 9)]
    real, dreamed = (collect_rollouts(Agent(scripted(rule)), world, tasks, 2, seed=3)
                     for world in (BatchOf(Bell, real=True), DreamBatch(Imagining(), maximum_steps=5)))
    assert all(r.trajectory.real for r in real) and not any(r.trajectory.real for r in dreamed)
    assert [r.turns for r in real] == [r.turns for r in dreamed]

    def story(rollout):
        steps = [(s.state, s.action, s.next_state, s.reward, s.done, s.invalid) for s in rollout.trajectory.transitions]
        return rollout.group, rollout.trajectory.truncated, steps

    assert [story(r) for r in real] == [story(r) for r in dreamed]
    assert [r.reward for r in real[::2]] == [1.0, 1.0, 0.0, 0.0, 0.0]


def test_an_error_of_the_world_is_not_swallowed():
    class Broken(Patient):
        def step_batch(self, actions):
            raise InvalidAction("a batch must not raise this")

    with pytest.raises(InvalidAction):
        collect_rollouts(Agent(scripted()), Broken(), [bell(1)])


# ---------------------------------------------------------------- the warm start


def shown(kind, number, source="oracle"):
    steps = (Transition(state=PAGE, action="click 1", next_state=PAGE, reward=0.0, done=False),
             Transition(state=PAGE, action="click 2", next_state=END_STATE, reward=1.0, done=True))
    return Trajectory(task=bell(number).model_copy(update={"kind": kind, "id": f"{kind}/{number}"}), transitions=steps,
                      source=source)


def test_imitation_has_the_form_of_a_rollout(tiny):
    examples = imitation_examples(tiny, [shown("bell", 2)])
    assert len(examples) == 2 and all(e.weights is None for e in examples)
    assert [tiny.model.tokenizer.decode(e.completion) for e in examples] == [" click 1<|im_end|>", " click 2<|im_end|>"]
    collected = collect_rollouts(Agent(scripted()), Patient(), [bell(2)])[0]
    prompts = [bytes(t.prompt).decode() for t in collected.turns]
    assert [tiny.model.decode(e.prompt) for e in examples] == prompts, "word for word what the agent is shown later"


def test_imitation_makes_the_shown_action_likelier(tiny):
    examples = imitation_examples(tiny, [shown("bell", 2)])
    before, _, after = (
        tiny.model.log_probabilities(examples),
        tiny.model.train_supervised(examples, epochs=20, learning_rate=5e-3, tokens_per_step=256),
        tiny.model.log_probabilities(examples))
    assert all(float(new.sum()) > float(old.sum()) + 1 for old, new in zip(before, after, strict=True))


@pytest.fixture
def designed_run(quick_run):
    "A run that learns from an oracle's episodes and designed mistakes."
    quick_run.scale = replace(quick_run.scale, source="oracle")
    return quick_run


@pytest.fixture
def run_with_data(designed_run):
    "A run directory whose offline data is there: branches and too many oracles of two kinds."
    trajectories = [shown(kind, n, source) for n in range(10) for kind in ("a", "b") for source in ("branch", "oracle")]
    write_trajectories(designed_run.path / "offline.jsonl", trajectories)
    return designed_run


def test_demonstrations_are_few_and_by_the_oracle(run_with_data):
    chosen = demonstrations(run_with_data)
    limit = round(2**run_with_data.scale.demonstration_power)  # these episodes have two steps
    assert [t.task.id for t in chosen] == [f"{kind}/{n}" for n in range(limit) for kind in ("a", "b")]
    assert {t.source for t in chosen} == {"oracle"}


@pytest.mark.parametrize(("power", "fewest", "of_long", "of_short"), [
    (0, 1, 1, 1), (1, 1, 2, 1), (1.5, 1, 3, 1), (2, 1, 4, 1), (2, 0, 4, 1), (2, 2, 4, 2), (1, 3, 3, 3)])
def test_long_task_types_get_more_demonstrations(designed_run, power, fewest, of_long, of_short):
    designed_run.scale = replace(designed_run.scale, demonstration_power=power, fewest_demonstrations=fewest)
    long = [shown("long", n, "oracle") for n in range(30)]
    short = [t.model_copy(update={"task": t.task.model_copy(update={"kind": "short", "id": f"short/{n}"}),
                                  "transitions": t.transitions[-1:]}) for n, t in enumerate(long)]
    write_trajectories(designed_run.path / "offline.jsonl", long + short)
    kinds = [t.task.kind for t in demonstrations(designed_run)]
    assert (kinds.count("long"), kinds.count("short")) == (of_long, of_short), "rounded"


def test_goals_take_turns_among_the_demonstrations(designed_run):
    designed_run.scale = replace(designed_run.scale, demonstration_power=2)
    goals = ["OK"] * 7 + ["x", "OK", "Cancel", "x", "x"]
    trajectories = [shown("a", n, "oracle") for n in range(len(goals))]
    trajectories = [t.model_copy(update={"task": t.task.model_copy(update={"goal": goal})})
                    for t, goal in zip(trajectories, goals, strict=True)]
    write_trajectories(designed_run.path / "offline.jsonl", trajectories)
    assert [t.task.id for t in demonstrations(designed_run)] == ["a/0", "a/7", "a/9", "a/1"]


def test_the_warm_start_is_a_stage(run_with_data, tiny_model_folder, monkeypatch):
    monkeypatch.setenv("DREAMGYM_DTYPE", "float32")
    run_with_data.scale = replace(run_with_data.scale, model=str(tiny_model_folder), lora_rank=2)
    folder = warm_start(run_with_data)
    assert folder == run_with_data.path / "agent" / "warm_start"
    record = run_with_data.metrics()["warm_start"]
    assert record["examples"] == 2 * 2 * round(2**run_with_data.scale.demonstration_power) and record["losses"]
    before = (folder / "adapter_model.safetensors").read_bytes()
    monkeypatch.setattr(module, "demonstrations", lambda run: pytest.fail("it was built a second time"))
    assert warm_start(run_with_data) == folder and (folder / "adapter_model.safetensors").read_bytes() == before

    fresh, started = new_agent(run_with_data), new_agent(run_with_data, folder)
    pairs = list(zip(fresh.model.parameters(), started.model.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in pairs) and started.history_length == run_with_data.scale.history_length
    again = new_agent(run_with_data)
    assert all(torch.equal(a, b) for a, b in zip(fresh.model.parameters(), again.model.parameters(), strict=True))


# ---------------------------------------------------------------- demonstrations without an oracle's data


class Bells(Suite):
    "A suite of bells; what it has besides its world is up to a test."

    name, grammar, maximum_steps = "bells", PAGES, 5

    def panel(self, name):
        first = {"train": 0, "test": 50}.get(name)
        return [] if first is None else [bell(first + n) for n in range(1, 5)]

    def environment(self, parallel, maximum_steps):
        return BatchOf(Bell, real=True, grammar=PAGES)


class Ringing(Bells):
    def oracle(self, task, state, past):
        return "click 1"


class Leaving(Bells):
    def oracle(self, task, state, past):
        return "click 2"


class Lucky(Leaving):
    def random_action(self, task, state, random):
        return f"click {random.integers(1, 3)}"


class Given(Ringing):
    def demonstrations(self):
        return [shown("bell", 9, "human"), shown("bell", 8, "human").model_copy(
            update={"transitions": shown("bell", 8).transitions[:1]})]


class Recordings(Bells):
    environment = Suite.environment

    def recordings(self):
        return [shown("bell", 7, "logs of a server")]


@pytest.mark.parametrize(("suite", "sources", "numbers"), [
    (Given, {"human"}, {9}), (Ringing, {"oracle"}, {1, 2, 3, 4}), (Lucky, {"random"}, {1, 2, 3, 4}),
    (Recordings, {"logs of a server"}, {7})])
def test_demonstrations_are_given_or_played_or_found_by_chance(open_suite, suite, sources, numbers):
    run = open_suite(suite(), demonstration_power=3)
    chosen = demonstrations(run)
    assert {t.source for t in chosen} == sources and {t.task.seed for t in chosen} <= numbers
    assert all(t.success for t in chosen) and (run.path / "demonstrations.jsonl").exists()
    assert demonstrations(run) == chosen and not (run.path / "offline.jsonl").exists()
    played = run.metrics().get("demonstrations", {})
    steps = {Given: {}, Recordings: {}, Ringing: {"transitions_of_oracle": 1 + 2 + 3 + 4}}
    if suite in steps:
        assert played == steps[suite], "every real step is counted, and only those"
    else:
        assert played["transitions_of_oracle"] == 4 < played["transitions_of_random"]


@pytest.mark.parametrize("suite", [Bells, Leaving])
def test_nothing_to_imitate_is_told_in_one_sentence(open_suite, suite):
    with pytest.raises(DreamgymError, match="^The suite 'bells' gives nothing to imitate: hand over .*random play found none.$"):
        demonstrations(open_suite(suite()))


# ---------------------------------------------------------------- logs


def test_logs_explore_with_valid_actions_and_keep_what_was_sampled():
    world = BatchOf(Bell, real=True, grammar=PAGES)
    plain = collect_logs(Agent(scripted(), grammar=PAGES), world, [bell(2)] * 3, Lucky(), episodes=2, random_share=0.0)
    assert len(plain) == 6 and all(t.success and t.source == "log" and t.real for t in plain)
    mixed = collect_logs(Agent(scripted(), grammar=PAGES), world, [bell(4)] * 40, Lucky(), episodes=2, random_share=0.25)
    actions = [s.action for t in mixed for s in t.transitions]
    assert 0.05 < actions.count("click 2") / len(actions) < 0.2, "an eighth of the actions leave"
    assert 0 < sum(t.success for t in mixed) < len(mixed), "successes and failures as they fell"
    again = collect_logs(Agent(scripted(), grammar=PAGES), world, [bell(4)] * 40, Lucky(), episodes=2, random_share=0.25)
    assert again == mixed, "the seed decides"
    other = collect_logs(Agent(scripted(), grammar=PAGES), world, [bell(4)] * 40, Lucky(), 2, 0.25, seed=1)
    assert other != mixed
    alone = collect_logs(Agent(scripted(), grammar=PAGES), world, [bell(2)], Bells(), episodes=1, random_share=1.0)
    assert alone[0].success, "where nobody knows an action, the agent's own is taken"


@pytest.fixture
def logging(monkeypatch):
    "Agents of a scripted model, whose warm start costs nothing."
    monkeypatch.setattr(module, "new_agent", lambda run, adapter=None: Agent(scripted(), grammar=PAGES))
    monkeypatch.setattr(module, "warm_start", lambda run: run.path / "agent" / "warm_start")


def test_offline_data_of_logs_joins_demonstrations_and_recordings(open_suite, logging):
    class Both(Ringing):
        def recordings(self):
            return [shown("bell", 7, "logs of a server")]

    run = open_suite(Both(), log_episodes=3, random_actions=0.0, offline_seeds_per_kind=2)
    found = read_trajectories(offline_data(run))
    sources = [t.source for t in found]
    assert [sources.count(name) for name in ("logs of a server", "oracle", "log")] == [1, len(found) - 7, 6]
    assert [t for t in found if t.source == "oracle"] == demonstrations(run)
    assert {t.task.seed for t in found if t.source == "log"} == {1, 2}
    record = run.metrics()["offline"]
    assert record["trajectories"] == len(found) == record["successes"] and record["source"] == "logs"
    assert record["transitions"] == 3 * (1 + 2) and record["broken"] == 0


def test_offline_data_of_recordings_needs_no_agent(open_suite, monkeypatch):
    monkeypatch.setattr(module, "new_agent", lambda *_: pytest.fail("an agent was loaded"))
    run = open_suite(Recordings())
    assert [t.source for t in read_trajectories(offline_data(run))] == ["logs of a server"]


def test_designed_data_is_refused_where_there_is_none(open_suite):
    with pytest.raises(DreamgymError, match="^The suite 'bells' has no designed data; its source must be logs.$"):
        offline_data(open_suite(Ringing(), source="oracle"))


def test_designed_data_comes_from_the_suite(open_suite):
    class Designed(Ringing):
        def designed(self, environment, tasks, branches, seed, watch):
            watch(1, 1)
            return [shown("bell", task.seed, "oracle") for task in tasks for _ in range(branches)]

    run = open_suite(Designed(), source="oracle", branches=2, offline_seeds_per_kind=3)
    assert len(read_trajectories(offline_data(run))) == 6 and run.metrics()["offline"]["source"] == "oracle"


def test_imitation_learns_the_successes_of_the_logs(run_with_data, tiny_model_folder, monkeypatch):
    monkeypatch.setenv("DREAMGYM_DTYPE", "float32")
    run_with_data.scale = replace(run_with_data.scale, model=str(tiny_model_folder), lora_rank=2, imitation_epochs=1)
    lost = shown("c", 1).model_copy(update={"transitions": (
        Transition(state=PAGE, action="click 2", next_state=END_STATE, reward=0.0, done=True),)})
    twice = [shown("d", 5), shown("d", 5)]
    write_trajectories(run_with_data.path / "offline.jsonl", [lost, *twice, *read_trajectories(offline_data(run_with_data))])
    folder = imitation(run_with_data)
    assert folder == run_with_data.path / "agent" / "imitation"
    prompts = {(t.task.goal, s.action) for t in read_trajectories(offline_data(run_with_data)) if t.success for s in t.transitions}
    assert run_with_data.metrics()["imitation"]["examples"] == len(prompts), "equal steps once, failures never"
    before, after = (((run_with_data.path / "agent" / name) / "adapter_model.safetensors").read_bytes()
                     for name in ("warm_start", "imitation"))
    assert before != after
    monkeypatch.setattr(module, "new_agent", lambda *_: pytest.fail("it was built a second time"))
    assert imitation(run_with_data) == folder


# ---------------------------------------------------------------- preferences


def told(actions, won, task=0, states=None):
    "A logged episode; its pages are named by the actions before them."
    states = states or ["|".join(["page", *actions[:i]]) for i in range(len(actions))]
    steps = tuple(Transition(state=state, action=action, next_state=[*states, END_STATE][i + 1], done=i + 1 == len(actions),
                             reward=float(won and i + 1 == len(actions))) for i, (state, action) in enumerate(zip(states, actions, strict=True)))
    return Trajectory(task=Task(id=f"t/{task}", kind="t", goal=f"Do {task}.", start_state=states[0]), transitions=steps, source="log", real=True)


@pytest.fixture
def plain_agent(tiny_model_folder, monkeypatch):
    monkeypatch.setenv("DREAMGYM_DTYPE", "float32")
    model = LanguageModel.load(str(tiny_model_folder), rank=3, device="cpu", dtype="float32")
    generator = torch.Generator().manual_seed(1)
    for layer in model.adapted.values():
        layer.lora_b.data.normal_(0, 0.1, generator=generator)
    return Agent(model)


def test_preferences_stand_where_success_and_failure_part(plain_agent):
    logs = [told(["a", "b"], True), told(["a", "c"], False), told(["x"], False), told(["a", "b"], True, task=1),
            told(["y"], False, task=2)]
    pairs = preference_pairs(plain_agent, logs)
    words = [tuple(plain_agent.model.decode(e.completion).strip() for e in pair) for pair in pairs]
    assert sorted(words) == [("a", "x"), ("b", "c")], "a shared first step is no mistake; a task without success has no pairs"
    assert all(good.prompt == bad.prompt for good, bad in pairs)
    assert preference_pairs(plain_agent, logs, 1) == pairs[:1]
    assert preference_pairs(plain_agent, [told(["a"], True), told(["a"], False)]) == [], "what a success did is never rejected"
    broken = told(["z"], False)
    broken = broken.model_copy(update={"transitions": (broken.transitions[0].model_copy(update={"broken": True}),)})
    assert preference_pairs(plain_agent, [told(["a"], True), broken]) == []


def test_the_preference_loss_is_that_of_trl():
    "TRL's own function on the same log-probabilities."
    trainer = pytest.importorskip("trl").DPOTrainer
    generator = torch.Generator().manual_seed(0)
    scores = -5 * torch.rand(4, 6, 3, generator=generator)  # preferred, rejected, their references; pairs; tokens
    mask = torch.ones(12, 4, dtype=torch.long)
    facts = {name: torch.zeros(12, 3) for name in ("entropy", "mean_logits", "is_top1")} | {"log_probs": scores[:2].flatten(0, 1)}
    facts["is_top1"] = facts["is_top1"].bool()

    class Same:
        device = "cpu"
        gather = gather_for_metrics = staticmethod(lambda value: value)

    numbers = dict(model=SimpleNamespace(training=False), accelerator=Same(), aux_loss_enabled=False, ld_alpha=None,
                   precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=["sigmoid"], loss_weights=[1.0], beta=0.3,
                   use_weighting=False, label_smoothing=0.0, _metrics={"eval": defaultdict(list)}, _total_train_tokens=0, _tp_size=1)
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": mask,
              "ref_chosen_logps": scores[2].sum(-1), "ref_rejected_logps": scores[3].sum(-1)}
    expected = trainer._compute_loss(SimpleNamespace(**numbers), lambda **_: SimpleNamespace(**facts), inputs, False)
    mine = preference_loss(*scores.sum(-1), weight=0.3).mean()
    assert float(mine) == pytest.approx(float(expected), abs=1e-6) and 0.1 < float(mine) < 5


def test_a_preference_step_has_the_plain_gradient(plain_agent):
    model, random = plain_agent.model, np.random.default_rng(0)
    draw = lambda low, high: random.integers(0, 256, random.integers(low, high)).tolist()  # noqa: E731
    pairs = [(Example(prompt, draw(1, 6)), Example(prompt, draw(1, 6))) for prompt in (draw(3, 9) for _ in range(5))]
    flat = [example for pair in pairs for example in pair]
    reference = torch.tensor([[-6.0, -9.0], [-12.0, -3.0], [-8.0, -8.0], [-20.0, -1.0], [-2.0, -15.0]])
    loss = preference_step(model, pairs, reference, 0.2)
    mine = [parameter.grad.clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    now = torch.stack([score.sum() for score in model.plain_scores(flat)]).view(-1, 2)
    plain = preference_loss(*now.T, *reference.T, 0.2).mean()
    plain.backward()
    assert loss == pytest.approx(float(plain.detach()), abs=1e-4)
    for one, parameter in zip(mine, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, atol=1e-4, rtol=1e-3)


def test_preferred_actions_gain_on_rejected_ones(plain_agent):
    model = plain_agent.model
    pairs = [(Example([1, 2, 3], [10, 11]), Example([1, 2, 3], [20])), (Example([4, 5], [30]), Example([4, 5], [10, 11]))] * 4
    margin = lambda: [float(a.sum() - b.sum()) for a, b in zip(*[iter(model.log_probabilities(  # noqa: E731
        [example for pair in pairs[:2] for example in pair]))] * 2, strict=True)]
    before, seen = margin(), []
    losses = train_preferences(model, pairs, 0.5, 4, 5e-3, 4, watch=lambda *facts: seen.append(facts))
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4) and losses[-1] < losses[0] - 0.05
    assert all(late > early + 0.1 for early, late in zip(before, margin(), strict=True))
    assert len(losses) == len(seen) == 8 and seen[-1][:2] == (8, 8)


@pytest.mark.slow
def test_text_has_many_spellings_in_smollm2():
    "The case that the chapter shows: other ids, the same text."
    model = LanguageModel.load("smollm2")
    usual = model.encode(" click 3")
    pieces = [model.tokenizer.convert_tokens_to_ids(piece) for piece in ("Ġ", "c", "l", "i", "c", "k", "Ġ", "3")]
    assert pieces != usual and model.decode(pieces) == model.decode(usual) == " click 3"
    assert model.encode(model.decode(pieces)) == usual != pieces
    usual_score, other = (float(s.sum()) for s in model.log_probabilities(
        [Example(model.encode("Action:"), ids) for ids in (usual, pieces)]))
    assert usual_score > other + 1
