"The `dreamgym` command: one sentence for every mistake, and what each command does."

import csv
import json
import os
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

import dreamgym.command_line as command_line
import dreamgym.notebook_runner as notebook_runner
from dreamgym.command_line import check_adapter, play_dream, run_command
from dreamgym.machine import Check
from dreamgym.pages import PageGrammar
from dreamgym.runs import Run, Scale
from dreamgym.trajectories import DreamgymError, Task, atomic_write_json

pytestmark = pytest.mark.usefixtures("elsewhere")
LOG = Console(force_terminal=False, force_jupyter=False)


def sentence(capsys) -> str:
    "What stands on the error stream: exactly one line, no traceback."
    text = capsys.readouterr().err
    assert text.count("\n") == 1 and text.startswith("dreamgym: ") and "Traceback" not in text, text
    return text


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize("arguments, code, part", [
    (["reproduce", "--scal", "quick"], 2, "No such option: --scal"),
    (["nonsense"], 2, "No such command 'nonsense'"),
    (["--nonsense"], 2, "No such option"),
    (["reproduce", "--seed", "one"], 2, "--seed"),
    (["reproduce", "--seed", "-1"], 2, "--seed"),
    (["reproduce", "--scale", "huge"], 1, "choose one of quick, cpu, gpu, paper"),
    (["reproduce", "--chapters", "77"], 1, "No chapter is named '77'"),
    (["evaluate"], 2, "--adapter"),
    (["evaluate", "--adapter", "x", "--size", "0"], 2, "--size"),
    (["evaluate", "--adapter", "x", "--kinds", "click-moon"], 1, "click-moon"),
    (["evaluate", "--adapter", "x", "--panel", "exam"], 1, "No panel named 'exam'"),
    (["evaluate", "--adapter", "x"], 1, "x holds no adapter"),
    (["experiment", "--seeds", "1-"], 1, "no range of seeds"),
    (["experiment", "--scale", "huge"], 1, "choose one of quick, cpu, gpu, paper"),
    (["experiment", "--variants", "dreams"], 1, "no variant 'dreams'"),
    (["experiment", "--variants", "dream+minibatches=x"], 1, "sets no size"),
    (["experiment", "--set", "lora_rank=2.5"], 1, "sets no size"),
    (["experiment", "--panel", "train"], 1, "choose test or development"),
    (["report", "--run", "nowhere"], 1, "nowhere is no run directory"),
    (["dream", "--run", "nowhere"], 1, "nowhere is no run directory"),
    (["dream"], 1, "is no run directory"),
])
def test_a_mistake_ends_with_one_sentence(arguments, code, part, capsys):
    assert run_command(arguments) == code
    assert part in sentence(capsys)
    assert not Path("runs").exists(), "a mistake leaves nothing behind"


def test_help_and_version(capsys):
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out.startswith("dreamgym 0.")
    assert run_command([]) == 0
    assert "reproduce" in capsys.readouterr().out
    assert run_command(["evaluate", "--help"]) == 0


