"Solutions of ex_08_fast_model.ipynb: look only after you have tried."

import numpy as np


def tree_size(sequences):
    return len({tuple(sequence[:end]) for sequence in sequences for end in range(1, len(sequence) + 1)})


def tree_attention(parents):
    mask = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] |= mask[parent]
    return mask, mask.sum(1) - 1


def write(choose, guess, prompt, count, ahead, end):
    output = []
    while len(output) < count:
        tokens = [*prompt, *output]
        guessed = guess(tokens, min(ahead, count - len(output) - 1))
        for place, token in enumerate(choose([*tokens, *guessed], len(tokens))):
            output.append(token)
            if token == end:
                return output
            if place < len(guessed) and guessed[place] != token:
                break
    return output
