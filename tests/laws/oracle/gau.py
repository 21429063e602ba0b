"""A squared ReLU (or Laplace's function) of each visible pair's logit over n; no sum of weights."""

import math

import numpy as np

from tests.laws.oracle.common import logits, read, row


def core(inner, lanes, seq):
    query, value = inner["query"], inner["value"]
    batch, length, heads, _ = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    erf = np.vectorize(math.erf)
    for b in range(batch):
        rows = logits(inner, lanes, seq, b) / row(inner["divisor"], b)
        for h in range(heads):
            weights = np.maximum(rows[h], 0.0) ** 2
            if inner["laplace"]:
                seen = np.where(np.isfinite(rows[h]), rows[h], 0.0)
                weights = (1 + erf((seen - 0.5**0.5) * (2 * math.pi) ** 0.5)) / 2
                weights = np.where(np.isfinite(rows[h]), weights, 0.0)
            out[b, :, h] = read(weights, value[b, :, h], lanes, seq, b)
    return out
