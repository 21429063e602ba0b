"""Stick-breaking over the visible keys."""

import numpy as np

from tests.laws.oracle.common import logits, read


def core(inner, lanes, seq):
    """Key j takes sigmoid(z_ij) of what the keys between it and the query left of a unit."""
    query, value = inner["query"], inner["value"]
    batch, length, heads, _ = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    for b in range(batch):
        rows = logits(inner, lanes, seq, b)
        for h in range(heads):
            weights, own = np.zeros((length, length)), value[b, :, h * value.shape[2] // heads]
            for i in range(length):
                left = 1.0
                for j in range(i - 1, -1, -1):
                    share = 1 / (1 + np.exp(-rows[h, i, j]))  # 0 where they may not meet
                    weights[i, j], left = left * share, left * (1 - share)
                if inner["remainder"]:
                    out[b, i, h] = left * own[i]
            out[b, :, h] += read(weights, own, lanes, seq, b)
    return out
