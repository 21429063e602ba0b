"""The delta rule, token by token."""

import numpy as np

from tests.laws.oracle.common import gain, increment, reset, step_matrix, value_step


def core(inner, lanes, seq):
    query, key, value, beta = (inner[k] for k in ("query", "key", "value", "beta"))
    batch, length, heads, size = query.shape
    decay = np.broadcast_to(inner["log_decay"], (batch, length, heads))
    out, gains = np.zeros((batch, length, heads, value.shape[-1])), gain(lanes, size)
    for b in range(batch):
        for h in range(heads):
            memory = np.zeros((size, value.shape[-1]))
            for t in range(length):
                if reset(seq, b, t):
                    memory = np.zeros_like(memory)
                scale = np.exp(decay[b, t, h] + increment(lanes, b, t, h))
                memory = scale * step_matrix(lanes, seq, b, h, heads, t, size) @ memory
                memory = memory @ value_step(lanes, seq, b, t, value.shape[-1]).T
                k, v = key[b, t, h], value[b, t, h]
                memory = memory + beta[b, t, h] * np.outer(k, v - memory.T @ k)
                out[b, t, h] = (query[b, t, h] * gains) @ memory
    return out
