"Solutions of ex_25_sim_to_real.ipynb: look only after you have tried."

from math import comb

import numpy as np


def surely_fit(budget, used, group, longest):
    return max(0, (budget - used) // (group * longest))


def spend(play, tasks, group, longest, budget):
    costs = []
    while chosen := tasks[len(costs):len(costs) + (budget - sum(costs)) // (group * longest)]:
        costs += play(chosen)
    return costs


def across_seeds(before, after):
    gains = np.array([after[seed] - before[seed] for seed in before if seed in after])
    better, worse = int((gains > 0).sum()), int((gains < 0).sum())
    decided, rarer = better + worse, min(better, worse)
    one_side = sum(comb(decided, i) for i in range(rarer + 1)) / 2**decided
    return float(gains.mean()), better, worse, min(1.0, 2 * one_side)
