"The run directory: scales, seeds, stages that survive kills, full disks, damaged files and other processes."

import errno
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import FrozenInstanceError, asdict, fields, replace
from pathlib import Path

import pytest

from dreamgym import runs
from dreamgym.environments import Suite
from dreamgym.runs import (
    Run,
    RunBusy,
    Scale,
    cache_folder,
    data_folder,
    derive_seed,
    load_suite,
    notebooks_folder,
    set_seed,
    short_folder,
    size,
    switched_on,
    system_picture,
    usable_cores,
    user_path,
    writable_cache,
)
from dreamgym.suites.miniwob import QUICK_KINDS
from dreamgym.trajectories import DreamgymError, Task, Trajectory, Transition, atomic_write_json, write_trajectories

SLOW_STAGE = """
import sys, time
from dreamgym.runs import Run

def slow(path):
    if len(sys.argv) > 3:
        path.mkdir()
        path = path / "inside.txt"
    with path.open("w") as file:
        for number in range(20):
            print(number, file=file, flush=True)
            time.sleep(float(sys.argv[2]))

Run.open(sys.argv[1]).build("slow", slow)
"""
HOLDER = """
import sys
from dreamgym.runs import Run
with Run.open(sys.argv[1]).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def start(program: str, *arguments, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], text=True, **options)


def wait_for(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


# ---------------------------------------------------------------- scales


def test_every_size_has_a_unit_and_says_what_the_paper_says():
    for field in fields(Scale):
        assert set(field.metadata) == {"unit", "paper", "elsewhere"}, field.name
        assert field.metadata["unit"] and field.metadata["paper"], field.name


def test_the_named_scales():
    assert Scale.named("quick") == Scale()
    assert all(Scale.named(name).kinds == () for name in ("quick", "cpu", "gpu", "paper")), "a suite names its task types"
    assert Scale.named("cpu").name == "cpu"


def test_a_suite_has_the_last_word_on_sizes_where_the_scale_is_a_name(tmp_path):
    kinds = {name: Run.open(tmp_path / name, name).scale.kinds for name in ("quick", "cpu", "gpu", "paper")}
    assert kinds["quick"] == QUICK_KINDS and [len(kinds[name]) >= 14 for name in ("cpu", "gpu", "paper")] == [True] * 3
    opened = Run.open(tmp_path / "quick").scale
    assert opened == Scale.named("quick", **load_suite("miniwob").sizes("quick")) and opened.source == "logs"
    mine = Scale.named("quick", maximum_steps=5)
    assert Run.open(tmp_path / "mine", mine).scale == mine, "a scale of one's own stays as it is"


class Maze(Suite):
    name = "maze"

    def sizes(self, scale):
        return {"maximum_steps": 12, "kinds": ["deep"]} if scale == "cpu" else {}


def test_the_suite_of_a_run_is_chosen_and_kept(tmp_path, monkeypatch):
    for name in ("maze", "my.worlds:Maze"):
        monkeypatch.setitem(runs._SUITES, name, Maze())
    monkeypatch.chdir(tmp_path)
    run = Run.open(scale="cpu", suite="maze")
    assert (run.suite, run.path) == ("maze", tmp_path / "runs" / "maze-cpu-0")
    assert (run.scale.maximum_steps, run.scale.kinds) == (12, ("deep",))
    assert Run.open(suite="my.worlds:Maze").path.name == "my-worlds-Maze-quick-0"
    monkeypatch.setenv("DREAMGYM_SUITE", "maze")
    assert Run.open(run.path, "cpu").suite == "maze"
    monkeypatch.delenv("DREAMGYM_SUITE")
    with pytest.raises(DreamgymError, match="made with suite 'maze', scale 'cpu' and seed 0.*name another directory"):
        Run.open(run.path, "cpu")


def test_logs_are_named_by_their_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(runs._SUITES, str(tmp_path / "my logs.jsonl"), Maze())
    run = Run.open(suite="my logs.jsonl")
    assert run.suite == str(tmp_path / "my logs.jsonl") and run.path.name == "my-logs-quick-0"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Run.open(run.path, suite="~/my logs.jsonl").suite == run.suite


def test_the_scale_is_chosen_by_argument_then_variable_then_default(monkeypatch):
    assert Scale.named().name == "quick"
    monkeypatch.setenv("DREAMGYM_SCALE", "cpu")
    assert Scale.named().name == "cpu" and Scale.named("gpu").name == "gpu"
    monkeypatch.setenv("DREAMGYM_SCALE", "")
    assert Scale.named().name == "quick"
    monkeypatch.setenv("DREAMGYM_SCALE", "warp")
    with pytest.raises(DreamgymError, match="Unknown scale 'warp': choose one of quick, cpu, gpu, paper"):
        Scale.named()


def test_a_scale_can_be_changed_only_on_the_way_in():
    assert Scale.named("quick", iterations=1).iterations == 1
    with pytest.raises(FrozenInstanceError):
        Scale.named("quick").iterations = 1
    with pytest.raises(DreamgymError, match="no size named 'iteration'.*table"):
        Scale.named("quick", iteration=1)


def test_the_table_of_a_scale():
    table = Scale.named("cpu", iterations=3).table()
    assert list(table.columns) == ["cpu", "unit", "the paper", "elsewhere"]
    assert table.loc["iterations", "cpu"] == 3 and "name" not in table.index
    assert len(table) == len(fields(Scale)) - 1


def test_size_keeps_its_default():
    assert size(3, "tasks").default == 3 and size(3, "tasks").metadata["paper"] == "the paper does not say"


# ---------------------------------------------------------------- seeds


def test_derived_seeds_never_change():
    "Literal numbers: another value means that every published run changes."
    assert derive_seed(0) == 804681139
    assert derive_seed(0, "rollouts", 3) == 824370181
    assert derive_seed(1, "rollouts", 3) == 68627367
    assert derive_seed(0, "offline") == 551359554
    assert derive_seed(123456789, "grüße", "~", 0) == 603280723


def test_derived_seeds_differ_and_fit():
    seeds = [derive_seed(master, "x", number) for master in range(20) for number in range(500)]
    assert len(set(seeds)) == len(seeds) and 0 <= min(seeds) and max(seeds) < 2**31


def test_derived_seeds_do_not_depend_on_the_process():
    program = "from dreamgym.runs import derive_seed; print(derive_seed(5, 'a', 'b'))"
    outputs = set()
    for hash_seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
        outputs.add(int(done.stdout))
    assert outputs == {derive_seed(5, "a", "b")}


def test_set_seed_seeds_the_global_generators():
    import numpy

    def draw():
        set_seed(7)
        return random.random(), float(numpy.random.random())

    assert draw() == draw()
    set_seed(2**40)  # longer than NumPy accepts
    done = subprocess.run([sys.executable, "-c", "import sys; from dreamgym.runs import set_seed; set_seed(1); "
                           "assert 'torch' not in sys.modules"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- folders


def test_folders_do_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    before = notebooks_folder()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()  # a reader's own
    assert notebooks_folder() == before and data_folder() == before / "data"
    assert (data_folder() / "panels.json").exists()
    monkeypatch.setenv("DREAMGYM_CACHE", str(tmp_path / "weights"))
    assert cache_folder() == tmp_path / "weights"
    monkeypatch.delenv("DREAMGYM_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "dreamgym"


def test_runs_go_where_they_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Run.open(seed=3).path == tmp_path / "runs" / "miniwob-quick-3"
    (tmp_path / "nbs").mkdir()
    monkeypatch.chdir(tmp_path / "nbs")
    assert Run.open(seed=3).path == tmp_path / "runs" / "miniwob-quick-3", "chapters share the folder of the checkout"
    monkeypatch.setenv("DREAMGYM_RUNS", str(tmp_path / "elsewhere"))
    assert Run.open(scale="cpu").path == tmp_path / "elsewhere" / "miniwob-cpu-0"
    assert Run.open(str(tmp_path / "named")).path == tmp_path / "named"


# ---------------------------------------------------------------- opening


def test_opening_twice_gives_the_same_run(run_folder):
    mine = Scale.named("quick", iterations=2, kinds=["click-button", "enter-text"])  # a list, as a caller may write it
    first, second = Run.open(run_folder, mine, 4), Run.open(run_folder, mine, 4)
    assert first.scale == second.scale and first.scale.kinds == ("click-button", "enter-text")
    assert (second.seed, repr(second)) == (4, "Run('run', suite='miniwob', scale='quick', seed=4)")
    assert json.loads((run_folder / "config.json").read_text())["seed"] == 4


def test_another_scale_seed_or_size_is_refused(quick_run):
    other = replace(quick_run.scale, iterations=99, branches=9)
    for scale, seed, sizes in (("cpu", 0, ""), ("quick", 1, ""), (other, 0, ", and differs in branches, iterations")):
        with pytest.raises(DreamgymError, match=f"made with suite 'miniwob', scale 'quick' and seed 0{sizes}; name another directory"):
            Run.open(quick_run.path, scale, seed)
    assert Run.open(quick_run.path).scale == quick_run.scale


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b'"text"', b'{"scale": {}}', b'{"scale": {"kinds": 3}}',
                                     b'{"scale": {"kinds": [], "gone": 1}, "seed": 0}', b"\xff\xfe", b"null"])
def test_a_damaged_configuration_is_named(quick_run, content):
    (quick_run.path / "config.json").write_bytes(content)
    with pytest.raises(DreamgymError, match="config.json in run is damaged.*delete that run directory"):
        Run.open(quick_run.path)


def test_foreign_folders_and_files_are_left_alone(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "aunt.txt").write_text("Dear aunt")
    with pytest.raises(DreamgymError, match="letters is not empty and is no run directory"):
        Run.open(tmp_path / "letters")
    assert [path.name for path in (tmp_path / "letters").iterdir()] == ["aunt.txt"]
    for path in (tmp_path / "letters" / "aunt.txt", tmp_path / "letters" / "aunt.txt" / "run"):
        with pytest.raises(DreamgymError, match="Cannot make the run directory"):
            Run.open(path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".hidden").write_text("")  # what file managers leave behind
    assert Run.open(tmp_path / "empty").path.name == "empty"


def test_two_processes_may_start_the_same_directory(run_folder):
    program = "import sys; from dreamgym.runs import Run; Run.open(sys.argv[1], seed=int(sys.argv[2]))"
    racers = [start(program, run_folder, seed, stderr=subprocess.PIPE) for seed in (0, 1, 0, 1)]
    errors = [racer.communicate()[1] for racer in racers]
    winner = json.loads((run_folder / "config.json").read_text())["seed"]
    for seed, racer, error in zip((0, 1, 0, 1), racers, errors, strict=True):
        assert (racer.returncode == 0) == (seed == winner)
        assert seed == winner or "DreamgymError" in error


# ---------------------------------------------------------------- stages


def test_a_stage_is_built_once(quick_run):
    made = []

    def make(path):
        made.append(path)
        assert path.parent == quick_run.path / "deep" and not (quick_run.path / "deep" / "result.txt").exists()
        path.write_text("done")

    paths = [quick_run.build("deep/result.txt", make), Run.open(quick_run.path).build("deep/result.txt", make)]
    assert len(made) == 1 and paths[0] == paths[1] and paths[0].read_text() == "done"
    (row,) = quick_run.stages()
    assert row["stage"] == "deep/result.txt" and row["seconds"] >= 0 and row["peak_megabytes"] > 1


def test_a_stage_may_be_a_folder_and_may_ask_for_others(quick_run):
    def outer(path):
        inner = quick_run.build("inner.txt", lambda p: p.write_text("inner"))
        quick_run.record("figures", inner=inner.read_text())
        path.mkdir()
        (path / "copy.txt").write_text(inner.read_text())

    assert (quick_run.build("outer", outer) / "copy.txt").read_text() == "inner"
    assert [row["stage"] for row in quick_run.stages()] == ["inner.txt", "outer"]
    assert quick_run.metrics() == {"figures": {"inner": "inner"}}


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), OSError(errno.EACCES, "no")])
def test_a_failed_stage_leaves_nothing_and_keeps_its_error(quick_run, error):
    def make(path):
        path.mkdir()
        (path / "half.txt").write_text("half")
        raise error

    with pytest.raises(type(error)) as caught:
        quick_run.build("result", make)
    assert caught.value is error
    assert [path.name for path in quick_run.path.iterdir() if "result" in path.name] == []
    assert quick_run.build("result", lambda path: path.write_text("well")).read_text() == "well"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EDQUOT, "Quota"),
                                   RuntimeError("I/O error: No space left on device (os error 28)")])
def test_a_full_disk_is_a_sentence(quick_run, error):
    def make(path):
        path.write_text("half")
        raise error

    with pytest.raises(DreamgymError, match="disk is full.*stage result in run.*run the same command again"):
        quick_run.build("result", make)
    assert [path.name for path in quick_run.path.iterdir() if "result" in path.name] == []


@pytest.mark.parametrize("folder", [(), ("folder",)])
def test_a_killed_stage_is_absent_and_the_same_call_completes_it(quick_run, folder):
    half = quick_run.path / ".slow.unfinished" / ("inside.txt" if folder else "")
    process = start(SLOW_STAGE, quick_run.path, 30, *folder)
    wait_for(lambda: half.is_file() and half.read_text().count("\n") == 1)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert half.exists() and not (quick_run.path / "slow").exists() and quick_run.stages() == []

    again = start(SLOW_STAGE, quick_run.path, 0, *folder)
    assert again.wait() == 0
    result = quick_run.path / "slow" / ("inside.txt" if folder else "")
    assert result.read_text().split() == [str(number) for number in range(20)]
    assert not half.exists() and [row["stage"] for row in quick_run.stages()] == ["slow"]


def test_a_busy_run_says_so_and_is_free_after_a_kill(quick_run):
    holder = start(HOLDER, quick_run.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == "held\n"
        quick_run.patience = 0.2
        for work in (lambda: quick_run.build("x", Path.touch), lambda: quick_run.record("x", y=1)):
            with pytest.raises(RunBusy, match="run is in use by another process; wait for it or choose another --run"):
                work()
        assert Run.open(quick_run.path).metrics() == {}, "a busy run can be read"
        assert not (quick_run.path / "x").exists()
    finally:
        holder.kill()
        holder.wait()
    assert quick_run.build("x", Path.touch).exists()


def test_two_processes_share_one_stage(quick_run):
    "The second waits, and finds what the first has built."
    both = [start(SLOW_STAGE, quick_run.path, 0.02) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert len(quick_run.stages()) == 1


def test_the_seconds_of_a_needed_stage_count_once(quick_run, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("dreamgym.runs.time.monotonic", lambda: now[0])

    def make(path, needs=(), seconds=1.0):
        for name in needs:
            quick_run.build(name, lambda path: make(path, seconds=10.0))
        now[0] += seconds
        path.touch()

    quick_run.build("last", lambda path: make(path, ("one", "two")))
    quick_run.build("more", make)
    assert {row["stage"]: row["seconds"] for row in quick_run.stages()} == {"one": 10, "two": 10, "last": 1, "more": 1}


def test_the_log_survives_a_line_that_was_cut_off(quick_run):
    quick_run.build("one", Path.touch)
    with (quick_run.path / "stages.jsonl").open("a") as file:
        file.write('{"stage": "tw\n')
    quick_run.build("three", Path.touch)
    assert [row["stage"] for row in quick_run.stages()] == ["one", "three"]


# ---------------------------------------------------------------- progress and figures


def test_progress_is_written_seldom_and_at_the_end(quick_run):
    for step in range(1, 501):
        quick_run.progress("stage", step, 500, f"loss {step}")
    note = json.loads((quick_run.path / "progress.json").read_text())
    assert (note["stage"], note["done"], note["total"], note["note"]) == ("stage", 500, 500, "loss 500")
    assert [path.name for path in quick_run.path.iterdir() if "unfinished" in path.name] == []


def test_notes_do_not_need_the_clock_on_the_wall(quick_run, monkeypatch):
    "It may be set back, stand still or not be there."
    ticks = iter(range(100))
    monkeypatch.setattr(time, "time", lambda: 1e9 - 1e6 * next(ticks))
    notes = []
    for _ in range(3):
        quick_run._noted = float("-inf")
        quick_run.progress("stage", 0, 9)
        notes.append((quick_run.path / "progress.json").read_text())
    assert len(set(notes)) == 3, "each note differs from the one before, though it says the same"
    quick_run.progress("stage", 1, 9)
    assert (quick_run.path / "progress.json").read_text() == notes[-1], "at most twice a second"


def test_figures_are_merged_by_section(quick_run):
    quick_run.record("a", x=1, y=[1.5, "ü"])
    quick_run.record("b", x=2)
    assert Run.open(quick_run.path).record("a", x=3) == {"a": {"x": 3, "y": [1.5, "ü"]}, "b": {"x": 2}}


@pytest.mark.parametrize("content", ['{"a": ', "[]", "null", ""])
def test_damaged_figures_are_named(quick_run, content):
    (quick_run.path / "metrics.json").write_text(content)
    with pytest.raises(DreamgymError, match="metrics.json in run is damaged.*delete that file"):
        quick_run.metrics()
    assert quick_run.record("late", x=1) == {"late": {"x": 1}} == quick_run.metrics(), "the stage's work is not lost"
    assert (quick_run.path / ".metrics.damaged.json").read_text() == content


def test_a_value_that_json_cannot_hold_spoils_nothing(quick_run):
    quick_run.record("a", x=1)
    with pytest.raises(TypeError):
        quick_run.record("a", x=object())
    assert quick_run.metrics() == {"a": {"x": 1}}


# ---------------------------------------------------------------- the picture


def test_the_picture_lights_what_it_is_told():
    from xml.dom.minidom import parseString

    for lit in ((), ("runs",), ("environments", "replay_buffer")):
        picture = system_picture(*lit)
        parseString(picture)
        assert picture.count("#ffd54f") == len(lit) and picture._repr_html_() == str(picture)
    with pytest.raises(DreamgymError, match="No part named 'nothing'; the parts are environments"):
        system_picture("runs", "nothing")


def test_the_configuration_holds_every_size(quick_run):
    stored = json.loads((quick_run.path / "config.json").read_text())["scale"]
    assert stored == json.loads(json.dumps(asdict(quick_run.scale)))
    assert replace(quick_run.scale, **{**stored, "kinds": tuple(stored["kinds"])}) == quick_run.scale


# ---------------------------------------------------------------- results of stages


def test_only_what_stages_write_counts_as_a_result(quick_run):
    assert (quick_run.evaluations(), quick_run.iterations(), quick_run.transitions()) == ({}, [], None)
    for name in ("dream.json", "my-agent_2.json", "._dream.json", ".dream.json", "_dream.json", "dream (1).json",
                 "dream copy.json", "~dream.json", "#dream.json#", "dream.json~", "0.json"):
        (quick_run.path / "evaluation").mkdir(exist_ok=True)
        (quick_run.path / "evaluation" / name).write_text("{}" if name[0] in "dm" else "\0\0\0")
    (quick_run.path / "evaluation" / "folder.json").mkdir()
    assert list(quick_run.evaluations()) == ["dream", "my-agent_2"]
    for name in ("0001", "0002", "._0003", ".0003.unfinished", "0003 copy", "00003", "3", "0004~"):
        (quick_run.path / "iterations" / name).mkdir(parents=True)
        atomic_write_json(quick_run.path / "iterations" / name / "metrics.json", {"transitions": 7.0})
    (quick_run.path / "iterations" / "0005").write_text("a file")
    assert [path.name for path in quick_run.iterations()] == ["0001", "0002"]
    assert quick_run.transitions() == 14 and quick_run.transitions("real") is None


def test_steps_are_counted_again_where_the_metrics_are_lost(quick_run):
    step = Transition(state="text a", action="click 1", next_state="text a", reward=0.0, done=False)
    for number in ("0001", "0002"):
        (quick_run.path / "real" / number).mkdir(parents=True)
        write_trajectories(quick_run.path / "real" / number / "rollouts.jsonl",
                           [Trajectory(task=Task(id="a/1", kind="a"), transitions=(step,) * 3, truncated=True)] * 2)
    atomic_write_json(quick_run.path / "real" / "0001" / "metrics.json", {"transitions": 5.0})
    assert quick_run.transitions("real") == 11
    (quick_run.path / "real" / "0002" / "rollouts.jsonl").unlink()
    assert quick_run.transitions("real") is None, "unknown is not zero"


# ---------------------------------------------------------------- variables of the environment


@pytest.mark.parametrize("word, on", [
    *((word, True) for word in ("1", "true", "True", "YES", "on", " on ")),
    *((word, False) for word in ("", "0", "false", "FALSE", "no", "Off"))])
def test_switches(word, on, monkeypatch):
    monkeypatch.setenv("A_SWITCH", word)
    assert switched_on("A_SWITCH") is on
    monkeypatch.delenv("A_SWITCH")
    assert switched_on("A_SWITCH") is False


@pytest.mark.parametrize("word", ["2", "ja", "enable", "truee", "-1", "01", "null"])
def test_a_switch_that_says_something_else(word, monkeypatch):
    monkeypatch.setenv("A_SWITCH", word)
    with pytest.raises(DreamgymError, match=f"A_SWITCH is '{word}'; set it to 1, true, yes or on, or to 0"):
        switched_on("A_SWITCH")


def test_cores_are_those_of_this_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert usable_cores() == 1
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores() == 7
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cores() == 1


@pytest.mark.parametrize("variable, default", [("DREAMGYM_CACHE", "home/.cache/dreamgym"), ("DREAMGYM_RUNS", "runs")])
def test_folders_are_whole_paths_with_the_home_filled_in(variable, default, monkeypatch, tmp_path):
    def folder() -> Path:
        return cache_folder() if variable == "DREAMGYM_CACHE" else Run.open("", "quick", 0).path.parent

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for text, path in (("", default), ("here", "here"), ("./a/b", "a/b"), ("~/x", "home/x"), ("~", "home")):
        monkeypatch.setenv(variable, text)
        assert folder() == tmp_path / path


def test_an_unknown_home_is_told(monkeypatch, tmp_path):
    import pwd

    def unknown(*_):
        raise KeyError("no such user")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("DREAMGYM_CACHE", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for action in (cache_folder, writable_cache):
        with pytest.raises(DreamgymError, match="set DREAMGYM_CACHE to a whole path"):
            action()
    with pytest.raises(DreamgymError, match="^The home folder in '~nobody-at-all/x' is not known; set --run to"):
        user_path("~nobody-at-all/x", "--run")
    monkeypatch.setenv("DREAMGYM_RUNS", "~/runs")
    with pytest.raises(DreamgymError, match="set DREAMGYM_RUNS to"):
        Run.open()
    monkeypatch.setenv("DREAMGYM_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.delenv("DREAMGYM_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/dev/null/home")
    with pytest.raises(DreamgymError, match="Nothing can be written to .*; set DREAMGYM_CACHE to a folder that can"):
        writable_cache()
    monkeypatch.setenv("DREAMGYM_CACHE", str(tmp_path / "new" / "cache"))
    assert writable_cache() == tmp_path / "new" / "cache" and writable_cache().is_dir()
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DreamgymError, match="set DREAMGYM_CACHE"):
        writable_cache()


def test_sockets_get_a_short_folder(monkeypatch):
    for usual, expected in (("/tmp/a", "/tmp/a"), ("/tmp/" + "a" * 60, "/tmp"), ("/tmp/" + "\u00e9" * 20, "/tmp")):
        monkeypatch.setattr(tempfile, "tempdir", usual)
        assert short_folder() == expected
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DreamgymError, match="too long for the sockets.*; set TMPDIR to a folder of at most"):
        short_folder()
