"Examples of random tokens, and what the tests of the language model ask of their scores."

import numpy as np
import torch

from dreamgym.language_model import Example

VOCABULARY = 259  # of the tiny tokenizer


def random_tokens(random, count):
    return random.integers(0, VOCABULARY, size=count).tolist()


def random_examples(seed, count=9, shared=True):
    "Examples of random tokens; those that share grow out of a few stems and repeat one another."
    random = np.random.default_rng(seed)
    if not shared:
        lengths = random.integers(1, 30, size=(count, 2)).tolist()
        return [Example([i, *random_tokens(random, a)], random_tokens(random, b)) for i, (a, b) in enumerate(lengths)]
    stem = random_tokens(random, 20)
    output = []
    for _ in range(count):
        prompt = stem[:random.integers(1, 21)] + random_tokens(random, random.integers(0, 4))
        output.append(Example(prompt, random_tokens(random, random.integers(1, 9))))
    output.append(output[0])  # twice the same
    output.append(Example([*output[1].prompt, *output[1].completion], [1, 2]))  # goes on where another ends
    output.append(Example(output[2].prompt, output[2].completion[:1]))  # the beginning of another
    return output


def tree_scores(model, examples, **sizes):
    "What `score_batches` finds, in the order of the examples."
    found = {i: score for rows, scores in model.score_batches(examples, **sizes)
             for i, score in zip(rows, scores, strict=True)}
    return [found[i] for i in range(len(examples))]


def gradient_of(model, scores):
    "The gradient of a loss in which every token weighs differently."
    flat = torch.cat(scores)
    loss = (flat * torch.linspace(-1, 1, len(flat))).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, model.parameters())])


def assert_close_relative(left, right, tolerance):
    assert abs(left - right).max() <= tolerance * max(1.0, float(abs(right).max()))


def as_if_trained(model, seed=0):
    "The same model, its adapter filled with numbers."
    generator = torch.Generator().manual_seed(seed)
    for layer in model.adapted.values():
        layer.lora_b.data.normal_(std=0.2, generator=generator)
    return model
