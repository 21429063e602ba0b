"""Softmax over the visible keys."""

import numpy as np

from tests.laws.oracle.common import logits, read


def core(inner, lanes, seq):
    query, value = inner["query"], inner["value"]
    batch, length, heads, _ = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    for b in range(batch):
        rows = logits(inner, lanes, seq, b)
        for h in range(heads):
            weights = np.exp(rows[h] - rows[h].max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            out[b, :, h] = read(weights, value[b, :, h * value.shape[2] // heads], lanes, seq, b)
    return out
