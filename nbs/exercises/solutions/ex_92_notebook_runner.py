"Solutions of ex_92_notebook_runner.ipynb: look only after you have tried."

import copy
import json
import re


def is_skipped(source):
    for row in source.split("\n"):
        if not re.match(r"#\s*\|", row):
            return False
        if re.fullmatch(r"#\s*\|\s*eval\s*:\s*false\s*", row):
            return True
    return False


def runnable(notebook):
    output = copy.deepcopy(notebook)
    for place, cell in enumerate(output["cells"]):
        if cell["cell_type"] == "code" and is_skipped(cell["source"]):
            output["cells"][place] = {"cell_type": "markdown", "source": cell["source"]}
        elif cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return output


def seconds_left(waiting, finished, elapsed, weights):
    known = sum(weights.get(name, 10) for name in finished)
    pace = sum(finished.values()) / known if known >= 10 else 1.0
    times = [pace * weights.get(name, 10) for name in waiting]
    return max(0.0, times[0] - elapsed) + sum(times[1:]) if times else 0.0


def to_run(chapters, record, stages):
    *lines, _ = record.split("\n")
    newest = {}
    for place, text in enumerate(lines, 1):
        try:
            row = json.loads(text)
        except ValueError:
            if place < len(lines):
                raise
            break
        newest[row["chapter"]] = row
    done = {name for name, row in newest.items() if row["source"] == chapters.get(name) and set(row["stages"]) <= stages}
    return [name for name in chapters if name not in done]
