"The `dreamgym` command: one sentence for every mistake, chapters that resume, kernels of this very interpreter."

import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from rich.console import Console

import dreamgym.command_line as command_line
from dreamgym.command_line import (
    Check,
    check_adapter,
    chapter_paths,
    chapter_rows,
    choose_chapters,
    directives,
    is_done,
    is_executed,
    play_dream,
    record_chapter,
    run_chapters,
    run_command,
    runnable,
    seconds_left,
    source_hash,
)
from dreamgym.runs import Run, Scale, cache_folder
from dreamgym.trajectories import DreamgymError, Task, atomic_write_json

LOG = Console(force_terminal=False, force_jupyter=False)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "Every test works in a folder of its own, with plain output."
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DREAMGYM_DEBUG", raising=False)
    monkeypatch.setenv("CI", "true")
    monkeypatch.setenv("COLUMNS", "200")


def write_chapter(path: Path, *sources: str) -> Path:
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
    write_chapter(folder / "00_first.ipynb", "from pathlib import Path",
                  "with (Path(run) / 'count').open('a') as file:\n    file.write('x')")
    write_chapter(folder / "01_second.ipynb", "import os\nimport time\nfrom pathlib import Path",
                  "(Path(run) / 'pid').write_text(str(os.getpid()))",
                  "while (Path(run) / 'wait').exists():\n    time.sleep(0.1)",
                  "assert not (Path(run) / 'fail').exists(), 'the moon is\\nmissing'")
    return folder


@pytest.fixture
def in_book(book, monkeypatch):
    "The command line reads the tiny book, and prepares nothing."
    monkeypatch.setattr(command_line, "notebooks_folder", lambda: book)
    monkeypatch.setattr(command_line, "_prepare_machine", lambda: None)
    return book


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


def test_a_damaged_run_directory(tmp_path, capsys):
    run = tmp_path / "run"
    Run.open(run, "quick", 0)
    assert run_command(["reproduce", "--run", str(run), "--seed", "1"]) == 1
    assert "made with scale 'quick' and seed 0" in sentence(capsys)
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


