"""Weights that are a polynomial of the transported product, times exp(bias), over their sum."""

import numpy as np

from tests.laws.oracle.common import allowed, bias, pair_weights, read, row


def core(inner, lanes, seq):
    query, value = inner["query"], inner["value"]
    batch, length, heads, _ = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    for b in range(batch):
        mask = allowed(inner, seq, b)
        for h in range(heads):
            z = pair_weights(inner, lanes, seq, b, h, heads) * inner["scale"]
            if lanes.temperature is not None:
                factor = row(lanes.temperature.factor, b)
                z = z * factor[:, min(h, factor.shape[1] - 1)][:, None]
            log = np.where(mask, bias(inner, lanes, seq, b, h, heads), 0.0)
            weights = sum(c * z**power for power, c in enumerate(inner["coefficients"]))
            weights = np.where(mask, weights * np.exp(log), 0.0)
            out[b, :, h] = read(weights, value[b, :, h * value.shape[2] // heads], lanes, seq, b)
            out[b, :, h] /= weights.sum(1, keepdims=True) + inner["normaliser"]
    return out
