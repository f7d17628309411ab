"Solutions of ex_90_report.ipynb: look only after you have tried."

import html
import re

import numpy as np

from dreamgym.statistics import wilson

STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def escaped(text):
    return html.escape(STEERING.sub("\N{REPLACEMENT CHARACTER}", text))


def cell(seeds, draws=2000):
    if not seeds:
        return "not run"
    rates = [solved / tasks for solved, tasks in seeds]
    mean = f"{100 * np.mean(rates):.0f}%"
    if len(seeds) == 1:
        rate = wilson(*seeds[0])
        return f"{mean} [{100 * rate.low:.0f}, {100 * rate.high:.0f}]"
    if len(seeds) < 5:
        return f"{mean} ({', '.join(str(solved) for solved, _ in seeds)})"
    means = np.random.default_rng(0).choice(rates, (draws, len(rates))).mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{mean} [{100 * low:.0f}, {100 * high:.0f}]"


def side_by_side(real, imagined):
    first, second = real.split("\n"), imagined.split("\n")
    common = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]  # of what stands behind two places
    for i in reversed(range(len(first))):
        for j in reversed(range(len(second))):
            common[i][j] = common[i + 1][j + 1] + 1 if first[i] == second[j] else max(common[i + 1][j], common[i][j + 1])
    i = j = 0
    kept = set(), set()
    while i < len(first) and j < len(second):
        if first[i] == second[j]:
            kept[0].add(i)
            kept[1].add(j)
            i, j = i + 1, j + 1
        elif common[i + 1][j] >= common[i][j + 1]:
            i += 1
        else:
            j += 1
    return tuple("\n".join(html.escape(line) if place in same else f"<mark>{html.escape(line)}</mark>"
                           for place, line in enumerate(lines)) for lines, same in zip((first, second), kept, strict=True))
