"""The sigmoid of every visible key by itself."""

import numpy as np

from tests.laws.oracle.common import logits, read


def core(inner, lanes, seq):
    query, value = inner["query"], inner["value"]
    batch, length, heads, _ = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    for b in range(batch):
        weights = 1 / (1 + np.exp(-(logits(inner, lanes, seq, b) + inner["offset"])))
        for h in range(heads):
            out[b, :, h] = read(weights[h], value[b, :, h * value.shape[2] // heads], lanes, seq, b)
    return out
