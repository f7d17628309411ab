"Rules that every chapter in nbs/ and every module made from it follows."

import ast
import io
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import nbformat
import pyflakes.api
import pyflakes.reporter
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
PACKAGE = ROOT / "dreamgym"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not path.name.startswith("_") and "notebooks" not in path.parts)
EXPECTED = """00_toy_dream 01_trajectories 02_runs 03_environments 04_pages 05_miniwob 06_weights 07_language_model 08_fast_model
    09_rollouts 10_cot_annotation 11_experience_model 12_replay_buffer 13_curriculum 20_statistics 21_evaluation
    22_policy_gradients 23_policy_optimization 24_training_loop 25_sim_to_real 30_own_environment 31_text_worlds 32_webarena
    33_shop 34_shop_tasks 35_webarena_infinity 36_shop_dream 40_experiments 41_reproduction 42_theory 43_failure_gallery
    80_benchmarks 90_report 91_machine 92_notebook_runner 93_command_line index""".split()
LIGHT = ["trajectories", "runs", "environments", "pages", "suites.miniwob", "suites.webarena", "weights", "curriculum", "statistics", "report",
         "machine", "notebook_runner", "command_line"]
LONGEST_CELL = 40
SHORTER = {"own_environment": "own"}  # chapters whose module has a shorter name
LESSONS = {"shop_dream", "toy_dream", "policy_gradients", "reproduction", "failure_gallery"}  # chapters that only teach, and export nothing


def module_name(path) -> str:
    "A module's name inside the package, for example suites.miniwob."
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
each_module = pytest.mark.parametrize("path", MODULES, ids=module_name)


def read_notebook(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def code_cells(path):
    return [cell for cell in read_notebook(path).cells if cell.cell_type == "code"]


def parse_cell(cell) -> ast.Module:
    "The cell as Python; lines for IPython or the shell are left out."
    lines = cell.source.splitlines()
    return ast.parse("\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in lines))


def default_export(path) -> str | None:
    "The module that a notebook exports to."
    for cell in code_cells(path):
        if match := re.search(r"^#\|\s*default_exp\s+(\S+)", cell.source, re.M):
            return match[1]
    return None


SUB_PACKAGES = [f"dreamgym.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py")]
ORDER = {default_export(path): number for number, path in enumerate(NOTEBOOKS) if default_export(path)}


def own_imports(tree, package: str = "dreamgym") -> set[str]:  # package: where the tree stands, for relative imports
    "The modules of this package that a syntax tree imports, anywhere in it, for example suites.miniwob."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[:len(parts) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            names = [f"{module}.{alias.name}" for alias in node.names]
            found |= set(names) if module in ("dreamgym", *SUB_PACKAGES) else {module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.removeprefix("dreamgym.") for name in found if name.startswith("dreamgym.")}


def module_imports(path) -> set[str]:
    "The modules of this package that a module imports."
    package = ".".join(["dreamgym", *path.relative_to(PACKAGE).parts[:-1]])
    return own_imports(ast.parse(path.read_text(encoding="utf-8")), package)


def foreign_imports(tree) -> set[str]:
    "The top-level packages from elsewhere that a syntax tree imports, without the standard library."
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"dreamgym"}


def private_uses(tree) -> set[str]:
    "The names with an underscore that a syntax tree takes from modules of this package."
    own, found = set(), set()  # names under which whole modules are known
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "dreamgym"):
            found |= {alias.name for alias in node.names if alias.name.startswith("_")}
            own |= {alias.asname or alias.name for alias in node.names if alias.name in ORDER}
        elif isinstance(node, ast.Import):
            own |= {alias.asname or alias.name for alias in node.names if alias.name.split(".")[0] == "dreamgym"}
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return found | {node.attr for node in attributes if node.attr.startswith("_") and not node.attr.startswith("__")
                    and ast.unparse(node.value) in own}


# ---------------------------------------------------------------- notebooks


def test_the_chapters_are_those_of_the_design():
    names = [path.stem for path in NOTEBOOKS]
    assert [name for name in EXPECTED if name not in names] == []
    for path in NOTEBOOKS:
        name = None if path.stem == "index" else path.stem.split("_", 1)[1]
        expected = SHORTER.get(name, name)
        exported = (default_export(path) or "").split(".")
        assert exported[-1] in (expected, ""), "a chapter exports to the module of its own name"
        assert exported[:-1] in ([], ["suites"]), "a suite stands among the suites, all else at the top"
    last = {name.rpartition(".")[2] for name in ORDER}
    wanted = [name.split("_", 1)[1] for name in EXPECTED if name != "index"]
    assert [name for name in wanted if SHORTER.get(name, name) not in last] == [name for name in wanted if name in LESSONS]
    assert sorted(ORDER) == sorted(map(module_name, MODULES)), "every module has its chapter"


