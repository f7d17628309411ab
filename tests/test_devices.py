"""The same code on every device: a GPU gives the processor's numbers, up to rounding.

Where there is no GPU its half is skipped; the processor's half holds the same promises.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dreamgym.fast_model import LanguageModel
from dreamgym.language_model import Example, Placement, choose_placement
from dreamgym.policy_optimization import ALGORITHMS, Learner, LearnerSettings
from dreamgym.rollouts import Rollout, Turn
from dreamgym.trajectories import Task, Trajectory, Transition

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_GPU)])
def device(request):
    "Every device that this machine has."
    return request.param


@pytest.fixture
def load(tiny_model_folder):
    "A function that loads the tiny model with a small adapter; the same on every device."

    def make(device, dtype="float32"):
        model = LanguageModel.load(str(tiny_model_folder), 3, device, dtype)
        generator = torch.Generator().manual_seed(1)
        for layer in model.adapted.values():
            layer.lora_b.data.copy_(0.1 * torch.randn(layer.lora_b.shape, generator=generator))
        return model

    return make


@pytest.fixture(scope="module")
def prompts():
    "Forty prompts of a few stems, some of them equal, of many lengths."
    random = np.random.default_rng(0)
    stems = [random.integers(0, 256, n).tolist() for n in (5, 40, 90)]
    return [stems[i % 3] + random.integers(0, 256, i % 7).tolist() for i in range(40)]


@pytest.fixture(scope="module")
def rollouts(prompts):
    "Four groups of four episodes of one or two turns, with random actions and rewards."
    random, output = np.random.default_rng(1), []
    for number in range(16):
        rewards = [0.0] * int(random.integers(0, 2)) + [float(random.integers(0, 2))]
        steps = tuple(Transition.model_construct(state="s", action="a", next_state="s", reward=r, done=False,
                                                 invalid=False) for r in rewards)
        trajectory = Trajectory.model_construct(task=Task(id=f"task/{number // 4}", kind="task"), transitions=steps,
                                                source="", real=False, truncated=False)
        turns = tuple(Turn(prompts[number // 4], random.integers(0, 256, int(random.integers(1, 6))).tolist(), [])
                      for _ in steps)
        output.append(Rollout(trajectory, turns, number // 4))
    return output


def test_the_chosen_placement_is_the_best_there_is(monkeypatch):
    monkeypatch.delenv("DREAMGYM_DEVICE", raising=False)
    placement = choose_placement()
    assert placement.device == ("cuda" if torch.cuda.is_available() else "cpu") and placement.reason
    assert 1 <= placement.breadth <= (16 if torch.cuda.is_available() else 1)


@pytest.mark.parametrize("memory, breadth", [(8, 2), (24, 6), (80, 16), (2, 1)])
def test_batches_grow_with_the_memory_of_a_gpu(memory, breadth, monkeypatch):
    properties = SimpleNamespace(total_memory=memory * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert Placement("cuda:1", torch.bfloat16, "").breadth == breadth
    assert Placement("cpu", torch.bfloat16, "").breadth == 1


def test_a_fresh_adapter_is_the_same_everywhere(tiny_model_folder, device):
    here, there = (LanguageModel.load(str(tiny_model_folder), 3, d, "float32", seed=5) for d in (device, "cpu"))
    before = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
    here2 = LanguageModel.load(str(tiny_model_folder), 3, device, "float32", seed=5)
    after = torch.cuda.get_rng_state() if device == "cuda" else torch.get_rng_state()
    assert torch.equal(before, after)  # the caller's random numbers go on undisturbed
    for a, b, c in zip(here.parameters(), there.parameters(), here2.parameters(), strict=True):
        assert a.device.type == device and torch.equal(a.cpu(), b) and torch.equal(a, c)


def test_the_fast_sampler_samples_what_the_simple_one_does(load, device, prompts):
    model = load(device)
    assert model._can_fuse()
    for temperature, stop in ((0.0, ()), (1.0, ()), (1.0, range(40))):  # with the last, rows end at every step
        fast = model.sample(prompts, 40, temperature, seed=3, stop=stop)
        model.fast = False
        simple = model.sample(prompts, 40, temperature, seed=3, stop=stop)
        model.fast = True
        assert bool(stop) == (len({len(s.tokens) for s in fast}) > 8)
        assert [s.tokens for s in fast] == [s.tokens for s in simple]
        for a, b in zip(fast, simple, strict=True):
            np.testing.assert_allclose(a.log_probabilities, b.log_probabilities, atol=1e-4)
        assert model.sample(prompts, 40, temperature, seed=3, stop=stop) == fast


def test_samples_carry_the_log_probabilities_that_the_learner_finds(load, device, prompts):
    model = load(device)
    samples = model.sample(prompts, 12, 1.0, seed=3)
    found = model.log_probabilities([Example(p, s.tokens) for p, s in zip(prompts, samples, strict=True)])
    for sample, scores in zip(samples, found, strict=True):
        np.testing.assert_allclose(sample.log_probabilities, scores.cpu(), atol=1e-4)


def test_another_family_has_its_own_numbers_everywhere(device, tiny_tokenizer, tmp_path, prompts):
    "Attention in a window, and logits that are scaled and bounded."
    config = AutoConfig.for_model("gemma2", vocab_size=len(tiny_tokenizer), hidden_size=64, intermediate_size=96,
                                  num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                                  sliding_window=9)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    model = LanguageModel.load(str(tmp_path), 0, device, "float32")
    own = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    samples = model.sample(prompts, 6, seed=3)
    found = model.log_probabilities([Example(p, s.tokens) for p, s in zip(prompts, samples, strict=True)])
    for prompt, sample, scores in zip(prompts, samples, found, strict=True):
        with torch.no_grad():
            logits = own(torch.tensor([prompt + sample.tokens])).logits[0, len(prompt) - 1:-1]
        right = logits.log_softmax(-1).gather(1, torch.tensor(sample.tokens)[:, None]).squeeze(1)
        np.testing.assert_allclose(sample.log_probabilities, right, atol=1e-4)
        np.testing.assert_allclose(scores.cpu(), right, atol=1e-4)


def test_trees_have_the_gradients_of_the_plain_way(load, device, prompts):
    model = load(device)
    examples = [Example(p, [i, 7, i + 1]) for i, p in enumerate(prompts)]
    torch.cat(model.plain_scores(examples)).sum().backward()
    plain = [p.grad.clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    for _, scores in model.score_batches(examples):
        torch.cat(scores).sum().backward()
    for parameter, reference in zip(model.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, reference, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_an_update_is_the_processors(load, device, rollouts, algorithm, tmp_path):
    settings = LearnerSettings.named(algorithm, kl_weight=0.05, entropy_weight=0.01, learning_rate=1e-4, minibatches=2)
    here, there = Learner(load(device), settings), Learner(load("cpu"), settings)
    if here.head is not None:  # a critic starts at random
        here.head.load_state_dict(there.head.state_dict())
    mine, reference = here.update(rollouts, 4), there.update(rollouts, 4)
    assert mine.keys() == reference.keys()
    for name in mine:
        assert mine[name] == pytest.approx(reference[name], abs=2e-3, nan_ok=True), name
    for a, b in zip(here.model.parameters(), there.model.parameters(), strict=True):
        torch.testing.assert_close(a.cpu(), b, atol=5e-5, rtol=0)
    here.model.save_adapter(tmp_path)  # what one device wrote, the other goes on with
    here.save(tmp_path)
    other = Learner(load("cpu"), settings)
    other.model.load_adapter(tmp_path)
    other.load(tmp_path)
    for a, b in zip(here.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a.cpu(), b)
    other.update(rollouts, 5)


def test_the_same_seed_gives_the_same_numbers(load, device, rollouts):
    settings = LearnerSettings.named("grpo", kl_weight=0.05)
    one, two = Learner(load(device), settings), Learner(load(device), settings)
    assert one.update(rollouts, 7) == two.update(rollouts, 7)
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)
