"Rules of the repository as a whole: its files, README, citation, CI, the wheel, and the package made from nbs/."

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
MAIN_LINE = "pip install -e . && dreamgym reproduce"
TEST_LINE = 'pip install -e ".[dev,webarena]" && dreamgym test'
TOP_LEVEL = {
    ".ci", ".gitattributes", ".github", ".gitignore", "CITATION.cff", "LICENSE", "README.md", "dreamgym",
    "environment.yml", "nbs", "pyproject.toml", "results", "settings.ini", "tests",
}
# Places of one machine, and hosts that one machine installs from. Written in pieces, so that this file passes too.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:wo[r]k|ro[o]t|ho[m]e|Use[r]s)/\w")
REGISTRY_HOST = re.compile(r"py[p]i\.org|python[h]osted\.|deb[.]debian|registry[.]npm|/opt/(?:py[p]i|whe[e]ls)")


def repository_files() -> list[Path]:
    "The files that git keeps or would keep."
    command = ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):  # unpacked without git
        pytest.skip("this checkout has no git")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# ---------------------------------------------------------------- files


def test_the_top_level_is_the_one_of_the_design():
    found = {path.relative_to(ROOT).parts[0] for path in repository_files()}
    assert sorted(found - TOP_LEVEL) == [], "nothing else at the top without a reason that a newcomer would accept"
    assert sorted(TOP_LEVEL - found) == []


def test_no_file_is_large():
    assert [str(path.relative_to(ROOT)) for path in repository_files() if path.stat().st_size > 20_000_000] == []
    sample = ROOT / "nbs" / "data" / "sample_trajectories.jsonl"
    assert sample.stat().st_size <= 1_000_000


def test_no_file_names_a_machine():
    found = []
    for path in repository_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # binary
        text = re.sub(r'"image/png": "[^"]*"', "", text)
        for pattern in (MACHINE_PATH, REGISTRY_HOST):
            if match := pattern.search(text):
                found.append(f"{path.relative_to(ROOT)}: {text[max(0, match.start() - 30):match.end() + 30]!r}")
    assert found == []


def test_the_licence_is_the_whole_apache_licence():
    text = read("LICENSE")
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text and len(text) > 11_000


# ---------------------------------------------------------------- README


def test_readme_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)\s]+)\)", read("README.md"))
    local = [target.split("#")[0] for target in targets if not re.match(r"https?://|#|mailto:", target)]
    assert [target for target in local if target and not (ROOT / target).exists()] == []


def test_readme_links_every_chapter():
    text = read("README.md")
    chapters = sorted(path.name for path in (ROOT / "nbs").glob("*.ipynb"))
    assert chapters and [name for name in chapters if f"(nbs/{name})" not in text] == []


def test_readme_is_short():
    lines = read("README.md").splitlines()
    assert len(lines) <= 150, "what a newcomer does not need in two minutes belongs into a chapter"
    made = read("README.md").partition("<!-- results ")[2].partition("<!-- /results -->")[0].splitlines()  # a column a world
    assert [line for line in lines if len(line) > 130 and line not in made] == []


def test_readme_says_how_long_the_chapters_are():
    "Minutes to read: 200 words or 25 lines of code a minute."
    parts = re.findall(r"^\* \*\*(.+?)\*\* \((\d+) minutes to read\):(.*?)(?=^\* |^#|^\n)", read("README.md"), re.M | re.S)
    assert len(parts) >= 5
    for name, told, links in parts:
        minutes = 0.0
        for chapter in re.findall(r"\(nbs/(\w+\.ipynb)\)", links):
            for cell in json.loads(read(f"nbs/{chapter}"))["cells"]:
                text = "".join(cell["source"])
                minutes += len(text.split()) / 200 if cell["cell_type"] == "markdown" else len(text.split("\n")) / 25
        assert 0.6 < int(told) / minutes < 1.6, f"{name}: about {minutes:.0f} minutes"


def test_book_pages_link_somewhere():
    for page in (ROOT / "nbs").glob("*.md"):
        targets = [t.split("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")) if "://" not in t]
        assert targets and [target for target in targets if not (page.parent / target).exists()] == []


def test_readme_and_ci_run_the_same_commands():
    lines = [line.strip() for line in read("README.md").splitlines()]
    assert MAIN_LINE in lines and TEST_LINE in lines
    script = read(".ci/run")
    assert f"'{TEST_LINE}'" in script and "dreamgym reproduce --scale quick --run" in script


def test_the_ci_script_is_sound_bash():
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)
    script = read(".ci/run")
    for part in ("set -euo pipefail", "exec </dev/null", "export CI=true OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=10000"):
        assert part in script


# ---------------------------------------------------------------- the other forms


def test_the_workflow_runs_the_ci_script_with_pinned_actions():
    workflow = yaml.safe_load(read(".github/workflows/ci.yml"))
    job, site = workflow["jobs"]["run"], workflow["jobs"]["site"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert any(step.get("run") == "bash .ci/run" for step in job["steps"])
    assert any("tests/test_site.py" in step.get("run", "") for step in site["steps"])
    uses = [step["uses"] for step in [*job["steps"], *site["steps"]] if "uses" in step]
    assert uses and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name) for name in uses)


