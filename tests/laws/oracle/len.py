"""A softmax over mixtures of the keys that a token has seen."""

import numpy as np

from tests.laws.oracle.common import allowed, pair_weights, read, row


def core(inner, lanes, seq):
    query, value = inner["query"], inner["value"]
    batch, length, heads, size = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    for b in range(batch):
        mask, index = allowed(inner, seq, b), row(inner["index"], b).astype(int)
        keys, values = inner["mix_keys"][index], inner["mix_values"][index]
        for h in range(heads):
            logits = np.where(mask, pair_weights(inner, lanes, seq, b, h, heads), 0.0) @ keys
            logits = logits / size**0.5
            if lanes.temperature is not None:
                factor = row(lanes.temperature.factor, b)
                logits = logits * factor[:, min(h, factor.shape[1] - 1)][:, None]
            weights = np.exp(logits - logits.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            pair = np.where(mask, weights @ values.T, 0.0)
            out[b, :, h] = read(pair, value[b, :, h], lanes, seq, b)
    return out
