"""ReLU features under a cosine of the distance in tokens; the sum knows no transport."""

import numpy as np

from lcx import lanes as L
from tests.laws.oracle.common import allowed, bias, pair_weights, read, row


def core(inner, lanes, seq):
    query, value = inner["query"], inner["value"]
    batch, length, heads, _ = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    for b in range(batch):
        mask, index = allowed(inner, seq, b), row(inner["index"], b)
        fade = np.cos(np.pi * (index[:, None] - index[None]) / (2 * inner["max_length"]))
        for h in range(heads):
            log = np.where(mask, bias(inner, lanes, seq, b, h, heads), 0.0)
            factor = np.where(mask, np.exp(log) * fade, 0.0)
            weights = pair_weights(inner, lanes, seq, b, h, heads) * factor
            plain = pair_weights(inner, L.Lanes(), seq, b, h, heads) * factor
            out[b, :, h] = read(weights, value[b, :, h], lanes, seq, b)
            out[b, :, h] /= np.maximum(plain.sum(1, keepdims=True), 1e-6)
    return out
