"Solutions of ex_21_evaluation.ipynb: look only after you have tried."

import numpy as np

from dreamgym.statistics import wilson


def balanced_accuracy(dreamed, real):
    rates = [(dreamed[real == outcome] == outcome).mean() for outcome in (0, 1) if (real == outcome).any()]
    return float(np.mean(rates)) if len(rates) == 2 else float("nan")


def across_types(kinds, outcomes):
    piles = {}
    for kind, outcome in zip(kinds, outcomes, strict=True):
        piles.setdefault(kind, []).append(outcome)
    return float(np.mean([np.mean(pile) for pile in piles.values()]))


def verdict(dreamed, real):
    failures = real == 0
    if not failures.any():
        return "not measured"
    rate = wilson(int((dreamed[failures] == 0).sum()), int(failures.sum()))
    return "flattering" if rate.high < 0.8 else "honest" if rate.low >= 0.8 else "too few"