def test_no_browser(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("DREAMGYM_BROWSER", raising=False)
    assert run_command(["prepare"]) == 1
    assert "apt-get install -y chromium" in sentence(capsys)
    assert not command_line._has_browser()
    assert [(c.name, c.ok) for c in command_line._check_browser()] == [("browser", False)]


def test_reproduce_stops_when_the_machine_cannot_be_prepared(book, monkeypatch, capfd):
    monkeypatch.setattr(command_line, "notebooks_folder", lambda: book)
    monkeypatch.setattr(command_line, "_has_browser", lambda: False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("DREAMGYM_BROWSER", raising=False)
    assert run_command(["reproduce", "--run", "here"]) == 1
    output = capfd.readouterr()
    assert output.err.count("\n") == 1 and "apt-get install -y chromium" in output.err
    assert not Path("here/notebooks").exists(), "no chapter was started"


# ---------------------------------------------------------------- chapters


def test_chapters_and_their_selection():
    names = [path.stem for path in chapter_paths()]
    assert names == [*sorted(names[:-1]), "index"]
    assert choose_chapters(names, "11-12, 02,index") == [n for n in names if n[:2] in ("02", "11", "12", "in")]
    assert choose_chapters(names, names[3]) == [names[3]]
    for wrong in ("5-", "a", "14-19", "02,,99"):
        with pytest.raises(DreamgymError):
            choose_chapters(names, wrong)


def test_only_cells_that_nbdev_would_execute(tmp_path):
    assert directives("#| export\n#|eval: false\n\n#| hide\nx") == {"export": "", "eval": "false"}
    assert [is_executed(s) for s in ("x", "#| eval: False\nx", "#| gpu\nx", "#|notest\nx", "#| eval: true\nx")] == [
        True, False, False, False, True]
    path = write_chapter(tmp_path / "00_a.ipynb", "1", "#| eval: false\n1 / 0")
    assert [cell.cell_type for cell in runnable(path).cells] == ["code", "code", "markdown"]
    before = source_hash(path)
    notebook = json.loads(path.read_text())
    notebook["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "1"}]
    path.write_text(json.dumps(notebook))
    assert source_hash(path) == before, "stored outputs do not matter"
    path.write_text(path.read_text()[:-40])
    with pytest.raises(DreamgymError, match="00_a.ipynb cannot be read"):
        runnable(path)


def test_time_left():
    assert seconds_left([], {}, 5.0) == 0.0
    assert seconds_left(["01_trajectories", "02_runs"], {}, 3.0) == 17.0
    assert seconds_left(["01_trajectories"], {}, 999.0) == 0.0
    assert seconds_left(["01_trajectories"], {"02_runs": 100.0}, 0.0) == 100.0
    assert seconds_left(["11_experience_model"], {}, 0.0, "cpu") > 3 * seconds_left(["11_experience_model"], {}, 0.0)


def test_reproduce_runs_skips_and_repeats(in_book, tmp_path, capsys):
    run = tmp_path / "run {of} mine"  # papermill fills in braces; a path is not a template
    assert run_command(["reproduce", "--run", str(run)]) == 0
    first = capsys.readouterr().out
    assert "[ 1/2] 00_first" in first and "[ 2/2] 01_second" in first and "report.html" in first
    assert (run / "report.html").exists() and sorted(chapter_rows(Run.open(run))) == ["00_first", "01_second"]
    start = time.monotonic()
    assert run_command(["reproduce", "--run", str(run)]) == 0
    assert "00_first" not in capsys.readouterr().out and time.monotonic() - start < 3
    assert (run / "count").read_text() == "x"
    (run / "notebooks" / "00_first.ipynb").unlink()
    assert run_command(["reproduce", "--run", str(run), "--chapters", "00"]) == 0
    assert (run / "count").read_text() == "xx"


def test_a_chapter_runs_again_when_a_stage_or_its_text_changed(in_book, tmp_path):
    run, source = Run.open(tmp_path / "run"), in_book / "00_first.ipynb"
    (run.path / "notebooks").mkdir()
    (run.path / "notebooks" / source.name).write_text("{}")
    assert not is_done(run, source)
    run.build("answer.txt", lambda path: path.write_text("42"))
    record_chapter(run, source, 1.0)
    assert is_done(run, source)
    with (run.path / "chapters.jsonl").open("a") as file:
        file.write('{"chapter": "00_fi')  # killed while writing
    assert is_done(run, source)
    (run.path / "answer.txt").unlink()
    assert not is_done(run, source)
    run.build("answer.txt", lambda path: path.write_text("42"))
    assert is_done(run, source)
    write_chapter(source, "2")
    assert not is_done(run, source)


def test_a_failing_chapter(in_book, tmp_path, capsys):
    run = Run.open(tmp_path / "run")
    (run.path / "fail").write_text("")
    assert run_command(["reproduce", "--run", str(run.path)]) == 1
    text = sentence(capsys)
    notebook = run.path / "notebooks" / "01_second.ipynb"
    assert "Chapter 01_second failed" in text and "AssertionError: the moon is." in text and str(notebook) in text
    assert "the moon is" in notebook.read_text(), "the executed notebook shows the error"
    (run.path / "fail").unlink()
    assert run_command(["reproduce", "--run", str(run.path)]) == 0
    assert (run.path / "count").read_text() == "x", "the first chapter was not repeated"


def test_a_busy_run_directory(in_book, tmp_path, capsys):
    run = Run.open(tmp_path / "run")
    with FileLock(run.path / ".reproduce.lock").acquire(timeout=0):
        assert run_command(["reproduce", "--run", str(run.path)]) == 1
    assert "Another `dreamgym reproduce` works in the run directory run" in sentence(capsys)


def test_the_kernel_is_this_interpreter(tmp_path, monkeypatch):
    "Whatever kernels lie about, and with no useful PATH."
    fake = tmp_path / "jupyter" / "kernels" / "python3"
    fake.mkdir(parents=True)
    atomic_write_json(fake / "kernel.json", {"argv": ["/bin/false"], "display_name": "python3", "language": "python"})
    monkeypatch.setenv("JUPYTER_PATH", str(fake.parent.parent))
    monkeypatch.setenv("PATH", "/nowhere")
    run = Run.open(tmp_path / "run")
    source = write_chapter(tmp_path / "00_a.ipynb", "import sys\nfrom pathlib import Path",
                           "(Path(run) / 'python').write_text(sys.executable)")
    run_chapters(run, [source], LOG)
    assert (run.path / "python").read_text() == sys.executable


FORKS = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")


@FORKS
def test_forked_kernels_are_processes_of_their_own(tmp_path, monkeypatch):
    "Started in the folder of the notebooks, with the environment of now, and with nothing of the chapters before."
    seen = []
    run_kernel = command_line._Fork
    monkeypatch.setattr(command_line, "_Fork", lambda *words: seen.append(run_kernel(*words)) or seen[-1])
    run = Run.open(tmp_path / "run")
    modules = "import sys\nimport os\nimport json\nimport multiprocessing\nimport gc"
    plant = "sys.modules['planted'] = os\nos.environ['PLANTED'] = '1'"
    tell = ("facts = [os.getpid(), os.getsid(0), os.getcwd(), os.environ.get('PLANTED'), os.environ.get('GIVEN'),\n"
            "         'planted' in sys.modules, multiprocessing.get_start_method(), sys.executable,\n"
            "         gc.get_freeze_count() > 10**5]\n"
            "with open('facts', 'a') as file:\n    file.write(json.dumps(facts) + '\\n')")
    sources = [write_chapter(tmp_path / "00_a.ipynb", modules, tell, plant)]
    sources += [write_chapter(tmp_path / f"{i:02d}_b.ipynb", modules, tell) for i in (1, 2)]
    monkeypatch.setenv("GIVEN", "yes")
    run_chapters(run, sources, LOG)
    rows = [json.loads(line) for line in (run.path / "notebooks" / "facts").read_text().splitlines()]
    usual = [False, multiprocessing.get_start_method(), sys.executable, True]
    assert [row[2:] for row in rows] == [[str((run.path / "notebooks").resolve()), None, "yes", *usual]] * 3
    assert [row[0] for row in rows] == [row[1] for row in rows] == [fork.pid for fork in seen]
    assert len({row[0] for row in rows} | {os.getpid()}) == 4 and not any(is_alive(row[0]) for row in rows)


@FORKS
def test_a_forked_kernel_that_dies(tmp_path):
    source = write_chapter(tmp_path / "00_a.ipynb", "import os\nimport signal", "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(DreamgymError, match="Chapter 00_a failed: its process died"):
        command_line.execute_chapter(source, tmp_path / "out.ipynb", {}, warm=True)


# ---------------------------------------------------------------- kills

PROGRAM = """
import sys
from pathlib import Path
from types import SimpleNamespace
import dreamgym.command_line as command_line
book = Path(sys.argv.pop(1))
command_line.notebooks_folder = lambda: book
command_line._prepare_machine = lambda: None
command_line.main()
"""


def start_reproduce(book: Path, run: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(book), "reproduce", "--run", str(run)],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.parametrize("more", [0, 2], ids=["interpreters", "forks"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_reproduce_resumes(number, more, book, tmp_path):
    "With few chapters each kernel is a new interpreter, with more a fork."
    for i in range(2, 2 + more):
        write_chapter(book / f"{i:02d}_more.ipynb", "1 + 1")
    run = Run.open(tmp_path / "run").path
    (run / "wait").write_text("")
    process = start_reproduce(book, run)
    wait_for(lambda: (run / "pid").exists() and (run / "pid").read_text(), 60)
    kernel = int((run / "pid").read_text())
    process.send_signal(number)
    errors = process.communicate(timeout=30)[1]
    if number == signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 130 and "Interrupted." in errors and errors.count("\n") == 1, errors
    wait_for(lambda: not is_alive(kernel), 10)
    (run / "wait").unlink()
    process = start_reproduce(book, run)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert (run / "count").read_text() == "x", "the finished chapter was not repeated"
    assert f"[ 1/{1 + more}] 01_second" in output and (run / "report.html").exists()


# ---------------------------------------------------------------- experiment


def played(run, success):
    "What the stages would leave: one evaluated agent."
    rate = {"mean": success, "low": 0.0, "high": 1.0, "successes": 0, "episodes": 10}
    panel = {"overall": rate, "by_kind": {"click-button": rate}}
    row = {"agent": "warm_start", "panel_hash": "0" * 64, "own": panel, "held_out": panel}
    run.build("evaluation/warm_start.json", lambda path: path.write_text(json.dumps(row)))


def test_an_experiment_gathers_its_seeds_in_one_table(monkeypatch, tmp_path, capsys):
    from dreamgym import sim_to_real, training_loop

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command_line, "_prepare_machine", lambda: None)
    monkeypatch.setattr(sim_to_real, "results", lambda run, baseline: played(run, 0.25 + 0.5 * run.seed))
    monkeypatch.setattr(training_loop, "last_gate", lambda run: None)
    for seed in ("1", "0", "1"):
        assert run_command(["experiment", "--seeds", seed, "--output", "table.csv"]) == 0
    rows = list(csv.DictReader(Path("table.csv").read_text().splitlines()))
    assert [(row["seed"], float(row["success"])) for row in rows] == [("0", 0.25), ("1", 0.75)]
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


# ---------------------------------------------------------------- doctor, dream, test, evaluate


def test_doctor_says_what_is_missing(monkeypatch, capsys):
    checks = [Check("memory", True, "8 GB"), Check("model smollm2", False, "not fetched yet", "dreamgym prepare")]
    monkeypatch.setattr(command_line, "all_checks", lambda: checks)
    assert run_command(["doctor"]) == 1
    output = capsys.readouterr()
    assert "MISSING" in output.out and "dreamgym prepare" in output.out and output.err == ""
    monkeypatch.setattr(command_line, "all_checks", lambda: checks[:1])
    assert run_command(["doctor"]) == 0
    assert "MISSING" not in capsys.readouterr().out


def test_the_checks_of_doctor(monkeypatch, tmp_path):
    assert all(check.ok for check in command_line._check_packages())
    assert command_line._check_torch().ok
    monkeypatch.setenv("DREAMGYM_CACHE", str(tmp_path / "cache"))
    assert [check.ok for check in command_line._check_weights()] == [False, False]
    assert not (tmp_path / "cache").exists(), "looking changes nothing"
    folder = tmp_path / "cache" / "minilm-0.1.0"
    folder.mkdir(parents=True)
    (folder / "hashes.json").write_text('{"model.bin": "0"}')
    assert [(c.ok, c.found) for c in command_line._check_weights()][1] == (False, "damaged")
    monkeypatch.setenv("DREAMGYM_RUNS", "/dev/null/runs")
    assert {c.name: c.ok for c in command_line._check_machine()}["runs folder"] is False


class Echo:
    "A dream in which typing fills the field and the button ends the episode; its words are hostile."

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
    for kind, part in (("click-moon", "does not exist"), ("click-tab-2", "is not in this run")):
        assert run_command(["dream", "--run", str(run.path), "--kind", kind]) == 1
        assert part in sentence(capsys)


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


# --- damage, foreign files and clocks (logs, folders, the display, evaluate)


def test_a_wrong_debug_variable_does_not_hide_the_error(monkeypatch, capsys):
    for word, lines in (("0", 1), ("off", 1), ("maybe", 1), ("true", 2)):
        monkeypatch.setenv("DREAMGYM_DEBUG", word)
        assert run_command(["reproduce", "--scale", "huge"]) == 1
        error = capsys.readouterr().err
        assert "choose one of quick, cpu, gpu, paper" in error and ("Traceback" in error) is (lines == 2)
        assert ("DREAMGYM_DEBUG is 'maybe'" in error) is (word == "maybe") and (error.count("\n") == 1) is (lines == 1)


def test_only_chapters_are_chapters(tmp_path):
    for name in ("02_b.ipynb", "00_a.ipynb", "index.ipynb", "_draft.ipynb", "._00_a.ipynb", "draft.ipynb", "index2.ipynb",
                 "0_x.ipynb", "12x.ipynb", "\u0661\u0662_x.ipynb", "00_a.ipynb~"):
        (tmp_path / name).write_text("")
    (tmp_path / "03_folder.ipynb").mkdir()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "00_a-checkpoint.ipynb").write_text("")
    assert [path.stem for path in chapter_paths(tmp_path)] == ["00_a", "02_b", "index"]


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_torn_line_of_the_chapters_costs_one_chapter(in_book, tmp_path, capsys, cut):
    run, sources = Run.open(tmp_path / "run"), chapter_paths(in_book)
    (run.path / "notebooks").mkdir()
    for source in sources:
        (run.path / "notebooks" / source.name).write_text("{}")
    record_chapter(run, sources[0], 1.0)
    path = run.path / "chapters.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    record_chapter(run, sources[1], 1.0)
    assert [is_done(run, source) for source in sources * 3] == [cut == 1, True] * 3
    path.write_bytes(path.read_bytes() + b'\xff\0\n[]\n{"chapter": "00_first"}\n')
    record_chapter(run, sources[0], 1.0)
    assert all(is_done(run, source) for source in sources)
    assert capsys.readouterr().err.count("\n") == 1, "said once"


def test_the_display_does_not_need_the_clock_on_the_wall(tmp_path, monkeypatch):
    hours = iter(range(1000))
    monkeypatch.setattr(time, "time", lambda: 2e9 - 3600 * next(hours))  # set back, again and again
    run = Run.open(tmp_path / "run")
    run.progress("before", 1, 1)
    run.build("before.txt", Path.touch)
    display = command_line.Display(run, ["00_first"], LOG)
    display.live = False
    with display.showing("00_first"):
        assert display._stage() == "", "what another chapter said"
        run.progress("before", 1, 1)
        assert display._stage() == "before 1/1", "the same words, but new ones"
        for text in ("[]", "{}", '{"stage": ', "7"):
            (run.path / "progress.json").write_text(text)
            assert display._stage() == ""
        run.build("within.txt", Path.touch)


def test_the_line_of_a_chapter_names_its_own_stages(tmp_path, monkeypatch, capsys):
    run = Run.open(tmp_path / "run")
    run.build("before.txt", Path.touch)
    display = command_line.Display(run, ["00_first"], LOG)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with display.showing("00_first"):
        run.build("within.txt", Path.touch)
    assert "(within.txt 0 s)" in capsys.readouterr().out


def test_only_new_notes_and_stages_are_followed(tmp_path, monkeypatch):
    run, screen = Run.open(tmp_path / "run"), StringIO()
    run.progress("yesterday", 1, 1)
    run.build("before.txt", Path.touch)
    console, shown = Console(file=screen, force_terminal=True, force_jupyter=False), []
    status = SimpleNamespace(update=lambda text: shown.append(str(text)))
    monkeypatch.setattr(console, "status", lambda text: command_line.contextlib.nullcontext(status))
    with command_line._following(run, console):
        time.sleep(1.2)
        run.progress("today", 1, 1)
        run.build("within.txt", Path.touch)
        time.sleep(1.2)
    assert set(shown) == {"today 1/1"} and "within.txt" in screen.getvalue() and "before.txt" not in screen.getvalue()


@pytest.fixture
def measured(monkeypatch, tmp_path):
    "`evaluate` without model and browser: what it would play is kept, every episode fails."
    from dreamgym import environments
    from dreamgym.evaluation import Evaluation
    from dreamgym.statistics import wilson

    played = []

    def measure(agent, tasks, sizes, temperature):
        played.extend(tasks)
        counts = {kind: sum(task.kind == kind for task in tasks) for kind in dict.fromkeys(task.kind for task in tasks)}
        return Evaluation(wilson(0, len(tasks)), {kind: wilson(0, n) for kind, n in counts.items()}, len(tasks), [])

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(environments, "find_browser", lambda: "chromium")
    monkeypatch.setattr(command_line, "check_adapter", lambda folder: (1, 1.0))
    monkeypatch.setattr(command_line, "_load_agent", lambda folder, sizes: played.append(folder))
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


def test_a_table_of_seeds_may_come_from_an_editor(tmp_path, capsys):
    path = tmp_path / "table.csv"
    path.write_bytes("\ufeffscale,seed,agent,success,note\r\nquick,0,dream,0.5,a\u2028b\r\n,,,,\r\n".encode())
    command_line._seed_table(path, "quick", Console(force_jupyter=False))
    assert "50%" in capsys.readouterr().out
    path.write_text("scale,seed,agent,success\nquick,0,dream\n")
    with pytest.raises(DreamgymError, match="table.csv cannot be read .line 2 has no proper success"):
        command_line._seed_table(path, "quick", LOG)


def test_any_line_separator_in_an_error_gives_one_line(monkeypatch, capsys):
    def fail(*_, **__):
        raise ValueError("one\u2028two\x85three\nfour")

    monkeypatch.setattr(command_line, "app", fail)
    assert run_command([]) == 1
    assert "ValueError: one two three; set" in sentence(capsys)


@pytest.mark.slow
@pytest.mark.browser
def test_evaluate_measures_a_saved_agent(tmp_path, capsys):
    from dreamgym.fast_model import LanguageModel

    LanguageModel.load("smollm2", rank=4).save_adapter(tmp_path / "adapter")
    assert run_command(["evaluate", "--adapter", str(tmp_path / "adapter"), "--kinds", "click-button", "--size", "2",
                        "--json", str(tmp_path / "row.json")]) == 0
    assert "click-button" in capsys.readouterr().out
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["overall"]["episodes"] == 2 and len(row["panel_hash"]) == 64


# ---------------------------------------------------------------- the environment of the command


def test_relative_paths_mean_the_same_in_kernels(monkeypatch, tmp_path):
    folder = tmp_path / "start"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {"DREAMGYM_CACHE": "weights", "DREAMGYM_RUNS": "~/runs", "DREAMGYM_BROWSER": "./chrome",
             "SE_CHROMEDRIVER": "chromedriver"}
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    values = command_line.kernel_variables(Scale.named())
    assert values["DREAMGYM_CACHE"] == str(folder / "weights") and values["DREAMGYM_RUNS"] == str(tmp_path / "runs")
    assert values["DREAMGYM_BROWSER"] == str(folder / "chrome") and "SE_CHROMEDRIVER" not in values
    with command_line._environment(values | {"NEW_ONE": "1"}):
        monkeypatch.chdir(tmp_path)
        assert cache_folder() == folder / "weights" and os.environ["NEW_ONE"] == "1"
    assert {name: os.environ.get(name) for name in [*given, "NEW_ONE"]} == given | {"NEW_ONE": None}


@FORKS
@pytest.mark.parametrize("number", [1, 3], ids=["interpreter", "forks"])
def test_kernels_without_a_home_and_with_a_long_folder_for_temporary_files(number, tmp_path):
    "A command of its own: multiprocessing keeps its folder for as long as a process lives."
    long = tmp_path / ("long" * 30)
    long.mkdir()
    sources = [write_chapter(tmp_path / f"0{i}_a.ipynb", "import os\nfrom dreamgym.runs import cache_folder",
                             "with open('facts', 'a') as file:\n    file.write(f'{cache_folder()}\\n')")
               for i in range(number)]
    program = ("import sys\nfrom pathlib import Path\nfrom dreamgym.command_line import run_chapters\n"
               "from dreamgym.runs import Run\nrun_chapters(Run.open('run'), [Path(p) for p in sys.argv[1:]])")
    variables = {"HOME": "/dev/null/home", "TMPDIR": str(long), "DREAMGYM_CACHE": "weights", "http_proxy": "http://0.0.0.0:9"}
    done = subprocess.run([sys.executable, "-c", program, *map(str, sources)], cwd=tmp_path, capture_output=True,
                          text=True, env=os.environ | variables)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr  # matplotlib says where it writes
    facts = (tmp_path / "run" / "notebooks" / "facts").read_text().split()
    assert facts == [str(tmp_path / "weights")] * number


def test_threads_and_doctor_follow_the_cores_of_this_process(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 4, 5}, raising=False)
    assert command_line.kernel_variables(Scale.named())["OMP_NUM_THREADS"] == "3"
    assert {c.name: c.found for c in command_line._check_machine()}["cores"] == "3"


@pytest.mark.parametrize("wrong", ["no-such-program", "/dev", "/dev/null"])
def test_a_browser_variable_that_names_nothing(wrong, monkeypatch, capsys):
    monkeypatch.setenv("DREAMGYM_BROWSER", wrong)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was started"))
    assert run_command(["prepare"]) == 1
    assert f"DREAMGYM_BROWSER is '{wrong}'" in sentence(capsys)
    (check,) = command_line._check_browser()
    assert not check.ok and "DREAMGYM_BROWSER" in check.found and "unset it" in check.mend


def test_prepare_names_the_variable_of_a_cache_that_cannot_be_written(monkeypatch, capsys):
    monkeypatch.setenv("DREAMGYM_BROWSER", sys.executable)
    monkeypatch.delenv("DREAMGYM_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/dev/null/home")
    assert run_command(["prepare"]) == 1
    assert "set DREAMGYM_CACHE" in capsys.readouterr().err
    assert {c.name: c.ok for c in command_line._check_machine()}["cache folder"] is False


def test_doctor_looks_at_folders_with_any_name(monkeypatch, tmp_path):
    monkeypatch.setenv("DREAMGYM_CACHE", str(tmp_path / ("x" * 300)))
    assert not command_line._has_weights() and not any(c.ok for c in command_line._check_weights())
    assert "cache folder" in {c.name for c in command_line._check_machine()}


def test_without_a_home_paths_are_shown_as_they_are(monkeypatch):
    import pwd

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda number: (_ for _ in ()).throw(KeyError(number)))
    assert command_line._short("/a/b") == "/a/b"


def test_doctor_says_why_a_page_cannot_be_shown(monkeypatch):
    from selenium.common.exceptions import WebDriverException

    from dreamgym import environments

    def broken():
        raise WebDriverException("cannot find Chrome binary\nStacktrace: ...")

    monkeypatch.setattr(environments, "start_chrome", broken)
    check = command_line._check_page()
    assert not check.ok and "cannot find Chrome binary" in check.found and "\n" not in check.found


@pytest.mark.browser
def test_doctor_shows_a_page_past_a_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    checks = {check.name: check for check in command_line._check_browser()}
    assert checks["page in the browser"].ok and "shown and read" in checks["page in the browser"].found


@pytest.mark.browser
def test_doctor_tells_a_browser_that_starts_nothing(monkeypatch, tmp_path):
    version = command_line._program_version(shutil.which("chromedriver") or os.environ.get("SE_CHROMEDRIVER", ""))
    program = tmp_path / "chrome"
    program.write_text(f"#!/bin/sh\necho Chromium {version}")
    program.chmod(0o755)
    monkeypatch.setenv("DREAMGYM_BROWSER", str(program))
    assert [(c.name, c.ok) for c in command_line._check_browser()] == [
        ("browser", True), ("browser driver", True), ("page in the browser", False)]
