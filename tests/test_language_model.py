"The language model, read and used in its plain way; what holds both ways is tried both ways (`fast`)."

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from model_examples import VOCABULARY, as_if_trained, assert_close_relative, random_examples, tree_scores
from safetensors.torch import load_file, save_file

import dreamgym.language_model as module
from dreamgym.experience_model import DreamBatch, ExperienceModel
from dreamgym.fast_model import LanguageModel
from dreamgym.pages import sample_trajectories
from dreamgym.language_model import (
    Embedder,
    Example,
    LowRankLinear,
    Sample,
    Sampler,
    choose_placement,
    choose_tokens,
    make_optimizer,
)
from dreamgym.rollouts import Agent, agent_prompt, collect_rollouts
from dreamgym.trajectories import DreamgymError, Task
from dreamgym.weights import WeightsError, fetch_model


@pytest.fixture(params=[False, True], ids=["plain", "fast"])
def fast(request):
    "For a test that takes this, the models of `load_tiny` go both ways; else the plain one."
    return request.param


@pytest.fixture
def load_tiny(tiny_model_folder, request):
    "A function that loads the tiny model; its adapter is filled with numbers, as if it had been trained."

    def load(rank=4, dtype="float32", seed=0):
        model = LanguageModel.load(str(tiny_model_folder), rank, "cpu", dtype, seed)
        model.fast = "fast" in request.fixturenames and request.getfixturevalue("fast")
        return as_if_trained(model, seed)

    return load


@pytest.fixture
def tiny(load_tiny):
    return load_tiny()


# ---------------------------------------------------------------- loading


