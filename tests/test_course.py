"The course kit in nbs/course/: syllabus, slides that need no network, project, notes, and chapters that open in Colab."

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import venv
from configparser import ConfigParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
BOOK, KIT = ROOT / "nbs", ROOT / "nbs" / "course"
WEEKS = [KIT / f"week_{number}.ipynb" for number in range(1, 7)]
each_week = pytest.mark.parametrize("path", WEEKS, ids=lambda path: path.stem)
INSTALL = re.compile(r'! \[ -z "\$COLAB_RELEASE_TAG" \] \|\| pip install -q git\+(\S+)  # in Colab only')


def cells_of(path: Path) -> list[dict]:
    return [{**cell, "source": "".join(cell["source"])} for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]


def text_of(path: Path) -> str:
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    return "\n".join(cell["source"] for cell in cells_of(path) if cell["cell_type"] == "markdown")


def slides_of(path: Path) -> list[list[dict]]:
    "The cells of each slide."
    slides: list[list[dict]] = []
    for cell in cells_of(path):
        if cell["metadata"].get("slideshow"):
            slides.append([])
        slides[-1].append(cell)
    return slides


def links_of(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S))


def chapters_in(text: str) -> list[str]:
    return [link.removeprefix("../") for link in links_of(text) if re.fullmatch(r"\.\./\d\d_\w+\.ipynb", link)]


def minutes_of(chapter: str) -> int:
    return int(re.search(r"\*\*Reading time\*\* about (\d+) minutes", text_of(BOOK / chapter))[1])


def syllabus() -> list[list[str]]:
    "Week, read, minutes, run, exercises, hand in: one row a week."
    lines = text_of(KIT / "README.md").split("## The weeks")[1].split("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| \d\. ", line)]


# ---------------------------------------------------------------- syllabus, project, notes


def test_every_week_has_a_row_slides_and_honest_minutes():
    rows = syllabus()
    assert [f"week_{row[0].split('.')[0]}.ipynb" for row in rows] == [path.name for path in WEEKS]
    assert sorted(KIT.glob("*.ipynb")) == WEEKS and "`week_1.ipynb` to `week_6.ipynb`" in text_of(KIT / "README.md")
    for (_, read, minutes, run, exercises, hand_in), path in zip(rows, WEEKS, strict=True):
        chapters = chapters_in(read)
        assert chapters and int(minutes) == sum(map(minutes_of, chapters)), path.stem
        title = slides_of(path)[0][0]["source"]
        assert chapters_in(title) == chapters and f" {minutes} minutes to read" in title
        assert run and hand_in
        practised = re.findall(r"exercises/ex_(\d\d_\w+\.ipynb)", exercises)
        assert set(practised) <= set(chapters), "exercises belong to what was read"
        assert [name for name in practised if not (BOOK / "exercises" / f"ex_{name}").is_file()] == []


def test_no_chapter_and_no_exercise_comes_twice():
    rows = syllabus()
    read = [name for row in rows for name in chapters_in(row[1])]
    practised = [link for row in rows for link in links_of(row[4])]
    assert len(read) == len(set(read)) and len(practised) == len(set(practised)) >= 10


