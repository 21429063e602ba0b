"""RWKV-4's average, each pair on its own."""

import numpy as np

from lcx import lanes as L
from tests.laws.oracle.common import allowed, bias, read, row


def core(inner, lanes, seq):
    key, value, rate, bonus = (inner[name] for name in ("key", "value", "rate", "bonus"))
    batch, length, heads, size = key.shape
    out = np.zeros((batch, length, heads, size))
    for b in range(batch):
        mask = allowed(inner, seq, b)
        for h in range(heads):
            shared = bias(inner, lanes, seq, b, h, heads)
            for c in range(size):
                log = np.full((length, length), -np.inf)
                for i, j in zip(*np.nonzero(mask)):
                    own = bonus[h, c] if i == j else -(i - 1 - j) * rate[h, c]
                    log[i, j] = key[b, j, h, c] + own + shared[i, j]
                    if isinstance(lanes.transport, L.Diagonal):
                        fade = row(lanes.transport.increment, b)[:, h]
                        if c < fade.shape[-1]:
                            log[i, j] += fade[j + 1 : i + 1, c].sum()
                weights = np.exp(log - log.max(1, keepdims=True))
                weights /= weights.sum(1, keepdims=True)
                out[b, :, h, c] = read(weights, value[b, :, h], lanes, seq, b)[:, c]
    return out
