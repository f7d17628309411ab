"Solutions of ex_24_training_loop.ipynb: look only after you have tried."

import numpy as np

from dreamgym.runs import derive_seed


def dead_share(rewards, groups):
    piles = {}
    for reward, group in zip(rewards, groups, strict=True):
        piles.setdefault(int(group), set()).add(float(reward))
    return sum(len(pile) == 1 for pile in piles.values()) / len(piles)


def two_returns(rates, least):
    weights = np.maximum(rates * (1 - rates), least)
    weights[weights.sum(1) == 0] = 1.0
    return (weights * rates).sum(1) / weights.sum(1), rates.mean(1)


def train(folder, state, update, iterations, seed):
    for number in range(1, iterations + 1):
        path = folder / f"{number:04d}.json"
        if path.exists():
            state = load(path)  # `load` and `save` stand in the notebook
            continue
        state = update(state, derive_seed(seed, "iteration", number))
        save(path, state)
    return state
