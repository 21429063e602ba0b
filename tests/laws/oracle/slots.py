"""Two passes over slots, token by token."""

import numpy as np

from lcx import lanes as L
from tests.laws.oracle.common import features, gain, increment, reset, row, step_matrix, value_step


def core(inner, lanes, seq):
    query, key, value, gate = (inner[k] for k in ("query", "key", "value", "gate"))
    batch, length, heads, size = value.shape
    out, transport = np.zeros((batch, length, heads, size)), lanes
    for b in range(batch):
        for h in range(heads):
            q, k = query[b, :, h], key[b, :, h]
            if isinstance(lanes.transport, L.FeatureMap):
                q, k = (features(lanes.transport, side, row(seq.ids, b), inner, b, h, heads)
                        for side in ("query", "key"))
                transport = lanes.replace(transport=None)
            q = q * gain(lanes, q.shape[1])
            for t in range(length):
                if reset(seq, b, t):
                    keys = np.zeros((q.shape[1], gate.shape[-1]))
                    values = np.zeros((gate.shape[-1], size))
                fade = np.exp(gate[b, t, h])
                keys = step_matrix(transport, seq, b, h, heads, t, q.shape[1]) @ keys
                keys = keys * fade * np.exp(increment(lanes, b, t, h))
                keys = keys + np.outer(k[t], 1 - fade)
                values = fade[:, None] * values @ value_step(lanes, seq, b, t, size).T
                values = values + np.outer(1 - fade, value[b, t, h])
                logits = q[t] @ keys
                if lanes.temperature is not None:
                    factor = row(lanes.temperature.factor, b)[t]
                    logits = logits * factor[min(h, len(factor) - 1)]
                weights = np.exp(logits - logits.max())
                out[b, t, h] = weights / weights.sum() @ values
    return out
