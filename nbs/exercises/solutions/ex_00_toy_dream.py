"Solutions of ex_00_toy_dream.ipynb: look only after you have tried."

import numpy as np


def learn_transitions(states, actions, following, shape):
    counts = np.zeros((*shape, shape[0]), int)
    np.add.at(counts, (states, actions, following), 1)
    return np.where(counts.sum(-1) > 0, counts.argmax(-1), -1)


def group_push(probabilities, actions, rewards):
    chosen = np.eye(len(probabilities))[actions]
    advantages = rewards - np.mean(rewards)
    return (advantages[:, None] * (chosen - probabilities)).mean(0)


def expected_success(after, pays, policy, longest):
    value = np.zeros(len(after))
    for _ in range(longest):
        following = np.where(after >= 0, value[after], 0.0)  # (states, actions)
        value = policy[:, -1] * pays + (policy[:, :-1] * following).sum(1)
    return float(value[0])
