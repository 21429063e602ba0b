"""Softmax over the visible keys, perhaps beside a sink that takes its share and reads nothing."""

import numpy as np

from tests.laws.oracle.common import logits, read


def core(inner, lanes, seq):
    query, value = inner["query"], inner["value"]
    batch, length, heads, _ = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    for b in range(batch):
        rows = logits(inner, lanes, seq, b)
        for h in range(heads):
            sink = -np.inf if inner.get("sink") is None else inner["sink"][h]
            top = np.maximum(rows[h].max(1, keepdims=True), sink)
            weights = np.exp(rows[h] - top)
            weights /= weights.sum(1, keepdims=True) + np.exp(sink - top)
            out[b, :, h] = read(weights, value[b, :, h * value.shape[2] // heads], lanes, seq, b)
    return out
