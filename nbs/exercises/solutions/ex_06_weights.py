"Solutions of ex_06_weights.ipynb: look only after you have tried."

import hashlib
import os

import numpy as np


def damaged(folder, hashes):
    def right(path, wanted):
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == wanted

    return sorted(name for name, wanted in hashes.items() if not right(folder / name, wanted))


def four_bits(weights, size):
    blocks = weights.reshape(-1, size)
    smallest = blocks.min(1)
    step = (blocks.max(1) - smallest) / 15
    levels = np.rint((blocks - smallest[:, None]) / np.where(step == 0, 1.0, step)[:, None])
    return levels.astype(int), smallest, step


def fetch(target, pinned, mirrors):
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == pinned:
        return target
    for mirror in mirrors:
        try:
            data = mirror()
        except OSError:
            continue
        if hashlib.sha256(data).hexdigest() == pinned:
            unfinished = target.with_name(f".{target.name}.unfinished")
            unfinished.write_bytes(data)
            os.replace(unfinished, target)
            return target
    raise ValueError(f"No mirror gives the pinned bytes of {target.name}; name another mirror.")
