"The fast ways: the numbers of the plain ones, by trees, blocks by hand, packed weights and guesses."

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_examples import as_if_trained, assert_close_relative, gradient_of, random_examples, random_tokens, tree_scores
from safetensors.torch import load_file, save_file
from test_language_model import ROTATION, recorded_texts, sampled_and_learned
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import Cache, DynamicLayer
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

import dreamgym.fast_model as module
from dreamgym.fast_model import (
    LanguageModel,
    TokenTree,
    chosen_log_probabilities,
    length_batches,
    matmul_attention,
    plant_trees,
)
from dreamgym.language_model import Example, LowRankLinear
from dreamgym.weights import WeightsError

fast_bf16 = pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bf16 instructions here")


@pytest.fixture
def load_tiny(tiny_model_folder):
    "A function that loads the tiny model; its adapter is filled with numbers, as if it had been trained."

    def load(rank=4, dtype="float32", seed=0, exact=False):
        return as_if_trained(LanguageModel.load(str(tiny_model_folder), rank, "cpu", dtype, seed, exact), seed)

    return load


@pytest.fixture
def tiny(load_tiny):
    return load_tiny()


# ---------------------------------------------------------------- plain and fast


PLAIN = """
import json
import sys

import torch

from dreamgym.language_model import Example, LanguageModel

folder, adapter, examples, prompts = json.load(sys.stdin)
model = LanguageModel.load(folder, 4, "cpu", "float32").load_adapter(adapter)
found = {i: s for rows, scores in model.measure_batches([Example(*e) for e in examples], 0.8, 100)
         for i, s in zip(rows, scores)}
logs, entropies = (torch.cat([getattr(found[i], name) for i in range(len(examples))])
                   for name in ("log_probabilities", "entropies"))
loss = (logs * torch.linspace(-1, 1, len(logs)) - 0.1 * entropies).sum()
gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())])
samples = [model.sample(prompts, 12, temperature, 3) for temperature in (0, 1.0)]
losses = model.train_supervised([Example(*e) for e in examples], 2, 1e-3, tokens_per_step=100)
assert "dreamgym.fast_model" not in sys.modules
trained = torch.cat([p.detach().flatten() for p in model.parameters()])
late = model.sample(prompts, 12, 0)
import dreamgym.fast_model

assert model.templates == [] and [s.tokens for s in model.sample(prompts, 12, 0)] == [s.tokens for s in late]
print(json.dumps([logs.tolist(), entropies.tolist(), gradient.tolist(), samples, losses, trained.tolist()]))
"""


def test_the_plain_chapter_alone_gives_the_same_numbers(load_tiny, tiny_model_folder, tmp_path):
    "Scores, entropies, gradients, samples and training: one process has never heard of the fast ways."
    load_tiny().save_adapter(tmp_path)
    examples, prompts = random_examples(3), [e.prompt for e in random_examples(4)]
    request = json.dumps([str(tiny_model_folder), str(tmp_path), examples, prompts])
    done = subprocess.run([sys.executable, "-c", PLAIN], input=request, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logs, entropies, gradient, samples, losses, trained = json.loads(done.stdout)
    model = load_tiny()
    found = {i: s for rows, scores in model.measure_batches(examples, 0.8) for i, s in zip(rows, scores, strict=True)}
    mine = [torch.cat([getattr(found[i], name) for i in range(len(examples))])
            for name in ("log_probabilities", "entropies")]
    torch.testing.assert_close(mine[0], torch.tensor(logs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine[1], torch.tensor(entropies), atol=1e-5, rtol=1e-5)
    loss = (mine[0] * torch.linspace(-1, 1, len(logs)) - 0.1 * mine[1]).sum()
    ours = torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())])
    assert_close_relative(ours, torch.tensor(gradient), 1e-5)
    for theirs, temperature in zip(samples, (0, 1.0), strict=True):
        for sample, (tokens, scores) in zip(model.sample(prompts, 12, temperature, 3), theirs, strict=True):
            assert sample.tokens == tokens and sample.log_probabilities == pytest.approx(scores, abs=1e-5)
    assert model.train_supervised(examples, 2, 1e-3, tokens_per_step=100) == pytest.approx(losses, abs=1e-4)
    assert_close_relative(torch.cat([p.detach().flatten() for p in model.parameters()]), torch.tensor(trained), 1e-3)


def test_a_model_that_is_not_fast_uses_nothing_of_this_chapter(tiny, monkeypatch):
    from dreamgym.language_model import LanguageModel as plain

    assert plain is LanguageModel and tiny.fast
    tiny.fast = False
    for name in ("_tree_scores", "_tree_states", "_sample_fast", "_through_blocks", "_blocks", "_joined"):
        monkeypatch.setattr(LanguageModel, name, None)
    examples = random_examples(1)
    assert all(len(s.tokens) for s in tiny.sample([e.prompt for e in examples], 3))
    assert len(tiny.log_probabilities(examples)) == len(examples)
    assert np.isfinite(tiny.train_supervised(examples)).all()


# ---------------------------------------------------------------- loading


def frozen(model):
    return {name: p for name, p in model.network.named_parameters() if not p.requires_grad}


