"Advantages, losses, credit, the learner: each against a plain way, TRL, or a closed form."

from dataclasses import replace

import numpy as np
import pytest
import torch

from dreamgym import policy_optimization as module
from dreamgym.curriculum import cluster_groups, cluster_values, task_values
from dreamgym.fast_model import chosen_log_probabilities
from dreamgym.fast_model import LanguageModel
from dreamgym.language_model import Example
from dreamgym.policy_optimization import (
    ALGORITHMS,
    Learner,
    LearnerSettings,
    Recorder,
    dead_groups,
    dead_share,
    episode_credit,
    explained_variance,
    gae,
    group_advantages,
    kl_estimate,
    plain_gae,
    plain_policy_loss,
    policy_loss,
    stop_above_kl,
    token_weights,
    value_loss,
)
from dreamgym.rollouts import Agent, Rollout, Turn
from dreamgym.runs import Scale
from dreamgym.training_loop import LoopState, settings_of
from dreamgym.trajectories import DreamgymError, Task, Trajectory, Transition
from dreamgym.weights import WeightsError

GROUP_ALGORITHMS = [name for name, algorithm in ALGORITHMS.items() if not algorithm.critic and not algorithm.imitate]


@pytest.fixture
def new_model(tiny_model_folder):
    "A function that loads the tiny model in float32 with a small random adapter, always the same."
    def make() -> LanguageModel:
        model = LanguageModel.load(str(tiny_model_folder), rank=3, device="cpu", dtype="float32")
        generator = torch.Generator().manual_seed(1)
        for layer in model.adapted.values():
            layer.lora_b.data.normal_(0, 0.1, generator=generator)
        return model

    return make


def episode(rewards, group=0, turns=None, seed=0) -> Rollout:
    "A made-up episode; its tokens are random, prompts of one group begin alike."
    random, alike = np.random.default_rng([seed, group]), np.random.default_rng(group)
    steps = [Transition.model_construct(state="s", action="a", next_state="s", reward=float(r), done=i == len(rewards), invalid=False)
             for i, r in enumerate(rewards, 1)]
    task = Task(id=f"task/{group}", kind="task")
    trajectory = Trajectory.model_construct(task=task, transitions=tuple(steps), source="", real=False, truncated=False)
    start = alike.integers(0, 256, 6).tolist()
    turns = turns or [Turn(start + random.integers(0, 256, random.integers(1, 5)).tolist(),
                           random.integers(0, 256, random.integers(1, 7)).tolist(), []) for _ in rewards]
    return Rollout(trajectory, tuple(turns), group)


@pytest.fixture
def batch() -> list[Rollout]:
    "Three groups of three; the last one is dead."
    plan = [(0, 1), (0,), (1,), (0, 0, 1), (0, 0), (1,), (0,), (0, 0), (0,)]
    return [episode(rewards, i // 3, seed=i) for i, rewards in enumerate(plan)]


def snapshot(learner) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in learner.trained()]


def gradients(learner, rollouts) -> tuple[dict, list[torch.Tensor]]:
    "Metrics and gradients of one step over all rows; nothing is applied."
    rows = learner._group_rows(rollouts) if learner.head is None else learner._critic_rows(rollouts)
    learner._measure_reference(rows)
    tokens = sum(map(len, rows))
    metrics = learner._backward(rows, tokens, 1.0)
    output = [parameter.grad.clone() for parameter in learner.trained() if parameter.grad is not None]
    learner.optimizer.zero_grad()
    return metrics, output


def padded(model, rows: list[Example], temperature=1.0, head=None):
    "The plain way: right-padded rows side by side; log-probabilities, entropies and values, row by row."
    sequences = [[*e.prompt, *e.completion] for e in rows]
    longest = max(map(len, sequences))
    tokens = torch.tensor([s + [0] * (longest - len(s)) for s in sequences])
    hidden = model.network.model(tokens, use_cache=False).last_hidden_state
    log_p = (model.network.lm_head(hidden).float() / temperature).log_softmax(-1)
    output = []
    for i, e in enumerate(rows):
        places = torch.arange(len(e.prompt) - 1, len(e.prompt) + len(e.completion) - 1)
        line = log_p[i, places]
        chosen = line[torch.arange(len(places)), torch.tensor(e.completion)]
        output.append((chosen, -(line.exp() * line).sum(-1), head(hidden[i, places]) if head else None))
    return output


# ---------------------------------------------------------------- scores


def test_log_probability_and_entropy_have_the_plain_gradients():
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 16, requires_grad=True), torch.randn(50, 16)
    tokens, left, right = torch.randint(0, 50, (300,)), torch.randn(300), torch.randn(300)
    for temperature in (1.0, 0.7):
        scores, entropies = chosen_log_probabilities(hidden, weight, tokens, temperature, with_entropy=True)
        log_p = (hidden @ weight.T / temperature).log_softmax(-1)
        plain, entropy = log_p[torch.arange(300), tokens], -(log_p.exp() * log_p).sum(-1)
        torch.testing.assert_close(scores, plain, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropies, entropy, atol=1e-5, rtol=1e-5)
        for one, other in (((scores, left), (plain, left)), ((entropies, right), (entropy, right))):
            mine, reference = (torch.autograd.grad((a * b).sum(), hidden, retain_graph=True)[0] for a, b in (one, other))
            torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-4)
        both = torch.autograd.grad((scores * left + entropies * right).sum(), hidden)[0]
        reference = torch.autograd.grad((plain * left + entropy * right).sum(), hidden)[0]
        torch.testing.assert_close(both, reference, atol=1e-5, rtol=1e-4)
    alone = chosen_log_probabilities(hidden, weight, tokens, 0.7)
    torch.testing.assert_close(alone, scores, atol=0, rtol=0)
    assert [len(x) for x in chosen_log_probabilities(hidden[:0], weight, tokens[:0], 1.0, with_entropy=True)] == [0, 0]


def test_one_pass_measures_what_a_padded_pass_measures(new_model, batch):
    model, head = new_model(), torch.nn.Linear(64, 1)
    rows = [Example(t.prompt, t.action) for r in batch for t in r.turns]
    plain = padded(model, rows, 0.7, lambda h: head(h).squeeze(-1))
    seen = []
    for numbers, scores in model.measure_batches(rows, 0.7, 64, 32, head=lambda h: head(h).squeeze(-1)):
        for i, score in zip(numbers, scores, strict=True):
            for mine, reference in zip(score, plain[i], strict=True):
                torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-5)
        seen += numbers
    assert sorted(seen) == list(range(len(rows)))


