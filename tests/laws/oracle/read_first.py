"""A recurrence that is read after the scheme's transport, before its own gates and its write."""

import numpy as np

from tests.laws.oracle.common import gain, increment, reset, step_matrix, value_step


def core(inner, lanes, seq):
    query, key, value = inner["query"], inner["key"], inner["value"]
    batch, length, heads, size = query.shape
    out, gains = np.zeros((batch, length, heads, value.shape[-1])), gain(lanes, size)
    for b in range(batch):
        for h in range(heads):
            n, m = h * key.shape[2] // heads, h * value.shape[2] // heads
            memory = np.zeros((size, value.shape[-1]))
            for t in range(length):
                if reset(seq, b, t):
                    memory = np.zeros_like(memory)
                memory = step_matrix(lanes, seq, b, h, heads, t, size) @ memory
                memory = memory @ value_step(lanes, seq, b, t, value.shape[-1]).T
                memory = np.exp(increment(lanes, b, t, h)) * memory
                out[b, t, h] = (query[b, t, h] * gains) @ memory
                fade = np.exp(inner["log_decay"][b, t, h])[:, None]
                memory = fade * memory + np.outer(key[b, t, n], value[b, t, m])
    return out
