"Solutions of ex_09_rollouts.ipynb: look only after you have tried."

import numpy as np


def count_spellings(text, vocabulary):
    ways = [1]
    for end in range(1, len(text) + 1):
        ways.append(sum(ways[start] for start in range(end) if text[start:end] in vocabulary))
    return ways[-1]


def training_rows(turns):
    longest = max(len(prompt) + len(sampled) for prompt, sampled, _ in turns)
    tokens, mask = np.zeros((2, len(turns), longest), int)
    old = np.zeros((len(turns), longest))
    for row, (prompt, sampled, logs) in enumerate(turns):
        own = slice(len(prompt), len(prompt) + len(sampled))
        tokens[row, :own.stop] = [*prompt, *sampled]
        mask[row, own], old[row, own] = 1, logs
    return tokens, mask, old


def play_all(worlds, act, longest):
    states = [world.reset() for world in worlds]
    rewards, counts, live = [0.0] * len(worlds), [0] * len(worlds), list(range(len(worlds)))
    for _ in range(longest):
        if not live:
            break
        still = []
        for i, action in zip(live, act([states[i] for i in live]), strict=True):
            states[i], reward, done = worlds[i].step(action)
            rewards[i] += reward
            counts[i] += 1
            still += [] if done else [i]
        live = still
    return [(reward, count, i in live) for i, (reward, count) in enumerate(zip(rewards, counts, strict=True))]
