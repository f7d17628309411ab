"WebArena-Infinity: a clone read strictly, apps on loopback that end with their owner, verdicts from processes of their own."

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import numpy as np
import pytest
from book_examples import run_without

from dreamgym.environments import PANELS, play_episodes
from dreamgym.runs import Scale
from dreamgym.suites import webarena_infinity
from dreamgym.suites.webarena import SiteFailed, web_elements
from dreamgym.suites.webarena_infinity import (
    InfinitySite,
    WebArenaInfinity,
    find_apps,
    run_verifier,
    served_files,
    split_clone,
    web_tasks,
)
from dreamgym.trajectories import DreamgymError, Task

PAGE = """<!doctype html><html><head><title>Clinic settings</title></head><body>
<h1>Clinic settings</h1>
<form><label for="city">City</label> <input id="city"> <button type="button" id="keep">Keep</button></form>
<label for="theme">Theme</label> <select id="theme"><option>Light</option><option>Dark</option></select>
<p id="kept"></p><script src="js/data.js"></script><script src="js/state.js"></script></body></html>"""
DATA = 'const SEED = {settings: {city: "Berlin", theme: "Light"}, visits: []};'
STATE = """
let state = JSON.parse(JSON.stringify(SEED));
const field = name => document.getElementById(name);
function show() { field("city").value = state.settings.city; field("theme").value = state.settings.theme;
                  field("kept").textContent = "Kept: " + state.settings.city + ", " + state.settings.theme; }
function copy() { show(); return fetch("/api/state", {method: "PUT", headers: {"Content-Type": "application/json"},
                                                      body: JSON.stringify(state)}); }
field("keep").onclick = () => { state.settings.city = field("city").value; copy(); };
field("theme").onchange = () => { state.settings.theme = field("theme").value; copy(); };
new EventSource("/api/events").onmessage = () => { state = JSON.parse(JSON.stringify(SEED)); copy(); };
copy();
"""
SERVER = """
import argparse
import copy
import json
import os
import queue
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

seed, now, pages = None, None, []


class Handler(SimpleHTTPRequestHandler):
    def reply(self, status, value=None):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/api/events":
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            pages.append(queue.SimpleQueue())
            mine = pages[-1]
            while True:
                mine.get()
                self.wfile.write(b"data: reset\\n\\n")
                self.wfile.flush()
        if self.path == "/api/state":
            return self.reply(404 if now is None else 200, now)
        return super().do_GET()

    def do_PUT(self):
        global seed, now
        now = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        seed = seed or copy.deepcopy(now)
        self.reply(200)

    def do_POST(self):
        global now
        RESET
        for page in pages:
            page.put("reset")
        self.reply(200)


parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=8000)
ThreadingHTTPServer(("0.0.0.0", parser.parse_args().port), Handler).serve_forever()
"""
GOOD_SERVER = SERVER.replace("RESET", "now = copy.deepcopy(seed)")
CITY = """
import json
from urllib.request import urlopen


def verify(server_url: str) -> tuple[bool, str]:
    with urlopen(server_url + "/api/state") as answer:
        settings = json.load(answer)["settings"]
    return settings["KEY"] == "VALUE", f"KEY is {settings['KEY']}"
"""
HANGS = "def verify(server_url):\n    while True:\n        pass\n"
RAISES = "def verify(server_url):\n    raise LookupError('no such visit')\n"


def condition(key, value):
    return CITY.replace("KEY", key).replace("VALUE", value)


FUNCTIONS = {"city": ("Set the city to Paris.", condition("city", "Paris")),
             "theme": ("Use the dark theme.", condition("theme", "Dark")),
             "hangs": ("Book a visit.", HANGS), "raises": ("Cancel a visit.", RAISES)}
REAL = {f"task_{level[0]}{n}": (f"Set the city to {level}{n}.", condition("city", f"{level}{n}"), level)
        for level in ("easy", "medium", "hard") for n in range(5)}


