"The records, their checks, and files of them: what is written comes back, what is damaged is named."

import errno
import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as some
from pydantic import ValidationError

from dreamgym.trajectories import (
    END_STATE,
    DreamgymError,
    Task,
    Trajectory,
    TrajectoryFileError,
    Transition,
    append_json_line,
    atomic_write_json,
    atomic_write_text,
    read_json,
    read_json_lines,
    read_trajectories,
    trajectory_schema,
    write_trajectories,
)

TASK = Task(id="enter-text/7", kind="enter-text", seed=7, goal='Enter "Ada".', start_state="[1] input ''")


def episode(reward: float = 1.0, **changes) -> Trajectory:
    "Two steps that join up."
    first = Transition(state="[1] input ''", action="type 1 Ada", next_state="[1] input 'Ada'", reward=0.0, done=False)
    last = Transition(state="[1] input 'Ada'", action="click 2", next_state=END_STATE, reward=reward, done=True)
    return Trajectory(task=TASK, transitions=(first, last), **changes)


# ---------------------------------------------------------------- records


@pytest.mark.parametrize("reward, done, accepted", [
    (0.0, False, True), (0.0, True, True), (1.0, True, True), (1.0, False, False), (0.5, True, True), (0.5, False, False),
    (1.1, True, False), (-1.0, True, False), (float("nan"), True, False), (float("inf"), True, False),
])
def test_a_reward_is_an_outcome(reward, done, accepted):
    fields = dict(state="a", action="click 1", next_state="b", reward=reward, done=done)
    if accepted:
        assert Transition(**fields).reward == reward
    else:
        with pytest.raises(ValidationError):
            Transition(**fields)


@pytest.mark.parametrize("changes", [{"seed": "7"}, {"seed": 7.0}, {"synthetic": 1}, {"goal": None}, {"colour": "red"}])
def test_records_are_strict(changes):
    with pytest.raises(ValidationError):
        Task(**{"id": "x/7", "kind": "x", **changes})


def test_records_are_frozen():
    for record, field in ((TASK, "goal"), (episode(), "source"), (episode().transitions[0], "action")):
        with pytest.raises(ValidationError):
            setattr(record, field, "other")


def test_a_chain_joins_up():
    first, last = episode().transitions
    for steps in ((), (first, first), (last, first), (last, last)):
        with pytest.raises(ValidationError):
            Trajectory(task=TASK, transitions=steps)
    assert not Trajectory(task=TASK, transitions=(first,), truncated=True).success


def test_success_and_total_reward():
    assert (episode(1.0).success, episode(1.0).total_reward, len(episode())) == (True, 1.0, 2)
    assert (episode(0.0).success, episode(0.0).total_reward) == (False, 0.0)


# ---------------------------------------------------------------- files


def test_what_is_written_comes_back(tmp_path):
    strange = "tab\t quote ' \" backslash \\ line\nbreak \u2028 emoji 🙂 null \x00 é"
    task = TASK.model_copy(update={"goal": strange, "start_state": strange})
    tutorial = {"Overall Plan": strange, "Success Mode": "a", "Failure Mode": "b"}
    trajectories = [episode(), Trajectory(**{**dict(episode(0.0)), "task": task, "tutorial": tutorial, "real": False})]
    path = tmp_path / "episodes.jsonl"
    write_trajectories(path, trajectories)
    assert read_trajectories(path) == trajectories
    assert path.read_bytes().count(b"\n") == 2, "one line each, whatever the text holds"


def test_a_last_line_needs_no_line_break_and_lines_may_end_as_on_windows(tmp_path):
    line = episode().model_dump_json()
    for text in (line, f"{line}\n", f"{line}\r\n{line}\r\n"):
        (tmp_path / "a.jsonl").write_bytes(text.encode())
        assert set(read_trajectories(tmp_path / "a.jsonl")) == {episode()}


GOOD = episode().model_dump_json()


