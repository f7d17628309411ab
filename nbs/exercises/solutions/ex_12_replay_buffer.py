"Solutions of ex_12_replay_buffer.ipynb: look only after you have tried."

import numpy as np


def cosines(queries, rows):
    def unit(vectors):
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors / np.where(lengths == 0, 1.0, lengths)

    return unit(queries) @ unit(rows).T


def nearest(similarity, tasks, own_task, count):
    order = np.argsort(-similarity, kind="stable")
    return [int(row) for row in order if tasks[row] != own_task][:count]


def thin(entries, most):
    seen, kept = {}, []
    for entry in reversed(entries):
        if not entry.real:
            seen[entry.outcome] = seen.get(entry.outcome, 0) + 1
        if entry.real or seen[entry.outcome] <= most:
            kept.append(entry)
    return kept[::-1]
