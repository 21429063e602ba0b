"""A static kernel between every two tokens of a document, times the lanes' factor."""

import numpy as np

from lcx import lanes as L
from tests.laws.oracle.common import allowed, angles, bias, piece_matrix, row, step_matrix, turn


def core(inner, lanes, seq):
    kernel, value = inner["kernel"], inner["value"]  # [T,H,K], [B,T,H,K]
    batch, length, heads, size = value.shape
    out = np.zeros_like(value)
    for b in range(batch):
        mask, ids = allowed(inner, seq, b), row(seq.ids, b)
        for h in range(heads):
            factor = np.exp(np.where(mask, bias(inner, lanes, seq, b, h, heads), 0.0))
            for j in range(length):
                moved = np.eye(size)
                for i in range(j, length):
                    if not mask[i, j]:
                        break
                    if isinstance(lanes.transport, L.Piecewise):
                        moved = piece_matrix(lanes.transport, ids, i, j, size)
                    elif i > j:  # fades and turns of the tokens between: tied in each pair
                        moved = step_matrix(lanes, seq, b, h, heads, i, size) @ moved
                    turned = moved @ value[b, j, h]
                    if isinstance(lanes.value, L.ValueRotation):
                        rotation = lanes.value.rotation
                        turned = turn(angles(rotation, ids[i] - ids[j]), size,
                                      rotation.interleaved) @ turned
                    out[b, i, h] += kernel[i - j, h] * factor[i, j] * turned
    return out