def test_a_hub_name_that_cannot_be_reached():
    with pytest.raises(WeightsError, match="The model nobody/nothing cannot be loaded") as caught:
        LanguageModel.load("nobody/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["weights cut", "weights are text", "config cut", "no tokenizer", "a tensor less"])
def test_a_damaged_model_folder(tmp_path, tiny_model_folder, damage):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
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


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux")
def test_the_file_of_weights_does_not_stay_in_memory(tiny_model_folder, tmp_path):
    folder = tmp_path / "mapped"
    shutil.copytree(tiny_model_folder, folder)
    model = LanguageModel.load(str(folder), 2, device="cpu", dtype="float32")
    assert str(folder) not in Path("/proc/self/maps").read_text() and model.parameters()


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


# ---------------------------------------------------------------- the adapter


@pytest.mark.parametrize("bias", [False, True])
def test_a_low_rank_layer_equals_plain_autograd(fast, bias):
    generator = torch.Generator().manual_seed(1)
    layer = torch.nn.Linear(12, 10, bias=bias).requires_grad_(False)
    adapted = LowRankLinear(layer, rank=3, scale=1.7)
    adapted.lora_b.data.normal_(generator=generator)
    x = torch.randn(2, 5, 12, generator=generator, requires_grad=True)
    inputs = (x, adapted.lora_a, adapted.lora_b)
    plain = layer(x) + 1.7 * (x @ adapted.lora_a.T @ adapted.lora_b.T)
    ours = adapted(x) if fast else adapted._orig_forward(x)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    left, right = (torch.autograd.grad(output.sin().sum(), inputs) for output in (ours, plain))
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert not layer.weight.requires_grad and layer.weight.grad is None


def test_a_low_rank_layer_in_bf16_keeps_fp32_gradients(fast):
    generator = torch.Generator().manual_seed(1)
    layer = torch.nn.Linear(64, 48, bias=False).to(torch.bfloat16).requires_grad_(False)
    adapted = LowRankLinear(layer, rank=4)
    adapted.lora_b.data.normal_(generator=generator)
    x = torch.randn(7, 64, generator=generator).bfloat16()  # no gradient wanted for the first layer's input
    output = adapted(x) if fast else adapted._orig_forward(x)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    exact = torch.autograd.grad((x.float() @ adapted.lora_a.T @ (adapted.lora_b * 2).T).sum(),
                                (adapted.lora_a, adapted.lora_b))
    for parameter, reference in zip((adapted.lora_a, adapted.lora_b), exact, strict=True):
        assert parameter.grad.dtype == torch.float32
        assert_close_relative(parameter.grad, reference, 0.02)


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
    from dreamgym.runs import load_suite

    monkeypatch.setenv("DREAMGYM_DEVICE", "cpu")
    monkeypatch.setenv("DREAMGYM_DTYPE", "float32")
    theirs, tokens = save_peft(r=3, **options).eval(), torch.tensor([[5, 4, 3, 2, 1]])
    assert check_adapter(tmp_path) == (3, pytest.approx(8 / 3**0.5 if options else 8 / 3))
    agent = _load_agent(tmp_path, SimpleNamespace(model=str(tiny_model_folder), history_length=0), load_suite("miniwob"))
    torch.testing.assert_close(agent.model.network(tokens).logits, theirs(tokens).logits, atol=1e-5, rtol=1e-4)


def test_the_command_line_refuses_an_option_by_name(save_peft, tmp_path):
    from dreamgym.command_line import check_adapter

    save_peft(use_dora=True)
    with pytest.raises(WeightsError, match="was made with use_dora=True, which is not computed here"):
        check_adapter(tmp_path)


def test_a_failed_save_keeps_the_old_adapter(tiny, load_tiny, tmp_path, monkeypatch):
    tiny.save_adapter(tmp_path)

    def full(tensors, path):
        Path(path).write_bytes(b"half")
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


def test_between_sampling_and_learning_there_is_no_text(fast, tiny):
    "Token ids are carried through: nothing on the way from the sampler to the update needs a tokenizer."
    tiny.tokenizer = None
    prompts = [[1, 2, 3], [4, 5]]
    samples = tiny.sample(prompts, 6, seed=1)
    examples = [Example(p, s.tokens) for p, s in zip(prompts, samples, strict=True)]
    assert [len(score) for score in tiny.log_probabilities(examples)] == [len(s.tokens) for s in samples]
    assert np.isfinite(tiny.train_supervised(examples)).all()


# ---------------------------------------------------------------- scores


def test_the_plain_way_equals_the_library(tiny):
    "The reference itself, against transformers' own loss with labels."
    examples = random_examples(4)
    for example, score in zip(examples, tiny.plain_scores(examples), strict=True):
        tokens = torch.tensor([[*example.prompt, *example.completion]])
        labels = torch.tensor([[-100] * len(example.prompt) + example.completion])
        loss = tiny.network(tokens, labels=labels).loss
        assert float(-score.detach().mean()) == pytest.approx(float(loss.detach()), abs=1e-5)


def test_empty_examples_are_refused(fast, tiny):
    for bad in (Example([], [1]), Example([1], [])):
        for score in (tiny.plain_scores, tiny.log_probabilities, tiny.train_supervised):
            with pytest.raises(DreamgymError, match="Example 1 has an empty prompt or completion"):
                score([Example([1], [2]), bad])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropies_and_values_are_those_of_the_logits(fast, tiny, temperature):
    examples, head = random_examples(6), torch.nn.Linear(64, 1)
    found = {i: score for rows, scores in tiny.measure_batches(examples, temperature, head=lambda h: head(h)[:, 0])
             for i, score in zip(rows, scores, strict=True)}
    assert sorted(found) == list(range(len(examples)))
    for i, e in enumerate(examples):
        output = tiny.network(torch.tensor([[*e.prompt, *e.completion]]), output_hidden_states=True)
        places = slice(len(e.prompt) - 1, -1)
        chances = torch.distributions.Categorical(logits=output.logits[0, places] / temperature)
        right = (chances.log_prob(torch.tensor(e.completion)), chances.entropy(),
                 head(output.hidden_states[-1][0, places])[:, 0])
        for ours, theirs in zip(found[i], right, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens_per_batch", [1, 60, 10**6])
def test_memory_bounds_the_rectangle(tiny, tokens_per_batch):
    examples, seen = random_examples(7), []
    for rows, scores in tiny.score_batches(examples, tokens_per_batch=tokens_per_batch):
        assert [len(score) for score in scores] == [len(examples[i].completion) for i in rows]
        assert len(rows) == 1 or len(rows) * max(len(examples[i].prompt + examples[i].completion)
                                                 for i in rows) <= tokens_per_batch
        seen += rows
    assert seen == list(range(len(examples))) and list(tiny.score_batches([])) == []


# ---------------------------------------------------------------- only the completion carries loss


def loss_gradient(model, examples, rows):
    "Gradient of the summed scores of some rows, computed in one tree or rectangle with all of them."
    scores = tree_scores(model, examples, tokens_per_tree=10**6, tokens_per_batch=10**6)
    loss = torch.cat([scores[i] for i in rows]).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())])


