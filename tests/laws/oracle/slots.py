"""Two passes over slots, as weights of pairs: what a slot keeps of a token, and who reads that."""

import numpy as np

from tests.laws.oracle.common import allowed, bias, pair_weights, read, row


def core(inner, lanes, seq):
    value, gate = inner["value"], inner["gate"]
    batch, length, heads, size = value.shape
    out = np.zeros((batch, length, heads, size))
    for b in range(batch):
        mask = allowed(inner, seq, b)
        for h in range(heads):
            kept = np.zeros((length, length, gate.shape[-1]))  # of token j when i reads
            for i, j in zip(*np.nonzero(mask)):
                kept[i, j] = (1 - np.exp(gate[b, j, h])) * np.exp(gate[b, j + 1 : i + 1, h].sum(0))
            factor = np.exp(np.where(mask, bias(inner, lanes, seq, b, h, heads), 0.0))
            compared = np.where(mask, pair_weights(inner, lanes, seq, b, h, heads), 0.0) * factor
            logits = np.einsum("ij,ijm->im", compared, kept)
            if lanes.temperature is not None:
                temperature = row(lanes.temperature.factor, b)
                logits *= temperature[:, [min(h, temperature.shape[1] - 1)]]
            chosen = np.exp(logits - logits.max(1, keepdims=True))
            chosen /= chosen.sum(1, keepdims=True)
            weights = np.einsum("im,ijm->ij", chosen, kept)
            out[b, :, h] = read(weights, value[b, :, h], lanes, seq, b)
    return out
