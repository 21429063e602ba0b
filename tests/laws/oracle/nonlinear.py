"""The LSTM cell."""

import numpy as np

from tests.laws.oracle.common import reset, row


def core(inner, lanes, seq):
    """LSTM cell; gates in the order i f g o; separable increments scale the cell's forget gate."""
    inputs, recurrent, offset = inner["inputs"], inner["recurrent"], inner["bias"]
    batch, length, _, width = inputs.shape
    out = np.zeros((batch, length, width))
    sigmoid = lambda z: 1 / (1 + np.exp(-z))
    for b in range(batch):
        h, c = np.zeros(width), np.zeros(width)
        for t in range(length):
            if reset(seq, b, t):
                h, c = np.zeros(width), np.zeros(width)
            i, f, g, o = inputs[b, t] + np.einsum("d,dge->ge", h, recurrent) + offset
            decay = np.ones(width)
            for lane in lanes.bias:
                increment = row(lane.increment, b)[t]
                decay = decay * np.exp(np.repeat(increment, width // len(increment)))
            c = decay * sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            out[b, t] = h
    return out