def test_the_sampler_and_the_learner_agree(new_model):
    model = new_model()
    prompts = [model.encode(text) for text in ("abc", "abd", "longer than the others")]
    samples = model.sample(prompts, 12, 0.9, seed=3)
    learner = Learner(model, LearnerSettings(temperature=0.9))
    rollouts = [episode([i], turns=[Turn(p, s.tokens, s.log_probabilities)])
                for i, (p, s) in enumerate(zip(prompts, samples, strict=True))]
    rows = learner._group_rows(rollouts)
    learner._measure(rows)
    for row, sample in zip(rows, samples, strict=True):
        np.testing.assert_allclose(row.old.numpy(), sample.log_probabilities, atol=1e-5)


# ---------------------------------------------------------------- advantages


def test_group_advantages_are_those_of_trl():
    from trl.trainer.utils import nanstd

    random = np.random.default_rng(0)
    rewards = torch.tensor(random.random((5, 4)))
    expected = (rewards - rewards.mean(1, keepdim=True)) / (nanstd(rewards, dim=1, keepdim=True) + 1e-4)
    groups = np.repeat(np.arange(5), 4)
    order = random.permutation(20)
    mine = group_advantages(rewards.flatten().numpy()[order], groups[order])
    np.testing.assert_allclose(mine, expected.flatten().numpy()[order], rtol=1e-6)  # TRL corrects in float32
    plain = group_advantages(rewards.flatten().numpy(), groups, divide=False)
    np.testing.assert_allclose(plain, (rewards - rewards.mean(1, keepdim=True)).flatten().numpy(), atol=1e-12)


def test_dead_groups_are_found():
    rewards, groups = [0.1, 0.1, 0.1, 1, 0, 1], [7, 7, 7, 9, 9, 8]
    assert dead_groups(rewards, groups) == {7, 8} and dead_share(rewards, groups) == pytest.approx(2 / 3)
    assert group_advantages(rewards, groups)[[0, 1, 2, 5]].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("algorithm", GROUP_ALGORITHMS)
def test_dead_groups_give_no_gradient(algorithm, new_model, batch):
    learner = Learner(new_model(), LearnerSettings.named(algorithm, kl_weight=0.1, entropy_weight=0.1))
    before = snapshot(learner)
    metrics = learner.update(batch[6:])
    assert metrics["dead_groups"] == 1 and metrics["turns"] == 0 and "loss" not in metrics
    for old, new in zip(before, snapshot(learner), strict=True):
        assert torch.equal(old, new)
    with_dead, without = gradients(learner, batch)[1], gradients(learner, batch[:6])[1]
    for one, other in zip(with_dead, without, strict=True):
        assert torch.equal(one, other), "beside a living group it adds nothing"