def test_two_models_of_a_folder_read_and_hold_its_weights_once(tiny_model_folder, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    reads, read = [], module.read_model
    monkeypatch.setattr(module, "read_model", lambda *words: reads.append(words) or read(*words))
    first, second = (LanguageModel.load(str(folder), rank, device="cpu", dtype="float32") for rank in (2, 0))
    assert len(reads) == 1 and type(second.network.model.layers[0].mlp.up_proj) is torch.nn.Linear
    assert all(p.data_ptr() == frozen(first)[name].data_ptr() for name, p in frozen(second).items())
    assert len(frozen(second)) >= len(frozen(first)) > 10 and first.parameters() and not second.parameters()
    tensors = load_file(folder / "model.safetensors")
    changed = max(tensors, key=lambda name: tensors[name].numel())
    save_file({n: t + 1 if n == changed else t for n, t in tensors.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})
    third = LanguageModel.load(str(folder), device="cpu", dtype="float32")
    apart = [n for n, p in frozen(third).items() if not torch.equal(p, frozen(first)[n])]
    assert len(apart) == 1 and len(reads) == 2, "a folder that has changed since is not mistaken for the one before"
    other = LanguageModel.load(str(tiny_model_folder), device="cpu", dtype="float32")
    assert not {p.data_ptr() for p in frozen(other).values()} & {p.data_ptr() for p in frozen(first).values()}


def test_a_twin_has_an_attention_and_an_adapter_of_its_own(tiny_model_folder):
    plain, exact = (LanguageModel.load(str(tiny_model_folder), 2, "cpu", "float32", exact=exact) for exact in (False, True))
    names = [model.network.config._attn_implementation for model in (plain, exact, LanguageModel.load(
        str(tiny_model_folder), 2, "cpu", "float32"))]
    assert names == ["dreamgym_matmul", "dreamgym_exact", "dreamgym_matmul"]
    before = exact.log_probabilities([Example([1, 2], [3, 4])])[0]
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_()
    assert torch.equal(before, exact.log_probabilities([Example([1, 2], [3, 4])])[0])
    assert abs(before - plain.log_probabilities([Example([1, 2], [3, 4])])[0]).max() > 1e-3


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (4, 2), (9, 3), (6, 1)])
@pytest.mark.parametrize("total", [7, 12])
def test_attention_equals_pytorch(heads, key_heads, total):
    generator = torch.Generator().manual_seed(heads * total)
    query = torch.randn(2, heads, 7, 8, generator=generator, requires_grad=True)
    key, value = (torch.randn(2, key_heads, total, 8, generator=generator, requires_grad=True) for _ in range(2))
    seen = torch.rand(2, 1, 7, total, generator=generator) < 0.5
    seen[..., 0] = True  # every token sees something
    mask = torch.zeros(2, 1, 7, total).masked_fill_(~seen, torch.finfo(torch.float32).min)
    ours, _ = matmul_attention(None, query, key, value, mask, scaling=0.3)
    reference = F.scaled_dot_product_attention(query, key, value, mask, scale=0.3, enable_gqa=True).transpose(1, 2)
    assert ours.shape == (2, 7, heads, 8)
    torch.testing.assert_close(ours, reference, atol=1e-5, rtol=1e-5)
    weight = torch.randn(ours.shape, generator=generator)
    left, right = (torch.autograd.grad((o * weight).sum(), (query, key, value)) for o in (ours, reference))
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_exact_attention_is_the_same_attention():
    generator = torch.Generator().manual_seed(3)
    query, key, value = (torch.randn(2, heads, 6, 8, generator=generator) for heads in (4, 2, 2))
    mask = torch.full((1, 1, 6, 6), -torch.inf).triu(1)
    quick, exact = (matmul_attention(None, query, key, value, mask, scaling=0.3, exact=e)[0] for e in (False, True))
    assert exact.dtype == torch.float32
    torch.testing.assert_close(quick, exact, atol=1e-6, rtol=1e-5)


def test_attention_takes_one_mask_for_all_rows_or_none():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, heads, 5, 8, generator=generator) for heads in (4, 2, 2))
    mask = torch.full((1, 1, 5, 5), -torch.inf).triu(1)
    one, _ = matmul_attention(None, query, key, value, mask, scaling=1.0)
    many, _ = matmul_attention(None, query, key, value, mask.expand(3, 1, 5, 5), scaling=1.0)
    torch.testing.assert_close(one, many)
    free, _ = matmul_attention(None, query, key, value, None, scaling=1.0)
    torch.testing.assert_close(free, F.scaled_dot_product_attention(query, key, value, scale=1.0,
                                                                    enable_gqa=True).transpose(1, 2))


def test_the_whole_model_equals_the_library(tiny, tiny_model_folder):
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_folder, attn_implementation="sdpa")
    tokens = torch.tensor([[258] * 4 + [5, 6, 7], [9, 8, 7, 6, 5, 4, 3]])
    mask = torch.tensor([[0] * 4 + [1] * 3, [1] * 7])
    assert tiny.network.config._attn_implementation == "dreamgym_matmul"
    with torch.no_grad(), tiny.without_adapter():
        ours = tiny.network(tokens, attention_mask=mask).logits
    torch.testing.assert_close(ours[mask.bool()], plain(tokens, attention_mask=mask).logits[mask.bool()],
                               atol=1e-5, rtol=1e-4)


# ---------------------------------------------------------------- the adapter


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("way", ["plain", "by hand", "exact", "learner", "sampler"])
def test_a_small_term_survives_bf16(way, bias):
    "A young adapter adds a thousandth: added to a product that is rounded already, most of it would be lost."
    generator = torch.Generator().manual_seed(1)
    layer = torch.nn.Linear(576, 256, bias=bias).to(torch.bfloat16).requires_grad_(False)
    adapted = LowRankLinear(layer, rank=8)
    adapted.lora_b.data.normal_(0, 2e-4, generator=generator)
    x = torch.randn(32, 576, generator=generator).bfloat16().requires_grad_()
    passes = {"plain": adapted._orig_forward, "by hand": adapted, "exact": adapted, "sampler": module._fuse(adapted),
              "learner": lambda x: module._multiply(x, adapted.weight, adapted)}
    slope = torch.randn(32, 256, generator=generator).bfloat16()
    with module._SteadyProducts() if way == "exact" else nullcontext():
        output = passes[way](x)
        gradient = None if way in ("plain", "sampler") else torch.autograd.grad(output, x, slope)[0]
    a, b = adapted.lora_a.detach().double(), adapted.lora_b.detach().double() * adapted.scale
    large = F.linear(x.detach().double(), layer.weight.double(), layer.bias.double() if bias else None)
    term = x.detach().double() @ a.T @ b.T
    assert 0.9 < float(((output.detach().double() - large) * term).sum() / term.square().sum()) < 1.1
    if gradient is not None:  # it has a small term as well
        term = slope.double() @ b @ a
        rest = gradient.double() - slope.double() @ layer.weight.double()
        assert 0.9 < float((rest * term).sum() / term.square().sum()) < 1.1


def test_templates_are_saved_with_an_adapter(load_any, tmp_path):
    model, other = load_any("llama"), load_any("llama")
    model.templates = [[5, 6, 7], [1, 2]]
    model.save_adapter(tmp_path / "with")
    assert other.load_adapter(tmp_path / "with").templates == model.templates
    model.templates = []
    model.save_adapter(tmp_path / "with")
    assert other.load_adapter(tmp_path / "with").templates == [] and not (tmp_path / "with" / "templates.json").exists()


@pytest.mark.parametrize("text", ["[[1, 2", "[[1, 99999999]]", "[[-1]]", "[[true]]", '[["a"]]', "[3]"])
def test_damaged_templates_are_refused(load_any, tmp_path, text):
    model = load_any("llama")
    model.templates = [[5, 6, 7]]
    model.save_adapter(tmp_path / "a")
    (tmp_path / "a" / "templates.json").write_text(text)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(WeightsError, match="cannot be loaded"):
        model.load_adapter(tmp_path / "a")
    assert model.templates == [[5, 6, 7]] and all(map(torch.equal, before, model.parameters())), "all or nothing"


# ---------------------------------------------------------------- log-probabilities


