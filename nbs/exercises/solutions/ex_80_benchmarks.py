"Solutions of ex_80_benchmarks.ipynb: look only after you have tried."

import numpy as np


def speed_up(ours, theirs):
    ratios = np.array(theirs[1:]) / np.array(ours[1:])
    return float(np.median(ratios)), float(ratios.min()), float(ratios.max())


def take_turns(programs, rounds, budget, clock):
    output, start = {name: [] for name in programs}, clock()
    for number in range(rounds + 1):
        if number > 1 and (clock() - start) * (number + 1) / number > budget:
            break
        for name, work in programs.items():
            before = clock()
            work()
            if number:
                output[name].append(clock() - before)
    return output


def decoding_limit(model, batch, product, memory):
    width = model["width"]
    block = 2 * width**2 + 2 * width * model["key_width"] + 3 * width * model["inner"]
    weights = model["layers"] * block + width * model["vocabulary"]
    arithmetic, reading = 2 * batch * weights / product, model["size"] * weights / memory
    return batch / max(arithmetic, reading), "memory" if reading > arithmetic else "product"