def write_app(folder: Path, server: str = GOOD_SERVER) -> Path:
    "An app with 4 function tasks and 15 real ones."
    texts = {"index.html": PAGE, "js/data.js": DATA, "js/state.js": STATE, "server.py": server, "README.md": "An app."}
    rows = [dict(id=name, instruction=goal, verify=f"function-tasks/{name}.py") for name, (goal, _) in FUNCTIONS.items()]
    texts["function-tasks.json"] = json.dumps(rows)
    rows = [dict(id=name, instruction=goal, verify=f"real-tasks/{name}.py", difficulty=level)
            for name, (goal, _, level) in REAL.items()]
    texts["real-tasks.json"] = json.dumps(rows)
    texts |= {f"function-tasks/{name}.py": text for name, (_, text) in FUNCTIONS.items()}
    texts |= {f"real-tasks/{name}.py": text for name, (_, text, _) in REAL.items()}
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def clone(tmp_path, monkeypatch):
    "A clone with one app."
    folder = tmp_path.resolve() / "clone"
    write_app(folder / "apps" / "clinic")
    monkeypatch.setenv("DREAMGYM_WEBARENA_INFINITY", str(folder))
    return folder


@pytest.fixture
def tasks(clone):
    return web_tasks(clone, "clinic", clone / "apps" / "clinic")


@pytest.fixture
def make_site(clone):
    "A function that makes sites, which are closed at the end."
    made = []

    def make(**options):
        made.append(InfinitySite(clone, **{"patience": 60.0, "limit": 60.0} | options))
        return made[-1]

    yield make
    for site in made:
        site.close()


def fetch(address, path="", method="GET", value=None, headers=None):
    "Status and text of an answer."
    request = Request(address + path, None if value is None else json.dumps(value).encode(), headers or {}, method=method)
    try:
        with build_opener(ProxyHandler({})).open(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        return error.code, ""


def open_page(site, **settings):
    "What a page copies when it is opened, or later when a setting has changed."
    state = {"settings": {"city": "Berlin", "theme": "Light"} | settings, "visits": []}
    assert fetch(site.address, "/api/state", "PUT", state)[0] == 200


def comes_true(condition, seconds=120):
    "Whether it does, some time."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def is_alive(number: int) -> bool:
    "Does this process run? One that has ended and waits to be fetched does not."
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc")


# ---------------------------------------------------------------- reading a clone


def test_apps_are_found_by_their_files(tmp_path):
    places = ["one", "apps/two", "apps/deep/three", ".git/four", "apps/.old/five", "old/one"]
    for place in places:
        write_app(tmp_path / place)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.html").write_text("no app")
    found = {name: path.relative_to(tmp_path).as_posix() for name, path in find_apps(tmp_path).items()}
    assert found == {"one": "one", "old-one": "old/one", "two": "apps/two"}
    assert list(find_apps(tmp_path / "apps" / "two")) == ["two"]


def test_apps_whose_names_cannot_be_told_apart_are_refused(tmp_path):
    for place in ("a b", "a-b"):
        write_app(tmp_path / place)
    with pytest.raises(DreamgymError, match="same name; rename one of a b, a-b"):
        find_apps(tmp_path)


def test_an_app_without_real_tasks_is_one_too(clone):
    (clone / "apps" / "clinic" / "real-tasks.json").unlink()
    tasks = web_tasks(clone, "clinic", clone / "apps" / "clinic")
    assert list(tasks) == [f"clinic-function/{name}" for name in FUNCTIONS] and list(find_apps(clone)) == ["clinic"]


def test_a_task_says_what_its_files_say(clone, tasks):
    assert len(tasks) == 19
    task = tasks["clinic-hard/task_h3"]
    assert task["intent"] == "Set the city to hard3." and task["difficulty"] == "hard" and task["app"] == "clinic"
    assert task["verify"] == "apps/clinic/real-tasks/task_h3.py" and task["start_urls"] == ["__APP__/"]
    assert {task["kind"] for task in tasks.values()} == {f"clinic-{name}" for name in ("function", "easy", "medium", "hard")}


@pytest.mark.parametrize(("variable", "says"), [
    (None, "clone github.com"), ("", "clone github.com"), ("{}/nowhere", "no such folder"), ("{}/file", "no such folder"),
    ("{}/empty", "no app"), ("~nobody-has-this-name/x", "home folder")])
def test_a_folder_that_is_no_clone_is_told(tmp_path, monkeypatch, variable, says):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.delenv("DREAMGYM_WEBARENA_INFINITY", raising=False)
    if variable is not None:
        monkeypatch.setenv("DREAMGYM_WEBARENA_INFINITY", variable.format(tmp_path))
    suite = WebArenaInfinity()
    for ask in (lambda: suite.tasks("train"), suite.make_site if "empty" not in (variable or "") else suite.panel_hash):
        with pytest.raises(DreamgymError, match=says):
            ask()
    assert any(says in sentence for sentence in suite.missing())


ROW = dict(id="a", instruction="Do it.", verify="real-tasks/task_e1.py")


@pytest.mark.parametrize(("text", "says"), [
    ("[{", "no JSON"), ("", "no JSON"), ('{"tasks": []}', "list of tasks"), ("3", "list of tasks"), ("[" * 100_000, "no JSON"),
    ("[3]", "'id'"), (json.dumps([ROW | dict(instruction="")]), "'instruction'"),
    (json.dumps([ROW | dict(instruction=["x"])]), "'instruction'"), (json.dumps([ROW | dict(verify=None)]), "'verify'"),
    (json.dumps([ROW | dict(difficulty=3)]), "'difficulty'"), (json.dumps([ROW, ROW]), "earlier one"),
    (json.dumps([ROW | dict(verify="../../../outside.py")]), "inside"),
    (json.dumps([ROW | dict(verify="/etc/x.py")]), "inside"),
    (json.dumps([ROW | dict(verify="link.py")]), "inside"), (json.dumps([ROW | dict(verify="index.html")]), "Python file")])
def test_a_damaged_task_file_is_told(clone, text, says):
    app = clone / "apps" / "clinic"
    (clone.parent / "outside.py").write_text("def verify(url):\n    return True, 'won'\n")
    (app / "link.py").symlink_to(clone.parent / "outside.py")
    (app / "real-tasks.json").write_text(text)
    with pytest.raises(DreamgymError, match=says) as caught:
        WebArenaInfinity().tasks("train")
    assert "clinic" in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value) in WebArenaInfinity().missing()