def test_the_conda_environment_installs_the_checkout():
    environment = yaml.safe_load(read("environment.yml"))
    assert environment["name"] == "dreamgym" and "python=3.11" in environment["dependencies"]
    assert {"pip": ["-e .[dev,webarena]"]} in environment["dependencies"]


def test_the_citation_is_valid():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software" and citation["license"] == "Apache-2.0"
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert citation["title"] == project["name"] and citation["repository-code"] == project["urls"]["Repository"]
    (paper,) = citation["references"]
    assert {"type", "title", "authors"} <= set(paper) and "2511.03773" in paper["url"]
    assert paper["title"] == "Scaling Agent Learning via Experience Synthesis"
    for person in [*citation["authors"], *paper["authors"]]:
        assert set(person) in ({"name"}, {"given-names", "family-names"})


def test_every_package_is_installed():
    setup = tomllib.loads(read("pyproject.toml"))["tool"]["setuptools"]
    here = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "dreamgym").rglob("__init__.py")}
    book = {f"dreamgym.notebooks{part}" for part in ("", ".data", ".exercises", ".exercises.solutions")}
    assert here | book == set(setup["packages"])


# ---------------------------------------------------------------- nbs/ -> dreamgym/


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    "A copy of the repository whose package was exported afresh and whose notebooks were cleaned."
    copy = tmp_path_factory.mktemp("export") / "dreamgym"
    for name in ("nbs", "pyproject.toml", "settings.ini", "README.md"):
        source = ROOT / name
        ignored = shutil.ignore_patterns(".ipynb_checkpoints", "runs")
        shutil.copytree(source, copy / name, ignore=ignored) if source.is_dir() else shutil.copy(source, copy / name)
    (copy / "dreamgym").mkdir()
    shutil.copy(ROOT / "dreamgym" / "__init__.py", copy / "dreamgym")
    environment = {key: value for key, value in os.environ.items() if key != "IN_TEST"}
    for command in ("from nbdev.doclinks import nbdev_export as run", "from nbdev.clean import nbdev_clean as run"):
        done = subprocess.run([sys.executable, "-c", f"{command}; run()"], cwd=copy, env=environment,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return copy


def test_the_package_is_what_the_notebooks_export(exported):
    def texts(root):
        package = root / "dreamgym"
        return {path.relative_to(package).as_posix(): path.read_text(encoding="utf-8") for path in package.rglob("*.py")
                if "notebooks" not in path.relative_to(package).parts}

    fresh, here = texts(exported), texts(ROOT)
    assert sorted(fresh) == sorted(here), "dreamgym/ holds a module without a notebook, or lacks one: nbdev-export"
    assert [name for name in fresh if fresh[name] != here[name]] == [], "edit nbs/ and run nbdev-export"


def test_the_notebooks_are_clean(exported):
    book = ROOT / "nbs"
    changed = [path.name for path in [*book.glob("*.ipynb"), *book.glob("exercises/*.ipynb"), *book.glob("course/*.ipynb")]
               if path.read_text(encoding="utf-8") != (exported / path.relative_to(ROOT)).read_text(encoding="utf-8")]
    assert changed == [], "run nbdev-clean"


@pytest.mark.slow
def test_the_wheel_carries_the_book(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in ("nbs", "dreamgym", "pyproject.toml", "README.md", "LICENSE"):
        ignored = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__", "runs")
        path = ROOT / name
        shutil.copytree(path, source / name, ignore=ignored) if path.is_dir() else shutil.copy(path, source / name)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-v", "-w", tmp_path]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    assert not re.search(r"deprecat|is absent from the .packages", built.stdout + built.stderr, re.I)

    (wheel,) = tmp_path.glob("dreamgym-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    exercises = (ROOT / "nbs" / "exercises").rglob("ex_*")
    for path in [*(ROOT / "nbs").glob("*.ipynb"), *(ROOT / "nbs" / "data").iterdir(), *filter(Path.is_file, exercises)]:
        if "__pycache__" in path.parts:
            continue
        assert f"dreamgym/notebooks/{path.relative_to(ROOT / 'nbs').as_posix()}" in names
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "dreamgym").rglob("*.py")}
    assert "dreamgym/suites/miniwob.py" in expected
    assert expected == {name for name in names if name.endswith(".py") and not name.startswith("dreamgym/notebooks/")}

    program = ("from dreamgym.runs import data_folder, notebooks_folder\nfrom dreamgym.suites.miniwob import panel_hash\n"
               "print(notebooks_folder(), data_folder(), len(panel_hash()))")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path / "site")})
    book = tmp_path / "site" / "dreamgym" / "notebooks"
    assert done.stdout.split() == [str(book), str(book / "data"), "64"]
    replay = "from dreamgym.command_line import run_command\nraise SystemExit(run_command(['demo']))"
    done = subprocess.run([sys.executable, "-c", replay], cwd=tmp_path, capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(tmp_path / "site")})
    assert "Donova" in done.stdout