@pytest.mark.parametrize("count", [1, 256, 257, 600])  # slices of 256
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_of_chosen_tokens(count, temperature):
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(count, 16, generator=generator, requires_grad=True)
    weight = torch.randn(50, 16, generator=generator)
    tokens = torch.randint(0, 50, (count,), generator=generator)
    ours = chosen_log_probabilities(hidden, weight, tokens, temperature)
    plain = (hidden @ weight.T / temperature).log_softmax(-1)[torch.arange(count), tokens]
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    factors = torch.randn(count, generator=generator)
    left, right = (torch.autograd.grad((score * factors).sum(), hidden)[0] for score in (ours, plain))
    torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)


def test_log_probabilities_of_nothing():
    none = torch.zeros(0, dtype=torch.long)
    assert chosen_log_probabilities(torch.zeros(0, 4), torch.zeros(9, 4), none).shape == (0,)


def test_log_probabilities_far_from_zero_stay_finite():
    hidden = torch.tensor([[300.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    score = chosen_log_probabilities(hidden, weight, torch.tensor([1]))
    assert score.item() == pytest.approx(-600)
    assert torch.isfinite(torch.autograd.grad(score.sum(), hidden)[0]).all()


# ---------------------------------------------------------------- trees


def random_sequences(seed, count=25):
    random = np.random.default_rng(seed)
    return [random.integers(0, 3, size=random.integers(1, 8)).tolist() for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_a_tree_holds_every_distinct_beginning_once(seed):
    tree, sequences = TokenTree(), random_sequences(seed)
    for sequence in sequences:
        before, expected = len(tree.tokens), tree.new_nodes(sequence)
        path = tree.add(sequence)
        assert len(tree.tokens) - before == expected and tree.new_nodes(sequence) == 0
        assert [tree.tokens[node] for node in path] == sequence
        assert [tree.depths[node] for node in path] == list(range(len(sequence)))
        assert [tree.parents[node] for node in path] == [-1, *path[:-1]]
    beginnings = {tuple(s[:end]) for s in sequences for end in range(1, len(s) + 1)}
    assert len(tree.tokens) == len(beginnings)
    seen = tree.ancestors()
    for node in range(len(tree.tokens)):
        expected, up = set(), node
        while up >= 0:
            expected.add(up)
            up = tree.parents[up]
        assert set(np.flatnonzero(seen[node])) == expected


@pytest.mark.parametrize("size", [1, 6, 20, 1000])
def test_planted_trees_are_bounded_and_whole(size):
    sequences = random_sequences(11, 40)
    trees, places = plant_trees(sequences, size)
    for sequence, (number, path) in zip(sequences, places, strict=True):
        assert [trees[number].tokens[node] for node in path] == sequence
    longest = max(map(len, sequences))
    assert all(len(tree.tokens) <= max(size, longest) for tree in trees)
    if size == 1000:
        assert len(trees) == 1
    members = [sum(number == n for number, _ in places) for n in range(len(trees))]
    assert all(len(tree.tokens) <= size or members[n] == 1 or len(tree.tokens) <= longest
               for n, tree in enumerate(trees))


@pytest.mark.parametrize("limit", [1, 10, 37, 10_000])
def test_length_batches_partition_within_their_limit(limit):
    lengths = np.random.default_rng(limit).integers(1, 40, size=60).tolist()
    batches = length_batches(lengths, limit)
    assert sorted(i for batch in batches for i in batch) == list(range(60))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= limit for b in batches)
    assert length_batches([], limit) == []


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("sizes", [{}, {"tokens_per_tree": 25, "tokens_per_batch": 60}, {"tokens_per_tree": 10**6},
                                   {"temperature": 0.6}])
def test_a_tree_equals_the_plain_way_forward_and_backward(tiny, shared, seed, sizes):
    examples = random_examples(seed, shared=shared)
    plain = tiny.plain_scores(examples, sizes.get("temperature", 1.0))
    fast = tree_scores(tiny, examples, **sizes)
    assert [len(score) for score in fast] == [len(e.completion) for e in examples]
    torch.testing.assert_close(torch.cat(fast), torch.cat(plain), atol=1e-5, rtol=1e-5)
    assert_close_relative(gradient_of(tiny, fast), gradient_of(tiny, plain), 1e-5)
    quiet = tiny.log_probabilities(examples, sizes.get("temperature", 1.0))
    torch.testing.assert_close(torch.cat(quiet), torch.cat(plain), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shared", [True, False])
def test_a_tree_equals_the_plain_way_in_bf16_up_to_its_rounding(load_tiny, shared):
    model, examples = load_tiny(dtype="bfloat16"), random_examples(3, shared=shared)
    plain, fast = model.plain_scores(examples), tree_scores(model, examples)
    assert abs(torch.cat(fast) - torch.cat(plain)).max() < 0.05
    left, right = gradient_of(model, fast), gradient_of(model, plain)
    assert F.cosine_similarity(left, right, dim=0) > 0.995
    exact = load_tiny().plain_scores(examples)  # and both stay close to fp32
    assert abs(torch.cat(fast) - torch.cat(exact)).max() < 0.2


# ---------------------------------------------------------------- the blocks by hand


def double(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.double, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def angles(trees, length, size):
    "Cosines and sines as transformers gives them: both halves of a head turn by the same angles."
    half = torch.rand(trees, length, 1, size // 2, dtype=torch.double, generator=torch.Generator().manual_seed(1)) * 6
    return torch.cat([half, half], -1).cos(), torch.cat([half, half], -1).sin()


def signed(sine):
    return torch.cat([-sine.chunk(2, -1)[0], sine.chunk(2, -1)[1]], -1)


def test_the_norm_by_hand():
    x, weight = double(5, 12), double(12, seed=1).detach()
    assert torch.autograd.gradcheck(lambda x: module._Norm.apply(x, weight, 1e-5), x)
    torch.testing.assert_close(module._Norm.apply(x, weight, 1e-5), F.rms_norm(x, (12,), weight, 1e-5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_norm_rounds_as_the_library_does(dtype):
    norm = LlamaRMSNorm(64, 1e-5).to(dtype).requires_grad_(False)
    norm.weight.copy_(torch.linspace(0.5, 3, 64))
    x = double(40, 64).detach().to(dtype).requires_grad_()
    ours, plain = module._Norm.apply(x, norm.weight, norm.variance_epsilon), norm(x)
    close = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 0, "rtol": 2**-7}  # a step of bf16
    torch.testing.assert_close(ours, plain, **close)
    left, right = (torch.autograd.grad(y.float().sin().sum(), x)[0].float() for y in (ours, plain))
    assert_close_relative(left, right, 1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("heights", [(), (4,), (4, 3, 2)])
def test_products_side_by_side(heights, bias):
    x, weight = double(5, 6), double(sum(heights) or 4, 6, seed=1).detach()
    shift = double(len(weight), seed=2).detach() if bias else None
    pairs = [(double(2, 6, seed=3 + i), double(height, 2, seed=9 + i)) for i, height in enumerate(heights)]
    thin = [part for pair in pairs for part in pair]
    product = lambda x, *thin: module._Products.apply(x, weight, shift, 1.7, *thin)  # noqa: E731
    plain = F.linear(x, weight, shift)
    if heights:
        plain = plain + 1.7 * torch.cat([x @ a.T @ b.T for a, b in pairs], 1)
    torch.testing.assert_close(product(x, *thin), plain)
    assert torch.autograd.gradcheck(product, (x, *thin))
    if heights:
        assert torch.autograd.gradcheck(lambda *thin: product(x.detach(), *thin), thin)  # as in the first block


def test_rotation_by_hand():
    cosine, sine = angles(2, 5, 8)
    x = double(2, 5, 3, 8).detach()
    plain, _ = apply_rotary_pos_emb(x, x, cosine, sine, unsqueeze_dim=0)
    turned = module._rotate_(x.clone(), cosine, signed(sine))
    torch.testing.assert_close(turned, plain.view_as(turned))
    torch.testing.assert_close(module._rotate_(turned, cosine, -signed(sine)), x)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 2), (3, 3), (6, 1)])
def test_tree_attention_by_hand(heads, key_heads):
    trees, length, size = 2, 5, 6
    (cosine, sine), projected = angles(trees, length, size), double(trees * length, (heads + 2 * key_heads) * size)
    seen = torch.rand(trees, 1, length, length, generator=torch.Generator().manual_seed(2)) < 0.5
    mask = torch.zeros(seen.shape, dtype=torch.double)
    mask.masked_fill_(~(seen | torch.eye(length, dtype=torch.bool)), torch.finfo(torch.double).min)
    ours = lambda p: module._TreeAttention.apply(p, cosine, signed(sine), mask, key_heads)  # noqa: E731

    def plain(projected):
        parts = projected.view(trees, length, -1, size).transpose(1, 2).split([heads, key_heads, key_heads], 1)
        query, key = apply_rotary_pos_emb(*parts[:2], cosine[:, :, 0], sine[:, :, 0])
        output = F.scaled_dot_product_attention(query, key, parts[2], mask, enable_gqa=True)
        return output.transpose(1, 2).reshape(trees * length, -1)

    torch.testing.assert_close(ours(projected), plain(projected))
    assert torch.autograd.gradcheck(ours, projected)


def test_a_long_page_is_looked_at_twice_instead_of_kept(monkeypatch):
    trees, length, size, heads, key_heads = 1, 7, 6, 4, 2
    cosine, sine = angles(trees, length, size)
    mask = torch.zeros(trees, 1, length, length, dtype=torch.double)
    weights = trees * heads * length * length
    found, kept = [], []
    for most in (weights, weights - 1):
        monkeypatch.setattr(module._TreeAttention, "largest", most)
        projected = double(trees * length, (heads + 2 * key_heads) * size)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):  # noqa: B023
            output = module._TreeAttention.apply(projected, cosine, signed(sine), mask, key_heads)
        output.sin().sum().backward()
        found.append(projected.grad)
        kept.append(weights in sizes)
    assert kept == [True, False]
    assert torch.equal(*found), "the same sums, in the same order"


def test_the_gated_perceptron_by_hand():
    both = double(5, 12)
    torch.testing.assert_close(module._Gated.apply(both), F.silu(both[:, :6]) * both[:, 6:])
    assert torch.autograd.gradcheck(module._Gated.apply, both)


@pytest.fixture(scope="module")
def tiny_qwen_folder(tiny_tokenizer, tmp_path_factory):
    "A random Qwen2 of two layers; its queries, keys and values have biases."
    folder = tmp_path_factory.mktemp("tiny-qwen")
    config = Qwen2Config(vocab_size=len(tiny_tokenizer), hidden_size=48, intermediate_size=80, num_hidden_layers=2,
                         num_attention_heads=6, num_key_value_heads=2, eos_token_id=tiny_tokenizer.eos_token_id)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)
        for block in model.model.layers:
            for layer in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
                torch.nn.init.normal_(layer.bias)
        model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def load_any(tiny_model_folder, tiny_qwen_folder):
    "A function that loads a tiny model of an architecture, with a filled adapter or without one."

    def load(name, rank=4, dtype="float32"):
        folder = {"llama": tiny_model_folder, "qwen": tiny_qwen_folder}[name]
        model = LanguageModel.load(str(folder), rank, "cpu", dtype)
        for i, layer in enumerate(model.adapted.values()):
            layer.lora_b.data.normal_(std=0.2, generator=torch.Generator().manual_seed(i))
        return model

    return load


def the_library_way(monkeypatch):
    monkeypatch.setattr(LanguageModel, "_can_fuse", lambda self: False)


@pytest.mark.parametrize("sizes", [{}, {"tokens_per_tree": 25, "tokens_per_batch": 60}])
@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_by_hand_as_by_the_library(load_any, monkeypatch, name, sizes):
    "Scores, and the gradient of every parameter relative to the largest one."
    model, examples = load_any(name), random_examples(1)
    assert model._can_fuse()
    hand = tree_scores(model, examples, **sizes)
    mine = gradient_of(model, hand)
    the_library_way(monkeypatch)
    library = tree_scores(model, examples, **sizes)
    torch.testing.assert_close(torch.cat(hand), torch.cat(library), atol=1e-5, rtol=1e-5)
    theirs = gradient_of(model, library)
    assert abs(mine - theirs).max() <= 1e-5 * abs(theirs).max()


@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_by_hand_without_an_adapter(load_any, monkeypatch, name):
    examples, bare, model = random_examples(2), load_any(name, rank=0), load_any(name)
    ours = torch.cat(bare.log_probabilities(examples))
    with model.without_adapter():
        torch.testing.assert_close(torch.cat(model.log_probabilities(examples)), ours, atol=0, rtol=0)
        assert not torch.cat(tree_scores(model, examples)).requires_grad
    assert abs(torch.cat(model.log_probabilities(examples)) - ours).max() > 1e-3
    the_library_way(monkeypatch)
    torch.testing.assert_close(torch.cat(bare.log_probabilities(examples)), ours, atol=1e-5, rtol=1e-5)


def test_by_hand_in_bf16_is_as_close_to_fp32_as_the_library(load_any, monkeypatch):
    examples = random_examples(3)
    exact = torch.cat(load_any("llama").log_probabilities(examples))
    model = load_any("llama", dtype="bfloat16")
    hand = tree_scores(model, examples)
    mine, errors = gradient_of(model, hand), [abs(torch.cat(hand).detach() - exact).mean()]
    the_library_way(monkeypatch)
    library = tree_scores(model, examples)
    errors.append(abs(torch.cat(library).detach() - exact).mean())
    assert errors[0] < 1.5 * errors[1]
    assert F.cosine_similarity(mine, gradient_of(model, library), dim=0) > 0.995


def test_weights_that_are_joined_are_stored_once(load_any):
    model, examples = load_any("qwen"), random_examples(4)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    quiet = torch.cat(model.log_probabilities(examples))  # joined where nothing keeps gradients
    loud = tree_scores(model, examples)
    assert torch.equal(torch.cat(loud).detach(), quiet)
    gradient_of(model, loud)  # and yet good for a backward pass
    attention = model.network.model.layers[1].self_attn
    storages = {getattr(attention, name).weight.untyped_storage().data_ptr() for name in ("q_proj", "k_proj", "v_proj")}
    assert storages == {model._joined()[1][0][0].untyped_storage().data_ptr()}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())


def test_training_lets_go_of_the_samplers_packed_weights(load_any):
    model, examples = load_any("llama", dtype="bfloat16"), random_examples(4)
    before = model.sample([[3, 4, 5]], 6, temperature=0)[0].tokens
    model.log_probabilities(examples)
    assert "_fused" in model.__dict__  # measuring changes nothing
    gradient_of(model, tree_scores(model, examples))
    assert "_fused" not in model.__dict__
    assert model.sample([[3, 4, 5]], 6, temperature=0)[0].tokens == before


@pytest.mark.parametrize("late", [False, True])
def test_two_models_of_a_folder_join_its_weights_once(load_any, late):
    "Loaded before the first one is joined, or after."
    first, examples = load_any("qwen"), random_examples(4)
    second = load_any("qwen") if not late else None
    scores = torch.cat(first.log_probabilities(examples))
    second = second or load_any("qwen")
    assert torch.equal(torch.cat(second.log_probabilities(examples)), scores)
    gradient_of(second, tree_scores(second, examples))
    wholes = [[whole.data_ptr() for block in model._joined() for whole, *_ in block] for model in (first, second)]
    assert wholes[0] == wholes[1]
    assert all(p.data_ptr() == frozen(first)[name].data_ptr() for name, p in frozen(second).items())


def test_without_gradients_nothing_is_kept(tiny):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        tiny.log_probabilities(random_examples(5))
        with torch.no_grad():
            tree_scores(tiny, random_examples(5))
        assert not kept
        tree_scores(tiny, random_examples(5))
    assert kept


@pytest.mark.parametrize("reason", ["exact sums", "another device", "another architecture", "none"])
def test_who_goes_through_the_library(load_tiny, monkeypatch, reason):
    model, calls = load_tiny(exact=reason == "exact sums"), []
    forward = model.network.model.forward
    monkeypatch.setattr(model.network.model, "forward", lambda *a, **k: (calls.append(1), forward(*a, **k))[1])
    if reason == "another architecture":
        monkeypatch.setattr(module, "_LLAMA_LIKE", ("GemmaForCausalLM",))
    can = model._can_fuse()
    if reason == "another device":
        model.placement = model.placement._replace(device="mps")
        assert not model._can_fuse()
    else:
        model.log_probabilities([Example([1, 2], [3])])
        assert bool(calls) == (reason != "none") and can == (reason == "none")


# ---------------------------------------------------------------- sampling and learning agree


@pytest.fixture(scope="module")
def real_model():
    "SmolLM2 with an adapter that changes it a little, in bf16."
    model = LanguageModel.load("smollm2", 8, "cpu", "bfloat16")
    generator = torch.Generator().manual_seed(0)
    for layer in model.adapted.values():
        layer.lora_b.data.normal_(std=0.01, generator=generator)
    return model


@fast_bf16
def test_sampling_and_learning_agree_in_bf16_when_sums_are_exact(load_tiny):
    prompts = [e.prompt for e in random_examples(5) for _ in range(3)]
    model = load_tiny(dtype="bfloat16", exact=True)
    sampled, learned, examples = sampled_and_learned(model, prompts, 12)
    assert len(sampled) > 100 and abs(sampled - learned).max() < 1e-3
    assert abs(torch.cat(model.plain_scores(examples)) - learned).max() < 1e-3


@fast_bf16
def test_in_equal_blocks_a_row_does_not_depend_on_its_neighbours():
    "Some processors add up in another order when a product has more rows."
    torch.manual_seed(0)
    table, weight = (torch.randn(n, 592).bfloat16() for n in (200, 96))
    bias, out = torch.randn(96).bfloat16(), torch.zeros(200, 96).bfloat16()
    with module._SteadyProducts():
        for product in (lambda x: F.linear(x, weight), lambda x: F.linear(x, weight, bias), lambda x: x @ weight.T,
                        lambda x: out[:len(x)].clone().addmm_(x, weight.T)):
            whole = product(table)
            assert whole.shape == (200, 96)
            for start, end in ((0, 1), (3, 40), (63, 66), (100, 200)):
                assert torch.equal(product(table[start:end].contiguous()), whole[start:end])
        assert torch.equal(F.linear(table.view(2, 100, 592), weight).view(200, 96), F.linear(table, weight))
        assert F.linear(table[:0], weight).shape == (0, 96)
    assert abs(F.linear(table, weight).float() - table.float() @ weight.float().T).max() < 0.5


@pytest.mark.slow
@fast_bf16
def test_sampling_and_learning_with_the_real_model_in_bf16(real_model):
    """In bf16 the two differ by hundredths of a nat, because attention adds up the seen tokens in another order.

    With the sums in fp64 they agree to 1e-3, and so do trees, padded batches and any other cut into batches.
    """
    prompts = [real_model.encode(prompt) for prompt, _ in recorded_texts()[:60:15] for _ in range(2)]
    sampled, learned, _ = sampled_and_learned(real_model, prompts, 8)
    assert abs(sampled - learned).mean() < 0.1 and abs(sampled - learned).max() < 1.0
    real_model.network.set_attn_implementation("dreamgym_exact")
    try:
        sampled, learned, examples = sampled_and_learned(real_model, prompts, 8)
        assert abs(sampled - learned).max() < 1e-3
        with torch.inference_mode():
            assert abs(torch.cat(real_model.plain_scores(examples)) - learned).max() < 1e-3
        parts = [score for part in (examples[:3], examples[3:]) for score in real_model.log_probabilities(part)]
        assert abs(torch.cat(parts) - learned).max() < 1e-3
    finally:
        real_model.network.set_attn_implementation("dreamgym_matmul")


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 0.0)])
def test_the_ratio_of_a_fresh_policy_is_one(load_tiny, dtype, tolerance):
    "With and without gradients the very same numbers come out: new / old = 1 before the first step."
    model, examples = load_tiny(dtype=dtype), random_examples(6)
    old = torch.cat(model.log_probabilities(examples, tokens_per_batch=640))
    new = torch.cat(tree_scores(model, examples, tokens_per_batch=640))
    assert abs((new.detach() - old).exp() - 1).max() <= tolerance


