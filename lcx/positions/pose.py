"""PoSE: in training, the ids of a document jump once, so that short text covers long distances."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp

from lcx.errors import ConfigError
from lcx.lanes import Sequence
from lcx.positions import Position
from lcx.positions.shape import of_document
from lcx.types import wide


class Pose(Position):
    """Positional skip-wise training (arXiv:2309.10400), its id map: two chunks with a skip between.

    A document of n tokens is cut after r ~ U{1..(n+1)//2} of them; ids count from 0, and from the
    cut on they are larger by one skip ~ U{0..max_length - n}. Evaluation keeps the ids. max_length:
    ids to cover, 8 x train_length if None. Checked against the authors' code
    (github.com/dwzhu-pku/PoSE), which *also* takes the text of the second chunk from a later place
    of the document, at a distance that has nothing to do with the skip. That part moves text, so
    it is not here: the text stays contiguous.
    """

    max_length: int | None = None

    paper: ClassVar[str] = "arXiv:2309.10400"

    def remap(self, seq: Sequence, key=None) -> Sequence:
        if key is None:
            return seq
        total, (rows, length, _) = self.max_length or 8 * self.site.train_length, seq.ids.shape
        if length > total:
            raise ConfigError(f"pose needs max_length >= {length} tokens, not {total}")
        tokens = document_lengths(seq)
        cut, skip = jax.random.uniform(key, (2, rows, length))
        cut = 1 + jnp.floor(of_document(seq, cut) * ((tokens + 1) // 2))
        skip = jnp.floor(of_document(seq, skip) * (total - tokens + 1))
        moved = jnp.where(seq.index >= cut, wide(skip), 0.0)
        return seq.replace(ids=seq.ids + moved[..., None])


def document_lengths(seq: Sequence) -> jax.Array:
    """Tokens of each token's document, for whole rows: [rows,T] int."""
    length = seq.index.shape[1]
    slot = jnp.arange(length)
    starts = jnp.where(seq.index == 0, slot, length)
    following = jax.lax.cummin(starts[:, ::-1], axis=1)[:, ::-1]  # the next start, own included
    after = jnp.pad(following[:, 1:], ((0, 0), (0, 1)), constant_values=length)
    return after - (slot - seq.index)
