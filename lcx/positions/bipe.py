"""BiPE: segments of the text are numbered, and so are the tokens inside each segment."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.domains import Count, NonNegative, Whole
from lcx.errors import ConfigError
from lcx.positions import Position
from lcx.types import wide
from lcx.weights import free


class Bipe(Position):
    """Bilevel positional encoding (arXiv:2401.16421): a learned vector for the place inside a
    segment, and the number of the segment as the id that the rest of the stack reads.

    ["bipe", "rope"] is BiPE-RoPE, ["bipe", dict(name="alibi", factor=96.0)] BiPE-ALiBi. A segment
    ends with one of the tokens `separators`: by default newline and full stop of the tokenizer
    "bytes"; another tokenizer has other numbers. (The authors' code, github.com/zhenyuhe00/BiPE,
    has Llama's newline and " .", a full stop after a space.) Numbers restart with each document.
    axis: of the ids, where the places go; a place that the data gives there stays. rows: of the
    table, train_length if None; places beyond share its last row, as the authors do.
    """

    separators: tuple[Whole, ...] = (10, 46)
    axis: Whole = 1
    rows: Count | None = None
    scale: NonNegative = 1.0

    paper: ClassVar[str] = "arXiv:2401.16421"
    relative: ClassVar[bool] = False
    examples: ClassVar[tuple[dict, ...]] = (dict(axis=0), dict(axis=0, rows=3))
    represents: ClassVar[bool] = True

    def init_read(self, batch: int) -> Any:
        zero = jnp.zeros((batch,), jnp.int32)
        return L.nothing_seen(batch, axes=0), zero, zero

    def read(self, tokens, seq: L.Sequence, carry: Any) -> tuple[L.Sequence, Any]:
        last, number, place = carry
        if seq.ids.shape[-1] > self.axis:
            return seq, carry
        ends = jnp.isin(tokens, jnp.asarray(self.separators))
        _, starts, last = L.advance(seq, last)
        inside, place = L.place_in_run(ends, starts, place)
        ended = jnp.cumsum(ends, axis=1, dtype=jnp.int32)
        before = ended - ends  # segments that ended before each token, in this call
        first = jax.lax.cummax(jnp.where(starts, before, -number[:, None]), axis=1)
        segments = before - first
        told = L.with_axis(seq, self.axis, inside)
        told = told.replace(ids=told.ids.at[..., 0].set(wide(segments)))
        return told, (last, segments[:, -1] + ends[:, -1], place)


class Embed(nn.Module):
    """Adds the vector of each token's place in its segment to x [B,T,D]."""

    width: int
    train_length: int
    axis: int
    rows: int | None
    scale: float

    @nn.compact
    def __call__(self, x: jax.Array, seq: L.Sequence, tokens=None) -> jax.Array:
        if self.axis >= seq.ids.shape[-1]:
            raise ConfigError(f"bipe needs the tokens, or their places on axis {self.axis} of the "
                              f"ids, which has {seq.ids.shape[-1]}: run it in a model")
        rows = self.train_length if self.rows is None else self.rows
        init = free(nn.initializers.normal(self.scale),
                                            ("positions", "width"))
        table = self.param("table", init, (rows, self.width))
        place = jnp.clip(seq.ids[..., self.axis], 0, rows - 1).astype(jnp.int32)
        return x + table[place].astype(x.dtype)
