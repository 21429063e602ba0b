"""Several queries, keys and values of a token: a sum over ranks of weights of pairs.

What the core got has R rows to a token, in a row; each is read here as a rank of its token, whose
gates stand in the first of them.
"""

import dataclasses

import numpy as np

from lcx import lanes as L
from tests.laws.oracle import linear


def core(inner, lanes, seq):
    out, count = np.zeros_like(inner["value"]), inner["own"].shape[-1]
    for asks in range(count):
        for told in range(count):
            of = lambda name, rank: inner[name][:, rank::count]
            part = dict(query=of("query", asks), key=of("key", told), value=of("value", told),
                        log_decay=of("log_decay", 0), own=of("own", asks)[..., told])
            one = lanes.replace(
                transport=_tokens(lanes.transport, count),
                bias=tuple(_ranks(bias, asks, told, count) for bias in lanes.bias))
            out[:, asks::count] += linear.core(part, one, seq)
    return out


def _tokens(lane, count):
    """A lane with what its tokens say once."""
    names = ("increment", "phase", "step", "vector", "beta")
    found = {name: getattr(lane, name) for name in names if hasattr(lane, name)}
    return lane.replace(**{name: a[:, ::count] for name, a in found.items()}) if found else lane


def _ranks(lane, asks, told, count):
    """A bias as the queries and keys of two ranks have it."""
    if not isinstance(lane, L.Pairwise):
        return _tokens(lane, count)

    def kernel(params, tile):
        cut = lambda tree, rank: _cut(tree, rank, count)
        return lane.kernel(params, dataclasses.replace(
            tile, query_extras=cut(tile.query_extras, asks), key_extras=cut(tile.key_extras, told)))

    return lane.replace(kernel=kernel)


def _cut(tree, rank, count):
    if tree is None or isinstance(tree, tuple):
        return tree and tuple(_cut(leaf, rank, count) for leaf in tree)
    return tree[:, rank::count]
