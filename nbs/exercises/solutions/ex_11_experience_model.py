"Solutions of ex_11_experience_model.ipynb: look only after you have tried."

import re

import numpy as np

from dreamgym.environments import StateError
from dreamgym.pages import parse_state
from dreamgym.trajectories import END_STATE, FAILURE_STATE


def loss_parts(logs, traces):
    reasoning = np.concatenate([row[:n] for row, n in zip(logs, traces, strict=True)])
    result = np.concatenate([row[n:] for row, n in zip(logs, traces, strict=True)])
    return -float(reasoning.mean()), -float(result.mean())


def read_answer(text, page):
    failed = FAILURE_STATE, 0.0, True
    trace, *rest = text.split("\n")
    if not trace or not rest:
        return failed
    if rest in (["=> success"], ["=> failure"]):
        return END_STATE, float(rest[0] == "=> success"), True
    if rest[0] != "=> goes on" or len(rest) < 2:
        return failed
    form, lines, after = rest[1], rest[2:], page.split("\n")
    if form == "page":
        after = lines
    elif form == "edit" and lines:
        for line in lines:
            head = re.match(r"\[\d+\] ", line)
            places = [i for i, old in enumerate(after) if head and old.startswith(head[0])]
            if not places:
                return failed
            after[places[0]] = line
    elif form != "same" or lines:
        return failed
    try:
        return ("\n".join(after), 0.0, False) if parse_state("\n".join(after)) else failed
    except StateError:
        return failed


def imagine(model, queries, memory, doubt):
    new = [query for query in dict.fromkeys(queries) if query not in memory]
    for query, (trace, reward, done) in zip(new, model(new) if new else [], strict=True):
        refused = reward > 0 and doubt(trace, query)
        memory[query] = (trace, 0.0, True) if refused else (trace, reward, done)
    return [memory[query] for query in queries]
