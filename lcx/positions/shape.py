"""SHAPE: in training, all ids of a document are shifted by one random amount."""

from __future__ import annotations

from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from lcx.domains import whole
from lcx.lanes import Sequence
from lcx.positions import Position
from lcx.types import wide


class Shape(Position):
    """Shifted absolute positions (arXiv:2109.05644): ids + k in training, k from 0..max_shift-1.

    Stack it over an absolute embedding, e.g. ["shape", "sinusoidal"], which then learns that only
    differences count; a relative scheme does not notice. k is drawn afresh for each document and
    each row of ids. evaluation_shift: added in evaluation; 0 as in the paper's figure, while the
    authors' code (github.com/butsugiri/shape, read) adds max_shift.
    """

    max_shift: Annotated[int, whole(0, 2**24)] = 500
    evaluation_shift: Annotated[int, whole(0, 2**24)] = 0

    paper: ClassVar[str] = "arXiv:2109.05644"

    def remap(self, seq: Sequence, key=None) -> Sequence:
        if key is None:
            return seq.replace(ids=seq.ids + self.evaluation_shift)
        drawn = jax.random.randint(key, seq.ids.shape[:2], 0, max(self.max_shift, 1))
        return seq.replace(ids=seq.ids + wide(of_document(seq, drawn))[..., None])


def of_document(seq: Sequence, drawn: jax.Array) -> jax.Array:
    """Draws [rows,T], one per slot -> [rows,T], where a document has that of its first token.

    For whole rows, as in training: a document that began in an earlier call has no first slot.
    """
    slot = jnp.arange(drawn.shape[1])
    first = jnp.broadcast_to(jnp.maximum(slot - seq.index, 0), drawn.shape)
    return jnp.take_along_axis(drawn, first, axis=1)
