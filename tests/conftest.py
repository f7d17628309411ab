"Shared fixtures. No test needs anything outside the checkout but the packages of `pip install -e .[dev,webarena]`."

import gc
import json
import os

# before torch, transformers or tqdm are imported anywhere
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep: two processes share the cores well
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# a busy machine must not fail a test: no example has a deadline
settings.register_profile("patient", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def keep_what_is_there() -> None:
    "What has been imported stays: no later collection of garbage, two a stage, need walk through it."
    gc.collect()
    gc.freeze()


def pytest_collection_finish():
    "After the imports of the test files."
    keep_what_is_there()


class ScriptedModel:
    "A language model whose tokens are bytes and whose answers a rule writes. It keeps every call."

    end = 0

    def __init__(self, rule):
        self.rule, self.calls = rule, []

    @property
    def prompts(self):
        return [prompt for call in self.calls for prompt in call[0]]

    def encode(self, text):
        return list(text.encode())

    def decode(self, tokens):
        return bytes(token for token in tokens if token).decode()

    def sample(self, prompts, maximum_tokens, temperature=1.0, seed=0):
        from dreamgym.language_model import Sample

        self.calls.append(([self.decode(p) for p in prompts], temperature, seed))
        answers = [[*self.rule(self.decode(p)).encode(), self.end][:maximum_tokens] for p in prompts]
        return [Sample(answer, [-0.1] * len(answer)) for answer in answers]


def pytest_collection_modifyitems(items):
    "Fast tests first, then those with a browser, then the slow ones; otherwise the order of the files."
    items.sort(key=lambda item: 2 * bool(item.get_closest_marker("slow")) + bool(item.get_closest_marker("browser")))


@pytest.fixture(autouse=True, scope="module")
def imports_of_other_files():
    "What the files before have imported while they ran."
    keep_what_is_there()


@pytest.fixture(autouse=True)
def no_run_variables(monkeypatch):
    "A reader's own settings must not change what the tests see."
    for name in ("DREAMGYM_SCALE", "DREAMGYM_RUNS", "DREAMGYM_SUITE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    "A working folder of the test's own, and plain output."
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DREAMGYM_DEBUG", raising=False)
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def run_folder(tmp_path):
    "A place for a run directory that does not exist yet; the working folder is left alone."
    return tmp_path / "run"


@pytest.fixture
def quick_run(run_folder):
    "A fresh run directory at scale quick."
    from dreamgym.runs import Run

    return Run.open(run_folder, scale="quick", seed=0)


@pytest.fixture
def open_suite(run_folder, monkeypatch):
    "A function `open_suite(suite, **sizes)`: a fresh run directory at scale quick whose world is a suite of the test's own."
    from dreamgym import runs

    def make(suite, **sizes):
        monkeypatch.setitem(runs._SUITES, suite.name, suite)
        return runs.Run.open(run_folder, runs.Scale.named("quick", **sizes), 0, suite.name)

    return make


@pytest.fixture(scope="session")
def tiny_tokenizer():
    "A byte-level tokenizer with SmolLM2's chat format: 256 bytes and three special tokens; it loses nothing."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"], padding_side="left", clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_llama(tokenizer, seed: int = 0, **changes):
    "A random two-layer Llama of about 90,000 weights; the same seed gives the same weights."
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True)
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id,
                         pad_token_id=tokenizer.pad_token_id, bos_token_id=None, **{**sizes, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def make_tiny_model(tiny_tokenizer):
    "A function `make(seed=0, **sizes)` that makes tiny models."
    return lambda seed=0, **changes: tiny_llama(tiny_tokenizer, seed, **changes)


@pytest.fixture
def tiny_model(tiny_tokenizer):
    "A fresh tiny model with seed 0."
    return tiny_llama(tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_model_folder(tiny_tokenizer, tmp_path_factory):
    "The tiny model and its tokenizer, saved as a plain model directory. Do not write into it."
    folder = tmp_path_factory.mktemp("tiny-model")
    tiny_llama(tiny_tokenizer).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    keep_what_is_there()  # the library has imported the model's own files
    return folder


def write_chapter(path, *sources: str):
    "A notebook with the usual parameters and a few cells."
    parameters = 'scale: str = "quick"  # size\nseed: int = 0  # seed\nrun: str = ""  # run directory'
    cells = [{"cell_type": "code", "id": f"c{i}", "metadata": {"tags": ["parameters"]} if not i else {}, "source": s,
              "outputs": [], "execution_count": None} for i, s in enumerate((parameters, *sources))]
    kernel = {"display_name": "python3", "language": "python", "name": "python3"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(notebook))
    return path


@pytest.fixture
def book(tmp_path):
    "Two tiny chapters: the first counts its executions, the second waits or fails as files in the run directory say."
    folder = tmp_path / "book"
    folder.mkdir()
    write_chapter(folder / "01_first.ipynb", "from pathlib import Path",
                  "with (Path(run) / 'count').open('a') as file:\n    file.write('x')")
    write_chapter(folder / "02_second.ipynb", "import os\nimport time\nfrom pathlib import Path",
                  "(Path(run) / 'pid').write_text(str(os.getpid()))",
                  "while (Path(run) / 'wait').exists():\n    time.sleep(0.1)",
                  "assert not (Path(run) / 'fail').exists(), 'the moon is\\nmissing'")
    return folder
