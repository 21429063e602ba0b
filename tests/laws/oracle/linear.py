"""Weights of pairs under the multiplicative algebra."""

import numpy as np

from lcx import lanes as L
from tests.laws.oracle.common import allowed, bias, pair_weights, read, row


def _native(inner, b, h, length) -> np.ndarray:
    """exp of the mixer's own log-decay over (j,i] as a log [T,T]."""
    total = np.zeros((length, length))
    if inner.get("log_decay") is not None:
        decay = np.broadcast_to(row(inner["log_decay"], b), (length, inner["query"].shape[2]))
        for i in range(length):
            for j in range(i):
                total[i, j] = decay[j + 1 : i + 1, h].sum()
    return total


def core(inner, lanes, seq):
    query, value = inner["query"], inner["value"]
    batch, length, heads, size = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    bare = L.Lanes()
    for b in range(batch):
        mask = allowed(inner, seq, b)
        for h in range(heads):
            log = _native(inner, b, h, length) + bias(inner, lanes, seq, b, h, heads)
            factor = np.where(mask, np.exp(np.where(mask, log, 0.0)), 0.0)
            weights = pair_weights(inner, lanes, seq, b, h, heads)
            if inner.get("own") is not None:
                weights[np.diag_indices(length)] = inner["own"][b, :, h]
            weights = weights * factor
            out[b, :, h] = read(weights, value[b, :, h * value.shape[2] // heads], lanes, seq, b)
            if inner.get("normaliser") is not None:
                plain = pair_weights(inner, bare, seq, b, h, heads) * factor
                out[b, :, h] /= plain.sum(1, keepdims=True) + 1e-6
    return out
