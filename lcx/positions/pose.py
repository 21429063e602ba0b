"""PoSE: two pieces of a text with a jump of the ids between them, so that short rows cover long
distances."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lcx.domains import Count, Ids
from lcx.errors import ConfigError
from lcx.lanes import Sequence
from lcx.positions import DataTransform, Position, moved_ids
from lcx.positions.shape import of_document
from lcx.types import wide


class Pose(Position):
    """Positional skip-wise training (arXiv:2309.10400): two chunks with a skip between their ids.

    A row of n tokens is cut after r ~ U{1..(n+1)//2} of them; ids count from 0, and from the cut on
    they are larger by one skip ~ U{0..max_length - n}. The second chunk's text comes from a later
    place of the document, one that has nothing to do with the skip: it ends after e ~ U{n..m}
    tokens, m those of the document from the row's start on, at most `text` x n. text=1 leaves the
    text as it is and moves ids alone, on the device (for synthetic tasks). Evaluation does nothing.
    max_length: ids to cover, 8 x train_length if None. Checked against the authors' code
    (github.com/dwzhu-pku/PoSE), where text is 5 and rows are documents cut at 5 n.
    """

    max_length: Ids | None = None
    text: Count = 5

    paper: ClassVar[str] = "arXiv:2309.10400"

    @property
    def total(self) -> int:
        return self.max_length or 8 * self.site.train_length

    def data_transform(self) -> DataTransform | None:
        if self.text < 1 or self.total < self.site.train_length:
            raise ConfigError(f"pose(max_length={self.total}, text={self.text}): ids must cover the"
                              f" {self.site.train_length} tokens of a row, and text be 1 or more")
        return Skip(self.total, self.text) if self.text > 1 else None

    def remap(self, seq: Sequence, key=None) -> Sequence:
        if key is None:
            return seq
        if self.text > 1:
            return moved_ids(seq, "pose")
        rows, length, _ = seq.ids.shape
        if length > self.total:
            raise ConfigError(f"pose needs max_length >= {length} tokens, not {self.total}")
        tokens = document_lengths(seq)
        cut, skip = jax.random.uniform(key, (2, rows, length))
        cut = 1 + jnp.floor(of_document(seq, cut) * ((tokens + 1) // 2))
        skip = jnp.floor(of_document(seq, skip) * (self.total - tokens + 1))
        moved = jnp.where(seq.index >= cut, wide(skip), 0.0)
        return seq.replace(ids=seq.ids + moved[..., None])


@dataclasses.dataclass(frozen=True)
class Skip:
    """The text and the ids of one row."""

    max_length: int
    text: int

    def __call__(self, draw: np.random.Generator, length: int,
                 available: int) -> tuple[np.ndarray, np.ndarray]:
        cut = draw.integers(1, (length + 1) // 2, endpoint=True)
        end = draw.integers(length, min(available, self.text * length), endpoint=True)
        skip = draw.integers(0, self.max_length - length, endpoint=True)
        place = np.arange(length)
        return (np.where(place < cut, place, place + end - length),
                np.where(place < cut, place, place + skip))


def document_lengths(seq: Sequence) -> jax.Array:
    """Tokens of each token's document, for whole rows: [rows,T] int."""
    length = seq.index.shape[1]
    slot = jnp.arange(length)
    starts = jnp.where(seq.index == 0, slot, length)
    following = jax.lax.cummin(starts[:, ::-1], axis=1)[:, ::-1]  # the next start, own included
    after = jnp.pad(following[:, 1:], ((0, 0), (0, 1)), constant_values=length)
    return after - (slot - seq.index)
