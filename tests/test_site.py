"The web site of the book: its navigation, its links, and (where the extra `docs` is installed) the built pages."

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "sphinx-build -W -c nbs/site . _docs/html"


@pytest.fixture(scope="module")
def site():
    specification = importlib.util.spec_from_file_location("site_configuration", ROOT / "nbs" / "site" / "conf.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def pages_of(site) -> list[Path]:
    return [ROOT / "nbs" / "index.ipynb", *(page for pages in site.navigation().values() for page in pages)]


def text_of(page: Path) -> str:
    if page.suffix != ".ipynb":
        return page.read_text(encoding="utf-8")
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


# ---------------------------------------------------------------- configuration


def test_every_page_stands_in_the_navigation_once(site):
    pages = pages_of(site)
    assert len(pages) == len(set(pages))
    assert set((ROOT / "nbs").glob("*.ipynb")) <= set(pages)
    assert {ROOT / "nbs" / "glossary.md", ROOT / "nbs" / "troubleshooting.md", ROOT / "results" / "README.md"} <= set(pages)
    contents = site.contents()
    for page in pages[1:]:
        assert contents.count(f"</{page.relative_to(ROOT).with_suffix('').as_posix()}>\n") == 1, page


def test_the_parts_are_those_of_the_readme(site):
    told = re.findall(r"^\* \*\*(.+?)\*\* \(\d+ minutes to read\):(.*?)(?=^\* |^#|^\n)", text_of(ROOT / "README.md"), re.M | re.S)
    readme = {name: re.findall(r"\(nbs/(\w+\.ipynb)\)", links) for name, links in told}
    parts = {name: [page.name for page in pages] for name, pages in site.navigation().items() if name in site.PARTS.values()}
    assert parts == readme


def test_a_new_chapter_needs_no_second_list(site, monkeypatch, tmp_path):
    chapter = tmp_path / "nbs" / "41_reproduction.ipynb"
    chapter.parent.mkdir()
    chapter.write_text(json.dumps({"cells": [{"cell_type": "markdown", "source": ["# Reproduction\n", "> A promise."]}]}))
    monkeypatch.setattr(site, "ROOT", tmp_path)
    assert site.navigation() == {"evidence and machinery": [chapter]}
    assert "\n41 Reproduction </nbs/41_reproduction>\n" in site.contents()


def test_a_page_without_a_title_is_refused(site, tmp_path):
    page = tmp_path / "bare.md"
    page.write_text("No heading.\n")
    with pytest.raises(ValueError, match="bare.md.*# Title"):
        site.title_of(page)


def test_a_shown_notebook_has_no_lines_for_nbdev(site):
    cells = [{"cell_type": "code", "source": "#| default_exp runs"},
             {"cell_type": "code", "source": ["#| export\n", "x = '#| y'"], "outputs": [1]},
             {"cell_type": "markdown", "source": "#| text"}]
    shown = site.readable({"cells": cells, "nbformat": 4})
    assert shown["cells"] == [{"cell_type": "code", "source": ["x = '#| y'"], "outputs": [1]}, cells[2]] and shown["nbformat"] == 4
    assert cells[1]["source"][0] == "#| export\n", "the notebook itself is left as it is"


def test_the_extra_brings_what_the_site_needs(site):
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]["docs"]
    names = {re.match(r"[\w-]+", line)[0] for line in extra}
    assert names == {"sphinx", *(name.replace("_", "-") for name in site.extensions)}


def test_the_command_is_documented_and_its_output_ignored():
    assert f'pip install -e ".[docs]" && {COMMAND}\n' in (ROOT / "nbs" / "troubleshooting.md").read_text(encoding="utf-8")
    assert "/_docs/" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()


def test_links_between_pages_lead_to_files_and_headings(site):
    broken = []
    for page in pages_of(site):
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```|`[^`\n]*`", "", text_of(page), flags=re.S)):
            if re.match(r"[a-z]+:", target):
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / unquote(name)).resolve() if name else page
            headings = re.findall(r"^#+ +(.+?)\s*$", text_of(file), re.M) if anchor and file.is_file() else []
            anchors = {site.jupyter_slug(title) for title in headings}
            anchors |= {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
            if not file.exists() or anchor and unquote(anchor) not in anchors:
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


# ---------------------------------------------------------------- the built site


class Page(HTMLParser):
    "What a page links to, what it loads, and which anchors it has."

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in ("script", "img", "iframe", "source") and found.get("src"):
            self.loads.append(found["src"])
        if tag == "link" and found.get("rel") != "canonical" and found.get("href"):
            self.loads.append(found["href"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    pytest.importorskip("myst_nb", reason='the site needs pip install -e ".[docs]"')
    pytest.importorskip("sphinx_book_theme", reason='the site needs pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site") / "html"  # MyST-NB writes a folder beside it
    command = [sys.executable, "-m", "sphinx", *COMMAND.split()[1:-1], str(folder), "--quiet", "--keep-going"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {path: Page(path) for path in folder.rglob("*.html") if "_static" not in path.parts}, folder


@pytest.mark.slow
def test_the_built_site_has_no_broken_link_and_loads_nothing_from_elsewhere(built, site):
    pages, folder = built
    assert all((folder / page.relative_to(ROOT)).with_suffix(".html") in pages for page in pages_of(site))
    assert (folder / "index.html") in pages and (folder / "searchindex.js").is_file()
    broken, foreign = [], []
    for path, page in pages.items():
        for target in [*page.links, *page.loads]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                foreign += [f"{path.name}: {target[:80]}"] if target in page.loads and parts.scheme != "data" else []
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not file.is_file() or file in pages and parts.fragment and unquote(parts.fragment) not in pages[file].anchors:
                broken.append(f"{path.relative_to(folder)}: {target}")
    assert (broken, foreign) == ([], [])


@pytest.mark.slow
def test_formulas_are_shown_without_a_script(built):
    pages, folder = built
    text = (folder / "nbs" / "22_policy_gradients.html").read_text(encoding="utf-8")
    assert "<math" in text and "mathjax" not in text.lower() and "cdn" not in text.lower()