@pytest.mark.parametrize("exact", [False, pytest.param(True, marks=fast_bf16)])
def test_the_ratio_is_one_in_any_minibatch(load_tiny, exact):
    "Old log-probabilities come from the whole batch, new ones from a part of it: other trees, the same numbers."
    model, examples = load_tiny(dtype="bfloat16" if exact else "float32", exact=exact), random_examples(6)
    old = model.log_probabilities(examples)
    part = [7, 2, 5]
    new = torch.cat(tree_scores(model, [examples[i] for i in part])).detach()
    assert abs((new - torch.cat([old[i] for i in part])).exp() - 1).max() < 1e-4


# ---------------------------------------------------------------- sampling


def test_equal_prompts_are_computed_once(tiny, monkeypatch):
    shapes, forward = [], tiny.network.model.forward
    monkeypatch.setattr(tiny.network.model, "forward",
                        lambda **words: (shapes.append(tuple(words["input_ids"].shape)), forward(**words))[1])
    prompts = [[1, 2, 3]] * 5 + [[4, 5]] * 3
    tiny.fast = False
    tiny.sample(prompts, 3, seed=0)
    tiny.fast = True
    assert shapes[:2] == [(2, 3), (8, 1)]  # two distinct prompts, then eight rows of one token
    rows, blocks = [], type(tiny)._through_blocks
    monkeypatch.setattr(type(tiny), "_through_blocks",
                        lambda model, x, *rest: (rows.append(len(x)), blocks(model, x, *rest))[1])
    tiny.sample(prompts, 3, seed=0)
    assert rows[:2] == [5, 8]  # one tree with the five distinct tokens, then eight rows of one token


