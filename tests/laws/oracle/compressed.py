"""Softmax over whole blocks, each the mean of its tokens with the bias of the last one."""

import numpy as np

from lcx import lanes as L
from tests.laws.oracle.common import bias, pair_weights, read, row
from tests.laws.oracle.selected import members, past, softmax


def core(inner, lanes, seq):
    query, value = inner["query"], inner["value"]
    batch, length, heads, _ = query.shape
    out, size = np.zeros((batch, length, heads, value.shape[-1])), int(inner["block"])
    for b in range(batch):
        segment = row(seq.segment, b)
        blocks = members(segment, size)
        for h in range(heads):
            products = pair_weights(inner, lanes, seq, b, h, heads)
            term = bias(inner, lanes, seq, b, h, heads)
            spread, last = np.zeros((2, length, length))
            for i in range(length):
                seen = past(blocks, size, segment, i)
                if not seen:
                    continue
                z = np.array([products[i, blocks[n][2]].mean() for n in seen]) * inner["scale"]
                if lanes.temperature is not None:
                    factor = row(lanes.temperature.factor, b)
                    z = z * factor[i, min(h, factor.shape[1] - 1)]
                weight = softmax(z + np.array([term[i, blocks[n][2][-1]] for n in seen]))
                for w, n in zip(weight, seen):
                    spread[i, blocks[n][2]] = w / size
                    last[i, blocks[n][2][-1]] = w
            own = value[b, :, h * value.shape[2] // heads]
            if isinstance(lanes.value, L.ValueTable):  # the row of its last token, for a block
                out[b, :, h] = spread @ own + read(last, np.zeros_like(own), lanes, seq, b)
            else:
                out[b, :, h] = read(spread, own, lanes, seq, b)
    return out
