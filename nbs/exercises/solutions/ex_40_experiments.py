"Solutions of ex_40_experiments.ipynb: look only after you have tried."

import numpy as np

CHARGED = {"logs": {"logs"}, "dream": {"first pages", "gate"}, "real": {"first pages", "RL"}, "few": {"first pages", "few"}}


def bill(steps, uses):
    purposes = {"demonstrations"}.union(*(CHARGED[use] for use in uses))
    return sum(steps[purpose] for purpose in purposes)


def split_seen(rows):
    counts = {True: [0, 0], False: [0, 0]}
    for row in rows:
        both = row["goal_read"], row["page_read"]
        if None in both and False not in both:
            return "unknown"
        counts[False not in both][0] += bool(row["success"])
        counts[False not in both][1] += 1
    return (*counts[True], *counts[False])


def two_stage_interval(first, second, random):
    differences = np.asarray(second, float) - np.asarray(first, float)
    seeds, tasks = differences.shape
    rows = random.integers(seeds, size=(2000, seeds))
    columns = random.integers(tasks, size=(2000, seeds, tasks))
    means = differences[rows[:, :, None], columns].mean((1, 2))
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