def test_a_traceback_only_when_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("DREAMGYM_DEBUG", "1")
    assert run_command(["reproduce", "--scale", "huge"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_wrong_debug_variable_does_not_hide_the_error(monkeypatch, capsys):
    for word, lines in (("0", 1), ("off", 1), ("maybe", 1), ("true", 2)):
        monkeypatch.setenv("DREAMGYM_DEBUG", word)
        assert run_command(["reproduce", "--scale", "huge"]) == 1
        error = capsys.readouterr().err
        assert "choose one of quick, cpu, gpu, paper" in error and ("Traceback" in error) is (lines == 2)
        assert ("DREAMGYM_DEBUG is 'maybe'" in error) is (word == "maybe") and (error.count("\n") == 1) is (lines == 1)


@pytest.mark.parametrize("error, code, part", [
    (KeyboardInterrupt(), 130, "goes on"), (OSError(28, "No space left on device"), 1, "disk is full"),
    (ValueError("first\nsecond"), 1, "Unexpected ValueError: first;"), (DreamgymError("Mend\nit."), 1, "Mend it."),
])
def test_every_error_becomes_a_sentence(error, code, part, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(command_line, "app", fail)
    assert run_command([]) == code
    assert part in sentence(capsys)


def test_any_line_separator_in_an_error_gives_one_line(monkeypatch, capsys):
    def fail(*_, **__):
        raise ValueError("one\u2028two\x85three\nfour")

    monkeypatch.setattr(command_line, "app", fail)
    assert run_command([]) == 1
    assert "ValueError: one two three; set" in sentence(capsys)


def test_a_damaged_run_directory(tmp_path, capsys):
    run = tmp_path / "run"
    Run.open(run, "quick", 0)
    assert run_command(["reproduce", "--run", str(run), "--seed", "1"]) == 1
    assert "made with suite 'miniwob', scale 'quick' and seed 0" in sentence(capsys)
    (run / "config.json").write_text('{"scale"')
    assert run_command(["report", "--run", str(run)]) == 1
    assert "config.json in run is damaged" in sentence(capsys)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    assert run_command(["reproduce", "--run", str(tmp_path / "full")]) == 1
    assert "no run directory" in sentence(capsys)


def test_a_damaged_file_of_trajectories(tmp_path, capsys):
    run = Run.open(tmp_path / "run", "quick", 0)
    (run.path / "iterations" / "0001").mkdir(parents=True)
    (run.path / "iterations" / "0001" / "rollouts.jsonl").write_text('{"task": {}}\n')
    assert run_command(["report", "--run", str(run.path)]) == 1
    assert "line 1" in sentence(capsys)


def test_a_damaged_adapter(tmp_path, capsys):
    import numpy as np
    from safetensors.numpy import save_file

    folder = tmp_path / "adapter"
    folder.mkdir()
    with pytest.raises(DreamgymError, match="holds no adapter"):
        check_adapter(folder)
    atomic_write_json(folder / "adapter_config.json", {"r": 4, "lora_alpha": 8})
    save_file({"x.lora_A.weight": np.zeros((4, 8), np.float32)}, folder / "adapter_model.safetensors")
    assert check_adapter(folder) == (4, 2.0)
    whole = (folder / "adapter_model.safetensors").read_bytes()
    for damage in (whole[:-9], whole[:20], b"", b"<html>not found</html>"):
        (folder / "adapter_model.safetensors").write_bytes(damage)
        assert run_command(["evaluate", "--adapter", str(folder)]) == 1
        assert "is damaged" in sentence(capsys)
    (folder / "adapter_model.safetensors").write_bytes(whole)
    (folder / "adapter_config.json").write_text("[]")
    assert run_command(["evaluate", "--adapter", str(folder)]) == 1
    assert "is damaged" in sentence(capsys)


def test_prepare_says_in_one_sentence_what_it_cannot_do(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("DREAMGYM_BROWSER", raising=False)
    assert run_command(["prepare"]) == 1
    assert "apt-get install -y chromium" in sentence(capsys)


# ---------------------------------------------------------------- reproduce


@pytest.fixture
def in_book(book, monkeypatch):
    "The command line reads the tiny book, and prepares nothing."
    monkeypatch.setattr(notebook_runner, "notebooks_folder", lambda: book)
    monkeypatch.setattr(command_line, "_prepare_machine", lambda: None)
    return book


def test_reproduce_stops_when_the_machine_cannot_be_prepared(book, monkeypatch, capfd):
    monkeypatch.setattr(notebook_runner, "notebooks_folder", lambda: book)
    monkeypatch.setattr(command_line, "is_ready", lambda: False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("DREAMGYM_BROWSER", raising=False)
    assert run_command(["reproduce", "--run", "here", "--chapters", "all"]) == 1
    output = capfd.readouterr()
    assert output.err.count("\n") == 1 and "apt-get install -y chromium" in output.err
    assert not Path("here/notebooks").exists(), "no chapter was started"


def test_reproduce_runs_skips_and_selects(in_book, capsys):
    assert run_command(["reproduce", "--run", "run", "--chapters", "01"]) == 0
    output = capsys.readouterr().out
    assert "[ 1/1] 01_first" in output and "report.html" in output and Path("run/report.html").exists()
    assert run_command(["reproduce", "--run", "run", "--chapters", "01"]) == 0
    assert "01_first" not in capsys.readouterr().out
    assert Path("run/count").read_text() == "x"


def test_reproduce_says_which_chapter_failed(in_book, capsys):
    Run.open("run")
    Path("run/fail").touch()
    assert run_command(["reproduce", "--run", "run", "--chapters", "02"]) == 1
    assert "Chapter 02_second failed" in sentence(capsys)


# ---------------------------------------------------------------- experiment


PLAIN = ("warm_start", "imitation", "dream", "sim_to_real")


def played(run, success):
    "What the stages would leave: one evaluated agent."
    rate = {"mean": success, "low": 0.0, "high": 1.0, "successes": 0, "episodes": 10}
    panel = {"overall": rate, "by_kind": {"click-button": rate}}
    row = {"agent": "warm_start", "panel_hash": "0" * 64, "own": panel, "held_out": panel}
    run.build("evaluation/warm_start.json", lambda path: path.write_text(json.dumps(row)))


def test_an_experiment_gathers_its_seeds_in_one_table(monkeypatch, tmp_path, capsys):
    from dreamgym import experiments

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "_prepare_machine", lambda: None)
    asked = []
    monkeypatch.setattr(experiments, "run_variants", lambda run, variants, panel: asked.append((tuple(variants), panel))
                        or played(run, 0.25 + 0.5 * run.seed))
    named = ("--variants", "dream, dream+minibatches=12")
    for seed, more in (("1", ()), ("0", named), ("1", ("--baseline",))):
        assert run_command(["experiment", "--seeds", seed, "--output", "tables", *more]) == 0
    rows = list(csv.DictReader(Path("tables/agents.csv").read_text().splitlines()))
    assert [(row["seed"], float(row["success"])) for row in rows] == [("0", 0.25), ("1", 0.75)]
    assert asked == [(PLAIN, "test"), (("dream", "dream+minibatches=12"), "test"), ((*PLAIN[:-1], "real", PLAIN[-1]), "test")]
    output = capsys.readouterr().out
    assert "evaluation/warm_start.json" in output and "50%" in output, "finished stages, and the mean over seeds"


def test_a_failing_seed_ends_an_experiment(monkeypatch, tmp_path):
    asked = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "_prepare_machine", lambda: None)
    monkeypatch.setattr(command_line.subprocess, "run",
                        lambda words: asked.append(words[-1]) or SimpleNamespace(returncode=int(words[-1] == "1")))
    assert run_command(["experiment", "--seeds", "0-3"]) == 1
    assert asked == ["0", "1"]


def wait_for(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def test_only_new_notes_and_stages_are_followed(tmp_path, monkeypatch):
    run, screen, looks, look = Run.open(tmp_path / "run"), StringIO(), [], command_line.progress_note
    run.progress("yesterday", 1, 1)
    run.build("before.txt", Path.touch)
    console, shown = Console(file=screen, force_terminal=True, force_jupyter=False), []
    status = SimpleNamespace(update=lambda text: shown.append(str(text)))
    monkeypatch.setattr(console, "status", lambda text: command_line.contextlib.nullcontext(status))
    monkeypatch.setattr(command_line, "progress_note", lambda run: looks.append(run) or look(run))
    with command_line._following(run, console, pause=0.02):
        wait_for(lambda: len(looks) > 2)  # one look before it follows; after the second, the first round is over
        run.progress("today", 1, 1)
        run.build("within.txt", Path.touch)
        wait_for(lambda: shown and "within.txt" in screen.getvalue())
    assert set(shown) == {"today 1/1"} and "within.txt" in screen.getvalue() and "before.txt" not in screen.getvalue()


def test_a_table_of_seeds_may_come_from_an_editor(tmp_path, capsys):
    path = tmp_path / "table.csv"
    path.write_bytes("\ufeffscale,seed,agent,success,note\r\nquick,0,dream,0.5,a\u2028b\r\n,,,,\r\n".encode())
    command_line._seed_table(path, "quick", Console(force_jupyter=False))
    assert "50%" in capsys.readouterr().out
    path.write_text("scale,seed,agent,success\nquick,0,dream\n")
    with pytest.raises(DreamgymError, match="table.csv cannot be read .line 2 has no proper success"):
        command_line._seed_table(path, "quick", LOG)


# ---------------------------------------------------------------- doctor, dream, test


def test_doctor_says_what_is_missing(monkeypatch, capsys):
    checks = [Check("memory", True, "8 GB"), Check("model smollm2", False, "not fetched yet", "dreamgym prepare")]
    monkeypatch.setattr(command_line, "all_checks", lambda: checks)
    assert run_command(["doctor"]) == 1
    output = capsys.readouterr()
    assert "MISSING" in output.out and "dreamgym prepare" in output.out and output.err == ""
    monkeypatch.setattr(command_line, "all_checks", lambda: checks[:1])
    assert run_command(["doctor"]) == 0
    assert "MISSING" not in capsys.readouterr().out


class Echo:
    "A dream in which typing fills the field and the button ends the episode; its words are hostile."

    batch = SimpleNamespace(grammar=PageGrammar())

    def reset(self, *, options):
        return options["task"].start_state, {}

    def step(self, action):
        if action.startswith("type"):
            return f"[1] input '{action[7:]}'\n[2] button 'OK'", 0.0, False, False, {"reasoning": "[red]x[/red]\x1b[2J"}
        return "(end)", 1.0, True, False, {"reasoning": "done"}


TASK = Task(id="enter-text/1", kind="enter-text", goal="Enter [bold]Ada[/bold] [/oops].",
            start_state="[1] input ''\n[2] button 'OK'")


def play(*lines: str):
    screen, answers = StringIO(), iter(lines)

    def ask(prompt):
        try:
            return next(answers)
        except StopIteration:
            raise EOFError from None

    console = Console(file=screen, width=90, force_terminal=False, force_jupyter=False)
    return play_dream(Echo(), TASK, console, ask), screen.getvalue()


def test_a_person_in_the_dream():
    reward, screen = play("click 9", "dance", "type 1 [blink]Ada", "click 2")
    assert reward == 1.0 and "no element [9]" in screen and "Not an action: 'dance'" in screen
    for hostile in ("[bold]Ada[/bold] [/oops]", "[red]x[/red]", "[blink]Ada"):
        assert hostile in screen, "foreign text is shown as it is"
    assert "\x1b" not in screen
    assert play("quit")[0] is None and play()[0] is None


def test_dream_needs_a_trained_model_and_a_known_task_type(tmp_path, capsys):
    run = Run.open(tmp_path / "run")
    assert run_command(["dream", "--run", str(run.path)]) == 1
    assert "has no experience_model yet" in sentence(capsys)
    for name in ("experience_model", "buffer"):
        (run.path / name).mkdir()
    (run.path / "starts.jsonl").write_text(TASK.model_dump_json() + "\n")
    for kind in ("click-moon", "click-tab-2"):
        assert run_command(["dream", "--run", str(run.path), "--kind", kind]) == 1
        assert "is not in this run; choose one of enter-text" in sentence(capsys)


def test_a_dream_by_rules_needs_no_experience_model(tmp_path, capsys):
    run = Run.open(tmp_path / "run", Scale.named("quick", simulator="rules"))
    assert run_command(["dream", "--run", str(run.path)]) == 1
    assert "has no buffer yet" in sentence(capsys)


def test_demo_replays_without_weights_torch_or_browser():
    program = ("import sys\nsys.modules.update(dict.fromkeys(['torch', 'transformers', 'selenium', 'miniwob', 'faiss']))\n"
               "from dreamgym.command_line import run_command\nsys.exit(run_command(['demo', '--pause', '60']))")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, stdin=subprocess.DEVNULL,
                          env=os.environ | {"COLUMNS": "100", "PATH": "", "FORCE_COLOR": ""}, timeout=200)  # below four pauses
    assert done.returncode == 0, done.stderr
    assert "dream: success, real page: success" in done.stdout and "dream: failure, real page: failure" in done.stdout
    assert "Refused: 'Donova' for 'Donovan'" in done.stdout


def test_demo_on_a_terminal_pauses_for_half_a_minute_at_most(monkeypatch):
    pauses = []
    monkeypatch.setattr(command_line.time, "sleep", pauses.append)
    monkeypatch.setattr(command_line.Console, "is_terminal", True)
    assert run_command(["demo"]) == 0 and 8 <= sum(pauses) <= 25


def test_a_recording_shows_where_the_dream_is_wrong():
    from dreamgym.report import recorded_dreams

    real, dreamed = recorded_dreams()[1]
    first, last = dreamed.transitions
    wrong = dreamed.model_copy(update={"transitions": (
        first.model_copy(update={"next_state": "[red]text[/red]"}), last.model_copy(update={"reward": 1.0}))})
    screen = StringIO()
    command_line._show_recording(real, wrong, Console(file=screen, width=100), lambda: None)
    assert "the real page shows" in screen.getvalue() and "[red]text[/red]" in screen.getvalue()
    assert "dream: success, real page: failure" in screen.getvalue()


def test_the_tests_of_the_repository(monkeypatch, tmp_path, capsys):
    calls = []

    def run(command, **options):
        calls.append((command[1:], Path(options["cwd"]).name))
        return subprocess.CompletedProcess(command, 5)

    monkeypatch.setattr(command_line.subprocess, "run", run)
    (tmp_path / "nbs").mkdir()
    (tmp_path / "tests").mkdir()
    monkeypatch.setattr(command_line, "notebooks_folder", lambda: tmp_path / "nbs")
    assert run_command(["test", "-m", "not browser", "-x"]) == 5
    assert calls == [(["-m", "pytest", "-m", "not browser", "-x"], tmp_path.name)]
    monkeypatch.setattr(command_line.importlib.util, "find_spec", lambda name: None)
    assert run_command(["test", "-x"]) == 1
    assert "pip install 'dreamgym[dev]'" in sentence(capsys)
    monkeypatch.setattr(command_line, "notebooks_folder", lambda: tmp_path / "package" / "notebooks")
    (tmp_path / "tests").rmdir()
    assert run_command(["test", "-x"]) == 1
    assert "belong to the repository" in sentence(capsys)


# ---------------------------------------------------------------- evaluate


@pytest.fixture
def measured(monkeypatch, tmp_path):
    "`evaluate` without model and browser: what it would play is kept, every episode fails."
    from dreamgym.evaluation import Evaluation
    from dreamgym.statistics import wilson
    from dreamgym.suites import miniwob

    played = []

    def measure(agent, suite, tasks, sizes, temperature):
        played.extend(tasks)
        counts = {kind: sum(task.kind == kind for task in tasks) for kind in dict.fromkeys(task.kind for task in tasks)}
        return Evaluation(wilson(0, len(tasks)), {kind: wilson(0, n) for kind, n in counts.items()}, len(tasks), [])

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(miniwob, "find_browser", lambda: "chromium")
    monkeypatch.setattr(command_line, "check_adapter", lambda folder: (1, 1.0))
    monkeypatch.setattr(command_line, "_load_agent", lambda folder, sizes, suite: played.append(folder))
    monkeypatch.setattr(command_line, "_measure", measure)
    return played


@pytest.mark.parametrize("kinds, size, episodes, of_each", [
    ("click-button,click-button", 6, 6, 6), (" click-button, enter-text,click-button,", 6, 12, 6),
    ("click-button,enter-text", 60, 100, 50), ("click-button", 50, 50, 50)])
def test_evaluate_writes_what_was_played(measured, capsys, kinds, size, episodes, of_each):
    words = ["evaluate", "--adapter", "~/agent", "--kinds", kinds, "--size", str(size), "--json", "~/row.json"]
    assert run_command(words) == 0
    folder, *tasks = measured
    assert folder == Path.home() / "agent" and len({task.id for task in tasks}) == len(tasks) == episodes
    row = json.loads((Path.home() / "row.json").read_text())
    assert (row["size"], row["overall"]["episodes"]) == (of_each, episodes)
    assert {rate["episodes"] for rate in row["by_kind"].values()} == {of_each}
    assert ("holds 50 tasks of a type, not 60" in capsys.readouterr().out) is (size == 60)


@pytest.mark.parametrize("name", ["absent/row.json", ".", "folder", "file/row.json", "pipe", "/proc/row.json", "a" * 300])
def test_evaluate_refuses_a_file_that_cannot_be_written_before_measuring(measured, tmp_path, capsys, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    assert run_command(["evaluate", "--adapter", "x", "--json", name]) == 1
    assert "Cannot write" in sentence(capsys) and measured == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "pipe"]


@pytest.mark.slow
@pytest.mark.browser
def test_evaluate_measures_a_saved_agent(tiny_model_folder, tmp_path, monkeypatch, capsys):
    from dreamgym.fast_model import LanguageModel
    from dreamgym.suites.miniwob import MiniWobSuite

    sizes, model = MiniWobSuite.sizes, str(tiny_model_folder)
    monkeypatch.setattr(MiniWobSuite, "sizes", lambda suite, scale: sizes(suite, scale) | {"model": model})
    LanguageModel.load(model, rank=4).save_adapter(tmp_path / "adapter")
    assert run_command(["evaluate", "--adapter", str(tmp_path / "adapter"), "--kinds", "click-button", "--size", "2",
                        "--json", str(tmp_path / "row.json")]) == 0
    assert "click-button" in capsys.readouterr().out
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["overall"]["episodes"] == 2 and len(row["panel_hash"]) == 64
