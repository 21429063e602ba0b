"""An element-wise recurrence, each write on its own."""

import numpy as np

from lcx import lanes as L
from tests.laws.oracle.common import bias, increment, reset, step_matrix, value_step


def core(inner, lanes, seq):
    log_decay, value = inner["log_decay"], inner["value"]
    batch, length, heads, size = value.shape
    out = np.zeros_like(value)
    static = [x for x in lanes.bias if isinstance(x, (L.Toeplitz, L.Rowwise))]
    static = L.Lanes(bias=tuple(static))
    steps = lanes.replace(bias=tuple(x for x in lanes.bias if isinstance(x, L.Separable)))
    for b in range(batch):
        for h in range(heads):
            extra = bias(inner, static, seq, b, h, heads)
            for j in range(length):  # each write on its own, so that a static bias can weigh it
                state = value[b, j, h]
                out[b, j, h] += np.exp(extra[j, j]) * state
                for t in range(j + 1, length):
                    if reset(seq, b, t):
                        break
                    gate = np.exp(log_decay[b, t, h] + increment(steps, b, t, h))
                    turn = value_step(lanes, seq, b, t, size)
                    state = gate * (step_matrix(steps, seq, b, h, heads, t, size) @ turn @ state)
                    out[b, t, h] += np.exp(extra[t, j]) * state
    return out
