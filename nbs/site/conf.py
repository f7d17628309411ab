"""The book as a web site: `sphinx-build -c nbs/site . _docs/html` in the root of the repository.

Nothing is executed and nothing is fetched: the notebooks carry their outputs, formulas become MathML.
The navigation follows from the numbers of the chapters, so a new chapter needs no line here.
"""

import json
import re
import tomllib
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
REPOSITORY, BRANCH = FACTS["project"]["urls"]["Repository"].rstrip("/"), FACTS["tool"]["nbdev"]["branch"]
# A part holds the chapters from its number to the next one's.
PARTS = {0: "worlds", 6: "models", 9: "the dream", 20: "learning and measuring", 30: "other worlds", 40: "evidence and machinery"}
# What is no chapter: folders that may be missing are simply not shown.
PAGES = {
    "exercises": ["nbs/exercises/*.md", "nbs/exercises/*.ipynb"],
    "course": ["nbs/course/*.md"],
    "to look up": ["nbs/*.md", "results/README.md", "results/protocol.md", "results/archive.md", "README.md"],
}

# ---------------------------------------------------------------- what Sphinx reads

project = FACTS["project"]["name"]
author = FACTS["project"]["authors"][0]["name"]
html_title, copyright = project, author
extensions = ["myst_nb", "sphinx_book_theme"]
include_patterns = ["nbs/*.ipynb", *(pattern for patterns in PAGES.values() for pattern in patterns)]
exclude_patterns = ["_docs", "_proc", "_runs", ".*", "build", "dist", "runs", "nbs/runs", "nbs/site", "**/.ipynb_checkpoints"]
root_doc = "nbs/index"
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4
html_theme = "sphinx_book_theme"
html_static_path, html_css_files, templates_path = ["static"], ["book.css"], ["templates"]
html_additional_pages = {"index": "start.html"}  # the address of the site itself leads to nbs/index.html
html_math_renderer, myst_update_mathjax = "mathml", False
html_show_sphinx = False
html_theme_options = {
    "repository_url": REPOSITORY, "repository_branch": BRANCH, "use_repository_button": True, "use_source_button": True,
    "use_issues_button": True, "show_navbar_depth": 1, "show_toc_level": 2, "home_page_in_toc": True,
}


# ---------------------------------------------------------------- navigation


def title_of(page: Path) -> str:
    "The first heading of a page, after its number if it has one: `21 Evaluation`."
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
    if page == ROOT / "README.md":
        return "README"  # its heading is that of the landing page
    heading = re.search(r"^# +(.+)$", text, re.M)
    if heading is None:
        raise ValueError(f"{page}: a page of the book begins with a line `# Title`; write one")
    number = re.match(r"\d+(?=_)", page.name)
    return f"{number[0]} {heading[1].strip()}" if number else heading[1].strip()


def part_of(chapter: Path) -> str:
    "The part to which the number of a chapter belongs."
    return PARTS[max(first for first in PARTS if first <= int(chapter.name.split("_")[0]))]


def navigation() -> dict[str, list[Path]]:
    "Name of each part -> its pages in order, from what lies in the repository."
    parts: dict[str, list[Path]] = {name: [] for name in [*PARTS.values(), *PAGES]}
    for chapter in sorted((ROOT / "nbs").glob("[0-9]*_*.ipynb")):
        parts[part_of(chapter)].append(chapter)
    for name, patterns in PAGES.items():
        parts[name] = [page for pattern in patterns for page in sorted(ROOT.glob(pattern))]
    return {name: pages for name, pages in parts.items() if pages}


def contents() -> str:
    "The navigation as MyST's `toctree` directives, one a part."
    blocks = []
    for name, pages in navigation().items():
        entries = "\n".join(f"{title_of(page)} </{page.relative_to(ROOT).with_suffix('').as_posix()}>" for page in pages)
        blocks.append(f"```{{toctree}}\n:hidden:\n:caption: {name.capitalize()}\n\n{entries}\n```")
    return "\n\n".join(blocks)


# ---------------------------------------------------------------- pages


def jupyter_slug(title: str) -> str:
    "The anchor that Jupyter gives to a heading, which is what the chapters link to."
    return title.replace(" ", "-")


def readable(notebook: dict) -> dict:
    "A notebook without nbdev's `#|` lines, and without the cells that hold nothing else; its code is IPython's."
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            lines = [line for line in "".join(cell["source"]).splitlines(keepends=True) if not line.startswith("#|")]
            if not "".join(lines).strip():
                continue
            cell = {**cell, "source": lines}
        cells.append(cell)
    lexer = {"language_info": {"name": "python", "pygments_lexer": "ipython3"}}  # knows lines for the shell, such as Colab's
    return {**notebook, "cells": cells, "metadata": {**notebook.get("metadata", {}), **lexer}}


def prepare_source(app, name: str, source: list[str]) -> None:
    "Clean a notebook before Sphinx reads it; the landing page also gets the navigation."
    if not app.env.doc2path(name).suffix == ".ipynb":
        return
    notebook = readable(json.loads(source[0]))
    if name == root_doc:
        cell = {"cell_type": "markdown", "id": "navigation", "metadata": {}, "source": contents()}
        notebook["cells"].append(cell)
    source[0] = json.dumps(notebook)


SYNONYMS = {r"\\(big|Big|bigg|Bigg)": r"\\\1l", r"\\dots": r"\\ldots", r"\\texttt": r"\\mathtt"}  # commands that docutils lacks


def mathml(translator, node, block: bool) -> None:
    "Write a formula as MathML, which browsers show without a script; one that docutils cannot read gives a warning."
    from docutils import nodes
    from docutils.utils.math import MathError
    from docutils.utils.math.latex2mathml import tex2mathml
    from sphinx.util import logging

    formula = node.astext()
    for pattern, known in SYNONYMS.items():
        formula = re.sub(pattern + r"(?![A-Za-z])", known, formula)
    try:
        translator.body.append(tex2mathml(formula, as_block=block))
    except MathError as error:
        logging.getLogger(__name__).warning("formula %r: %s", formula, error, location=node)
        translator.body.append(f"<code>{translator.encode(formula)}</code>")
    raise nodes.SkipNode


def setup(app) -> None:
    "Sphinx calls this: formulas, clean notebooks, and links to what is in the repository but not on the site."
    from docutils import nodes
    from sphinx import addnodes
    from sphinx.transforms import SphinxTransform

    class RepositoryLinks(SphinxTransform):
        default_priority = 100  # before MyST resolves anchors

        def apply(self, **options) -> None:
            slugs = getattr(self.document, "myst_slugs", {})
            for found in list(slugs.values()):
                slugs.setdefault(jupyter_slug(found[2]), found)
            here = Path(self.env.doc2path(self.env.docname)).parent
            for node in list(self.document.findall(lambda n: isinstance(n, (addnodes.download_reference, addnodes.pending_xref)))):
                path = (here / node["reftarget"].split("#")[0]).resolve()
                if node.get("refdomain") == "doc" or not path.exists() or not path.is_relative_to(ROOT):
                    continue
                kind = "tree" if path.is_dir() else "blob"
                address = f"{REPOSITORY}/{kind}/{BRANCH}/{path.relative_to(ROOT).as_posix()}"
                node.replace_self(nodes.reference("", "", *node.children, refuri=address))

    app.add_html_math_renderer("mathml", (partial(mathml, block=False), None), (partial(mathml, block=True), None))
    app.add_transform(RepositoryLinks)
    app.connect("source-read", prepare_source)
