"Running a chapter as a plain program."
import json
import subprocess
import sys
from pathlib import Path


def run_without(chapter: str, packages: set[str], folder: Path) -> str:
    "The cells of a chapter in order, in a Python that finds none of these packages; what they print."
    book = json.loads((Path(__file__).parent.parent / "nbs" / f"{chapter}.ipynb").read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    block = (f"import sys, importlib.util as util\nfind, gone = util.find_spec, {packages!r}\n"
             "util.find_spec = lambda name, *rest: None if name.split('.')[0] in gone else find(name, *rest)\n"
             "sys.modules.update(dict.fromkeys(gone))\n")
    (folder / "chapter.py").write_text(block + "\n".join(code), encoding="utf-8")
    done = subprocess.run([sys.executable, folder / "chapter.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
