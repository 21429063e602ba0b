"""Randomized positions: training ids are a sorted random subset of a much longer range."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from lcx.domains import Ids
from lcx.errors import ConfigError, did_you_mean
from lcx.lanes import Sequence
from lcx.positions import Position
from lcx.types import wide


class Randomized(Position):
    """Randomized positional encodings (arXiv:2305.16843): stack it over any scheme that reads ids.

    In training a document of n tokens gets n distinct sorted ids from 0..max_length-1, drawn
    afresh for each document and each row of ids; so long distances are seen at short lengths.
    max_length: 8 x train_length if None, at least any length tested. evaluation: "plain" keeps
    the ids; "expected" gives token k = 1,2,... of a request told n tokens the mean of the k-th id.
    """

    max_length: Ids | None = None
    evaluation: str = "plain"

    paper: ClassVar[str] = "arXiv:2305.16843"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(evaluation="expected"))
    represents: ClassVar[bool] = True

    def remap(self, seq: Sequence, key=None) -> Sequence:
        total = self.max_length or 8 * self.site.train_length
        rows, length, axes = seq.ids.shape
        if self.evaluation not in ("plain", "expected"):
            raise ConfigError(f"randomized has no evaluation '{self.evaluation}'"
                              + did_you_mean(self.evaluation, ("plain", "expected")))
        if axes > 1 and (key is not None or self.evaluation == "expected"):
            raise ConfigError(f"randomized draws ids of one axis, the sequence has {axes}")
        if key is None:
            if self.evaluation == "plain":
                return seq
            ids = (wide(seq.index) + 1) * (total + 1) / (wide(seq.length) + 1) - 1
            return seq.replace(ids=ids[..., None])
        if length > total:
            raise ConfigError(f"randomized needs max_length >= {length} tokens, not {total}")
        pool = jnp.broadcast_to(jnp.arange(total, dtype=jnp.int32), (rows, total))
        drawn = jax.random.permutation(key, pool, axis=1, independent=True)[:, :length]
        return seq.replace(ids=wide(sorted_within(seq.segment, drawn))[..., None])


def sorted_within(segment, ids):
    """Ids [rows,T] in rising order within each document: each keeps its own unbiased draw."""
    if segment is None:
        return jnp.sort(ids, axis=1)
    segment = jnp.broadcast_to(segment, ids.shape)
    changes = jnp.pad(segment[:, 1:] != segment[:, :-1], ((0, 0), (1, 0)))
    return jax.lax.sort((jnp.cumsum(changes, axis=1), ids), num_keys=2)[1]
