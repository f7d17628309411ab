"The evidence: rows in results/, and README's tables, pictures and sentences that are made from them."

import csv
import json
import re
import subprocess
from pathlib import Path

import pytest

from dreamgym.report import agent_rows, evidence_chart, filled_tables, recorded_dreams, dream_picture
from dreamgym.runs import system_picture

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
README = (ROOT / "README.md").read_text(encoding="utf-8")
MEND = "run: python -c \"from pathlib import Path; from dreamgym.report import write_evidence; write_evidence(Path('.'))\""
TABLES = sorted(path.relative_to(RESULTS).as_posix() for path in RESULTS.rglob("*.csv"))


def shown() -> list[str]:
    "The folders that README's table shows."
    (names,) = re.findall(r"<!-- results ([^>]*) -->", README)
    return names.split()


# ---------------------------------------------------------------- files


def test_results_have_the_parts_of_the_design():
    assert {path.name for path in RESULTS.iterdir()} <= {"README.md", "protocol.md", "archive.md", "main", "ablations",
                                                         "benchmarks"}
    for folder in (RESULTS / "main").iterdir():
        assert re.fullmatch(r"[\w-]+-(quick|cpu|gpu|paper)", folder.name) and (folder / "agents.csv").exists()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_results_is_whole(name):
    with (RESULTS / name).open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert rows and len(set(head)) == len(head)
    assert [number for number, row in enumerate(rows, 2) if len(row) != len(head)] == [], "cells with commas are quoted"


@pytest.mark.parametrize("folder", sorted((RESULTS / "ablations").iterdir()), ids=lambda path: path.name)
def test_an_ablation_says_in_three_lines_what_was_asked_changed_and_found(folder):
    lines = [line for line in (folder / "README.md").read_text(encoding="utf-8").splitlines() if line]
    assert [line.split("** ")[0] for line in lines] == ["**Asked.", "**Changed.", "**Found."]
    assert list(folder.glob("*.csv"))


def test_files_that_are_named_are_there():
    "In README, in results/ and in the book."
    texts = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", RESULTS / "README.md", *(ROOT / "nbs").glob("*.md")]}
    texts |= {path: "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
                              if cell["cell_type"] == "markdown") for path in (ROOT / "nbs").glob("*.ipynb")}
    missing, found = [], 0
    for path, text in texts.items():
        for name in re.findall(r"`(?:results/)?((?:main|ablations|benchmarks)/[\w/.-]*)`", text):
            found += 1
            missing += [] if (RESULTS / name).exists() else [f"{path.name}: {name}"]
    assert missing == [] and found > 10
    assert not re.search(r"`results/\w+\.csv`", "\n".join(texts.values())), "rows lie in main/, ablations/ or benchmarks/"


def test_the_archive_names_commits_that_hold_the_rows():
    places = re.findall(r"((?:`\w+\.csv`(?:, )?)+) in ([0-9a-f]{7,})", (RESULTS / "archive.md").read_text(encoding="utf-8"))
    names = [(commit, name) for files, commit in places for name in re.findall(r"`(\w+\.csv)`", files)]
    assert len(names) == len(set(name for _, name in names)) > 30
    asked = "".join(f"{commit}:results/{name}\n" for commit, name in names)
    try:
        done = subprocess.run(["git", "-c", "safe.directory=*", "cat-file", "--batch-check"], cwd=ROOT, input=asked,
                              capture_output=True, text=True, check=True)
        shallow = subprocess.run(["git", "-c", "safe.directory=*", "rev-parse", "--is-shallow-repository"], cwd=ROOT,
                                 capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this checkout has no git")
    if shallow.stdout.strip() == "true" or " blob " not in done.stdout:
        pytest.skip("this checkout has no history")
    assert [line for line in done.stdout.splitlines() if " blob " not in line] == []


# ---------------------------------------------------------------- README against the rows


def test_readme_shows_the_table_of_the_rows():
    assert filled_tables(README, RESULTS) == README, MEND
    assert "| agent |" in README and "not run" in README


def test_readme_shows_every_main_row():
    assert [path.name for path in (RESULTS / "main").iterdir() if f"main/{path.name}" not in shown()] == [], (
        "name the folder in the mark <!-- results ... --> of README, and " + MEND)


def test_readme_pictures_are_those_of_the_code():
    images = ROOT / "nbs" / "images"
    typo = next(pair for pair in recorded_dreams() if not pair[0].success)
    assert (images / "system.svg").read_text(encoding="utf-8") == str(system_picture()) + "\n", MEND
    assert (images / "dream.svg").read_text(encoding="utf-8") == str(dream_picture(*typo)), MEND
    chart = evidence_chart({name.split("/")[1]: agent_rows(RESULTS / name) for name in shown()})
    described = (images / "results.svg").read_text(encoding="utf-8")  # its lines depend on matplotlib's version, its words do not
    assert re.search(r"<dc:description>(.*?)</dc:description>", described, re.DOTALL)[1] == chart.text, MEND
    for name in ("system", "dream", "results"):
        assert f"](nbs/images/{name}.svg)" in README


def successes(folder: str, agent: str) -> list[tuple[int, int]]:  # with each seed: solved tasks, and all
    rows = [row for row in agent_rows(RESULTS / folder) if row["agent"] == agent]
    return [(round(float(row["success"]) * int(row["episodes"])), int(row["episodes"])) for row in rows]


def solved_with_seed_0(folder: str) -> dict[str, int]:  # solved tasks, agent by agent
    rows = [row for row in agent_rows(RESULTS / folder) if int(float(row["seed"])) == 0]
    return {row["agent"]: round(float(row["success"]) * int(row["episodes"])) for row in rows}


def percent(folder: str, agent: str) -> str:
    found = successes(folder, agent)
    return f"{sum(a / b for a, b in found) / len(found):.0%}"


def test_readme_sentences_say_what_the_rows_say():
    start, dream, last = (percent("ablations/lookups", agent) for agent in ("warm_start", "dream", "sim_to_real"))
    assert f"from {start} to {dream} without a further real step" in README and f"real steps to {last}" in README
    names = ("warm_start", "imitation", "dream", "sim_to_real")
    first, rival, dreamed, moved = (solved_with_seed_0("main/miniwob-quick")[name] for name in names)
    assert f"from {first} of 60 to {rival} by imitation, {dreamed} in the dream, {moved} after transfer" in README
    ((imitated, tasks),), ((dreamed, _),) = (successes("ablations/rivals", a) for a in ("imitation", "dream"))
    assert f"it solves {imitated} of {tasks} tasks where the dream solves {dreamed}" in README
    real, dream, last = (percent("main/miniwob-cpu", agent) for agent in ("real", "dream", "sim_to_real"))
    assert f"real GRPO solves {real}, the dream {dream}, sim-to-real {last}" in README
    imitation, dream = (percent("main/textworld-quick", agent) for agent in ("imitation", "dream"))
    assert f"imitation ({imitation}) is ahead of the dream ({dream})" in README