@each_notebook
def test_a_notebook_is_valid(path):
    notebook = read_notebook(path)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    nbformat.validate(notebook)
    ids = [cell["id"] for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]]  # nbformat mends them
    assert len(ids) == len(set(ids)), "every cell has an id of its own"
    assert notebook.metadata.kernelspec == {"display_name": "python3", "language": "python", "name": "python3"}
    assert set(notebook.metadata) == {"kernelspec"}, "papermill's and the editor's metadata stay out"
    assert path.stat().st_size <= 400_000, "keep a chapter below 400 kB: smaller pictures, shorter outputs"


@each_notebook
def test_a_notebook_opens_with_its_title_and_promise(path):
    first = read_notebook(path).cells[0]
    assert first.cell_type == "markdown" and re.match(r"# \S.*\n+> \S", first.source)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_head_says_what_a_chapter_gives_and_takes(path):
    head = read_notebook(path).cells[1].source
    parts = [name for name in re.findall(r"\*\*([A-Z][\w ]+)\*\*", head) if name != "Skip at first reading"]
    assert parts == ["You will learn", "Needs", "Hardware and running time", "Reading time", "Paper section"]
    assert re.search(r"\*\*Reading time\*\* about [0-9]+ minutes\. ", head)


@each_notebook
def test_a_chapter_can_be_read_in_one_sitting(path):
    words = sum(len(cell.source.split()) for cell in read_notebook(path).cells if cell.cell_type == "markdown")
    assert words <= 2_000, "say it shorter, or move what a learner does not need"


