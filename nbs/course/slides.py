"What the notebooks of the slides share: what a chapter showed, the rows in `results/`, and small tables."

import json
from pathlib import Path

import pandas as pd
from IPython.display import Markdown

BOOK = Path(__file__).resolve().parents[1]
RESULTS = BOOK.parent / "results"


class Stored:
    "What a cell showed when the book was last run."

    def __init__(self, data: dict[str, str], words: str):
        self.data, self.words = data, words

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict[str, str], dict[str, dict]]:
        return self.data, {"image/png": {"alt": self.words}} if "image/png" in self.data else {}


def stored(
    chapter: str,  # its name without .ipynb, for example "22_policy_gradients"
    text: str,  # stands in one of its code cells only
    words: str = "",  # what a picture shows, for those who cannot see it
) -> Stored:
    "The last output of a cell of the book; LookupError where no cell, or more than one, holds the text."
    cells = json.loads((BOOK / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    found = [cell for cell in cells if cell["cell_type"] == "code" and text in "".join(cell["source"])]
    if len(found) != 1 or not found[0]["outputs"]:
        raise LookupError(f"{len(found)} cells of {chapter} hold {text!r}; name a text that stands in one cell with an output.")
    output = found[0]["outputs"][-1]
    data = output.get("data") or {"text/plain": output["text"]}  # a table or picture, or what was printed
    data = {kind: "".join(value) for kind, value in data.items()}
    if "image/png" in data and not words:
        raise LookupError(f"Say in words what the picture of {chapter} shows.")
    return Stored(data, words)


def rows(
    name: str,  # a file below results/, for example "main/miniwob-quick/agents.csv"
) -> pd.DataFrame:
    "Measured rows of the repository."
    return pd.read_csv(RESULTS / name)


def table(
    head: str,  # columns, parted by |
    *lines: tuple,  # one entry a column
) -> Markdown:
    "A small table."
    cells = [head.split("|"), ["---"] * len(head.split("|")), *lines]
    return Markdown("\n".join(f"| {' | '.join(map(str, line))} |" for line in cells))
