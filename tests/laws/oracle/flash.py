"""Squared ReLU inside a group, a linear product with all earlier groups."""

import numpy as np

from tests.laws.oracle.common import allowed, bias, pair_weights, read, row


def core(inner, lanes, seq):
    query, value, group = inner["query"], inner["value"], inner["group"]
    batch, length, heads, _ = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    far = dict(inner, query=inner["far_query"], key=inner["far_key"])
    for b in range(batch):
        mask, number = allowed(inner, seq, b), row(inner["index"], b) // group
        same = number[:, None] == number[None]
        factor = np.ones((length, 1))
        if lanes.temperature is not None:
            factor = row(lanes.temperature.factor, b)[:, :1]
        term, log = (np.where(mask, bias(dict(of, scale=scale), lanes, seq, b, 0, 1), 0.0)
                     for of, scale in ((inner, 1 / group), (far, 1.0)))
        near = pair_weights(inner, lanes, seq, b, 0, 1) * factor / group
        away = pair_weights(far, lanes, seq, b, 0, 1) * factor / group
        weights = np.where(same, np.maximum(near + term, 0.0) ** 2, away * np.exp(log))
        out[b, :, 0] = read(np.where(mask, weights, 0.0), value[b, :, 0], lanes, seq, b)
    return out
