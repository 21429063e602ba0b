"""Softmax over the tokens of the blocks that each query chooses, one query after another."""

import numpy as np

from tests.laws.oracle.common import allowed, logits, pair_weights, place, read, row


def members(segment, size):
    """The tokens of each block [(document, number, tokens)], counted from a document's start."""
    at, found = place(segment), {}
    for t, number in enumerate(at // size):
        found.setdefault((segment[t], number), []).append(t)
    return [(document, number, tokens) for (document, number), tokens in found.items()]


def past(blocks, size, segment, i):
    """Numbers in the list of the whole blocks of i's document that end at i or before."""
    return [n for n, (document, _, tokens) in enumerate(blocks)
            if document == segment[i] and len(tokens) == size and tokens[-1] <= i]


def softmax(x):
    raised = np.exp(x - x.max())
    return raised / raised.sum()


def choices(inner, lanes, seq, b, heads):
    """For each head and query the tokens of its chosen blocks: [H][T] of lists."""
    segment, size, top = row(seq.segment, b), int(inner["block"]), int(inner["top"])
    products = [pair_weights(inner, lanes, seq, b, h, heads) for h in range(heads)]
    blocks, at = members(segment, size), place(segment)
    groups = inner["key"].shape[2]
    chosen = [[None] * len(segment) for _ in range(heads)]
    for i in range(len(segment)):
        mine = at[i] // size
        seen = past(blocks, size, segment, i)
        means = np.array([[products[h][i, blocks[n][2]].mean() for n in seen]
                          for h in range(heads)])
        here = [n for n, (document, _, _) in enumerate(blocks) if document == segment[i]]
        if "recent" in inner:  # of the group, by probability, some of them always
            chance = np.array([softmax(inner["scale"] * m) for m in means]) if seen else means
            chance = chance.reshape(groups, heads // groups, len(seen)).mean(1)
            means = np.repeat(chance, heads // groups, 0)
            always = [n for n in here if blocks[n][1] <= mine and (
                blocks[n][1] < inner["first"] or mine - blocks[n][1] < inner["recent"])]
        else:
            always = [n for n in here if blocks[n][1] == mine]
        for h in range(heads):
            score = dict(zip(seen, means[h])) | {n: np.inf for n in always}
            order = sorted(score, key=lambda n: (-score[n], n))[:top]
            chosen[h][i] = sorted(t for n in order for t in blocks[n][2])
    return chosen


def core(inner, lanes, seq):
    query, value = inner["query"], inner["value"]
    batch, length, heads, _ = query.shape
    out = np.zeros((batch, length, heads, value.shape[-1]))
    for b in range(batch):
        rows, mask = logits(inner, lanes, seq, b), allowed(inner, seq, b)
        chosen = choices(inner, lanes, seq, b, heads)
        for h in range(heads):
            weights = np.zeros((length, length))
            for i in range(length):
                keep = [j for j in chosen[h][i] if mask[i, j]]
                weights[i, keep] = softmax(rows[h][i, keep])
            out[b, :, h] = read(weights, value[b, :, h * value.shape[2] // heads], lanes, seq, b)
    return out
