"The exercises in nbs/exercises/: empty stubs and usual mistakes get a sentence, the solutions pass."

import ast
import json
import re
import warnings
from pathlib import Path

import nbformat
import pytest
from exercise_mistakes import MISTAKES

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "nbs" / "exercises"
NOTEBOOKS = sorted(FOLDER.glob("ex_*.ipynb"))
CHAPTERS = [*"00 01 02 03 04 05 06 07 08 09 10 11 12 13 20 21 22 23 24 25".split(),
            *"30 31 32 33 34 35 36 40 41 42 43 80 90 91 92 93".split()]
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells_of(path, kind="code") -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == kind]


def is_stub(source) -> bool:
    return bool(re.search(r"(?m)^ +raise NotImplementedError$", source))


def is_check(source) -> bool:
    return source.startswith("def check_")


def names_of(source) -> list[str]:
    "The functions and classes that a text defines."
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def solution_source(path) -> str:
    return (FOLDER / "solutions" / f"{path.stem}.py").read_text(encoding="utf-8")


def run_notebook(path, answers: str | None = None) -> dict[str, str]:
    """Execute the code cells as a reader does, one after the other, with answers in place of stubs where there are some.

    Returns what each check said, by the name of what it checks: its last value, or its sentence after `wrong: `.
    """
    space, said, name = {"__name__": "exercise"}, {}, ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a reader sees them too
        for source in cells_of(path):
            if not is_check(source):
                exec(compile(source, path.name, "exec"), space)
                if is_stub(source):
                    (name,) = names_of(source)
                    if answers and name in names_of(answers):
                        exec(compile(answers, f"answers to {path.name}", "exec"), space)
                continue
            body, call = source.rstrip().rsplit("\n", 1)
            exec(compile(body, path.name, "exec"), space)
            try:
                said[name] = eval(call, space)
            except AssertionError as error:
                said[name] = f"wrong: {error}"
    return said


def test_the_chapters_have_exercises():
    assert [path.stem.split("_")[1] for path in NOTEBOOKS] == CHAPTERS
    assert sorted(path.stem for path in (FOLDER / "solutions").glob("*.py")) == [path.stem for path in NOTEBOOKS]


@each_notebook
def test_a_notebook_of_exercises_has_the_form(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert path.stat().st_size < 60_000 and notebook.metadata == {
        "kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    assert notebook.cells[0].cell_type == "raw" and "skip_exec: true" in notebook.cells[0].source
    text = "\n".join(cells_of(path, "markdown"))
    assert re.findall(r"(?m)^## (\d)\. .+ \((\w+)\)$", text) == [("1", "easy"), ("2", "medium"), ("3", "hard")]
    kinds = [cell.cell_type if cell.cell_type != "code" else "stub" if is_stub(cell.source) else
             "check" if is_check(cell.source) else "code" for cell in notebook.cells]
    assert " ".join(kinds).count("stub check markdown") == 3, "stub, its check, a folded hint"
    assert text.count("<details><summary>Hint</summary>") == 3
    for source in cells_of(path):
        assert len(source.splitlines()) <= 40 and max(map(len, source.splitlines())) <= 128
    for cell in notebook.cells:
        assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None)


@each_notebook
def test_the_helpers_are_the_same_everywhere(path):
    "Every notebook stands alone, also in Colab, so it carries the helpers of its checks itself."
    def helpers(notebook):
        return {name: source for source in cells_of(notebook) if not is_stub(source) and not is_check(source)
                for name in names_of(source) if name in ("told", "ask", "expect", "refuses")}

    first, here = helpers(FOLDER / "ex_03_environments.ipynb"), helpers(path)
    assert {"told", "ask", "expect"} <= set(here) and here.items() <= first.items()


@each_notebook
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(cells_of(path, "markdown"))):
        assert "://" in target or (FOLDER / target).exists(), target
    number = path.stem.split("_")[1]
    (chapter,) = (ROOT / "nbs").glob(f"{number}_*.ipynb")
    text = "\n".join(cells_of(chapter, "markdown"))
    assert f"(exercises/{path.name})" in text.split("## Exercises")[1], "the chapter links its exercises"


@each_notebook
def test_the_solutions_are_not_in_plain_sight(path):
    "No line of a solution that says something stands in its notebook."
    shown = {line.strip() for source in cells_of(path) if not is_stub(source) for line in source.splitlines()}
    told = {line.strip() for source in cells_of(path) if is_stub(source) for line in source.splitlines()}
    lines = {line.strip() for line in solution_source(path).splitlines() if len(line.strip()) > 50} - told
    assert {line for line in lines & shown if not line.startswith(("import", "from", "return Trajectory", "chain.append"))} == set()


@each_notebook
def test_stubs_get_a_sentence(path):
    said = run_notebook(path)
    assert len(said) == 3
    for name, sentence in said.items():
        function = name if name[0].islower() else r"\w+"  # a class: its method is empty
        assert re.fullmatch(rf"wrong: {function} is still empty: write its body, then run this cell again\.", sentence)


@each_notebook
def test_solutions_pass(path):
    said = run_notebook(path, solution_source(path))
    assert len(said) == 3 and [text for text in said.values() if not text.startswith("Correct.")] == []


@each_notebook
@pytest.mark.parametrize("body", ["return None", "raise ZeroDivisionError('oops')", "return 'nonsense'"])
def test_any_answer_gets_a_sentence(path, body):
    "Also answers of the wrong type end in a sentence of the check, and never pass."
    functions = [(n, s) for s in cells_of(path) if is_stub(s) for n in names_of(s) if s.startswith("def ")]
    answers = "\n".join(f"def {name}(*_):\n    {body}" for name, _ in functions)
    said = run_notebook(path, answers)
    assert [(name, said[name]) for name, _ in functions if not re.match(r"wrong: \S.{20,}", said[name], re.S)] == []


@pytest.mark.parametrize("name, words, answer", MISTAKES, ids=[f"{row[0]}-{row[1]}" for row in MISTAKES])
def test_usual_mistakes_are_named(name, words, answer):
    (wrong,) = names_of(answer)
    sentence = run_notebook(FOLDER / f"{name}.ipynb", answer)[wrong]
    assert sentence.startswith("wrong: ") and words in sentence


def test_every_exercise_has_a_usual_mistake():
    stubs = {(path.stem, name) for path in NOTEBOOKS for source in cells_of(path) if is_stub(source) for name in names_of(source)}
    assert stubs == {(name, names_of(answer)[0]) for name, _, answer in MISTAKES}


def test_the_page_about_the_exercises_links_them_all():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", page)
    assert [path.name for path in NOTEBOOKS if path.name not in targets] == []
    assert [target for target in targets if "://" not in target and not (FOLDER / target.split("#")[0]).exists()] == []