def sampling_prompts() -> list[list[int]]:
    "Prompts of many lengths; some share beginnings, some are equal."
    random = np.random.default_rng(0)
    base = [random.integers(1, 250, size=random.integers(1, 20)).tolist() for _ in range(6)]
    longer = [b[:k] + random.integers(1, 250, size=random.integers(1, 9)).tolist() for b in base for k in (1, 3, 100)]
    return longer + base + base


def both_ways(model, prompts, maximum_tokens, temperature=0.0, stop=(), batch=11):
    "The fast sampler's answers and the simple one's."
    request = prompts, maximum_tokens, temperature, 3, stop, batch
    model.fast = False
    simple = model.sample(*request)
    model.fast = True
    return model.sample(*request), simple


@pytest.mark.parametrize("stop", [(), tuple(range(0, 256, 9))])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_the_fast_sampler_equals_the_simple_one(tiny, temperature, stop):
    assert tiny._can_fuse()
    for fast, simple in zip(*both_ways(tiny, sampling_prompts(), 12, temperature, stop), strict=True):
        assert fast.tokens == simple.tokens
        assert fast.log_probabilities == pytest.approx(simple.log_probabilities, abs=1e-5)


def test_the_fast_sampler_makes_room_as_it_goes(tiny, monkeypatch):
    prompts = [tiny.encode(text) for text in ("click the first", "type", "type two words")]
    whole = tiny.sample(prompts, maximum_tokens=20, seed=3)
    monkeypatch.setattr(module, "_ROOM", 3)
    pieces = tiny.sample(prompts, maximum_tokens=20, seed=3)
    assert [s.tokens for s in pieces] == [s.tokens for s in whole] and max(len(s.tokens) for s in whole) > 6
    for one, other in zip(pieces, whole, strict=True):
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-5)


