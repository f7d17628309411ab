"""How `jupyter nbconvert --to slides` turns the notebooks of this folder into pages that need nothing from another host.

The usual template of nbconvert fetches reveal.js and MathJax when a page is opened. Here the page carries its own
few lines of script (`template/`), and formulas become pictures that matplotlib draws.
"""

import base64
import io
import re
import tomllib
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from nbconvert.preprocessors import Preprocessor

HERE = Path(__file__).resolve().parent
FACTS = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
ADDRESS = f"{FACTS['project']['urls']['Repository'].rstrip('/')}/blob/{FACTS['tool']['nbdev']['branch']}"


def formula(
    text: str,  # TeX without dollars, as far as matplotlib's mathtext knows it
) -> str:  # an <img> that holds its picture
    "A formula as SVG."
    with matplotlib.rc_context({"mathtext.fontset": "cm", "svg.hashsalt": "dreamgym"}), io.BytesIO() as file:
        figure = Figure()
        figure.text(0, 0, f"${text}$", fontsize=30)
        figure.savefig(file, format="svg", bbox_inches="tight", pad_inches=0.05, transparent=True, metadata={"Date": None})
        data = base64.b64encode(file.getvalue()).decode()
    words = text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return f'<img class="formula" alt="{words}" src="data:image/svg+xml;base64,{data}">'


class ForSlides(Preprocessor):
    "Draws formulas, turns links within the repository into addresses, and finds the title."

    def preprocess(self, nb, resources):
        "The title is that of the first heading."
        nb, resources = super().preprocess(nb, resources)
        resources["slides_title"] = next(cell.source for cell in nb.cells if cell.cell_type == "markdown").lstrip("# ").split("\n")[0]
        return nb, resources

    def preprocess_cell(self, cell, resources, index):
        "One cell; only text changes."
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\$\$(.+?)\$\$", lambda found: formula(" ".join(found[1].split())), cell.source, flags=re.DOTALL)
            cell.source = re.sub(r"\]\((?![a-z]+:|#)([^)\s]+)\)", self.address, cell.source)
        return cell, resources

    @staticmethod
    def address(found: re.Match) -> str:
        "A link to a file of the repository as one to its address."
        path = (HERE / found[1]).resolve().relative_to(HERE.parents[1])
        return f"]({ADDRESS}/{path.as_posix()})"


c = get_config()  # noqa: F821  (nbconvert gives it)
c.SlidesExporter.extra_template_basedirs = [str(HERE)]
c.SlidesExporter.template_name = "template"
c.SlidesExporter.exclude_anchor_links = True
c.SlidesExporter.embed_images = True
c.SlidesExporter.preprocessors = [ForSlides]
c.TagRemovePreprocessor.enabled = True
c.TagRemovePreprocessor.remove_input_tags = {"remove-input"}
c.ExecutePreprocessor.enabled = True
c.ExecutePreprocessor.timeout = 120
