"""The mLSTM as weights of pairs, outside any frame but for its epsilon."""

import numpy as np

from lcx import lanes as L
from tests.laws.oracle.common import allowed, bias, increment, pair_weights, read, reset


def core(inner, lanes, seq):
    query, value = inner["query"], inner["value"]
    forget, write = inner["log_forget"], inner["log_input"]
    batch, length, heads, _ = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    faded = lanes.replace(bias=tuple(x for x in lanes.bias if isinstance(x, L.Separable)))
    for b in range(batch):
        mask = allowed(inner, seq, b)
        for h in range(heads):
            log = bias(inner, lanes, seq, b, h, heads) + write[b, :, h]
            level, levels = 0.0, []
            for i in range(length):
                fall = forget[b, i, h] + increment(faded, b, i, h)
                level = max(fall + (0.0 if reset(seq, b, i) else level), write[b, i, h])
                levels.append(level)
                for j in range(i):
                    log[i, j] += forget[b, j + 1 : i + 1, h].sum()
            weights = pair_weights(inner, lanes, seq, b, h, heads)
            weights = weights * np.where(mask, np.exp(np.where(mask, log, 0.0)), 0.0)
            total = np.maximum(np.abs(weights.sum(1)), 1.0) + 1e-6 * np.exp(levels)
            out[b, :, h] = read(weights, value[b, :, h], lanes, seq, b) / total[:, None]
    return out
