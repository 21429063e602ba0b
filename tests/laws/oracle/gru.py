"""The GRU cell."""

import numpy as np

from tests.laws.oracle.common import reset


def core(inner, lanes, seq):
    """Gates in the order reset, update, new; no lane reaches it."""
    inputs, recurrent, offset = inner["inputs"], inner["recurrent"], inner["bias"]
    batch, length, _, width = inputs.shape
    out = np.zeros((batch, length, width))
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    for b in range(batch):
        for t in range(length):
            h = np.zeros(width) if reset(seq, b, t) else out[b, t - 1]
            told = np.einsum("d,dge->ge", h, recurrent)
            r, z = (sigmoid(inputs[b, t, n] + told[n]) for n in (0, 1))
            out[b, t] = (1 - z) * np.tanh(inputs[b, t, 2] + r * (told[2] + offset)) + z * h
    return out
