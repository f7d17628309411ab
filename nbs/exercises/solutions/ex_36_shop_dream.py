"Solutions of ex_36_shop_dream.ipynb: look only after you have tried."

import math
import re

import numpy as np


def longest(p, wanted):
    return math.floor(math.log(wanted) / math.log(p))


def read_answer(answer, page, remembered):
    head, *lines = answer.split("\n")
    if answer == "same":
        return list(page)
    if head not in ("page", "like") or "" in lines or (head == "page" and not lines):
        raise ValueError("Neither `same`, nor `page` with lines, nor `like`.")
    if head == "page":
        return lines
    output, last = list(remembered), 0
    for line in lines:
        found = re.fullmatch(r"([1-9][0-9]*)= (.+)", line)
        if not found or not last < int(found[1]) <= len(output):
            raise ValueError(f"Not a line of the remembered page, in rising order: {line!r}.")
        last = int(found[1])
        output[last - 1] = found[2]
    return output


def findings(steps):
    def share(values):
        return float(np.mean(values)) if len(values) else np.nan

    on, ends = ([s for s in steps if s["real_done"] == done] for done in (False, True))
    readable = share([s["valid"] for s in on]), share([s["valid"] for s in ends])
    success, failure = (share([s["done"] and s["reward"] == real for s in ends if s["real_reward"] == real])
                        for real in (1.0, 0.0))
    suspect = "form" if readable[0] < 0.5 else "verdict" if (success + failure) / 2 < 0.8 else "none"
    return {"readable": readable, "stops": share([s["done"] for s in on]), "success": success, "failure": failure,
            "suspect": suspect}