def loops(prompt_count: int = 9) -> list[list[int]]:
    "Prompts that repeat themselves, of several lengths, so that much can be guessed."
    random = np.random.default_rng(4)
    words = [random.integers(1, 250, size=size).tolist() for size in range(2, 2 + prompt_count)]
    return [word * (2 + size % 3) for size, word in enumerate(words)]


@pytest.mark.parametrize("temperature", [0, 0.3, 1.0])
def test_guessing_changes_no_answer(tiny, temperature):
    "Also with templates that are right, templates that are wrong, and sequences that end."
    prompts = loops() + sampling_prompts()
    stop = tuple(range(0, 256, 23))
    _, simple = both_ways(tiny, prompts, 20, temperature, stop)
    told = [s.tokens for s in simple if len(s.tokens) > 2]
    kinds = [], told, [t[:-1] + [7] for t in told], [list(range(1, 200))]
    for tiny.ahead, tiny.templates in [(ahead, templates) for ahead in (1, 2, 4, 9) for templates in kinds]:
        for fast, slow in zip(tiny.sample(prompts, 20, temperature, 3, stop, 11), simple, strict=True):
            assert fast.tokens == slow.tokens
            assert fast.log_probabilities == pytest.approx(slow.log_probabilities, abs=1e-5)
            assert len(fast.tokens) == len(fast.log_probabilities) <= 20


def passes(model, prompts, monkeypatch) -> tuple[int, list[list[int]]]:
    "How often a call goes through the blocks to decode, and what it answers."
    count, decode = [], type(model)._decode
    monkeypatch.setattr(type(model), "_decode", lambda *rest: (count.append(1), decode(*rest))[1])
    answers = [s.tokens for s in model.sample(prompts, 30, temperature=0)]
    monkeypatch.setattr(type(model), "_decode", decode)
    return len(count), answers


def test_guessing_takes_fewer_passes(tiny, monkeypatch):
    prompts = sampling_prompts()[:6]
    tiny.ahead = 0
    slow, answers = passes(tiny, prompts, monkeypatch)
    assert slow == 29, "one token each"
    tiny.templates = answers
    assert passes(tiny, prompts, monkeypatch) == (slow, answers)
    tiny.ahead = 4
    tiny.templates = [p[-4:] + a for p, a in zip(prompts, answers, strict=True)]
    fast, same = passes(tiny, prompts, monkeypatch)
    assert same == answers and fast <= 15, "right guesses hold"


def test_guesses_fill_a_pass_and_no_more(tiny, monkeypatch):
    prompts, rows, decode = sampling_prompts(), [], type(tiny)._decode
    tiny.templates = [p[-4:] + s.tokens for p, s in zip(prompts, tiny.sample(prompts, 30, 0), strict=True)]
    monkeypatch.setattr(type(tiny), "_decode", lambda m, memory, step, width: (
        rows.append((len(set(step.rows.tolist())), len(step.rows), width)), decode(m, memory, step, width))[1])
    for count in (1, 5, 20):
        tiny.sample(prompts[:count], 30, 0)
    assert any(width == 1 + tiny.ahead for alive, _, width in rows if alive == 1)
    assert any(all_rows > alive for alive, all_rows, _ in rows if alive > 5)
    assert all(all_rows <= max(alive, module._CHEAP) and width <= 1 + tiny.ahead for alive, all_rows, width in rows)
    rows.clear()
    tiny.sample(prompts * 2, 30, 0, batch=60)
    assert {all_rows for _, all_rows, _ in rows} == {len(prompts) * 2}, "too many for any guess"


