"Solutions of ex_33_shop.ipynb: look only after you have tried."

import hashlib
import os
import shutil


def whole(draw, low, high):
    return low + int(draw() * (high - low + 1))


def digest(tables):
    rows = [(name, sorted(map(repr, found))) for name, found in sorted(tables.items())]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def restore(template, current):
    fresh = current.with_name(f"{current.name}.fresh")
    shutil.copyfile(template, fresh)
    for tail in ("-journal", "-wal", "-shm"):
        current.with_name(current.name + tail).unlink(missing_ok=True)
    os.replace(fresh, current)
