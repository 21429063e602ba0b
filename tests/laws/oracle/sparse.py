"""Softmax over the keys of a fixed pattern, one pair after another."""

import numpy as np

from tests.laws.oracle.common import logits, place, read, row


def reads(inner, i, j, head) -> bool:
    """Whether a head's query at token i of a document may read token j of it, j <= i."""
    stride = int(inner["stride"])
    if "groups" not in inner:
        return i - j < stride if head % 2 == 0 else (i - j) % stride == 0
    if i // stride == j // stride:
        return True
    columns, group = int(inner["columns"]), head % int(inner["groups"])
    last = stride - 1 - group * columns  # of this group, within a block
    return last - columns < j % stride <= last


def core(inner, lanes, seq):
    query, value = inner["query"], inner["value"]
    batch, length, heads, _ = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    for b in range(batch):
        rows, at = logits(inner, lanes, seq, b), place(row(seq.segment, b))
        for h in range(heads):
            keep = np.array([[reads(inner, at[i], at[j], h) for j in range(length)]
                             for i in range(length)])
            kept = np.where(keep, rows[h], -np.inf)
            weights = np.exp(kept - kept.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            out[b, :, h] = read(weights, value[b, :, h * value.shape[2] // heads], lanes, seq, b)
    return out