def test_neighbours_in_a_batch_change_nothing(fast, tiny):
    "One example's gradient, alone and with others that share its prompt, continue it or have nothing to do with it."
    mine = Example([1, 2, 3, 4], [5, 6])
    neighbours = [Example([1, 2, 3, 4], [7, 8, 9]), Example([1, 2, 3, 4, 5, 6, 20, 21], [22]), Example([30], [31])]
    alone = loss_gradient(tiny, [mine], [0])
    assert_close_relative(loss_gradient(tiny, [mine, *neighbours], [0]), alone, 1e-5)
    changed = [n._replace(completion=[t + 100 for t in n.completion]) for n in neighbours]
    assert_close_relative(loss_gradient(tiny, [*changed, mine], [3]), alone, 1e-5)


def test_what_comes_after_an_action_does_not_matter(fast, tiny):
    "The environment's answer stands in the prompt of the next turn: it gives no gradient to the turn before."
    def two_turns(answer):
        first = Example([1, 2, 3], [4, 5])
        return [first, Example([*first.prompt, *first.completion, *answer], [6])]

    calm, wild = (loss_gradient(tiny, two_turns(answer), [0]) for answer in ([10, 11], [200, 201]))
    assert_close_relative(calm, wild, 1e-6)
    second = [loss_gradient(tiny, two_turns(answer), [1]) for answer in ([10, 11], [200, 201])]
    assert abs(second[0] - second[1]).max() > 1e-3  # while the turn that reads it does change


def test_prompt_tokens_carry_no_loss(fast, tiny):
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


def test_a_token_of_weight_zero_does_not_matter(fast, load_tiny):
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


# ---------------------------------------------------------------- sampling


def sampled_and_learned(model, prompts, maximum_tokens, temperature=1.0):
    samples = model.sample(prompts, maximum_tokens, temperature, seed=3)
    examples = [Example(p, s.tokens) for p, s in zip(prompts, samples, strict=True)]
    sampled = torch.tensor([x for s in samples for x in s.log_probabilities])
    return sampled, torch.cat(model.log_probabilities(examples, temperature)), examples


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampling_and_learning_agree_in_fp32(fast, tiny, temperature):
    prompts = [e.prompt for e in random_examples(5) for _ in range(3)]
    sampled, learned, _ = sampled_and_learned(tiny, prompts, 12, temperature)
    assert len(sampled) > 100 and abs(sampled - learned).max() < 1e-5


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


def test_greedy_equals_generate(fast, tiny):
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
def test_a_row_does_not_depend_on_its_batch(fast, tiny, batch):
    prompts = [e.prompt for e in random_examples(8) for _ in range(2)]
    together, apart = tiny.sample(prompts, 8, seed=4), tiny.sample(prompts, 8, seed=4, batch=batch)
    assert [s.tokens for s in together] == [s.tokens for s in apart]
    for left, right in zip(together, apart, strict=True):
        assert left.log_probabilities == pytest.approx(right.log_probabilities, abs=1e-5)


def test_a_row_depends_on_its_own_place_and_prompt_only(fast, tiny):
    prompts = [e.prompt for e in random_examples(8)]
    whole = tiny.sample(prompts, 8, seed=4)
    assert [s.tokens for s in tiny.sample(prompts[:3], 8, seed=4)] == [s.tokens for s in whole[:3]]
    others = [prompt if i == 2 else [7, *prompt, 9] for i, prompt in enumerate(prompts)]
    assert tiny.sample(others, 8, seed=4)[2].tokens == whole[2].tokens