def test_numbers_are_ids_too_and_odd_names_fit_into_one_word(clone):
    app = clone / "apps" / "clinic"
    rows = [ROW | dict(id=7, difficulty="Very Hard"), ROW | dict(id="a / b")]
    (app / "real-tasks.json").write_text(json.dumps(rows))
    assert list(web_tasks(clone, "clinic", app))[-2:] == ["clinic-very-hard/7", "clinic-real/a-b"]


def test_a_verifier_that_is_missing_is_counted(clone, tasks, make_site):
    (clone / tasks["clinic-easy/task_e1"]["verify"]).unlink()
    assert any(s.startswith("1 verifiers are missing") and "task_e1.py" in s for s in WebArenaInfinity().missing())
    with pytest.raises(SiteFailed, match="no verifier"):
        make_site().reset(tasks["clinic-easy/task_e1"])


# ---------------------------------------------------------------- panels and sizes


def panels_of(suite):
    return {name: [task.id for task in suite.tasks(name)] for name in PANELS}


def test_with_few_apps_the_hard_tasks_are_held_out(clone, tasks):
    panels = panels_of(WebArenaInfinity())
    assert sorted(sum(panels.values(), [])) == sorted(tasks)  # each task in one panel
    assert {name.split("/")[0] for name in panels["held_out"]} == {"clinic-hard"} and len(panels["held_out"]) == 5
    for name in ("train", "development", "test"):
        assert {task.split("/")[0] for task in panels[name]} == {"clinic-function", "clinic-easy", "clinic-medium"}
    assert all(task.goal and task.kind == task.id.split("/")[0] for task in WebArenaInfinity().tasks("test"))


