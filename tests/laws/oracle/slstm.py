"""The sLSTM cell, without the frame that keeps its exponentials small."""

import numpy as np

from tests.laws.oracle.common import reset, row


def core(inner, lanes, seq):
    """Gates in the order i f z o; separable increments scale the forget gate."""
    inputs, recurrent, offset = inner["inputs"], inner["recurrent"], inner["bias"]
    batch, length, _, width = inputs.shape
    out = np.zeros((batch, length, width))
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    for b in range(batch):
        for t in range(length):
            if reset(seq, b, t):
                h, c, n = np.zeros((3, width))
            i, f, z, o = inputs[b, t] + np.einsum("d,dge->ge", h, recurrent) + offset
            keep = sigmoid(f)
            for lane in lanes.bias:
                increment = row(lane.increment, b)[t]
                keep = keep * np.exp(np.repeat(increment, width // len(increment)))
            c, n = keep * c + np.exp(i) * np.tanh(z), keep * n + np.exp(i)
            h = out[b, t] = sigmoid(o) * c / n
    return out
