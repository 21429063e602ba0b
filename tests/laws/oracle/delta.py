"""The delta rule, token by token: transport, own decay, then each write of the token in turn.

The erase may read by another vector than the key, act along a third one, and read the memory
before the mixer's own decay.
"""

import numpy as np

from tests.laws.oracle.common import gain, increment, reset, step_matrix, value_step


def core(inner, lanes, seq):
    query, key, value, beta = (inner[k] for k in ("query", "key", "value", "beta"))
    batch, length, heads, size = query.shape
    erase = key if inner.get("erase") is None else inner["erase"]
    own = inner.get("write") is None  # the key is what the erase acts along
    write = key if own else inner["write"]
    if beta.ndim == 3:  # one write of each token
        key, value, beta, erase, write = (a[:, :, None] for a in (key, value, beta, erase, write))
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
                undecayed = memory
                memory = np.exp(decay[b, t, h])[:, None] * memory
                for n, strength in enumerate(beta[b, t, :, h]):
                    k, v, e, w = (a[b, t, n, h] for a in (key, value, erase, write))
                    read = (undecayed if inner.get("undecayed") else memory).T @ e
                    memory = memory - strength * np.outer(w, read)
                    memory = memory + (strength if own else 1.0) * np.outer(k, v)
                out[b, t, h] = (query[b, t, h] * gains) @ memory
    return out
