"What a machine has and lacks, what is fetched, and the settings that other processes get."

import os
import shutil
import subprocess
import sys

import pytest

import dreamgym.machine as machine
from dreamgym.machine import all_checks, fetch_missing, kernel_variables, set_variables, short_path
from dreamgym.runs import Scale, cache_folder
from dreamgym.trajectories import DreamgymError

pytestmark = pytest.mark.usefixtures("elsewhere")


# ---------------------------------------------------------------- checks


def test_the_checks_of_doctor(monkeypatch, tmp_path):
    assert all(check.ok for check in machine._check_packages())
    assert machine._check_torch().ok
    monkeypatch.setenv("DREAMGYM_CACHE", str(tmp_path / "cache"))
    assert [check.ok for check in machine._check_weights()] == [False, False]
    assert not (tmp_path / "cache").exists(), "looking changes nothing"
    folder = tmp_path / "cache" / "minilm-0.1.0"
    folder.mkdir(parents=True)
    (folder / "hashes.json").write_text('{"model.bin": "0"}')
    assert [(c.ok, c.found) for c in machine._check_weights()][1] == (False, "damaged")
    monkeypatch.setenv("DREAMGYM_RUNS", "/dev/null/runs")
    assert {c.name: c.ok for c in machine._check_machine()}["runs folder"] is False


def test_everything_is_checked_once(monkeypatch):
    "Each kind of check has its place in the list; only what is missing needs a mend, and then it has one."
    monkeypatch.setattr(machine, "_check_browser", lambda: [machine.Check("browser", False, "none", "install one")])
    checks = all_checks()
    names = [check.name for check in checks]
    assert len(set(names)) == len(names) and all(check.found and (check.ok or check.mend) for check in checks)
    assert set(names) == {"Python", "packages", "notebook kernel", "torch", "model smollm2", "model minilm", "browser",
                          "cache folder", "runs folder", "memory", "cores"}


def test_doctor_looks_at_folders_with_any_name(monkeypatch, tmp_path):
    monkeypatch.setenv("DREAMGYM_CACHE", str(tmp_path / ("x" * 300)))
    assert not machine._has_weights() and not any(c.ok for c in machine._check_weights())
    assert "cache folder" in {c.name for c in machine._check_machine()}


def test_without_a_home_paths_are_shown_as_they_are(monkeypatch):
    import pwd

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda number: (_ for _ in ()).throw(KeyError(number)))
    assert short_path("/a/b") == "/a/b"


def test_doctor_says_why_a_page_cannot_be_shown(monkeypatch):
    from selenium.common.exceptions import WebDriverException

    from dreamgym.suites import miniwob

    def broken():
        raise WebDriverException("cannot find Chrome binary\nStacktrace: ...")

    monkeypatch.setattr(miniwob, "start_chrome", broken)
    check = machine._check_page()
    assert not check.ok and "cannot find Chrome binary" in check.found and "\n" not in check.found


@pytest.mark.browser
def test_doctor_shows_a_page_past_a_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "ALL_PROXY", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    checks = {check.name: check for check in machine._check_browser()}
    assert checks["page in the browser"].ok and "shown and read" in checks["page in the browser"].found


@pytest.mark.browser
def test_doctor_tells_a_browser_that_starts_nothing(monkeypatch, tmp_path):
    version = machine._program_version(shutil.which("chromedriver") or os.environ.get("SE_CHROMEDRIVER", ""))
    program = tmp_path / "chrome"
    program.write_text(f"#!/bin/sh\necho Chromium {version}")
    program.chmod(0o755)
    monkeypatch.setenv("DREAMGYM_BROWSER", str(program))
    assert [(c.name, c.ok) for c in machine._check_browser()] == [
        ("browser", True), ("browser driver", True), ("page in the browser", False)]


# ---------------------------------------------------------------- what is missing


def test_no_browser(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("DREAMGYM_BROWSER", raising=False)
    with pytest.raises(DreamgymError, match="apt-get install -y chromium"):
        fetch_missing()
    assert not machine.is_ready()
    assert [(c.name, c.ok) for c in machine._check_browser()] == [("browser", False)]


def test_what_is_there_is_named_and_not_fetched(monkeypatch):
    from dreamgym import weights
    from dreamgym.suites import miniwob

    monkeypatch.setattr(miniwob, "install_browser", lambda: "/usr/bin/chromium")
    monkeypatch.setattr(weights, "fetch_model", lambda name: os.path.expanduser(f"~/cache/{name}"))
    said = []
    for there, lines in ((True, 0), (False, 2)):
        monkeypatch.setattr(machine, "_has_browser", lambda there=there: there)
        monkeypatch.setattr(machine, "_has_weights", lambda there=there: there)
        monkeypatch.setattr(machine, "writable_cache", lambda: None)
        monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/apt-get")
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        monkeypatch.delenv("DREAMGYM_BROWSER", raising=False)
        said.clear()
        fetch_missing(said.append)
        assert machine.is_ready() is there and sum(line.endswith("...") for line in said) == lines
        assert [line for line in said if not line.endswith("...")] == [
            "browser: /usr/bin/chromium", "smollm2: ~/cache/smollm2", "minilm: ~/cache/minilm"]


@pytest.mark.parametrize("wrong", ["no-such-program", "/dev", "/dev/null"])
def test_a_browser_variable_that_names_nothing(wrong, monkeypatch):
    monkeypatch.setenv("DREAMGYM_BROWSER", wrong)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("something was started"))
    with pytest.raises(DreamgymError, match=f"DREAMGYM_BROWSER is '{wrong}'"):
        fetch_missing()
    (check,) = machine._check_browser()
    assert not check.ok and "DREAMGYM_BROWSER" in check.found and "unset it" in check.mend


def test_prepare_names_the_variable_of_a_cache_that_cannot_be_written(monkeypatch):
    monkeypatch.setenv("DREAMGYM_BROWSER", sys.executable)
    monkeypatch.delenv("DREAMGYM_CACHE", raising=False)
    monkeypatch.setenv("HOME", "/dev/null/home")
    with pytest.raises(DreamgymError, match="set DREAMGYM_CACHE"):
        fetch_missing()
    assert {c.name: c.ok for c in machine._check_machine()}["cache folder"] is False


# ---------------------------------------------------------------- settings for other processes


def test_relative_paths_mean_the_same_in_kernels(monkeypatch, tmp_path):
    folder = tmp_path / "start"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {"DREAMGYM_CACHE": "weights", "DREAMGYM_RUNS": "~/runs", "DREAMGYM_BROWSER": "./chrome",
             "SE_CHROMEDRIVER": "chromedriver"}
    for name, text in given.items():
        monkeypatch.setenv(name, text)
    values = kernel_variables(Scale.named())
    assert values["DREAMGYM_CACHE"] == str(folder / "weights") and values["DREAMGYM_RUNS"] == str(tmp_path / "runs")
    assert values["DREAMGYM_BROWSER"] == str(folder / "chrome") and "SE_CHROMEDRIVER" not in values
    with set_variables(values | {"NEW_ONE": "1"}):
        monkeypatch.chdir(tmp_path)
        assert cache_folder() == folder / "weights" and os.environ["NEW_ONE"] == "1"
    assert {name: os.environ.get(name) for name in [*given, "NEW_ONE"]} == given | {"NEW_ONE": None}


def test_threads_and_doctor_follow_the_cores_of_this_process(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 4, 5}, raising=False)
    assert kernel_variables(Scale.named())["OMP_NUM_THREADS"] == "3"
    assert {c.name: c.found for c in machine._check_machine()}["cores"] == "3"
