"Solutions of ex_20_statistics.ipynb: look only after you have tried."

import numpy as np

from dreamgym.statistics import exact_mcnemar, wilson


def failures_needed(limit):
    n = 1
    while wilson(0, n).high >= limit:
        n += 1
    return n


def power(first, second, tasks, repeats, random):
    seen = 0
    for _ in range(repeats):
        a, b = random.random(tasks) < first, random.random(tasks) < second
        seen += exact_mcnemar(int((a & ~b).sum()), int((b & ~a).sum())) < 0.05
    return seen / repeats


def paired_interval(first, second, random):
    differences = np.asarray(second, float) - np.asarray(first, float)
    means = random.choice(differences, (10_000, len(differences))).mean(1)
    return tuple(np.quantile(means, (0.025, 0.975)))
