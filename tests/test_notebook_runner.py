"Chapters and how they are executed: kernels of this very interpreter, records that survive a kill, time that is left."

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_chapter
from filelock import FileLock
from rich.console import Console

from dreamgym.notebook_runner import (
    ChapterFailed,
    Display,
    chapter_paths,
    chapter_rows,
    choose_chapters,
    directives,
    execute_chapter,
    is_done,
    is_executed,
    record_chapter,
    run_chapters,
    runnable,
    seconds_left,
    source_hash,
)
from dreamgym.runs import Run, RunBusy
from dreamgym.trajectories import DreamgymError, atomic_write_json

pytestmark = pytest.mark.usefixtures("elsewhere")
LOG = Console(force_terminal=False, force_jupyter=False)


# ---------------------------------------------------------------- which chapters, which cells


def test_chapters_and_their_selection():
    names = [path.stem for path in chapter_paths()]
    assert names == [*sorted(names[:-1]), "index"]
    assert choose_chapters(names, "11-12, 02,index") == [n for n in names if n[:2] in ("02", "11", "12", "in")]
    assert choose_chapters(names, names[3]) == [names[3]]
    assert choose_chapters(names) == choose_chapters(names, "all") == choose_chapters(names, " ") == names


def test_the_method_is_every_chapter_that_makes_or_reads_a_stage_of_a_run():
    method, reads = choose_chapters([path.stem for path in chapter_paths()], "method"), set()
    for path in chapter_paths():
        source = "\n".join(cell.source for cell in runnable(path).cells
                           if cell.cell_type == "code" and "export" not in directives(cell.source))
        called = set(re.findall(r"(\w+)\(current\b", source)) - {"derive_seed", "display", "fetch_model", "float", "load", "range"}  # sizes only
        if "Run.open(run" in source and called:
            reads.add(path.stem)
    assert reads - set(method) <= {"40_experiments", "80_benchmarks", "92_notebook_runner"}  # they read what a run has left, or make their own
    assert set(method) <= reads | {"index"}, "the index dreams with the run's model where there is one"


def test_a_selection_that_names_nothing_is_refused():
    names = [path.stem for path in chapter_paths()]
    for wrong in ("5-", "a", "14-19", "02,,99"):
        with pytest.raises(DreamgymError):
            choose_chapters(names, wrong)


def test_only_chapters_are_chapters(tmp_path):
    for name in ("02_b.ipynb", "00_a.ipynb", "index.ipynb", "_draft.ipynb", "._00_a.ipynb", "draft.ipynb", "index2.ipynb",
                 "0_x.ipynb", "12x.ipynb", "\u0661\u0662_x.ipynb", "00_a.ipynb~"):
        (tmp_path / name).write_text("")
    (tmp_path / "03_folder.ipynb").mkdir()
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "00_a-checkpoint.ipynb").write_text("")
    assert [path.stem for path in chapter_paths(tmp_path)] == ["00_a", "02_b", "index"]


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


# ---------------------------------------------------------------- kernels


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


def test_kernels_are_processes_of_their_own(tmp_path, monkeypatch):
    "Started in the folder of the notebooks, with the environment of now, and with nothing of the chapters before."
    monkeypatch.setenv("GIVEN", "yes")
    run, modules = Run.open(tmp_path / "run"), "import sys\nimport os\nimport json"
    tell = ("facts = [os.getcwd(), os.environ.get('PLANTED'), os.environ.get('GIVEN'), 'planted' in sys.modules,"
            " os.getpid(), os.getsid(0)]\nwith open('facts', 'a') as file:\n    file.write(json.dumps(facts) + '\\n')")
    plant = "sys.modules['planted'] = os\nos.environ['PLANTED'] = '1'"
    run_chapters(run, [write_chapter(tmp_path / f"0{i}_a.ipynb", modules, tell, plant) for i in range(2)], LOG)
    rows = [json.loads(line) for line in (run.path / "notebooks" / "facts").read_text().splitlines()]
    assert [row[:4] for row in rows] == [[str((run.path / "notebooks").resolve()), None, "yes", False]] * 2
    numbers = [row[4] for row in rows]
    assert numbers == [row[5] for row in rows], "each leads a session, so a signal reaches all that it has started"
    assert len({*numbers, os.getpid()}) == 3 and not any(is_alive(number) for number in numbers)