def test_dead_groups_can_be_compared_with_the_batch():
    rewards, groups = np.array([1, 1, 0, 0, 1, 0, 0, 0]), [5, 5, 3, 3, 4, 4, 4, 4]
    silent, compared = (group_advantages(rewards, groups, dead_weight=weight) for weight in (0.0, 0.5))
    assert compared[4:].tolist() == silent[4:].tolist(), "a living group is compared with itself"
    by_hand = 0.5 * (rewards - 3 / 8) / (rewards.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(compared[:4], by_hand[:4])
    undivided = group_advantages(rewards, groups, divide=False, dead_weight=0.5)
    np.testing.assert_allclose(undivided, [5 / 16, 5 / 16, -3 / 16, -3 / 16, 0.75, -0.25, -0.25, -0.25])
    assert not group_advantages([1, 1, 1, 1], [0, 0, 1, 1], dead_weight=1.0).any(), "nothing to compare with"


@pytest.mark.parametrize("algorithm", GROUP_ALGORITHMS)
def test_a_compared_dead_group_is_held_or_discouraged(algorithm, new_model, batch):
    settings = LearnerSettings.named(algorithm, dead_weight=1.0, minibatches=1, learning_rate=1e-3)
    solved = [episode((1,), 3, seed=100 + i) for i in range(3)]
    learner = Learner(new_model(), settings)
    rollouts = [*batch, *solved]
    rows = learner._group_rows(rollouts)
    assert len(rows) == sum(len(r.turns) for r in rollouts), "no turn is silent"
    means = {group: [float(row.advantages.mean()) for row, owner in zip(
        rows, (r.group for r in rollouts for _ in r.turns), strict=True) if owner == group] for group in (2, 3)}
    assert all(a < 0 for a in means[2]) and all(a > 0 for a in means[3])
    turns = [Example(t.prompt, t.action) for r in (*batch[6:], *solved) for t in r.turns]
    failed = sum(len(r.turns) for r in batch[6:])
    before = learner.model.log_probabilities(turns)
    learner.update(rollouts)
    moved = [float((now - was).mean()) for now, was in zip(learner.model.log_probabilities(turns), before, strict=True)]
    assert np.mean(moved[failed:]) > np.mean(moved[:failed]), "what always succeeds gains on what always fails"
    alone = learner.update(batch[6:])
    assert alone["turns"] == 0 and "loss" not in alone, "a batch without contrast teaches nothing"


def moved_by(new_model, batch, **changes) -> tuple[dict, Learner, list[torch.Tensor]]:
    "One update of a fresh learner: its metrics, itself, and the adapter before."
    learner = Learner(new_model(), LearnerSettings(**{"minibatches": 1} | changes))
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    return learner.update(batch, seed=3), learner, before


def test_an_update_that_goes_too_far_is_shortened(new_model, batch):
    far, free, before = moved_by(new_model, batch, learning_rate=0.1)
    near, bound, _ = moved_by(new_model, batch, learning_rate=0.1, maximum_kl=0.01)
    assert far["step_kept"] == 1.0 and 0 < near["step_kept"] < 0.9
    for old, long, short in zip(before, free.model.parameters(), bound.model.parameters(), strict=True):
        torch.testing.assert_close(short.detach(), torch.lerp(old, long.detach(), near["step_kept"]), atol=1e-5, rtol=1e-4)
    turns = [Example(t.prompt, t.action) for r in batch[:6] for t in r.turns]
    fresh = new_model()
    acted = torch.cat(fresh.log_probabilities(turns))
    for learner, within in ((free, False), (bound, True)):
        divergence = kl_estimate(acted, torch.cat(learner.model.log_probabilities(turns))).mean()
        assert (float(divergence) <= 0.0101) == within, "measured by hand on the same turns"


def test_an_update_within_the_bound_is_left_alone(new_model, batch):
    free, bound = (moved_by(new_model, batch, learning_rate=1e-4, maximum_kl=limit) for limit in (0.0, 0.5))
    assert bound[0]["step_kept"] == 1.0
    assert all(torch.equal(a, b) for a, b in zip(snapshot(free[1]), snapshot(bound[1]), strict=True))


# ---------------------------------------------------------------- losses


@pytest.mark.parametrize("algorithm", GROUP_ALGORITHMS)
def test_the_fast_loss_is_the_plain_one(algorithm):
    torch.manual_seed(0)
    lengths, clips = [3, 1, 7, 4], (0.1, 0.3)
    new = [torch.randn(n, requires_grad=True) for n in lengths]
    old, advantages = [row.detach() + 0.3 * torch.randn(len(row)) for row in new], [1.0, -0.5, 2.0, -1.0]
    plain = plain_policy_loss(new, old, advantages, algorithm, *clips, maximum_tokens=9)
    expected = torch.autograd.grad(plain, new)
    kind = ALGORITHMS[algorithm]
    weights = token_weights(lengths, kind.average, 9)
    total = 0.0
    for part in ([0, 2], [1, 3]):  # in two pieces, as memory demands
        column = lambda values: torch.tensor([values[i] for i in part for _ in range(lengths[i])])  # noqa: E731
        sequences = column({i: n for n, i in enumerate(part)}) if kind.sequence_ratio else None
        loss, facts = policy_loss(torch.cat([new[i] for i in part]), torch.cat([old[i] for i in part]),
                                  column(advantages), column(weights), *clips, sequences)
        assert all(len(fact) == sum(lengths[i] for i in part) and not fact.requires_grad for fact in facts.values())
        total = total + loss
    torch.testing.assert_close(total, plain)
    for mine, reference in zip(torch.autograd.grad(total, new), expected, strict=True):
        torch.testing.assert_close(mine, reference)


def test_token_weights_are_the_denominators():
    lengths = [2, 4]
    assert token_weights(lengths, "sequence") == [1 / 4, 1 / 8]
    assert token_weights(lengths, "constant", 10) == [1 / 20] * 2
    assert token_weights(lengths, "batch") == [1 / 6] * 2 and token_weights(lengths, "batch", 10, 12.0) == [1 / 12] * 2


def test_the_kl_estimate_is_unbiased_and_never_negative():
    torch.manual_seed(0)
    policy, reference = torch.randn(2, 12).log_softmax(-1)
    each = kl_estimate(policy, reference)
    assert (each >= 0).all() and kl_estimate(policy, policy).abs().max() == 0
    torch.testing.assert_close((policy.exp() * each).sum(), (policy.exp() * (policy - reference)).sum())


@pytest.fixture(scope="module")
def trl_trainer(tiny_model_folder, tmp_path_factory):
    "TRL's own trainer around a tiny adapted model; the tests set its loss type."
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    model = LanguageModel.load(str(tiny_model_folder), rank=3, device="cpu", dtype="float32")
    settings = GRPOConfig(output_dir=str(tmp_path_factory.mktemp("trl")), use_cpu=True, bf16=False, report_to="none",
                          gradient_checkpointing=False, per_device_train_batch_size=4, num_generations=2,
                          max_completion_length=24, temperature=0.8, disable_tqdm=True, beta=0.0, save_strategy="no",
                          loss_type="grpo")
    trainer = GRPOTrainer(model=model.network, reward_funcs=lambda completions, **_: [0.0] * len(completions),
                          args=settings, train_dataset=Dataset.from_list([{"prompt": "a"}] * 4),
                          processing_class=model.tokenizer)
    model.network.eval()
    return trainer, model


def trl_inputs(rows, old, reference, advantages) -> dict:
    "What TRL's loss reads: prompts padded on the left, completions on the right, the rest in the mask's shape."
    left, right = max(len(e.prompt) for e in rows), max(len(e.completion) for e in rows)

    def pad(values, dtype=torch.float32):
        return torch.tensor([[*v, *[0] * (right - len(v))] for v in values], dtype=dtype)

    return {
        "prompt_ids": torch.tensor([[0] * (left - len(e.prompt)) + list(e.prompt) for e in rows]),
        "prompt_mask": torch.tensor([[0] * (left - len(e.prompt)) + [1] * len(e.prompt) for e in rows]),
        "completion_ids": pad([e.completion for e in rows], torch.long),
        "completion_mask": pad([[1] * len(e.completion) for e in rows], torch.long),
        "old_per_token_logps": pad([o.tolist() for o in old]),
        "ref_per_token_logps": pad([r.tolist() for r in reference]),
        "advantages": torch.tensor(advantages),
        "num_items_in_batch": torch.tensor(sum(len(e.completion) for e in rows)),
    }


@pytest.mark.parametrize("weights", [(0.0, 0.0), (0.3, 0.2)], ids=["plain", "with KL and entropy"])
@pytest.mark.parametrize("algorithm", GROUP_ALGORITHMS)
def test_loss_and_gradient_are_those_of_trl(algorithm, weights, trl_trainer, batch):
    trainer, model = trl_trainer
    settings = LearnerSettings.named(algorithm, temperature=0.8, kl_weight=weights[0], entropy_weight=weights[1])
    for layer in model.adapted.values():
        torch.nn.init.zeros_(layer.lora_b)
    learner = Learner(model, settings)  # the reference of the KL term is the model without adapter
    rows = learner._group_rows(batch[:6])
    torch.manual_seed(3)
    for layer in model.adapted.values():
        layer.lora_b.data.normal_(0, 0.1)
    learner._measure(rows)
    learner._measure_reference(rows)
    for row in rows:  # as if the policy had moved: some ratios lie outside the clip, some inside
        row.old += torch.randn(len(row)) * (5e-4 if algorithm == "gspo" else 0.3)
    trainer.loss_type = {"gspo": "grpo"}.get(algorithm, algorithm)
    trainer.importance_sampling_level = "sequence" if algorithm == "gspo" else "token"
    trainer.epsilon_low, trainer.epsilon_high = settings.clip_low, settings.clip_high
    trainer.beta, trainer.max_completion_length = settings.kl_weight, settings.maximum_tokens
    trainer.entropy_coef, trainer._entropy_bonus_enabled = settings.entropy_weight, settings.entropy_weight > 0
    advantages = [float(row.advantages[0]) for row in rows]
    inputs = trl_inputs([row.example for row in rows], [row.old for row in rows],
                        [row.reference if row.reference is not None else row.old for row in rows], advantages)
    expected = trainer._compute_loss(model.network, inputs)
    expected.backward()
    reference = [parameter.grad.clone() for parameter in model.parameters()]
    learner.optimizer.zero_grad()
    metrics = learner._backward(rows, sum(map(len, rows)), 1.0)
    mine = [parameter.grad for parameter in model.parameters()]
    assert metrics["loss"] == pytest.approx(expected.item(), abs=1e-5)
    assert metrics["clip_fraction"] > 0 and max(g.abs().max() for g in reference) > 1e-3, "the comparison says something"
    for one, other in zip(mine, reference, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    learner.optimizer.zero_grad()


def test_a_whole_step_is_that_of_trl(new_model, tmp_path, monkeypatch):
    "Rewards, advantages, loss, clipping, optimiser: TRL's trainer with its rollout_func, and ours, end in one place."
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    episodes = [episode([reward], group=i // 2, seed=i) for i, reward in enumerate((1, 0, 0, 1))]
    episodes = [r._replace(turns=(r.turns[0]._replace(prompt=episodes[r.group * 2].turns[0].prompt),)) for r in episodes]
    told = {str(r.group): iter([x for x in episodes if x.group == r.group]) for r in episodes}

    def rollout(prompts, trainer):
        chosen = [next(told[prompt]) for prompt in prompts]
        return {"prompt_ids": [r.turns[0].prompt for r in chosen], "completion_ids": [r.turns[0].action for r in chosen],
                "logprobs": None, "ret": [r.reward for r in chosen]}

    model = new_model()
    settings = GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", save_strategy="no",
                          gradient_checkpointing=False, per_device_train_batch_size=4, num_generations=2, max_steps=1,
                          learning_rate=1e-3, weight_decay=0.0, max_grad_norm=1.0, loss_type="grpo", disable_tqdm=True,
                          temperature=0.8, beta=0.0)
    trainer = GRPOTrainer(model=model.network, reward_funcs=lambda completions, ret, **_: ret, args=settings,
                          train_dataset=Dataset.from_list([{"prompt": "0"}, {"prompt": "1"}]),
                          processing_class=model.tokenizer, rollout_func=rollout)
    trainer.train()
    learner = Learner(new_model(), LearnerSettings(learning_rate=1e-3, temperature=0.8, minibatches=1))
    start = snapshot(learner)
    learner.update(episodes)
    for before, mine, reference in zip(start, learner.model.parameters(), model.parameters(), strict=True):
        assert (before - mine).abs().max() > 1e-4
        torch.testing.assert_close(mine, reference, atol=1e-5, rtol=0)


def test_tokens_of_the_environment_carry_no_loss(new_model, batch):
    "With attention switched off nothing conditions on the prompt but its last token: then prompts cannot matter."
    model = new_model()
    for path, layer in model.adapted.items():
        if path.endswith("o_proj"):
            for tensor in (layer.weight, layer.lora_a, layer.lora_b):
                tensor.data.zero_()
    random = np.random.default_rng(5)

    def changed(rollouts, change):
        return [r._replace(turns=tuple(t._replace(**change(t)) for t in r.turns)) for r in rollouts]

    others = changed(batch, lambda t: {"prompt": [*random.integers(0, 256, len(t.prompt) + 3).tolist(), t.prompt[-1]]})
    last = changed(batch, lambda t: {"prompt": [*t.prompt[:-1], (t.prompt[-1] + 1) % 256]})
    for algorithm in ALGORITHMS:
        settings = LearnerSettings.named(algorithm, kl_weight=0.1, entropy_weight=0.1)
        (loss, one), (same, two), (_, moved) = (gradients(Learner(model, settings), r) for r in (batch, others, last))
        assert loss["loss"] == pytest.approx(same["loss"], abs=1e-5)
        assert max((a - b).abs().max() for a, b in zip(one, moved, strict=True)) > 1e-3, "the last token is conditioned on"
        for first, second in zip(one, two, strict=True):
            torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- a critic


def test_gae_is_the_sum_that_defines_it():
    random = np.random.default_rng(0)
    for gamma, decay in ((0.99, 0.95), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)):
        for length in (1, 2, 17):
            rewards, values = random.random(length), random.random(length)
            np.testing.assert_allclose(gae(rewards, values, gamma, decay), plain_gae(rewards, values, gamma, decay))
    assert len(gae([], [])) == 0


def test_gae_has_its_closed_forms():
    n, gamma, decay = 12, 0.97, 0.9
    rewards, values = np.zeros(n), np.random.default_rng(0).random(n)
    rewards[-1] = 1
    steps = np.arange(n)[::-1]
    np.testing.assert_allclose(gae(rewards, values, gamma, 1.0), gamma**steps - values)  # what happened
    following = np.append(values[1:], 0)
    np.testing.assert_allclose(gae(rewards, values, gamma, 0.0), rewards + gamma * following - values)  # the surprise
    constant = gae(np.ones(n), np.zeros(n), gamma, decay)  # every surprise is 1: a geometric series
    q = gamma * decay
    np.testing.assert_allclose(constant, (1 - q ** (steps + 1)) / (1 - q))


def test_credit_counts_turns_or_action_tokens():
    values, rewards = [[0.2, 9.0, 9.0], [0.4], [0.6, 9.0]], [0.0, 0.0, 1.0]
    turns = episode_credit(rewards, values, "turn", 0.9, 0.8)
    expected = gae(rewards, [0.2, 0.4, 0.6], 0.9, 0.8)
    for turn, advantage, value, length in zip(turns, expected, (0.2, 0.4, 0.6), (3, 1, 2), strict=True):
        np.testing.assert_allclose(turn.advantages, [advantage] * length)
        np.testing.assert_allclose(turn.targets, [advantage + value] * length)
        assert turn.counted.tolist() == [1] + [0] * (length - 1), "only the page is judged"
    np.testing.assert_allclose([turn.outcomes[0] for turn in turns], [0.81, 0.9, 1.0])
    values = [[0.2, 0.3, 0.1], [0.4], [0.6, 0.7]]
    tokens = episode_credit([0.0, 0.5, 1.0], values, "token", 0.9, 0.8)
    flat = gae([0, 0, 0, 0.5, 0, 1], [0.2, 0.3, 0.1, 0.4, 0.6, 0.7], 0.9, 0.8)
    np.testing.assert_allclose(np.concatenate([turn.advantages for turn in tokens]), flat)
    np.testing.assert_allclose(tokens[1].outcomes, [0.5 + 0.81])
    assert [len(turn.counted) for turn in tokens] == [3, 1, 2] and all(turn.counted.all() for turn in tokens)


def test_the_value_loss_is_pessimistic():
    old, target = torch.zeros(4), torch.tensor([1.0, 1.0, -1.0, 0.1])
    values = torch.tensor([0.1, 0.5, 0.5, 0.1], requires_grad=True)
    loss = value_loss(values, old, target, torch.ones(4), 0.2)
    assert loss.item() == pytest.approx(0.5 * (0.81 + 0.64 + 2.25 + 0.0))
    loss.backward()
    assert values.grad.tolist() == pytest.approx([-0.9, 0.0, 1.5, 0.0]), "moved far: only the way back is paid"


def test_explained_variance_of_known_critics():
    assert explained_variance([1, 0, 3], [1, 0, 3]) == 1 and explained_variance([5] * 3, [1, 0, 3]) == pytest.approx(0)
    assert explained_variance([0, 1], [1, 0]) == -3 and explained_variance([1, 2], [3, 3]) == 0
    assert explained_variance([], []) == 0


def ppo_reference(model, head, rollouts, s: LearnerSettings, seed: int) -> None:
    "PPO as one would write it on one page: padded rows, loops, autograd."
    parameters = model.parameters()
    optimizer = torch.optim.AdamW([{"params": parameters}, {"params": list(head.parameters()), "lr": s.value_learning_rate}],
                                  lr=s.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    rows = [Example(t.prompt, t.action) for r in rollouts for t in r.turns]
    judge = lambda h: head(h).squeeze(-1)  # noqa: E731
    with torch.no_grad():
        before = padded(model, rows, s.temperature, judge)
    advantages, targets, judged, k = [], [], [], 0
    for r in rollouts:
        turns = [before[k + i][2].tolist() for i in range(len(r.turns))]
        k += len(r.turns)
        rewards = [t.reward for t in r.trajectory.transitions]
        if s.credit == "turn":
            a = plain_gae(rewards, [v[0] for v in turns], s.gamma, s.gae_lambda)
            advantages += [[x] * len(v) for x, v in zip(a, turns, strict=True)]
            targets += [[x + v[0]] * len(v) for x, v in zip(a, turns, strict=True)]
            judged += [[1] + [0] * (len(v) - 1) for v in turns]
        else:
            paid = [x for w, v in zip(rewards, turns, strict=True) for x in [0.0] * (len(v) - 1) + [w]]
            flat = [x for v in turns for x in v]
            a = iter(plain_gae(paid, flat, s.gamma, s.gae_lambda))
            rows_a = [[next(a) for _ in v] for v in turns]
            advantages += rows_a
            targets += [[x + y for x, y in zip(w, v, strict=True)] for w, v in zip(rows_a, turns, strict=True)]
            judged += [[1] * len(v) for v in turns]
    pool = np.concatenate(advantages)
    random, total, asked = np.random.default_rng(seed), len(pool), sum(map(sum, judged))
    for _ in range(s.epochs):
        for part in np.array_split(random.permutation(len(rows)), s.minibatches):
            now = padded(model, [rows[i] for i in part], s.temperature, judge)
            loss = 0.0
            for (new, entropy, value), i in zip(now, part, strict=True):
                a = torch.tensor((np.array(advantages[i]) - pool.mean()) / pool.std(), dtype=torch.float32)
                ratio, old_value, target = (new - before[i][0]).exp(), before[i][2], torch.tensor(targets[i]).float()
                loss = loss - torch.min(ratio * a, ratio.clamp(1 - s.clip_low, 1 + s.clip_high) * a).sum() / (total / s.minibatches)
                loss = loss - s.entropy_weight * entropy.sum() / sum(len(rows[j].completion) for j in part)
                near = old_value + (value - old_value).clamp(-s.value_clip, s.value_clip)
                worst = torch.max((value - target) ** 2, (near - target) ** 2)
                loss = loss + s.value_weight * 0.5 * (worst * torch.tensor(judged[i])).sum() / (asked / s.minibatches)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
            optimizer.step()


@pytest.mark.parametrize("credit", ["turn", "token"])
def test_a_ppo_update_is_that_of_the_reference(credit, new_model, batch):
    settings = LearnerSettings.named("ppo", credit=credit, epochs=3, minibatches=2, temperature=0.9, entropy_weight=0.05,
                                     learning_rate=3e-3, value_learning_rate=3e-2, value_clip=0.1, gamma=0.9)
    recorder = Recorder()
    learner = Learner(new_model(), settings, [recorder])
    metrics = learner.update(batch, seed=4)
    model, head = new_model(), torch.nn.Linear(64, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    start = [p.detach().clone() for p in model.parameters()]
    ppo_reference(model, head, batch, settings, seed=4)
    assert max(row["clip_fraction"] for row in recorder.rows) > 0 and metrics["steps"] == 6
    assert max((a - b).abs().max() for a, b in zip(start, model.parameters(), strict=True)) > 3e-3, "it has moved"
    for mine, reference in zip(learner.trained(), [*model.parameters(), *head.parameters()], strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-4)


def test_the_critic_learns_to_tell_pages_apart(new_model):
    "Two pages, one leads to success: the critic finds out, from the policy's own hidden states."
    rollouts = [episode([i % 2], group=i % 2, seed=i) for i in range(8)]
    learner = Learner(new_model(), LearnerSettings.named("ppo", value_learning_rate=1e-2, value_clip=10.0))
    quality = [learner.update(rollouts, seed=i)["explained_variance"] for i in range(12)]
    assert quality[0] == 0 and quality[-1] > 0.8


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_rewarded_actions_become_likelier(algorithm, new_model):
    prompt, good, bad = [10, 20, 30], [1, 2], [3, 4]
    rollouts = [episode([r], turns=[Turn(prompt, action, [])]) for r, action in ((1, good), (0, bad)) for _ in range(2)]
    learner = Learner(new_model(), LearnerSettings.named(algorithm, learning_rate=1e-3))
    examples = [Example(prompt, good), Example(prompt, bad)]
    before = [float(s.sum()) for s in learner.model.log_probabilities(examples)]
    for number in range(3):
        learner.update(rollouts, seed=number)
    after = [float(s.sum()) for s in learner.model.log_probabilities(examples)]
    assert after[0] > before[0] and (after[1] < before[1] or ALGORITHMS[algorithm].imitate), "imitation hears of no failure"


# ---------------------------------------------------------------- a learner that uses its rollouts


def test_episodes_of_any_length_count_alike(new_model):
    "An episode of three turns pulls no more than three times one of its turns, divided by three."
    rollouts = [episode([0, 0, 1], 0, seed=0), episode([0], 0, seed=1), episode([1], 0, seed=2), episode([0, 0], 0, seed=3)]
    plain, alike = (Learner(new_model(), LearnerSettings(equal_episodes=flag)) for flag in (False, True))
    rows = plain._group_rows(rollouts)
    _, usual = gradients(plain, rollouts)
    module.share_equally(rows)
    assert [row.share for row in rows] == pytest.approx([7 / 4 / n for n in (3, 3, 3, 1, 1, 2, 2)])
    assert np.mean([row.share for row in rows]) == pytest.approx(1)
    plain._backward(rows, sum(map(len, rows)), 1.0)
    mine = [parameter.grad.clone() for parameter in plain.model.parameters()]
    plain.optimizer.zero_grad()
    wanted = [torch.zeros_like(grad) for grad in mine]
    for row in plain._group_rows(rollouts):  # each turn by itself, weighted by hand
        plain._backward([row], len(row), 1.0)
        for total, parameter in zip(wanted, plain.model.parameters(), strict=True):
            total += parameter.grad / 4 / row.turns
        plain.optimizer.zero_grad()
    for one, other, old in zip(mine, wanted, usual, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
    assert max((one - old).abs().max() for one, old in zip(mine, usual, strict=True)) > 1e-4, "the comparison says something"
    recorder = Recorder()
    alike.callbacks.append(recorder)
    alike.update(rollouts)
    assert len(recorder.rows) == 2


def test_only_what_went_better_is_learned_from(new_model, batch):
    learner = Learner(new_model(), LearnerSettings(positive_only=True))
    rows = learner._group_rows(batch)
    advantages = group_advantages([r.reward for r in batch], [r.group for r in batch])
    assert len(rows) == sum(len(r.turns) for r, a in zip(batch, advantages, strict=True) if a > 0)
    assert all((row.advantages > 0).all() for row in rows)
    lost = [episode([0], seed=i) for i in range(2)]
    assert "loss" not in learner.update(lost), "nothing went better"


def test_imitation_has_the_gradient_of_the_log_likelihood(new_model, batch):
    "Successes alone, equal turns once; after several steps, too, when the policy has left the one that acted."
    learner = Learner(new_model(), LearnerSettings.named("imitation", minibatches=1))
    doubled = [*batch, batch[0]]
    rows = learner._group_rows(doubled)
    won = {(*t.prompt, -1, *t.action): Example(t.prompt, t.action) for r in doubled if r.reward > 0 for t in r.turns}
    assert [row.example for row in rows] == list(won.values())
    learner._measure(rows)
    for row in rows:  # as if the policy had moved far
        row.old = row.old - 2.0
    learner._backward(rows, sum(map(len, rows)), 1.0)
    mine = [parameter.grad.clone() for parameter in learner.model.parameters()]
    learner.optimizer.zero_grad()
    loss = -torch.cat(learner.model.plain_scores(list(won.values()))).mean()
    loss.backward()
    for one, parameter in zip(mine, learner.model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, atol=1e-6, rtol=1e-4)
    dead = [episode([1], 5, seed=i) for i in range(2)]
    assert learner.update(dead)["steps"] == 1, "a group of successes is imitated, too"


def test_the_guard_ends_an_update_before_the_step_that_is_too_much(new_model, batch):
    settings = LearnerSettings(learning_rate=0.02, minibatches=3, epochs=4, maximum_kl=0.01, kl_guard=True)
    recorder, learner = Recorder(), Learner(new_model(), settings)
    learner.callbacks.append(recorder)
    metrics = learner.update(batch, 1)
    assert 1 <= metrics["steps"] == len(recorder.rows) < 12 and "step_kept" not in metrics
    assert all(row["update_kl"] <= 0.01 for row in recorder.rows)
    free = Learner(new_model(), replace(settings, kl_guard=False, maximum_kl=0.0))
    seen = Recorder()
    free.callbacks.append(lambda report: (seen(report), len(seen.rows) == len(recorder.rows))[1])
    free.update(batch, 1)
    for one, other in zip(snapshot(learner), snapshot(free), strict=True):
        assert torch.equal(one, other), "the steps that were made are whole"
    wide = Learner(new_model(), replace(settings, maximum_kl=100.0)).update(batch, 1)
    assert wide["steps"] == 12


def test_many_steps_let_the_clip_work(new_model, batch):
    few, many = (Learner(new_model(), LearnerSettings(learning_rate=0.02, minibatches=1, epochs=n)).update(batch, 1) for n in (1, 6))
    assert few["clip_fraction"] == 0 < many["clip_fraction"] and many["steps"] == 6


def test_the_anchor_is_the_log_likelihood_of_known_successes(new_model, batch):
    known = [Example([7, 8, 9], [1, 2]), Example([7, 8], [3]), Example([5], [4, 4, 4])]
    learner = Learner(new_model(), LearnerSettings(anchor_weight=0.5))
    assert learner._hold(0) == {}, "nothing is known"
    learner.anchor = known
    metrics = learner._hold(0)
    mine = [parameter.grad.clone() for parameter in learner.model.parameters()]
    learner.optimizer.zero_grad()
    loss = -torch.cat(learner.model.plain_scores(known)).mean()
    (0.5 * loss).backward()
    assert metrics["anchor_loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    for one, parameter in zip(mine, learner.model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, atol=1e-6, rtol=1e-4)
    learner.optimizer.zero_grad()
    held, loose = Learner(new_model(), LearnerSettings(learning_rate=5e-3, anchor_weight=5.0, epochs=6)), Learner(
        new_model(), LearnerSettings(learning_rate=5e-3, epochs=6))
    held.anchor = known
    assert held.update(batch)["anchor_loss"] > 0 and "anchor_loss" not in loose.update(batch)
    likely = [float(torch.cat(x.model.log_probabilities(known)).mean()) for x in (held, loose)]
    assert likely[0] > likely[1] + 0.1


def test_a_few_of_many_known_successes_are_drawn_for_each_step(new_model, batch, monkeypatch):
    learner, drawn = Learner(new_model(), LearnerSettings(anchor_weight=0.1, anchor_examples=4, minibatches=3)), []
    learner.anchor = [Example([i], [i + 1]) for i in range(40)]
    scores = learner.model.score_batches
    monkeypatch.setattr(learner.model, "score_batches", lambda examples, *rest: drawn.append(examples) or scores(examples, *rest))
    learner.update(batch)
    assert [len(examples) for examples in drawn] == [4, 4, 4] and len({str(examples) for examples in drawn}) == 3


def test_the_levers_of_a_scale_reach_the_learner():
    scale = Scale.named("quick", policy_epochs=3, kl_guard=True, positive_only=True, equal_episodes=True, anchor_weight=0.5,
                        anchor_examples=5, minibatches=7)
    found = settings_of(scale, 10)
    assert (found.epochs, found.kl_guard, found.positive_only, found.equal_episodes) == (3, True, True, True)
    assert (found.anchor_weight, found.anchor_examples, found.decay) == (0.5, 5, 10 * 7 * 3)
    usual = settings_of(Scale.named("quick"))
    assert usual == LearnerSettings.named("grpo", learning_rate=4e-4, minibatches=2, warmup=4, maximum_kl=0.02, temperature=0.8)
    assert settings_of(Scale.named("quick", algorithm="ppo")).epochs == 2


# ---------------------------------------------------------------- the learner


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_the_ratio_of_a_fresh_policy_is_one(algorithm, new_model, batch):
    recorder = Recorder()
    learner = Learner(new_model(), LearnerSettings.named(algorithm, minibatches=3, learning_rate=1e-3), [recorder])
    learner.update(batch)
    first = recorder.rows[0]
    assert first["ratio"] == pytest.approx(1, abs=1e-5) and first["update_kl"] == pytest.approx(0, abs=1e-6)
    assert first["clip_fraction"] == 0 and recorder.rows[1]["update_kl"] > 0


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_the_same_seed_gives_the_same_numbers(algorithm, new_model, batch):
    settings = LearnerSettings.named(algorithm, kl_weight=0.05, entropy_weight=0.01, tokens_per_batch=64)
    one, two, other = (Learner(new_model(), settings) for _ in range(3))
    assert one.update(batch, 7) == two.update(batch, 7) != other.update(batch, 8)
    for a, b in zip(snapshot(one), snapshot(two), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_an_interrupted_training_continues_with_the_same_numbers(algorithm, new_model, batch, tmp_path):
    settings = LearnerSettings.named(algorithm, kl_weight=0.05)
    whole = Learner(new_model(), settings)
    whole.update(batch, 1)
    whole.model.save_adapter(tmp_path)
    whole.save(tmp_path)
    expected = whole.update(batch, 2)
    resumed = Learner(new_model(), settings)
    resumed.model.load_adapter(tmp_path)
    assert resumed.load(tmp_path) is resumed
    assert resumed.update(batch, 2) == expected
    for a, b in zip(snapshot(whole), snapshot(resumed), strict=True):
        assert torch.equal(a, b)
    files = {"adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors"}
    assert {p.name for p in tmp_path.iterdir()} == files | ({"value_head.safetensors"} if algorithm == "ppo" else set())


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_the_learning_rates_rise_over_the_first_steps(algorithm, new_model, batch, tmp_path):
    settings = LearnerSettings.named(algorithm, learning_rate=1e-3, value_learning_rate=1e-2, warmup=3, epochs=1)
    rates = []
    first, second = Learner(new_model(), settings), Learner(new_model(), settings)
    for learner in (first, second):
        watch = lambda report, learner=learner: rates.append([g["lr"] for g in learner.optimizer.param_groups])  # noqa: E731
        learner.callbacks.append(watch)
    first.update(batch)
    first.save(tmp_path)
    second.load(tmp_path)
    second.update(batch)
    second.update(batch)
    assert [row[0] for row in rates] == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 1e-3])
    if algorithm == "ppo":
        assert [row[1] for row in rates] == pytest.approx([0.25e-2, 0.5e-2, 0.75e-2, 1e-2, 1e-2, 1e-2])


def test_the_learning_rate_falls_to_a_third(new_model, batch):
    learner, rates = Learner(new_model(), LearnerSettings.named("grpo", learning_rate=3e-3, warmup=1, decay=4)), []
    learner.callbacks.append(lambda report: rates.append(learner.optimizer.param_groups[0]["lr"]))
    for _ in range(3):
        learner.update(batch)
    assert rates == pytest.approx([1.5e-3, 2.5e-3, 2e-3, 1.5e-3, 1e-3, 1e-3])


def test_only_the_critic_moves_to_another_training(new_model, batch, tmp_path):
    learner, other = (Learner(new_model(), LearnerSettings.named("ppo", value_learning_rate=0.01)) for _ in range(2))
    learner.update(batch)
    learner.save(tmp_path)
    other.load(tmp_path, moments=False)
    assert torch.equal(other.head.linear.weight, learner.head.linear.weight) and not other.optimizer.state
    assert learner.head.linear.weight.abs().max() > 0
    Learner(new_model(), LearnerSettings()).load(tmp_path / "nowhere", moments=False)  # no critic, nothing to load


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_the_loop_hands_the_learner_on(algorithm, new_model, batch, tmp_path):
    scale = Scale.named("quick", algorithm=algorithm)
    states = [LoopState(Agent(model), Learner(model, settings_of(scale)), None) for model in (new_model(), new_model())]
    states[0].learner.update(batch, 1)
    states[0].save(tmp_path)
    states[1].load(tmp_path)
    assert states[0].learner.update(batch, 2) == states[1].learner.update(batch, 2)
    with pytest.raises(DreamgymError, match="choose one of"):
        settings_of(Scale.named("quick", algorithm="magic"))


def test_a_learner_that_has_learned_nothing_can_be_saved(new_model, tmp_path):
    learner = Learner(new_model(), LearnerSettings.named("ppo"))
    learner.save(tmp_path)
    assert not Learner(new_model(), LearnerSettings.named("ppo")).load(tmp_path).optimizer.state


def test_state_that_does_not_fit_is_refused(new_model, batch, tmp_path):
    learner = Learner(new_model(), LearnerSettings.named("ppo"))
    learner.update(batch)
    learner.save(tmp_path)
    with pytest.raises(WeightsError, match="another algorithm than grpo"):
        Learner(new_model(), LearnerSettings()).load(tmp_path)
    (tmp_path / "value_head.safetensors").unlink()
    with pytest.raises(WeightsError, match="value_head"):
        learner.load(tmp_path)
    learner.save(tmp_path)
    (tmp_path / "optimizer.safetensors").write_bytes(b"half a fi")
    moments = dict(learner.optimizer.state)
    with pytest.raises(WeightsError, match="cannot be loaded"):
        learner.load(tmp_path)
    assert dict(learner.optimizer.state) == moments, "a failed load changes nothing"


def test_a_save_that_fails_leaves_the_old_state(new_model, batch, tmp_path, monkeypatch):
    learner = Learner(new_model(), LearnerSettings.named("ppo"))
    learner.update(batch)
    learner.save(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    learner.update(batch)

    def fail(tensors, path):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("dreamgym.policy_optimization.save_file", fail)
    with pytest.raises(OSError, match="no space"):
        learner.save(tmp_path)
    assert all((tmp_path / name).read_bytes() == content for name, content in before.items())


def test_callbacks_see_every_step_and_can_end_an_update(new_model, batch):
    recorder, seen = Recorder(), []
    settings = LearnerSettings.named("grpo", learning_rate=0.05, epochs=4)
    learner = Learner(new_model(), settings, [stop_above_kl(1e-3), recorder])
    metrics = learner.update(batch, watch=lambda done, total: seen.append((done, total)))
    assert 1 < metrics["steps"] == len(recorder.rows) == len(seen) < 8 and seen[0] == (1, 8)
    assert [row["update_kl"] > 1e-3 for row in recorder.rows] == [False] * (len(seen) - 1) + [True]
    assert [row["step"] for row in recorder.rows] == list(range(1, len(seen) + 1))
    names = {"ratio", "clip_fraction", "update_kl", "entropy", "loss", "gradient_norm"}
    assert names <= set(recorder.rows[0]) and names | {"return", "dead_groups", "turns", "tokens"} <= set(metrics)
    assert metrics["entropy"] > 0 and all(np.isfinite(value) for value in metrics.values())


def test_ppo_learns_from_dead_groups_too(new_model, batch):
    learner = Learner(new_model(), LearnerSettings.named("ppo", kl_weight=0.1))
    metrics = learner.update(batch)
    assert metrics["turns"] == sum(len(r.turns) for r in batch) == metrics["judged"]
    assert {"kl", "value", "value_loss", "explained_variance"} <= set(metrics)
    same = learner.update([episode([1, 0], seed=i) for i in range(2)])
    assert same["dead_groups"] == 1 and "loss" in same


def test_a_new_algorithm_is_a_new_row(new_model, batch, monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "mine", ALGORITHMS["dapo"]._replace(divide=False))
    assert "loss" in Learner(new_model(), LearnerSettings.named("mine")).update(batch)


@pytest.mark.parametrize("change, message", [
    (dict(algorithm="reinforce"), "Unknown algorithm 'reinforce': choose one of grpo, dr_grpo, dapo, gspo, ppo"),
    (dict(credit="episode"), "'turn' or a 'token'"), (dict(clip_low=0.0), "clip_low must be greater than 0"),
    (dict(clip_high=-1.0), "clip_high must be greater than 0"), (dict(warmup=-1), "warmup must not be negative"),
    (dict(decay=-1), "decay must not be negative"), (dict(dead_weight=-1.0), "dead_weight must not be negative"),
    (dict(maximum_kl=-0.1), "maximum_kl must not be negative"),
    (dict(learning_rate=float("nan")), "learning_rate"),
    (dict(minibatches=0), "minibatches"), (dict(epochs=0), "epochs"), (dict(temperature=0), "temperature"),
    (dict(kl_weight=-0.1), "kl_weight must not be negative"), (dict(gamma=1.5), "gamma must lie between 0 and 1"),
    (dict(gae_lambda=-0.1), "gae_lambda"), (dict(tokens_per_batch=0), "tokens_per_batch"),
])
def test_bad_settings_are_refused(change, message):
    with pytest.raises(DreamgymError, match=message):
        replace(LearnerSettings(), **change)
    with pytest.raises(DreamgymError, match=message):
        LearnerSettings.named(**{"algorithm": "ppo", **change})


def test_an_unknown_setting_is_named():
    with pytest.raises(DreamgymError, match="no field 'clip'; it has algorithm, learning_rate"):
        LearnerSettings.named("grpo", clip=0.2)
    assert LearnerSettings.named("dapo").clip_high > 0.2 and LearnerSettings.named("dapo", clip_high=0.3).clip_high == 0.3


def test_bad_rollouts_are_refused(new_model, batch):
    learner = Learner(new_model(), LearnerSettings())
    before = snapshot(learner)
    cases = {"none were given": [], "Rollout 1 .task task/0. has a reward that is not a finite": [batch[0], episode([float("nan")])],
             "one turn a transition": [episode([0, 1], turns=[Turn([1], [2], [])])],
             "a prompt and an action": [episode([1], turns=[Turn([1], [], [])])]}
    for message, rollouts in cases.items():
        with pytest.raises(DreamgymError, match=message):
            learner.update(rollouts)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(learner), strict=True))


def test_a_gradient_that_is_no_number_changes_nothing(new_model, batch):
    learner = Learner(new_model(), LearnerSettings())
    learner.model.parameters()[0].data[0, 0] = float("inf")
    before = snapshot(learner)
    with pytest.raises(DreamgymError, match="not a finite number"):
        learner.update(batch)
    assert all(torch.equal(a, b) for a, b in zip(before, snapshot(learner), strict=True))


def test_a_model_without_adapter_is_refused(tiny_model_folder):
    with pytest.raises(DreamgymError, match="no adapter to train"):
        Learner(LanguageModel.load(str(tiny_model_folder), device="cpu", dtype="float32"))


def test_an_agents_longest_action_is_the_constant_length(new_model):
    assert LearnerSettings().maximum_tokens == Agent(new_model()).maximum_tokens


# ---------------------------------------------------------------- groups for the curriculum


def test_clusters_are_found_and_numbered_in_order():
    random = np.random.default_rng(0)
    centres = np.eye(5)[[3, 0, 3, 1, 0, 1, 3, 0]]
    vectors = centres + 0.05 * random.standard_normal(centres.shape)
    groups = cluster_groups(vectors, 3, seed=1)
    assert groups == [0, 1, 0, 2, 1, 2, 0, 1] == cluster_groups(vectors, 3, seed=1)
    assert cluster_groups(vectors, 1) == [0] * 8 and len(set(cluster_groups(vectors, 8))) == 8
    assert max(cluster_groups(np.ones((4, 2)), 3)) < 3, "equal tasks may leave a cluster empty"
    for bad, clusters in ((vectors, 0), (vectors, 9), (vectors[0], 1), (np.zeros((0, 3)), 1)):
        with pytest.raises(DreamgymError, match="between 1 cluster and one a task"):
            cluster_groups(bad, clusters)


def test_a_task_has_the_value_of_its_cluster():
    rollouts = [("a", 1.0), ("b", 0.0), ("c", 1.0), ("c", 1.0)]
    assert cluster_values(rollouts, {"a": 0, "b": 0, "c": 1}) == {"a": 0.25, "b": 0.25, "c": 0.0}
    assert cluster_values(rollouts, {"a": 0, "b": 1, "c": 2}) == task_values(rollouts)