def test_products_meet_few_counts_of_rows(tiny, monkeypatch):
    "For every new count the processor's library keeps a kernel of half a megabyte."
    met, product = set(), module._Product.__call__
    monkeypatch.setattr(module._Product, "__call__", lambda self, x: (met.add(len(x)), product(self, x))[1])
    prompts = sampling_prompts() + loops()
    for count in range(1, len(prompts)):
        tiny.sample(prompts[:count], 20, 1.0, seed=count, stop=tuple(range(0, 256, 20)))
    assert met <= {1, 2, 4, *range(8, 49, 8), *range(64, 1300, 64)} and len(met) > 6


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9, 47, 48, 49, 64, 65, 700])
def test_padding_adds_zeros_below(count):
    for shape in ((count,), (count, 3), (count, 2, 4)):
        x = torch.randn(shape)
        padded = module._padded(x)
        assert torch.equal(padded[:count], x) and not padded[count:].any()
        assert len(padded) in {1, 2, 4, *range(8, 49, 8), *range(64, 1300, 64)} and len(padded) - count < 64


def test_models_of_the_same_weights_share_the_packed_output_matrix(load_any):
    first, second = load_any("llama"), load_any("llama")
    assert first._packed_head()[0] is second._packed_head()[0]
    assert first._packed_head()[0] is not load_any("qwen")._packed_head()[0]


def test_guesses_come_from_the_longest_end_that_is_known():
    guesser = module._Guesser([[1, 2, 3, 4, 50, 51], [3, 4, 60, 61]], count=4)
    assert guesser.guess(guesser.begin([9, 3, 4]), 9) == [60, 61], "the later of two, and no further than its end"
    assert guesser.guess(guesser.begin([2, 3, 4]), 9) == [50, 51], "three tokens are known"
    assert guesser.guess(guesser.begin([3, 4, 7, 8, 3, 4]), 9) == [7, 8, 3, 4], "its own past before any template"
    assert guesser.guess(guesser.begin([3, 4, 7, 8, 3, 4]), 1) == [7]
    assert guesser.guess(guesser.begin([3, 4]), 0) == []
    assert guesser.guess(guesser.begin([4]), 4) == guesser.guess(guesser.begin([]), 4) == [], "one token is too few"
    assert guesser.guess(guesser.begin([5, 4]), 4) == []
    assert module._Guesser([[3, 4, 5]], count=0).guess(([3, 4], {}), 4) == []


def test_a_sequence_that_grows_is_as_one_that_was_long():
    random = np.random.default_rng(1).integers(0, 4, size=60).tolist()
    guesser = module._Guesser([], 4)
    growing = guesser.begin(random[:5])
    for token in random[5:]:
        guesser.add(growing, [token])
    assert growing == guesser.begin(random)


@pytest.mark.parametrize("chosen, guess, stop, holding", [
    ([5], [], {0}, 1), ([5, 6], [5], {0}, 2), ([5, 6], [7], {0}, 1), ([5, 6, 7], [5, 6], {6}, 2), ([0, 6], [0], {0}, 1),
])
def test_guesses_hold_up_to_the_first_that_is_wrong_or_the_end(chosen, guess, stop, holding):
    assert module._holding(chosen, guess, stop) == holding


def test_the_fast_sampler_notices_every_change_of_the_adapter(tiny):
    def equal() -> list[list[int]]:
        fast, simple = both_ways(tiny, sampling_prompts(), 4)
        assert [sample.tokens for sample in fast] == [sample.tokens for sample in simple]
        return [sample.tokens for sample in fast]

    for layer in tiny.adapted.values():
        torch.nn.init.normal_(layer.lora_b, std=0.3)
    first = equal()
    with tiny.without_adapter():
        assert equal() != first
    assert equal() == first
    for layer in tiny.adapted.values():
        layer.lora_b.data.mul_(-1)
    assert equal() != first


def test_the_preallocated_cache_equals_the_growing_one():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = Cache(layers=[module._cache_layer(20)]), Cache(layers=[DynamicLayer()])
    rows = 4
    for step, length in enumerate([5, 1, 1, 3, 1, 1]):
        states = [torch.randn(rows, 2, length, 8, generator=generator) for _ in range(2)]
        for left, right in zip(ours.update(*states, 0), theirs.update(*states, 0), strict=True):
            assert torch.equal(left, right)
        assert ours.get_seq_length() == theirs.get_seq_length()
        if step in (1, 3):  # rows leave, also in another order, or are dealt out
            chosen = torch.tensor([2, 0, 3] if step == 1 else [1, 1, 0, 2, 2])
            rows = len(chosen)
            ours.batch_select_indices(chosen)
            theirs.batch_select_indices(chosen)
    address = ours.layers[0].keys.data_ptr()
    ours.update(*(torch.randn(rows, 2, 1, 8) for _ in range(2)), 0)
    assert ours.layers[0].keys.data_ptr() == address, "nothing is moved while the batch stays the same"


# ---------------------------------------------------------------- other families