@pytest.mark.parametrize("path", [*NOTEBOOKS, *sorted((ROOT / "nbs").glob("*.md"))], ids=lambda path: path.name)
def test_a_link_into_a_chapter_leads_to_a_heading(path):
    "Jupyter names a heading by its text, with hyphens for spaces."
    def markdown(page) -> str:
        cells = read_notebook(page).cells
        return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")

    text = markdown(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    for name, anchor in re.findall(r"\]\(([\w.]*)#([^)\s]+)\)", text):
        page = path.parent / name if name else path
        if page.suffix == ".ipynb":
            headings = re.findall(r"^#+ (.+?)\s*$", markdown(page), re.M)
            assert anchor in [heading.replace(" ", "-") for heading in headings], f"{name} has no heading for #{anchor}"


@each_notebook
def test_a_notebook_has_one_parameters_cell(path):
    cells = [cell for cell in code_cells(path) if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1
    names = []
    for line in cells[0].source.splitlines():
        match = re.fullmatch(r"(\w+): (str|int|float|bool) = .+  # \S.*", line)
        assert match, f"one assignment a line, with its type and a comment: {line!r}"
        names.append(match[1])
    if path.stem != "index":
        assert names[:3] == ["scale", "seed", "run"]


@each_notebook
def test_a_notebook_stores_no_traces_of_a_run(path):
    for cell in read_notebook(path).cells:
        assert set(cell.metadata) <= {"tags"}, cell.id
        assert "injected-parameters" not in cell.metadata.get("tags", []), cell.id
        if cell.cell_type == "code":
            assert cell.execution_count is None, cell.id
            for output in cell.outputs:
                assert output.output_type != "error", cell.id
                assert output.get("execution_count") is None, cell.id
                assert not output.get("metadata"), cell.id
                assert output.get("name") != "stderr", cell.id


@each_notebook
def test_cells_are_short_and_imports_stand_alone(path):
    for cell in code_cells(path):
        lines = [line for line in cell.source.splitlines() if not line.startswith("#|")]
        assert len(lines) <= LONGEST_CELL, f"cell {cell.id} has {len(lines)} lines"
        statements = parse_cell(cell).body
        imports = [node for node in statements if isinstance(node, ast.Import | ast.ImportFrom)]
        assert len(imports) in (0, len(statements)), f"cell {cell.id} mixes imports with other code"
        for node in imports:
            assert all(alias.name != "*" for alias in node.names), f"cell {cell.id} imports *"


@each_notebook
def test_a_notebook_uses_only_chapters_before_it(path):
    here = NOTEBOOKS.index(path)
    for cell in code_cells(path):
        later = {name for name in own_imports(parse_cell(cell)) if ORDER.get(name, len(NOTEBOOKS)) > here}
        # every chapter opens its run and shows the system picture, also the one before `02_runs`
        allowed = set() if re.match(r"#\|\s*export", cell.source) else {"runs"}
        assert later <= allowed, f"cell {cell.id} imports {sorted(later)} from a later chapter"


@pytest.mark.parametrize("source, names", [
    ("from dreamgym.runs import Run, _lock", {"_lock"}), ("from .runs import _lock", {"_lock"}),
    ("def f():\n    from dreamgym.runs import (\n        _lock as lock,\n    )", {"_lock"}),
    ("from dreamgym import runs\nruns._lock()", {"_lock"}), ("import dreamgym.runs as r\nr._lock()", {"_lock"}),
    ("import dreamgym.runs\ndreamgym.runs._lock()", {"_lock"}), ("from os import _exit", set()),
    ("from dreamgym import runs\nruns.__name__", set()), ("from dreamgym.runs import Run\nself._lock", set())])
def test_private_uses_are_found(source, names):
    assert private_uses(ast.parse(source)) == names


@pytest.mark.parametrize("path", [*NOTEBOOKS, *MODULES], ids=lambda path: path.name)
def test_no_private_name_crosses_modules(path):
    notebook = path.suffix == ".ipynb"
    trees = map(parse_cell, code_cells(path)) if notebook else [ast.parse(path.read_text(encoding="utf-8"))]
    whole = ast.Module([node for tree in trees for node in tree.body], [])
    assert private_uses(whole) == set()


# ---------------------------------------------------------------- modules


@each_module
def test_a_module_imports_only_from_earlier_ones(path):
    assert [name for name in sorted(module_imports(path)) if ORDER.get(name, 99) >= ORDER[module_name(path)]] == []


@pytest.mark.parametrize(("line", "package", "modules"), [
    ("from .runs import Run", "dreamgym", {"runs"}), ("from dreamgym.runs import Run", "dreamgym", {"runs"}),
    ("from ..runs import Run", "dreamgym.suites", {"runs"}), ("from .miniwob import KINDS", "dreamgym.suites", {"suites.miniwob"}),
    ("from .suites.miniwob import KINDS", "dreamgym", {"suites.miniwob"}), ("from . import runs", "dreamgym", {"runs"}),
    ("from dreamgym.suites import miniwob", "dreamgym", {"suites.miniwob"}), ("from . import miniwob", "dreamgym.suites", {"suites.miniwob"}),
    ("from dreamgym import pages", "dreamgym", {"pages"}), ("import dreamgym.suites.miniwob", "dreamgym", {"suites.miniwob"}),
    ("import json, dreamgym.pages as p", "dreamgym", {"pages"}), ("from dreamgymnast import x", "dreamgym", set()),
])
def test_imports_are_understood(line, package, modules):
    assert own_imports(ast.parse(line), package) == modules


@each_module
def test_public_names_have_docstrings(path):
    tree, missing = ast.parse(path.read_text(encoding="utf-8")), []
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    assert ast.get_docstring(tree), "the title and promise of the chapter become the docstring of its module"
    for node in tree.body:
        if isinstance(node, definitions) and not node.name.startswith("_"):
            inner = [n for n in node.body if isinstance(n, definitions)] if isinstance(node, ast.ClassDef) else []
            missing += [n.name for n in (node, *inner)
                        if not n.name.startswith("_") and n.name != "forward" and not ast.get_docstring(n)]
    assert missing == []


@each_module
def test_a_module_is_safe(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "compile", "__import__", "os.system"), f"line {node.lineno}: {name}"
            assert name not in ("torch.load", "pandas.read_pickle"), f"line {node.lineno}: {name} unpickles"
            if any(word.arg == "shell" for word in node.keywords):  # only for a command line that is a constant
                line = node.args[0]
                assert isinstance(line, ast.Constant) or ast.unparse(line).isupper(), f"line {node.lineno}: no shell"
    assert not foreign_or_standard(path) & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def foreign_or_standard(path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {(alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
            for node in nodes for alias in node.names}


# ---------------------------------------------------------------- the method knows no world by name


def is_of_the_method(path) -> bool:
    "Chapters 09 to 25, 40 and 90."
    number = int(NOTEBOOKS[ORDER[module_name(path)]].stem.split("_")[0])
    return 9 <= number <= 25 or number in (40, 90)


METHOD = [path for path in MODULES if is_of_the_method(path)]
FORMS = {"button", "checkbox", "radio", "textarea", "input", "password", "select", "link", "tab", "icon", "heading",
         "click", "parse_state", "parse_action", "parse_element", "render_state", "PageGrammar"}


def words_of_code(tree) -> set[str]:
    "Names, and strings that are used, such as the tag in `tag == \"button\"`; texts for readers are left out."
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} | {
        node.value for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told}


def world_offences(tree, package: str) -> list[str]:
    "What a module of the method says about a world that only its suite should know."
    imported = {name for name in own_imports(tree, package) if name == "pages" or name.split(".")[0] == "suites"}
    words = words_of_code(tree) & FORMS
    words |= {text for text in words_of_code(tree) if re.fullmatch(r"(click|type|select) ([0-9]+.*)?", text)}
    return sorted(imported | words)


@pytest.mark.parametrize("path", METHOD, ids=module_name)
def test_the_method_knows_no_world_by_name(path):
    "Its modules get their world from the suite of a run, and read states and actions with the suite's grammar."
    assert world_offences(ast.parse(path.read_text(encoding="utf-8")), "dreamgym") == []


@pytest.mark.parametrize(("line", "offence"), [
    ("from .pages import quote", "pages"), ("import dreamgym.suites.miniwob", "suites.miniwob"),
    ("def f():\n    from .suites import miniwob", "suites.miniwob"), ("x = [e for e in page if e.tag == 'button']", "button"),
    ("tags = {'checkbox': 1}", "checkbox"), ("parse_state(page)", "parse_state"), ("action = 'click 1'", "click 1"),
    ("action = f'click {number}'", "click "), ("'button'", ""), ('"A button."', ""), ("address.password", ""),
])
def test_what_betrays_a_world(line, offence):
    assert world_offences(ast.parse(line), "dreamgym") == ([offence] if offence else [])


def test_what_is_imported_is_declared():
    "A fresh install must bring everything that the modules and the chapters import."
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.match(r"[\w-]+", line)[0].lower() for line in project["dependencies"]}
    declared |= {"ipython", "urllib3", "markupsafe", "tokenizers"}  # parts of ipykernel, selenium, jinja2, transformers
    extras = {re.match(r"[\w-]+", line)[0].lower() for name in ("text", "webarena")
              for line in project["optional-dependencies"][name]}
    optional = {"vllm", "ray", "pytest", "alfworld"}
    sources = {path.name: [ast.parse(path.read_text(encoding="utf-8"))] for path in MODULES}
    sources |= {path.name: [parse_cell(cell) for cell in code_cells(path)] for path in NOTEBOOKS}
    distributions = {"browsergym": ["browsergym-core"], "oscar": ["django-oscar"]} | packages_distributions()
    undeclared = {}
    for name, trees in sources.items():
        for package in set().union(*map(foreign_imports, trees)) - optional:
            known = declared | extras if re.match("3|shop|web|text_worlds", name) else declared  # an extra is for its worlds
            if not {d.lower().replace("_", "-") for d in distributions.get(package, [package])} & known:
                undeclared.setdefault(name, []).append(package)
    assert undeclared == {}


def test_light_modules_stay_light():
    "Reading a file or printing a help text must not wait for torch."
    program = (
        "import importlib, sys\n"
        f"for name in {LIGHT!r}:\n"
        "    importlib.import_module('dreamgym.' + name)\n"
        "    heavy = {'torch', 'transformers', 'peft', 'trl', 'datasets', 'faiss'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_uses_no_name_that_nobody_has_given(path):
    "A cell that lost its import would be found by a whole run only."
    cells = [cell.source for cell in read_notebook(path).cells if cell.cell_type == "code"]
    lines = ["" if line.startswith(("%", "!")) else line for source in cells for line in [*source.split("\n"), ""]]
    told = io.StringIO()
    pyflakes.api.check("\n".join(lines) + "\n", path.name, pyflakes.reporter.Reporter(told, told))
    missing = [line for line in told.getvalue().splitlines() if "undefined name" in line]
    assert [line for line in missing if not line.endswith(("'display'", "'get_ipython'"))] == []