def test_with_many_apps_whole_ones_are_held_out(clone):
    for name in ("mail", "wallet", "slides", "plans"):
        write_app(clone / name)
    panels = panels_of(WebArenaInfinity())
    apps = {name: {task.split("-")[0] for task in tasks} for name, tasks in panels.items()}
    (away,) = apps.pop("held_out")
    assert all(found == {"clinic", "mail", "wallet", "slides", "plans"} - {away} for found in apps.values())
    assert len(panels["held_out"]) == 19 and sum(map(len, panels.values())) == 95
    assert any("-hard/" in task for task in panels["train"])


def test_panels_do_not_depend_on_the_order_of_a_file(tasks):
    def names(found):
        return {panel: {task.id for task in part} for panel, part in split_clone(found).items()}

    assert names(tasks) == names(dict(reversed(tasks.items())))
    assert [task.id for task in split_clone(tasks)["test"]] == PINNED


PINNED = ["clinic-function/theme", "clinic-easy/task_e4", "clinic-medium/task_m2"]


def test_sizes_fit_the_clone(clone):
    suite = WebArenaInfinity()
    for name in ("quick", "cpu"):
        scale = Scale.named(name, **suite.sizes(name))
        assert scale.maximum_steps == suite.maximum_steps == 20
        assert scale.kinds == (("clinic-function",) if name == "quick" else ())
        most = max(len(suite.tasks("train", [kind])) for kind in scale.kinds or ("clinic-easy",))
        assert 0 < scale.offline_seeds_per_kind <= most
    for path in (clone / "apps" / "clinic").glob("function-tasks.json"):
        path.write_text("[]")
    webarena_infinity._read_clone.cache_clear()
    assert suite.sizes("quick")["kinds"] == ("clinic-easy",)


def test_only_tasks_of_the_clone_are_web_tasks(clone):
    suite = WebArenaInfinity()
    known = suite.tasks("train")[0]
    assert suite.web_task(known)["intent"] == known.goal
    for task in (Task(id="clinic-easy/none", kind="clinic-easy"), known.model_copy(update={"synthetic": True})):
        with pytest.raises(DreamgymError, match="none of this clone"):
            suite.web_task(task)


# ---------------------------------------------------------------- verifiers


def verdict(tmp_path, text, limit=60.0):
    (tmp_path / "check.py").write_text(text)
    return run_verifier(tmp_path / "check.py", "http://127.0.0.1:1", limit)


def test_a_verdict_comes_with_its_reason(tmp_path):
    text = "def verify(url):\n    return url.endswith(':1'), 'so\\n it\\x1b[31m is'"
    assert verdict(tmp_path, text) == (True, "so it [31m is")
    assert verdict(tmp_path, "def verify(url):\n    print('True')\n    return False, 'x' * 9000") == (False, "x" * 300)


def test_a_verifier_runs_in_its_folder_with_what_it_needs_and_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "hidden")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    (tmp_path / "helper.py").write_text("WORD = 'helped'")
    text = ("import os\nfrom dataclasses import dataclass\nimport requests\nimport helper\n@dataclass\nclass A:\n    b: int\n"
            "def verify(url):\n    bad = [n for n in os.environ if 'KEY' in n or 'PROXY' in n or 'DREAMGYM' in n]\n"
            "    return not bad and A(1).b == 1, f'{helper.WORD} in {os.getcwd()} {bad}'")
    assert verdict(tmp_path, text) == (True, f"helped in {tmp_path.resolve()} []")
    assert not list(tmp_path.glob("__pycache__"))


@pytest.mark.parametrize(("text", "says"), [
    ("x = 1", "no function verify"), ("verify = 3", "no function verify"), ("def verify(", "SyntaxError"),
    ("def verify():\n    return True, ''", "TypeError"), (RAISES, "LookupError: no such visit"),
    ("import sys\ndef verify(url):\n    sys.exit(0)", "SystemExit"), ("import nowhere_to_be_found", "ModuleNotFoundError"),
    ("import os\ndef verify(url):\n    os._exit(3)", "status 3"),
    ("import os\ndef verify(url):\n    os.write(1, b'{\\n')\n    os._exit(0)", "something else"),
    ("import os\ndef verify(url):\n    os.write(1, b'[true]\\n')\n    os._exit(0)", "no answer"),
    ("import os\ndef verify(url):\n    os.write(1, b'{\"said\": 1}\\n')\n    os._exit(0)", "no answer"),
    *[(f"def verify(url):\n    return {value}", "not (bool, str)") for value in (
        "None", "True", "(1, 'yes')", "(True,)", "(True, None)", "('yes', True)", "(True, 'a', 'b')", "{'a': 1, 'b': 2}")]])
