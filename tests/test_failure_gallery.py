"What chapter 43 shows of the past is what the named files say."

import csv
import io
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
with (ROOT / "nbs" / "data" / "failures.csv").open(encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))


def test_every_row_says_where_it_comes_from():
    assert {row["failure"] for row in ROWS} == {"boxes", "buttons", "logins", "dead groups", "bf16"}
    for row in ROWS:
        assert re.fullmatch(r"results/\w+\.csv", row["file"]) and re.fullmatch(r"[0-9a-f]{7,40}", row["commit"]), row
        assert not row["of"] or 0 <= float(row["value"]) <= int(row["of"]), row


@pytest.mark.parametrize(("file", "commit"), sorted({(row["file"], row["commit"]) for row in ROWS}))
def test_its_numbers_stand_in_the_named_file(file, commit):
    shown = subprocess.run(["git", "-c", "safe.directory=*", "show", f"{commit}:{file}"], cwd=ROOT, capture_output=True,
                           text=True, check=False)
    if shown.returncode:  # a shallow checkout, or unpacked without git
        pytest.skip("this checkout does not hold that commit")
    source = list(csv.DictReader(io.StringIO(shown.stdout)))
    for row in (row for row in ROWS if (row["file"], row["commit"]) == (file, commit)):
        lines = [{cell for cell in line.values() if cell} for line in source if line["seed"] == row["seed"]]
        number = float(row["value"])
        wanted = {f"{number:.0f}", row["of"]} if row["of"] else {row["value"]}
        if file.endswith("quick_prompt.csv"):
            wanted.discard("20")  # a button's share of the 80 tasks has no column of its own
        assert any(wanted <= line for line in lines), row