def test_a_seed_for_every_prompt_makes_each_completion_its_own(fast, tiny):
    prompts, seeds = [[1, 2, 3], [4, 5], [1, 2, 3]], [3, 8, 11]
    together = tiny.sample(prompts, 9, 1.0, seeds)
    alone = [tiny.sample([prompt], 9, 1.0, [seed])[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    assert [s.tokens for s in together] == [s.tokens for s in alone]
    assert together[0].tokens != together[2].tokens


def test_seeds(fast, tiny):
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


def test_sequences_that_end_leave_without_a_trace(fast, tiny):
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


def test_lengths_and_edges_of_sampling(fast, tiny):
    assert tiny.sample([], 5) == []
    samples = tiny.sample([[1]] * 6, 3, seed=0)
    assert all(1 <= len(s.tokens) <= 3 and len(s.tokens) == len(s.log_probabilities) for s in samples)
    assert all(tiny.end not in s.tokens[:-1] for s in samples)
    with pytest.raises(DreamgymError, match="A prompt is empty"):
        tiny.sample([[1], []], 3)


# ---------------------------------------------------------------- others that can act and imagine


class Scripted:
    "The least that can act and imagine: its tokens are bytes, and a rule writes its answers."

    end = 0

    def __init__(self, rule):
        self.rule = rule

    def encode(self, text):
        return list(text.encode())

    def decode(self, tokens):
        return bytes(token for token in tokens if token).decode()

    def sample(self, prompts, maximum_tokens, temperature=1.0, seed=0):
        answers = [[*self.rule(self.decode(prompt)).encode(), self.end][:maximum_tokens] for prompt in prompts]
        return [Sample(answer, [-0.1] * len(answer)) for answer in answers]


def test_what_a_sampler_is(tiny):
    scripted = Scripted(str.upper)
    assert isinstance(scripted, Sampler) and isinstance(tiny, Sampler) and not isinstance(tiny.tokenizer, Sampler)
    (sample,) = scripted.sample([scripted.encode("a page")], 24)
    assert scripted.decode(sample.tokens) == "A PAGE" and sample.tokens[-1] == scripted.end


def test_a_sampler_acts_and_imagines():
    "A whole imagined episode, with no language model at all."
    page = "[1] button 'Door'"
    task = Task(id="door/0", kind="door", seed=0, goal="Get in.", start_state=page)
    agent = Agent(Scripted(lambda prompt: " click 1"))
    dream = DreamBatch(ExperienceModel(Scripted(lambda prompt: " It clicks button Door.\n=> success")), 4)
    (rollout,) = collect_rollouts(agent, dream, [task], temperature=0)
    (step,) = rollout.trajectory.transitions
    assert (step.state, step.action, rollout.reward) == (page, "click 1", 1.0)
    assert agent.model.decode(rollout.turns[0].action) == " click 1"


# ---------------------------------------------------------------- longer than the context


@pytest.mark.parametrize("way", ["sample", "log_probabilities", "plain_scores", "train_supervised", "score_batches",
                                 "act"])
def test_a_page_longer_than_the_context_is_refused_before_anything_is_computed(fast, tiny, monkeypatch, way):
    tiny.network.config.max_position_embeddings = 40
    monkeypatch.setattr(LanguageModel, "_tree_states", None)
    monkeypatch.setattr(LanguageModel, "_through_blocks", None)
    monkeypatch.setattr(tiny.network, "forward", None)
    monkeypatch.setattr(tiny.network.model, "forward", None)
    examples, short = [Example([1], [2]), Example([3] * 31, [4] * 10)], [[1], [3] * 31]
    calls = {"sample": lambda: tiny.sample(short, 10), "score_batches": lambda: list(tiny.score_batches(examples)),
             "act": lambda: Agent(tiny, maximum_tokens=10).act(short)}
    call = calls.get(way) or (lambda: getattr(tiny, way)(examples))
    with pytest.raises(DreamgymError, match="31 tokens and 10 more to write, but this model's context is 40 tokens"):
        call()


def test_what_fills_the_context_is_computed(fast, tiny):
    tiny.network.config.max_position_embeddings = 40
    assert tiny.context == 40 and len(tiny.sample([[3] * 31], 9, temperature=0)[0].tokens) <= 9
    assert len(tiny.log_probabilities([Example([3] * 31, [4] * 9)])[0]) == 9

ROTATION = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 8, long_factor=[4.0] * 8, factor=8.0,
                original_max_position_embeddings=64)


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


def test_the_loss_is_the_weighted_mean(fast, tiny):
    examples = [Example([1, 2], [3, 4], [1.0, 3.0]), Example([5], [6, 7, 8])]
    scores = tiny.log_probabilities(examples)
    weights = [torch.tensor([1.0, 3.0]), torch.ones(3)]
    expected = -sum(float((s * w).sum()) for s, w in zip(scores, weights, strict=True)) / 7
    assert tiny.train_supervised(examples)[0] == pytest.approx(expected, abs=1e-5)


def test_training_equals_a_plain_loop(fast, load_tiny):
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


def test_the_cut_into_batches_does_not_matter(fast, load_tiny):
    examples, adapters = random_examples(14), []
    for tokens_per_batch in (30, 10**6):
        model = load_tiny()
        losses = model.train_supervised(examples, 2, 1e-3, tokens_per_step=10**6, tokens_per_batch=tokens_per_batch)
        adapters.append((losses, torch.cat([p.detach().flatten() for p in model.parameters()])))
    assert adapters[0][0] == pytest.approx(adapters[1][0], abs=1e-5)
    assert_close_relative(adapters[0][1], adapters[1][1], 1e-3)


def test_same_seed_same_training(fast, load_tiny):
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


def test_training_that_explodes_stops_before_the_step(fast, tiny):
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
