"Rollouts: the exact record of tokens, turns, groups, endings and the history, on a tiny model and a scripted environment."

from types import SimpleNamespace

import pytest

from dreamgym.environments import BatchOf, check_action, parse_action
from dreamgym.language_model import Example, LanguageModel, Sample
from dreamgym.rollouts import Agent, agent_prompt, collect_rollouts, demonstrations, imitation_examples
from dreamgym.trajectories import END_STATE, DreamgymError, Task, Trajectory, Transition, write_trajectories

PAGE = "[1] button 'Stay'\n[2] button 'Go'"
TASKS = [Task(id=f"door/{number}", kind="door", seed=number, goal=f"Go {number}.", start_state=PAGE) for number in range(4)]


class Door:
    "Button 2 ends the episode well; button 1 changes nothing."

    maximum_steps = 3

    def reset(self, seed, options):
        return PAGE, {"task": options["task"]}

    def step(self, action):
        check_action(move := parse_action(action), PAGE)
        return (END_STATE, 1.0, True, False, {}) if move.element == 2 else (PAGE, 0.0, False, False, {})


class Scripted:
    "A model whose tokens are bytes and whose answers come from a list, prompt by prompt."

    end = 0

    def __init__(self, answers):
        self.answers, self.asked = list(answers), []

    def encode(self, text):
        return list(text.encode())

    def decode(self, tokens):
        return bytes(token for token in tokens if token).decode()

    def sample(self, prompts, maximum_tokens, temperature=1.0, seed=0):
        self.asked.append([self.decode(prompt) for prompt in prompts])
        texts = [self.answers.pop(0) for _ in prompts]
        return [Sample([*f" {text}".encode(), 0], [-0.5] * (len(text) + 2)) for text in texts]


@pytest.fixture
def tiny_agent(tiny_model_folder):
    return Agent(LanguageModel.load(str(tiny_model_folder), rank=4, device="cpu", dtype="float32"), maximum_tokens=6)


def test_the_record_scores_as_it_was_sampled(tiny_agent):
    rollouts = collect_rollouts(tiny_agent, BatchOf(Door), TASKS, group_size=2, seed=3)
    turns = [turn for rollout in rollouts for turn in rollout.turns]
    scores = tiny_agent.model.log_probabilities([Example(turn.prompt, turn.action) for turn in turns])
    for turn, score in zip(turns, scores, strict=True):
        assert len(turn.action) == len(turn.log_probabilities)
        assert score.tolist() == pytest.approx(turn.log_probabilities, abs=1e-4)


def test_the_same_seed_gives_the_same_rollouts_and_another_one_others(tiny_agent):
    first, again, other = (collect_rollouts(tiny_agent, BatchOf(Door), TASKS, seed=seed) for seed in (1, 1, 2))
    assert first == again and first != other


def test_groups_stand_together_and_in_the_order_of_the_tasks():
    agent = Agent(Scripted(["click 2"] * 8))
    rollouts = collect_rollouts(agent, BatchOf(Door), TASKS, group_size=2)
    assert [rollout.group for rollout in rollouts] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [rollout.trajectory.task.id for rollout in rollouts[::2]] == [task.id for task in TASKS]
    with pytest.raises(DreamgymError, match="at least one rollout"):
        collect_rollouts(agent, BatchOf(Door), TASKS, group_size=0)


def test_ended_episodes_leave_the_batch_and_long_ones_are_cut():
    agent = Agent(Scripted(["click 2", "click 1", "jump", "click 1", "click 1"]))
    seen = []
    rollouts = collect_rollouts(agent, BatchOf(Door), TASKS[:3], watch=lambda done, total: seen.append((done, total)))
    assert [len(asked) for asked in agent.model.asked] == [3, 1, 1]
    assert [rollout.reward for rollout in rollouts] == [1.0, 0.0, 0.0] and seen == [(2, 3), (2, 3), (3, 3)]
    well, cut, wrong = (rollout.trajectory for rollout in rollouts)
    assert cut.truncated and not well.truncated and wrong.transitions[0].invalid and wrong.transitions[0].done
    assert [len(rollout.turns) for rollout in rollouts] == [1, 3, 1]


@pytest.mark.parametrize("length", [0, 1, 2])
def test_the_prompt_shows_the_newest_actions_only(length):
    agent = Agent(Scripted(["click 1"] * 3), history_length=length)
    collect_rollouts(agent, BatchOf(Door), TASKS[:1])
    assert agent.model.asked[-1][0].count("clicks button Stay") == length


def test_imitation_has_the_very_form_of_a_rollout():
    agent = Agent(Scripted(["click 1", "click 2"]))
    rollout = collect_rollouts(agent, BatchOf(Door), TASKS[:1])[0]
    examples = imitation_examples(agent, [rollout.trajectory])
    assert [(e.prompt, e.completion) for e in examples] == [(t.prompt, t.action) for t in rollout.turns]
    assert bytes(examples[1].prompt).decode() == agent_prompt(TASKS[0], PAGE, ["clicks button Stay"])


def test_demonstrations_are_few_and_of_the_oracle(tmp_path, monkeypatch):
    step = Transition(state=PAGE, action="click 2", next_state=END_STATE, reward=1.0, done=True)
    made = [Trajectory(task=task.model_copy(update=dict(kind=kind, id=f"{kind}/{task.seed}")), transitions=(step,), source=source)
            for kind in ("door", "gate") for source in ("branch", "oracle") for task in TASKS]
    write_trajectories(tmp_path / "offline.jsonl", made)
    monkeypatch.setattr("dreamgym.rollouts.offline_data", lambda run: tmp_path / "offline.jsonl")
    found = demonstrations(SimpleNamespace(scale=SimpleNamespace(demonstration_seeds_per_kind=3)))
    assert [(t.task.kind, t.source) for t in found] == [("door", "oracle")] * 3 + [("gate", "oracle")] * 3