def test_a_kernel_that_dies(tmp_path):
    source = write_chapter(tmp_path / "00_a.ipynb", "import os\nimport signal", "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(ChapterFailed, match="Chapter 00_a failed: its process died"):
        execute_chapter(source, tmp_path / "out.ipynb", {})


def test_kernels_without_a_home_and_with_a_long_folder_for_temporary_files(tmp_path):
    long = tmp_path / ("long" * 30)
    long.mkdir()
    source = write_chapter(tmp_path / "00_a.ipynb", "from pathlib import Path\nfrom dreamgym.runs import cache_folder",
                           "Path('facts').write_text(str(cache_folder()))")
    program = ("import sys\nfrom pathlib import Path\nfrom dreamgym.notebook_runner import run_chapters\n"
               "from dreamgym.runs import Run\nrun_chapters(Run.open('run'), [Path(sys.argv[1])])")
    variables = {"HOME": "/dev/null/home", "TMPDIR": str(long), "DREAMGYM_CACHE": "weights", "http_proxy": "http://0.0.0.0:9"}
    done = subprocess.run([sys.executable, "-c", program, str(source)], cwd=tmp_path, capture_output=True,
                          text=True, env=os.environ | variables)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr  # matplotlib says where it writes
    assert (tmp_path / "run" / "notebooks" / "facts").read_text() == str(tmp_path / "weights")


# ---------------------------------------------------------------- what is done


def test_chapters_are_executed_skipped_and_repeated(book, tmp_path, capsys):
    run = Run.open(tmp_path / "run {of} mine")  # papermill fills in braces; a path is not a template
    assert run_chapters(run, chapter_paths(book), LOG) == ["01_first", "02_second"] == sorted(chapter_rows(run))
    output = capsys.readouterr().out
    assert "[ 1/2] 01_first" in output and "[ 2/2] 02_second" in output
    assert run_chapters(run, chapter_paths(book), LOG) == [] and (run.path / "count").read_text() == "x"
    (run.path / "notebooks" / "01_first.ipynb").unlink()
    assert run_chapters(run, chapter_paths(book), LOG) == ["01_first"] and (run.path / "count").read_text() == "xx"


def test_a_chapter_runs_again_when_a_stage_or_its_text_changed(book, tmp_path):
    run, source = Run.open(tmp_path / "run"), book / "01_first.ipynb"
    (run.path / "notebooks").mkdir()
    (run.path / "notebooks" / source.name).write_text("{}")
    assert not is_done(run, source)
    run.build("answer.txt", lambda path: path.write_text("42"))
    record_chapter(run, source, 1.0)
    assert is_done(run, source)
    with (run.path / "chapters.jsonl").open("a") as file:
        file.write('{"chapter": "01_fi')  # killed while writing
    assert is_done(run, source)
    (run.path / "answer.txt").unlink()
    assert not is_done(run, source)
    run.build("answer.txt", lambda path: path.write_text("42"))
    assert is_done(run, source)
    write_chapter(source, "2")
    assert not is_done(run, source)


def test_a_failing_chapter(book, tmp_path):
    run = Run.open(tmp_path / "run")
    (run.path / "fail").write_text("")
    with pytest.raises(ChapterFailed) as caught:
        run_chapters(run, chapter_paths(book), LOG)
    text, notebook = str(caught.value), run.path / "notebooks" / "02_second.ipynb"
    assert "Chapter 02_second failed" in text and "AssertionError: the moon is." in text and str(notebook) in text
    assert "the moon is" in notebook.read_text(), "the executed notebook shows the error"
    (run.path / "fail").unlink()
    assert run_chapters(run, chapter_paths(book), LOG) == ["02_second"], "the first chapter was not repeated"
    assert (run.path / "count").read_text() == "x"


def test_a_busy_run_directory(book, tmp_path):
    run = Run.open(tmp_path / "run")
    with FileLock(run.path / ".reproduce.lock").acquire(timeout=0):
        with pytest.raises(RunBusy, match="Another `dreamgym reproduce` works in the run directory run"):
            run_chapters(run, chapter_paths(book), LOG)


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_torn_line_of_the_chapters_costs_one_chapter(book, tmp_path, capsys, cut):
    run, sources = Run.open(tmp_path / "run"), chapter_paths(book)
    (run.path / "notebooks").mkdir()
    for source in sources:
        (run.path / "notebooks" / source.name).write_text("{}")
    record_chapter(run, sources[0], 1.0)
    path = run.path / "chapters.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    record_chapter(run, sources[1], 1.0)
    assert [is_done(run, source) for source in sources * 3] == [cut == 1, True] * 3
    path.write_bytes(path.read_bytes() + b'\xff\0\n[]\n{"chapter": "01_first"}\n')
    record_chapter(run, sources[0], 1.0)
    assert all(is_done(run, source) for source in sources)
    assert capsys.readouterr().err.count("\n") == 1, "said once"


# ---------------------------------------------------------------- kills


PROGRAM = """
import sys
from pathlib import Path
import dreamgym.command_line as command_line
import dreamgym.notebook_runner as notebook_runner
book = Path(sys.argv.pop(1))
notebook_runner.notebooks_folder = lambda: book
command_line._prepare_machine = lambda: None
command_line._summary = lambda *_: None
command_line.main()
"""


def start_reproduce(book: Path, run: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(book), "reproduce", "--run", str(run), "--chapters", "all"],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=120.0):
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_reproduce_resumes(number, book, tmp_path):
    run = Run.open(tmp_path / "run").path
    (run / "wait").write_text("")
    process = start_reproduce(book, run)
    wait_for(lambda: (run / "pid").exists() and (run / "pid").read_text(), 120)
    kernel = int((run / "pid").read_text())
    process.send_signal(number)
    errors = process.communicate(timeout=120)[1]
    if number == signal.SIGKILL:
        assert process.returncode == -9
    else:
        assert process.returncode == 130 and "Interrupted." in errors and errors.count("\n") == 1, errors
    wait_for(lambda: not is_alive(kernel), 60)
    (run / "wait").unlink()
    assert run_chapters(Run.open(run), chapter_paths(book), LOG) == ["02_second"]
    assert (run / "count").read_text() == "x", "the finished chapter was not repeated"


# ---------------------------------------------------------------- the display


def test_time_left():
    assert seconds_left([], {}, 5.0) == 0.0
    assert seconds_left(["01_trajectories", "02_runs"], {}, 3.0) == 17.0
    assert seconds_left(["01_trajectories"], {}, 999.0) == 0.0
    assert seconds_left(["01_trajectories"], {"02_runs": 100.0}, 0.0) == 100.0
    assert seconds_left(["11_experience_model"], {}, 0.0, "cpu") > 3 * seconds_left(["11_experience_model"], {}, 0.0)


def test_the_display_does_not_need_the_clock_on_the_wall(tmp_path, monkeypatch):
    hours = iter(range(1000))
    monkeypatch.setattr(time, "time", lambda: 2e9 - 3600 * next(hours))  # set back, again and again
    run = Run.open(tmp_path / "run")
    run.progress("before", 1, 1)
    run.build("before.txt", Path.touch)
    display = Display(run, ["01_first"], LOG)
    display.live = False
    with display.showing("01_first"):
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
    display = Display(run, ["01_first"], LOG)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with display.showing("01_first"):
        run.build("within.txt", Path.touch)
    assert "(within.txt 0 s)" in capsys.readouterr().out
