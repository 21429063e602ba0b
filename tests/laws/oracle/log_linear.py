"""Decayed weights of pairs, times a weight for the level of the pair."""

import numpy as np

from tests.laws.oracle.common import allowed, bias, pair_weights, read, row


def core(inner, lanes, seq):
    query, value = inner["query"], inner["value"]
    batch, length, heads, _ = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    decay = np.broadcast_to(inner["log_decay"], (batch, length, heads))
    for b in range(batch):
        mask, index = allowed(inner, seq, b), row(inner["index"], b).astype(int)
        level = row(inner["level"], b)
        for h in range(heads):
            weights = pair_weights(inner, lanes, seq, b, h, heads)
            log = bias(inner, lanes, seq, b, h, heads)
            for i, j in zip(*np.nonzero(mask)):
                log[i, j] += decay[b, j + 1 : i + 1, h].sum()
                weights[i, j] *= level[i, h, int(index[i] ^ index[j]).bit_length()]
            weights = np.where(mask, weights * np.exp(np.where(mask, log, 0.0)), 0.0)
            out[b, :, h] = read(weights, value[b, :, h * value.shape[2] // heads], lanes, seq, b)
    return out