@pytest.mark.parametrize("bad", [
    GOOD[:100], GOOD[:-1], "", "   ", "null", "[]", "7", '"text"', "{}", "{'task': 1}", GOOD + GOOD,
    GOOD.replace('"reward":1.0', '"reward":2.0'), GOOD.replace('"reward":1.0', '"reward":NaN'),
    GOOD.replace('"done":true', '"done":false'), GOOD.replace('"done":true', '"done":"true"'),
    GOOD.replace('"kind"', '"sort"'), GOOD.replace("input 'Ada'\",\"action", "input 'Bob'\",\"action"),
    '{"prompt": "hello", "completion": "world"}', "\x00" * 50, GOOD.replace("type 1 Ada", "type \x01"),
])
def test_a_bad_line_is_named_by_its_number(tmp_path, bad):
    path = tmp_path / "episodes.jsonl"
    path.write_text(f"{GOOD}\n{GOOD}\n{bad}\n{GOOD}\n", encoding="utf-8")
    with pytest.raises(TrajectoryFileError, match=r"episodes\.jsonl, line 3: ") as error:
        read_trajectories(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400, "one sentence"


@pytest.mark.parametrize("content, says", [
    (b"", "holds no trajectory"), (b"\n\n", "holds no trajectory"), (b"\xff\xfe{\x00", "no text in UTF-8"),
    (b"\x80\x04\x95K", "no text in UTF-8"),
])
def test_a_foreign_file_is_refused(tmp_path, content, says):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(TrajectoryFileError, match=says):
        read_trajectories(path)


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    for path in (tmp_path / "absent.jsonl", tmp_path):
        with pytest.raises(TrajectoryFileError, match="Cannot read .*"):
            read_trajectories(path)


def test_nothing_cannot_be_written(tmp_path):
    with pytest.raises(DreamgymError, match="no trajectory to write"):
        write_trajectories(tmp_path / "a.jsonl", [])
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- whole or not at all


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "note.txt"
    atomic_write_text(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DreamgymError, match="disk is full, so note.txt was not written"):
        atomic_write_text(path, "new")
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        atomic_write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_missing_stays_an_ordinary_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        atomic_write_text(tmp_path / "absent" / "note.txt", "text")


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    "A process writes ever new versions and is killed; the file is one of them, from its first to its last line."
    path = tmp_path / "versions.jsonl"
    program = (
        "import sys\nfrom dreamgym.trajectories import atomic_write_text\n"
        "for n in range(10**6):\n"
        "    atomic_write_text(sys.argv[1], f'{n}\\n' * 20000)\n"
        "    print(n, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    for _ in range(5):
        process.stdout.readline()
    process.kill()
    process.communicate()
    assert len(set(path.read_text().split("\n")[:-1])) == 1 and path.read_text().count("\n") == 20_000


def test_json_is_readable_and_ends_with_a_line_break(tmp_path):
    atomic_write_json(tmp_path / "a.json", {"b": [1, "é"]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"b": [1, "é"]} and text.endswith("}\n") and "é" in text


def test_the_schema_names_every_field():
    schema = trajectory_schema()
    assert set(schema["properties"]) == set(Trajectory.model_fields)
    assert set(schema["$defs"]["Transition"]["properties"]) == set(Transition.model_fields)
    assert set(schema["$defs"]["Task"]["properties"]) == set(Task.model_fields)
    assert not any(part["additionalProperties"] for part in (schema, *schema["$defs"].values()))


# ---------------------------------------------------------------- JSON that any language can read


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [1.0, {"b": -float("inf")}]}])
def test_a_number_that_is_not_finite_is_no_json(tmp_path, value):
    path = tmp_path / "gate.json"
    atomic_write_json(path, {"a": None})
    with pytest.raises(ValueError, match="gate.json.*written as None"):
        atomic_write_json(path, value)
    with pytest.raises(ValueError):
        append_json_line(path, {"a": value})
    assert read_json(path) == {"a": None}, "the old file stays"


@pytest.mark.parametrize("content", [b"", b'{"a"', b"\xff\xfe", b"[" * 100_000, b"[]", b"null", b"7"])
def test_a_damaged_json_file_is_named(tmp_path, content):
    (tmp_path / "gate.json").write_bytes(content)
    with pytest.raises(DreamgymError, match="gate.json in .* is damaged .*delete it"):
        read_json(tmp_path / "gate.json", {})
    assert read_json(tmp_path / "absent.json", {}) == {} and read_json(tmp_path / "absent.json") is None
    (tmp_path / "gate.json").write_text('{"a": NaN, "b": [-Infinity]}')
    assert read_json(tmp_path / "gate.json", {}) == {"a": None, "b": [None]}


# ---------------------------------------------------------------- logs


def test_after_a_torn_line_a_new_one_begins(tmp_path, capsys):
    path, rows = tmp_path / "log.jsonl", [{"stage": f"{name}\u2028\x85é", "n": 1} for name in "abc"]
    assert read_json_lines(path) == []
    for cut in (1, 9, 40):
        path.unlink(missing_ok=True)
        for row in rows[:2]:
            append_json_line(path, row)
        path.write_bytes(path.read_bytes()[:-cut])
        append_json_line(path, rows[2])
        whole = rows if cut == 1 else [rows[0], rows[2]]  # only the line break is missing: nothing is lost
        assert [read_json_lines(path, stage=str) for _ in range(3)] == [whole] * 3
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{tmp_path.name}/log.jsonl" in error, "said once, in one line"


@pytest.mark.parametrize("line", [
    b"{", b"\xff\xfe\x00rubbish", b"[]", b"7", b'"stage"', b"null", b'{"seconds": 1.0}', b'{"stage": 3, "seconds": 1}',
    b'{"stage": "a", "seconds": null}', b'{"stage": "a", "seconds": NaN}', b"[" * 100_000, b'{"stage": "t{"stage": "a"}'])
def test_what_is_no_row_is_passed_over(tmp_path, line):
    path = tmp_path / "log.jsonl"
    append_json_line(path, {"stage": "a", "seconds": 1})
    path.write_bytes(path.read_bytes() + line + b"\r\n\n   \n")
    append_json_line(path, {"stage": "b", "seconds": 0.5})
    assert [row["stage"] for row in read_json_lines(path, stage=str, seconds=(int, float))] == ["a", "b"]


@given(some.lists(some.dictionaries(some.text(), some.none() | some.booleans() | some.integers() | some.text())))
def test_a_log_gives_back_every_row(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("log") / "log.jsonl"
    for row in rows:
        append_json_line(path, row)
    assert read_json_lines(path) == rows


@pytest.mark.parametrize("place", ["goal", "state", "action"])
def test_half_a_surrogate_pair_is_told(tmp_path, place):
    half = "a\ud83d"
    step = Transition(state=half if place == "state" else "a", action=half if place == "action" else "b", next_state="(end)",
                      reward=0.0, done=True)
    task = Task(id="a/1", kind="a", goal=half if place == "goal" else "")
    with pytest.raises(DreamgymError, match="UTF-8 cannot hold, so x.jsonl was not written"):
        write_trajectories(tmp_path / "x.jsonl", [Trajectory(task=task, transitions=(step,))])
    assert not list(tmp_path.iterdir())
