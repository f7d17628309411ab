"Solutions of ex_43_failure_gallery.ipynb: look only after you have tried."

import numpy as np


def ceiling(traces, outcomes):
    piles = {}
    for trace, outcome in zip(traces, outcomes, strict=True):
        piles.setdefault(trace, []).append(outcome)
    return sum(max(sum(pile), len(pile) - sum(pile)) for pile in piles.values()) / len(traces)


def advantages(rewards, groups, weight):
    output = np.zeros(len(rewards))
    for group in np.unique(groups):
        rows = groups == group
        dead = np.ptp(rewards[rows]) == 0
        output[rows] = weight * (rewards[rows] - rewards.mean()) if dead else rewards[rows] - rewards[rows].mean()
    return output


def diagnose(curve):
    end = {name: values[-10:].mean() for name, values in curve.items()}
    if curve["dead"].min() == 1:
        return "dead groups"
    if curve["entropy"][5:10].mean() < 0.1 and end["real"] < 0.9:
        return "collapse"
    if end["dreamed"] > end["real"] + 0.1:
        return "lying simulator"
    return "healthy" if end["real"] > 0.9 else "inverted mask"
