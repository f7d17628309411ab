"Solutions of ex_42_theory.ipynb: look only after you have tried."

import numpy as np


def total_variation(first, second):
    moved = first - second
    return (abs(moved).sum() + abs(moved.sum())) / 2


def partly_dreamed(real, dream, policy, lived, steps):
    value = np.zeros(len(policy))
    for step in reversed(range(steps)):
        _, after, pays = real if step < lived else dream
        value = (policy * (pays + after @ value)).sum(1)
    return float(real[0] @ value)


def own_steps_bound(real, dream, policy, steps):
    moved = real[1] - dream[1]
    rewards, variation = abs(real[2] - dream[2]), (abs(moved).sum(2) + abs(moved.sum(2))) / 2
    here, reward, transition = real[0], 0.0, 0.0
    for step in range(steps):
        taken = here[:, None] * policy
        reward += float((taken * rewards).sum())
        transition += float((taken * variation).sum()) * (step < steps - 1)
        here = np.einsum("sa,sap->p", taken, real[1])
    return reward, transition