SIZES = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=256, bos_token_id=None)
MIXED = dict(sliding_window=5, layer_types=["sliding_attention", "full_attention"])
FAMILIES = {  # what has the model's own numbers here; every window is shorter than the prompts
    "llama": {}, "llama bias": dict(attention_bias=True, mlp_bias=True), "llama gelu": dict(hidden_act="gelu"),
    "llama dynamic": dict(rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=4.0)),
    "llama yarn": dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e4, factor=4.0,
                                            original_max_position_embeddings=64)),
    "llama with a window that nobody reads": dict(sliding_window=5),
    "qwen2": {}, "qwen2 window": dict(use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen3": dict(head_dim=16), "mistral": dict(sliding_window=5), "phi3": dict(sliding_window=5),
    "phi3 longrope": dict(original_max_position_embeddings=64, rope_parameters=ROTATION), "gemma": dict(head_dim=16),
    "gemma2": dict(head_dim=16, query_pre_attn_scalar=16, attn_logit_softcapping=2.0, final_logit_softcapping=1.0,
                   **MIXED),
    "gemma3_text": dict(head_dim=16, query_pre_attn_scalar=16, **MIXED), "cohere": dict(logit_scale=0.25),
    "cohere2": dict(logit_scale=0.25, **MIXED), "olmo2": {}, "olmo3": MIXED, "stablelm": {}, "phi": {},
    "granite": dict(logits_scaling=8.0, embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.3),
    "smollm3": dict(use_sliding_window=True, **MIXED), "starcoder2": dict(sliding_window=5), "nemotron": {},
    "mixtral": dict(num_local_experts=4, sliding_window=5),
    "minicpm3": dict(num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8,
                     v_head_dim=16, dim_model_base=32),
}
REFUSED = {  # and what has not, with the word that says why
    "gpt2": (dict(n_embd=64, n_layer=2, n_head=4), "model.layers"), "gpt_neox": ({}, "model.layers"),
    "falcon": ({}, "model.layers"), "mpt": (dict(d_model=64, n_heads=4, n_layers=2), "model.layers"),
    "opt": (dict(ffn_dim=96, word_embed_proj_dim=64), "model.layers"), "lfm2": (
        dict(layer_types=["conv", "full_attention"]), "kind conv"),
    "gpt_oss": (dict(num_local_experts=4, head_dim=16, sliding_window=5), "s_aux"),
    "llama4_text": (dict(head_dim=16, num_local_experts=2, intermediate_size_mlp=96), "chunked_attention"),
    "llama both ways": (dict(is_causal=False), "nats"), "recurrent_gemma": ({}, "kind linear_attention"),
}


@pytest.fixture
def make_family(tiny_tokenizer, tmp_path):
    "A function that saves a random model of a family, with biases that are not zero, and returns its folder."

    def make(name, changes):
        words = dict(vocab_size=len(tiny_tokenizer), eos_token_id=tiny_tokenizer.eos_token_id,
                     pad_token_id=tiny_tokenizer.pad_token_id)
        config = AutoConfig.for_model(name.split()[0], **{**words, **SIZES, **changes})
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            network = AutoModelForCausalLM.from_config(config)
            for path, parameter in network.named_parameters():
                parameter.normal_(std=0.3) if path.endswith(("bias", "sinks")) else parameter.mul_(3)
        network.save_pretrained(tmp_path / "family")
        tiny_tokenizer.save_pretrained(tmp_path / "family")
        return tmp_path / "family"

    return make


def own_scores(network, examples):
    "Log-probabilities and entropies by the model's own code, one sequence after another."
    scores, entropies = [], []
    for e in examples:
        logits = network(torch.tensor([[*e.prompt, *e.completion]]), use_cache=False).logits[0, len(e.prompt) - 1:-1]
        log_p = logits.float().log_softmax(-1)
        scores.append(log_p.gather(1, torch.tensor(e.completion)[:, None]).squeeze(1))
        entropies.append(-(log_p.exp() * log_p).sum(-1))
    return torch.cat(scores), torch.cat(entropies)


def measured(model, examples):
    found = {i: score for rows, scores in model.measure_batches(examples)
             for i, score in zip(rows, scores, strict=True)}
    return [torch.cat([getattr(found[i], name) for i in range(len(examples))])
            for name in ("log_probabilities", "entropies")]


@pytest.mark.parametrize(("name", "exact"), [*((name, False) for name in FAMILIES), ("gemma2", True),
                                             ("granite", True)])
def test_a_family_has_its_own_numbers(make_family, name, exact):
    "Scores, entropies and their gradients in trees and side by side, and both samplers."
    folder = make_family(name, FAMILIES[name])
    model = LanguageModel.load(str(folder), 3, "cpu", "float32", exact=exact)
    prompts = [example.prompt for example in random_examples(5)] + [random_tokens(np.random.default_rng(5), 30)]
    with model.without_adapter():
        samples = model.sample(prompts, 6, seed=1)
    examples = [Example(p, s.tokens) for p, s in zip(prompts, samples, strict=True)]
    with torch.no_grad():
        own = own_scores(AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval(), examples)
    assert abs(torch.tensor([x for s in samples for x in s.log_probabilities]) - own[0]).max() < 2e-5
    for i, layer in enumerate(model.adapted.values()):
        layer.lora_b.data.normal_(std=0.2, generator=torch.Generator().manual_seed(i))
    fast, simple = both_ways(model, prompts, 6, 1.0)
    assert [s.tokens for s in fast] == [s.tokens for s in simple]
    ours, plain = measured(model, examples), torch.cat(model.plain_scores(examples))
    model.network.set_attn_implementation("eager")
    own = own_scores(model.network, examples)
    assert abs(torch.cat(model.log_probabilities(examples)) - own[0]).max() < 2e-5
    assert abs(plain - own[0]).max() < 2e-5
    assert abs(torch.cat(ours) - torch.cat(own)).max() < 2e-5
    assert_close_relative(gradient_of(model, ours), gradient_of(model, own), 1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_computed_is_refused(make_family, name):
    changes, word = REFUSED[name]
    folder = make_family(name, changes)
    for rank in (0, 4):
        with pytest.raises(WeightsError, match="use a model of the Llama or Qwen2 family") as caught:
            LanguageModel.load(str(folder), rank, "cpu", "float32")
        assert word in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [9, 1000])
def test_a_window_of_any_size_is_tried_with_few_tokens(make_family, monkeypatch, size):
    "Without masks of its own a model is refused, also where its window is longer than what is tried."
    folder = make_family("mistral", dict(sliding_window=size))
    assert LanguageModel.load(str(folder), device="cpu", dtype="float32").network.config.sliding_window == size
    module._loaded.clear()
    monkeypatch.setattr(module, "_windowed", lambda mask, positions, config: mask)
    with pytest.raises(WeightsError, match="nats from those"):
        LanguageModel.load(str(folder), device="cpu", dtype="float32")


def test_a_family_is_tried_in_fp32_and_left_as_it_is(make_family):
    folder = make_family("granite", FAMILIES["granite"])
    model = LanguageModel.load(str(folder), device="cpu", dtype="bfloat16")
    assert {p.dtype for p in model.network.parameters()} == {torch.bfloat16}
    gap, allowed = model._gap()
    assert gap < 1e-4 < allowed <= 1e-3


def test_who_is_known_is_not_tried(tiny_model_folder, monkeypatch):
    monkeypatch.setattr(LanguageModel, "_check_numbers", None)
    module._loaded.clear()
    LanguageModel.load(str(tiny_model_folder), device="cpu", dtype="float32")


def test_no_linear_layers_no_adapter(make_family, monkeypatch):
    model = LanguageModel.load(str(make_family("llama", {})), device="cpu", dtype="float32")
    monkeypatch.setattr(model.network.model, "layers", torch.nn.ModuleList([torch.nn.Identity()]))
    with pytest.raises(WeightsError, match="LlamaForCausalLM have no linear layers"):
        model.add_adapter(2)