def test_what_is_no_verdict_is_the_sites_fault(tmp_path, text, says):
    with pytest.raises(SiteFailed, match=f"check.py in .*{re.escape(says)}"):
        verdict(tmp_path, text)


@needs_proc
def test_a_verifier_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    text = ("import subprocess, sys\ndef verify(url):\n    child = subprocess.Popen([sys.executable, '-c', "
            "'import time; time.sleep(600)'])\n    open('number', 'w').write(str(child.pid))\n    while True:\n        pass")
    for limit in (2.0, 20.0, 200.0):  # on a busy machine even a small program takes its time
        with pytest.raises(SiteFailed, match=f"no answer in {limit:g} seconds"):
            verdict(tmp_path, text, limit)
        if (tmp_path / "number").exists():
            break
    assert comes_true(lambda: not is_alive(int((tmp_path / "number").read_text())))


# ---------------------------------------------------------------- the site


def test_a_site_serves_pages_and_keeps_the_rest(clone, tasks, make_site):
    app, site = clone / "apps" / "clinic", make_site()
    (app / ".env").write_text("TOKEN=1")
    (app / "assets").mkdir()
    (app / "assets" / "secret.txt").symlink_to(clone.parent)
    (app / "assets" / "source.txt").symlink_to(app / "server.py")
    (app / "assets" / "list.json").symlink_to(app / "real-tasks.json")
    (app / "assets" / "same.js").symlink_to(app / "js" / "data.js")
    (app / "assets" / "copied.json").write_text((app / "real-tasks.json").read_text())
    (app / "assets" / "cities.json").write_text('["Berlin", "verify"]')
    (clone.parent / "password.txt").write_text("x")
    (app / "password.txt").symlink_to(clone.parent / "password.txt")
    (app / "js" / "tasks.js").write_text("// a page of the app")
    site.reset(tasks["clinic-function/city"])
    assert served_files(app) == ["assets/cities.json", "assets/same.js", "index.html", "js/data.js", "js/state.js",
                                 "js/tasks.js"]
    assert fetch(site.address, "/") == (200, PAGE) and fetch(site.address, "/js/tasks.js")[0] == 200
    for path in ("server.py", "function-tasks.json", "real-tasks.json", "real-tasks/task_e1.py", "function-tasks/", ".env",
                 "password.txt", "README.md", "../clinic/server.py", "%2e%2e/log", "js/../server.py",
                 "assets/list.json", "assets/source.txt", "assets/copied.json"):
        assert fetch(site.address, f"/{path}")[0] == 404, path


def test_a_state_is_no_page(tasks, make_site):
    site = make_site()
    site.reset(tasks["clinic-function/city"])
    open_page(site)
    for path in ("/api/state", "//api/state", "/%61pi/state", "/API/state", "/x/../api/state"):
        assert fetch(site.address, path, headers={"Sec-Fetch-Dest": "document"})[0] == 403, path
    assert fetch(site.address, "/api/state", headers={"Sec-Fetch-Dest": "empty"})[0] == 200
    assert fetch(site.address, "/", headers={"Sec-Fetch-Dest": "document"})[0] == 200


def test_a_site_listens_on_loopback_alone(tasks, make_site):
    site = make_site()
    site.reset(tasks["clinic-function/city"])
    assert list(site.urls().values()) == [site.address] and site.address.startswith("http://127.0.0.1:")
    if sys.platform == "linux":  # there 127.0.0.2 is this machine too, and every interface would answer
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", int(site.address.rpartition(":")[2])), timeout=60).close()


