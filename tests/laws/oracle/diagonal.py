"""An element-wise recurrence, each write on its own."""

import numpy as np

from lcx import lanes as L
from tests.laws.oracle.common import (
    angles,
    bias,
    increment,
    reset,
    row,
    step_matrix,
    turn,
    value_step,
)


def pair_angles(lane: L.Piecewise, ids, i, j):
    """Angles [P] of reader i and input j."""
    number = int(np.asarray(lane.select(lane.params, ids[i, 0], ids[j, 0])))
    reader, other = lane.pieces[number]
    step = np.asarray(reader(lane.params, ids[i])) - np.asarray(other(lane.params, ids[j]))
    return angles(lane.rotation, step)


def core(inner, lanes, seq):
    log_decay, value = inner["log_decay"], inner["value"]
    batch, length, heads, size = value.shape
    out = np.zeros_like(value)
    static = [x for x in lanes.bias if isinstance(x, (L.Toeplitz, L.Rowwise))]
    static = L.Lanes(bias=tuple(static))
    steps = lanes.replace(bias=tuple(x for x in lanes.bias if isinstance(x, L.Separable)))
    pieces = lanes.transport if isinstance(lanes.transport, L.Piecewise) else None
    if pieces is not None:
        steps = steps.replace(transport=None)
    for b in range(batch):
        ids = row(seq.ids, b)
        for h in range(heads):
            extra = bias(inner, static, seq, b, h, heads)
            for j in range(length):  # each write on its own, so that a static bias can weigh it
                state = value[b, j, h]
                out[b, j, h] += np.exp(extra[j, j]) * state
                for t in range(j + 1, length):
                    if reset(seq, b, t):
                        break
                    if pieces is not None:  # by how much the angle of the pair changes
                        change = (pair_angles(pieces, ids, t, j)
                                  - pair_angles(pieces, ids, t - 1, j))
                        state = turn(change, size, pieces.rotation.interleaved) @ state
                    if inner.get("own") is not None:
                        state = turn(-row(inner["own"], b)[t, h], size, False) @ state
                    gate = np.exp(log_decay[b, t, h] + increment(steps, b, t, h))
                    moved = value_step(lanes, seq, b, t, size)
                    state = gate * (step_matrix(steps, seq, b, h, heads, t, size) @ moved @ state)
                    out[b, t, h] += np.exp(extra[t, j]) * state
    return out