@pytest.mark.parametrize("path", [*sorted(KIT.glob("*.md")), *WEEKS], ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(path):
    text = text_of(path)
    assert "http" not in "".join(links_of(text)), "within the kit every link is to the repository"
    broken = []
    for link in links_of(text):
        name, _, anchor = link.partition("#")
        file = (path.parent / unquote(name)).resolve() if name else path
        headings = re.findall(r"^#+ +(.+?)\s*$", text_of(file), re.M) if anchor and file.is_file() else []
        anchors = {title.replace(" ", "-") for title in headings}
        anchors |= {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
        broken += [link] if not file.exists() or anchor and unquote(anchor) not in anchors else []
    assert broken == []


def test_points_add_up():
    rubric = re.findall(r"^\|.*\| (\d+) \|$", text_of(KIT / "project.md"), re.M)
    (together,) = re.findall(r"\*\*together\*\* \| \*\*(\d+)\*\*", text_of(KIT / "project.md"))
    assert len(rubric) >= 6 and sum(map(int, rubric)) == int(together)
    told = r"Exercises (\d+) .*? beside them (\d+), the \[project\]\(project\.md\) (\d+)"
    points = re.search(told, text_of(KIT / "README.md"), re.S)
    assert sum(map(int, points.groups())) == 100 and points[3] == together
    assert f"worth {together} of the course's 100 points" in text_of(KIT / "project.md")


def test_the_notes_answer_and_point_to_the_book():
    weeks = re.split(r"^## Week \d$", text_of(KIT / "teacher.md"), flags=re.M)[1:]
    assert len(weeks) == 6
    for week in weeks:
        rows = [line.strip("|").split("|") for line in week.splitlines() if line.startswith('| "')]
        assert len(rows) >= 5 and "**Plan**" in week
        assert all(len(answer.split()) >= 4 and links_of(place) for _, answer, place in rows)


def test_the_kit_is_linked():
    assert "(nbs/course/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(course/README.md)" in text_of(BOOK / "index.ipynb")
    specification = importlib.util.spec_from_file_location("site_configuration", BOOK / "site" / "conf.py")
    configuration = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(configuration)
    pages = configuration.navigation()["course"]
    assert pages[0] == KIT / "README.md" and {KIT / "project.md", KIT / "teacher.md"} <= set(pages)


# ---------------------------------------------------------------- slides as notebooks


@each_week
def test_a_week_has_the_form_of_slides(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.metadata == {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    assert path.stat().st_size < 60_000, "figures are drawn when slides are made, not stored"
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags", "slideshow"} and cell.metadata.get("tags", ["remove-input"]) == ["remove-input"]
        assert cell.metadata.get("slideshow", {"slide_type": "slide"}) == {"slide_type": "slide"}
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
            assert len(cell.source.splitlines()) <= 40 and max(map(len, cell.source.splitlines())) <= 128
            statements = ast.parse(cell.source).body
            imports = [node for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]
            assert len(imports) in (0, len(statements)), "imports stand alone"


@each_week
def test_a_slide_has_one_idea_and_few_words(path):
    slides = slides_of(path)
    assert 10 <= len(slides) <= 16
    for number, slide in enumerate(slides):
        text = "\n".join(cell["source"] for cell in slide if cell["cell_type"] == "markdown")
        assert re.findall(r"^#+ ", text, re.M) == ["# " if number == 0 else "## "], "one heading, which begins the slide"
        assert slide[0]["source"].startswith("#")
        words = re.sub(r"\$\$.*?\$\$|\]\([^)]*\)", " ", text, flags=re.S)
        assert "$" not in words, "a formula stands alone, between double dollars"
        assert len(re.findall(r"[^\W_]+", words)) <= 60, f"slide {number + 1}: {words.splitlines()[0]}"


# ---------------------------------------------------------------- slides as pages


class Page(HTMLParser):
    "What a page loads, links to and shows."

    def __init__(self, text: str):
        super().__init__()
        self.loads, self.links, self.pictures, self.sections, self.inside = [], [], [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.loads += [found[key] for key in ("src", "srcset", "data", "poster") if found.get(key)]
        if tag == "link":
            self.loads.append(found.get("href", ""))
        if tag == "a":
            self.links.append(found.get("href", ""))
        if tag == "img":
            self.pictures.append(found.get("alt", ""))
        self.sections += tag == "section"
        self.inside.append(tag)

    def handle_endtag(self, tag):
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data):
        if self.inside and self.inside[-1] in ("script", "style"):
            self.loads += re.findall(r"(?:url\(|@import|\bfetch\(|import\(|\bfrom\s)\s*[\"']?([\w:/.]+)", data)


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[Path, str]:
    "Every week, run and converted by the line that the syllabus gives."
    (line,) = re.findall(r"^jupyter nbconvert .*$", text_of(KIT / "README.md"), re.M)
    folder = tmp_path_factory.mktemp("slides")
    words = [word for word in shlex.split(line) if not word.endswith("*.ipynb")]
    words[words.index("_docs/slides")] = str(folder)
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    done = subprocess.run([sys.executable, "-m", *words, *map(str, WEEKS)], cwd=ROOT, capture_output=True, text=True,
                          timeout=1800, env=os.environ | nowhere | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Alternative text is missing" not in done.stderr
    return {path: (folder / f"{path.stem}.slides.html").read_text(encoding="utf-8") for path in WEEKS}


@each_week
def test_a_page_needs_nothing_from_elsewhere(pages, path):
    page = Page(pages[path])
    assert [found for found in page.loads if not found.startswith("data:")] == []
    assert page.sections == len(slides_of(path))
    assert page.pictures and all(page.pictures), "every picture is told in words"
    shown = re.sub(r"<script.*?</script>|<style.*?</style>|base64,[^\"]*", "", pages[path], flags=re.S)
    assert "$$" not in shown and "Traceback" not in shown and "#| " not in shown


@each_week
def test_links_of_a_page_are_addresses_of_the_repository(pages, path):
    start = f"{settings()['git_url']}/blob/{settings()['branch']}/"
    for link in Page(pages[path]).links:
        assert link.startswith(start) and (ROOT / unquote(link.removeprefix(start))).exists(), link


MEASURE = """<script>
const told = slides.map((slide, number) => {
  show(number);
  const edge = slide.getBoundingClientRect();
  const boxes = [...slide.querySelectorAll("*")].map((part) => part.getBoundingClientRect());
  const parts = boxes.filter((part) => part.width && part.height);
  return Math.max(...parts.map((part) => Math.max(part.bottom - edge.bottom, part.right - edge.right, edge.left - part.left)));
});
document.title = JSON.stringify([told, performance.getEntriesByType("resource").map((entry) => entry.name)]);
</script></body>"""


@pytest.mark.browser
@each_week
def test_no_slide_overflows(pages, path, tmp_path):
    from dreamgym.suites.miniwob import find_browser

    page = tmp_path / "slides.html"
    page.write_text(pages[path].replace("</body>", MEASURE), encoding="utf-8")
    command = [find_browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,720", "--dump-dom",
               f"--user-data-dir={tmp_path}/user", "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=2000",
               page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    told, fetched = json.loads(re.search(r"<title>(\[.*?\])</title>", done.stdout, re.S)[1].replace("&amp;", "&"))
    assert len(told) == len(slides_of(path)) and fetched == []
    assert [number + 1 for number, beyond in enumerate(told) if beyond > 1] == []


# ---------------------------------------------------------------- a fresh runtime


def settings() -> dict:
    parser = ConfigParser(interpolation=None)
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


COLAB = [path for path in sorted(BOOK.glob("*.ipynb")) if "colab.research" in text_of(path)]


def test_the_syllabus_names_the_chapters_for_colab():
    told = text_of(KIT / "README.md").split("## Without installing anything")[1]
    assert COLAB and [BOOK / name for name in sorted(set(re.findall(r"\.\./(\w+\.ipynb)", told)))] == COLAB


@pytest.mark.parametrize("path", COLAB, ids=lambda path: path.stem)
def test_a_link_to_colab_opens_this_chapter_and_its_first_cell_installs(path):
    facts, cells = settings(), cells_of(path)
    address = f"https://colab.research.google.com/github/{facts['user']}/{facts['repo']}/blob/{facts['branch']}/nbs/{path.name}"
    assert cells[1]["source"].count("https://colab") == 1 and f"[Colab]({address})" in cells[1]["source"]
    first = next(cell["source"] for cell in cells if cell["cell_type"] == "code")
    assert INSTALL.fullmatch(first)[1] == facts["git_url"]
    assert not re.search(r"Chrom", cells[1]["source"]), "Colab has no browser"


RUN = """
import json, sys
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for cell in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["cells"]:
    if cell["cell_type"] == "code":
        shell.run_cell("".join(cell["source"])).raise_error()
import dreamgym
print("ran with", dreamgym.__file__)
"""


@pytest.mark.slow
def test_a_chapter_runs_in_a_fresh_runtime(tmp_path):
    "Its cells as they stand, the first of which installs, in an environment that has the dependencies and not this package."
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("this checkout has no git to install from")
    runtime = tmp_path / "runtime"
    venv.create(runtime, symlinks=True)
    (packages,) = runtime.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()), encoding="utf-8")
    pip = runtime / "bin" / "pip"  # the dependencies are there already
    pip.write_text(f'#!/bin/sh\nexec "{runtime}/bin/python" -m pip "$@" --no-deps --no-build-isolation\n', encoding="utf-8")
    pip.chmod(0o755)
    (tmp_path / "here").mkdir()
    environment = {name: os.environ[name] for name in os.environ if name not in ("PYTHONPATH", "VIRTUAL_ENV", "DREAMGYM_RUNS")}
    environment |= {"COLAB_RELEASE_TAG": "a test", "PATH": f"{runtime}/bin{os.pathsep}{os.environ['PATH']}", "MPLBACKEND": "agg",
                    "GIT_CONFIG_COUNT": "2", "GIT_CONFIG_KEY_1": "safe.directory", "GIT_CONFIG_VALUE_1": "*",
                    "GIT_CONFIG_KEY_0": f"url.{ROOT.as_uri()}.insteadOf", "GIT_CONFIG_VALUE_0": settings()["git_url"]}
    done = subprocess.run([runtime / "bin" / "python", "-c", RUN, BOOK / "01_trajectories.ipynb"], cwd=tmp_path / "here",
                          env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert f"ran with {packages}" in done.stdout
