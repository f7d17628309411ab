"Solutions of ex_41_reproduction.ipynb: look only after you have tried."

import numpy as np

from dreamgym.statistics import exact_mcnemar


def single_run(percent, tasks, decimals=1):
    solved = round(percent * tasks / 100)
    return 0 <= solved <= tasks and abs(100 * solved / tasks - percent) <= 0.5 * 10**-decimals + 1e-9


def unbeaten(agents):
    counted = {name: agent for name, agent in agents.items() if not np.isnan(agent[1])}
    beaten = {name for name, (success, steps) in counted.items()
              if any(s >= success and n <= steps and (s, n) != (success, steps) for s, n in counted.values())}
    return sorted(set(counted) - beaten), sorted(set(agents) - set(counted))


def possible_p(first, second, tasks):
    overlaps = range(max(0, first + second - tasks), min(first, second) + 1)
    values = [exact_mcnemar(first - both, second - both) for both in overlaps]
    return min(values), max(values)
