"""Weights of pairs under gates per channel: every token between turns, then fades, the key.

read_first: the last of these tokens, the reader, only turns; `own` is what it makes of itself.
"""

import numpy as np

from lcx import lanes as L
from tests.laws.oracle.common import allowed, angles, bias, gain, read, row, step_matrix, turn


def core(inner, lanes, seq):
    query, value = inner["query"], inner["value"]
    batch, length, heads, size = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    for b in range(batch):
        mask = allowed(inner, seq, b)
        for h in range(heads):
            log = bias(inner, lanes, seq, b, h, heads)
            factor = np.where(mask, np.exp(np.where(mask, log, 0.0)), 0.0)
            weights = _weights(inner, lanes, seq, b, h, heads) * factor
            out[b, :, h] = read(weights, value[b, :, h * value.shape[2] // heads], lanes, seq, b)
    return out


def _weights(inner, lanes, seq, b, h, heads):
    """[T,T] products of a query and a key that went through every transition after it."""
    query, key = inner["query"][b, :, h], inner["key"][b]
    key, fade = key[:, h * key.shape[1] // heads], np.exp(inner["log_decay"][b, :, h])
    first, own = bool(inner.get("read_first")), inner.get("own")
    length, size = query.shape
    out, gains = np.zeros((length, length)), gain(lanes, size)
    transport, ids, segment = lanes.transport, row(seq.ids, b), row(seq.segment, b)
    pieces = getattr(transport, "pieces", ((None, None),))
    for number, (query_map, key_map) in enumerate(pieces):
        steps = []  # of each token, then what a query is ahead of the keys at its own place
        for t in range(length):
            if key_map is None:
                steps.append(step_matrix(lanes, seq, b, h, heads, t, size))
                continue
            at = np.asarray(key_map(transport.params, ids[max(t - 1, 0) : t + 1]), float)
            steps.append(_turned(transport.rotation, at[-1] - at[0], size))
        for j in range(length):
            moved = key[j]
            for i in range(j, length):
                if segment[i] != segment[j]:
                    break
                turned = moved if i == j else steps[i] @ moved
                moved = moved if i == j else fade[i] * turned
                seen = turned if first else moved
                if query_map is not None:
                    if _piece(transport, ids, i, j) != number:
                        continue
                    ahead = (np.asarray(query_map(transport.params, ids[i]), float)
                             - np.asarray(key_map(transport.params, ids[i]), float))
                    seen = _turned(transport.rotation, ahead, size) @ seen
                out[i, j] = (query[i] * gains) @ seen
    if own is not None:
        out[np.diag_indices(length)] = own[b, :, h]
    return out


def _turned(rotation: L.Rotation, step, size):
    return turn(angles(rotation, step), size, rotation.interleaved)


def _piece(transport, ids, i, j) -> int:
    return int(np.asarray(transport.select(transport.params, ids[i][None, None],
                                           ids[j][None, None])).reshape(-1)[0])