def test_an_episode_begins_with_the_first_state_and_ends_with_a_verdict(tasks, make_site):
    site, task = make_site(), tasks["clinic-function/city"]
    for _ in range(3):
        site.reset(task)
        assert site.state() is None or site.state()["settings"]["city"] == "Berlin"
        open_page(site)
        assert site.score(task, None, []) == (False, "city is Berlin")
        open_page(site, city="Paris")
        number = site.server.pid
        assert site.score(task, {"status": "SUCCESS"}, []) == (True, "city is Paris")
    assert site.server.pid == number
    assert site.score(tasks["clinic-function/theme"], None, []) == (False, "theme is Light")


def test_sites_do_not_share_a_state(tasks, make_site):
    first, second, task = make_site(), make_site(), tasks["clinic-function/city"]
    for site in (first, second):
        site.reset(task)
        open_page(site)
    open_page(first, city="Paris")
    assert first.address != second.address
    assert first.score(task, None, [])[0] and not second.score(task, None, [])[0]


def test_a_site_needs_no_proxy(tasks, make_site, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    site = make_site()
    site.reset(tasks["clinic-function/city"])
    open_page(site, city="Paris")
    assert site.score(tasks["clinic-function/city"], None, [])[0]


@pytest.mark.parametrize("change", ["pass", "now = {'settings': 3}", "return self.reply(500)", "os._exit(3)",
                                    "return self.wfile.write(b'no HTTP')"])
def test_where_a_state_is_not_restored_a_fresh_process_is(clone, tasks, make_site, change):
    write_app(clone / "apps" / "clinic", SERVER.replace("RESET", f"if now != seed: {change}"))
    site, task = make_site(), tasks["clinic-function/city"]
    site.reset(task)
    number = site.server.pid
    open_page(site)
    site.reset(task)
    assert site.server.pid == number  # nothing had changed
    open_page(site, city="Paris")
    site.reset(task)
    assert site.state() is None and site.server.pid != number
    open_page(site)
    assert site.score(task, None, []) == (False, "city is Berlin")


def test_a_server_that_died_fails_the_episode_and_is_started_again(tasks, make_site):
    site, task = make_site(), tasks["clinic-function/city"]
    with pytest.raises(SiteFailed, match="has ended"):
        site.score(task, None, [])
    site.reset(task)
    address = site.address
    for again in (site.urls, lambda: site.reset(task)):
        site.server.kill()
        site.server.wait()
        with pytest.raises(SiteFailed, match="clinic has ended"):
            site.score(task, None, [])
        again()
        assert site.address == address and fetch(address, "/")[0] == 200 and fetch(address, "/server.py")[0] == 404


def test_one_site_serves_one_app_after_another(clone, make_site):
    write_app(clone / "mail", GOOD_SERVER)
    (clone / "mail" / "index.html").write_text("<title>Mail</title>")
    site, titles, addresses = make_site(), [], set()
    for app in ("clinic", "mail", "clinic"):
        site.reset(web_tasks(clone, app, find_apps(clone)[app])[f"{app}-function/city"])
        titles.append(re.search("<title>(.*)</title>", fetch(site.address, "/")[1])[1])
        addresses.add(site.address)
        assert site.state() is None
        open_page(site)
    assert titles == ["Clinic settings", "Mail", "Clinic settings"] and len(addresses) == 1


@pytest.mark.parametrize(("server", "says"), [
    ("raise SystemExit('the kitchen\\nis closed')", "ended: is closed"), ("import nothing_like_this", "ended: ModuleNotFound"),
    ("x = (", "ended: SyntaxError"), ("import time\ntime.sleep(600)", "not started in 1 second"), ("", "left no word"),
    (GOOD_SERVER.replace('if self.path == "/api/state":', 'if self.path == "/":'), "not started in 1 second"),
    ("import socket\nsocket.socket(type=socket.SOCK_DGRAM).bind(('', 0))", "one address")])
def test_a_server_that_does_not_start_is_told(clone, tasks, make_site, server, says):
    (clone / "apps" / "clinic" / "server.py").write_text(server)
    site = make_site(patience=1.0 if "1 second" in says else 60.0)
    for _ in range(2):
        with pytest.raises(SiteFailed, match=f"clinic.*{says}"):
            site.reset(tasks["clinic-function/city"])


def test_an_app_that_is_gone_is_told(clone, tasks, make_site):
    (clone / "apps" / "clinic" / "server.py").unlink()
    with pytest.raises(SiteFailed, match="cannot be copied"):
        make_site().reset(tasks["clinic-function/city"])


def test_a_server_may_serve_the_folder_that_it_lies_in(clone, tasks, make_site):
    change = "os.chdir(os.path.dirname(__file__))\nparser = argparse.ArgumentParser()"
    server = GOOD_SERVER.replace("parser = argparse.ArgumentParser()", change)
    (clone / "apps" / "clinic" / "server.py").write_text(server)
    site = make_site()
    site.reset(tasks["clinic-function/city"])
    assert [fetch(site.address, path)[0] for path in ("/", "/server.py", "/real-tasks.json")] == [200, 404, 404]


def test_a_state_is_scored_when_it_has_come_to_rest(tasks, make_site, monkeypatch):
    site, states = make_site(), [None, None, None, "P", "P", "Pa", "Paris", "Paris", "Paris", "London"]
    site.reset(tasks["clinic-function/city"])
    monkeypatch.setattr(site, "state", lambda: states.pop(0))
    monkeypatch.setattr(webarena_infinity, "run_verifier", lambda path, url, limit: (path.name, states))
    assert site.score(tasks["clinic-function/city"], None, []) == ("city.py", ["London"])


@pytest.mark.parametrize(("put", "says"), [("nothing", "No page"), ("text", "no JSON"), ("error", "answers 503")])
def test_a_state_that_nobody_can_read_is_the_sites_fault(clone, tasks, make_site, put, says):
    answer = {"nothing": "404", "text": "200", "error": "503"}[put]
    server = GOOD_SERVER.replace("self.reply(404 if now is None else 200, now)", f"self.send_error({answer})")
    write_app(clone / "apps" / "clinic", server)
    site = make_site()
    site.reset(tasks["clinic-function/city"]) if put == "nothing" else site._start("apps/clinic")
    with pytest.raises(SiteFailed, match=says):
        site.score(tasks["clinic-function/city"], None, [])


def test_closing_leaves_nothing(tasks, make_site):
    site = make_site()
    site.close()
    site.reset(tasks["clinic-function/city"])
    process, folder, address = site.server, site.log.parent, site.address
    assert folder.is_dir()
    site.close()
    assert process.poll() is not None and not folder.exists()
    with pytest.raises(OSError):
        fetch(address, "/")


OWNER = """
import json, sys, time
from pathlib import Path
from dreamgym.suites.webarena_infinity import InfinitySite, find_apps, web_tasks
clone = Path(sys.argv[1])
task = web_tasks(clone, "clinic", find_apps(clone)["clinic"])["clinic-function/hangs"]
site = InfinitySite(clone, 600, 600)
site.reset(task)
print(json.dumps([site.server.pid, str(site.log.parent), site.address]), flush=True)
sys.stdin.readline()
site.score(task, None, [])
"""


@needs_proc
def test_all_children_end_with_an_owner_that_was_killed(clone):
    verifier = clone / "apps" / "clinic" / "function-tasks" / "hangs.py"
    verifier.write_text(HANGS.replace("    while", "    import os\n    open('number', 'w').write(str(os.getpid()))\n    while"))
    owner = subprocess.Popen([sys.executable, "-c", OWNER, clone], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        server, folder, address = json.loads(owner.stdout.readline())
        assert fetch(address, "/api/state", "PUT", {"settings": {}})[0] == 200 and Path(folder).is_dir() and is_alive(server)
        owner.stdin.write("go\n")
        owner.stdin.flush()
        number = verifier.parent / "number"
        assert comes_true(lambda: number.exists() and number.read_text())
        os.kill(owner.pid, signal.SIGKILL)
        for process in (server, int(number.read_text())):
            assert comes_true(lambda process=process: not is_alive(process))
        assert comes_true(lambda: not Path(folder).exists())
    finally:
        owner.kill()
        owner.communicate()


# ---------------------------------------------------------------- whole episodes


browser = pytest.mark.browser


@pytest.fixture
def play(clone):
    "A function that plays episodes with written actions; `{City}` stands for the id of the element of that name."
    pytest.importorskip("playwright")
    pytest.importorskip("browsergym.core")
    suite = WebArenaInfinity()
    if lacking := suite.missing():
        pytest.skip(lacking[0])
    tasks = {task.id: task for name in PANELS for task in suite.tasks(name)}

    def run(*episodes, steps=6):
        def act(index, task, state, past):
            if len(past) == len(episodes[index][1]):
                return None
            names = {element.name: element.id for element in web_elements(state).values()}
            return re.sub("{(.*?)}", lambda found: names[found[1]], episodes[index][1][len(past)])

        with suite.environment(1, steps) as world:
            return play_episodes(world, [tasks[name] for name, _ in episodes], act), world.failures

    return run


PARIS, KEEP, DONE = "fill('{City}', 'Paris')", "click('{Keep}')", "send_msg_to_user('done')"
DARK = "select_option('{Theme}', 'Dark')"


@browser
def test_episodes_are_played_and_judged(play):
    played, failures = play(
        ("clinic-function/city", [PARIS, KEEP, DONE]), ("clinic-function/city", [PARIS, DONE]),
        ("clinic-function/city", [DONE]), ("clinic-function/theme", [DARK, DONE]),
        ("clinic-function/theme", ["report_infeasible('no')"]), ("clinic-function/city", [PARIS, "click('99')"]))
    assert [episode.success for episode in played] == [True, False, False, True, False, False] and not failures
    assert all('"City" = "Berlin"' in episode.task.start_state for episode in played)  # each begins afresh
    assert all("Kept: Berlin, Light" in episode.task.start_state for episode in played)
    assert "Kept: Paris, Light" in played[0].transitions[1].next_state
    assert played[5].transitions[-1].invalid and played[0].task.goal == "Set the city to Paris."


@browser
def test_the_verifier_decides_at_the_step_limit_too(play):
    (won, lost), failures = play(("clinic-function/city", [PARIS, KEEP]), ("clinic-function/city", [PARIS, "noop()"]), steps=2)
    assert won.success and not lost.success and lost.truncated and not failures


@browser
def test_a_verdict_that_fails_is_no_failure_of_the_agent(play):
    (raised, fine), failures = play(("clinic-function/raises", [DONE]), ("clinic-function/theme", [DARK, DONE]))
    assert raised.transitions[-1].broken and fine.success and failures == {"SiteFailed": 1}


@browser
def test_an_agent_sees_neither_tasks_nor_states(play):
    places = ["/real-tasks.json", "/function-tasks/city.py", "/server.py", "/api/state", "/api/reset"]
    (episode, away), failures = play(("clinic-function/city", [*(f"goto('{place}')" for place in places), DONE]),
                                     ("clinic-function/city", ["goto('file:///etc/passwd')"]), steps=9)
    for step in episode.transitions[:-1]:
        assert not re.search("verify|instruction|settings|serve_forever", step.next_state)
        assert re.search("40[34]", step.next_state)
    assert not episode.success and away.transitions[-1].invalid and not failures


@browser
def test_random_play_finds_its_way_about(play, clone):
    suite, random = WebArenaInfinity(), np.random.default_rng(0)
    with suite.environment(1, 5) as world:
        played = play_episodes(world, suite.tasks("train", ["clinic-easy"]), lambda i, task, state, past:
                               suite.random_action(task, state, random))
    assert not world.failures and not any(step.invalid for episode in played for step in episode.transitions)
    assert len({step.action for episode in played for step in episode.transitions}) > 2


def test_the_chapter_passes_without_a_browser(tmp_path):
    "Its cells in order, in a Python that finds no playwright."
    said = run_without("35_webarena_infinity", {"playwright"}, tmp_path)
    assert 'pip install "dreamgym[webarena]"' in said
