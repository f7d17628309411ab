"Solutions of ex_07_language_model.ipynb: look only after you have tried."

import numpy as np


def score(logits, tokens, prompt, temperature):
    z = np.asarray(logits) / temperature
    z = z - z.max(-1, keepdims=True)
    logs = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return float(sum(logs[place - 1, tokens[place]] for place in range(prompt, len(tokens))))


def choose(logits, temperature, uniform):
    if temperature == 0:
        return logits.argmax(1)
    z = logits / temperature
    p = np.exp(z - z.max(1, keepdims=True))
    sums = (p / p.sum(1, keepdims=True)).cumsum(1)
    passed = (sums <= uniform[:, None]).sum(1)
    return np.minimum(passed, logits.shape[1] - 1)


def adapted(x, weight, a, b, scale):
    term = product(product(x, a), b * scale)  # `product` stands in the notebook
    return product(x, weight, term)
