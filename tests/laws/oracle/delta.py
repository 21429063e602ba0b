"""The delta rule, token by token: transport, own decay, then each write of the token in turn."""

import numpy as np

from tests.laws.oracle.common import gain, increment, reset, step_matrix, value_step


def core(inner, lanes, seq):
    query, key, value, beta = (inner[k] for k in ("query", "key", "value", "beta"))
    batch, length, heads, size = query.shape
    if beta.ndim == 3:  # one write of each token
        key, value, beta = key[:, :, None], value[:, :, None], beta[:, :, None]
    decay = inner.get("log_decay")
    decay = np.zeros((batch, length, heads)) if decay is None else decay
    decay = decay[..., None] if decay.ndim == 3 else decay  # of the head, or of its channels
    out, gains = np.zeros((batch, length, heads, value.shape[-1])), gain(lanes, size)
    for b in range(batch):
        for h in range(heads):
            memory = np.zeros((size, value.shape[-1]))
            for t in range(length):
                if reset(seq, b, t):
                    memory = np.zeros_like(memory)
                memory = step_matrix(lanes, seq, b, h, heads, t, size) @ memory
                memory = memory @ value_step(lanes, seq, b, t, value.shape[-1]).T
                memory = np.exp(increment(lanes, b, t, h)) * memory
                memory = np.exp(decay[b, t, h])[:, None] * memory
                for k, v, strength in zip(key[b, t, :, h], value[b, t, :, h], beta[b, t, :, h]):
                    memory = memory + strength * np.outer(k, v - memory.T @ k)
                out[b, t, h] = (query[b, t, h] * gains) @ memory
    return out
