"""Where tokens are: the sequence of a call, and what a stream remembers between its calls."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lcx.errors import ConfigError, TableEnd
from lcx.types import wide, wide_dtype


@struct.dataclass
class Sequence:
    """Where the tokens of a call sit. The leading dimension may be 1: shared by all rows.

    order [B,T] int32: arrival order in the stream; masks obey it; -1 marks an empty cache slot.
    ids [B,T,A] float32: position ids with A axes; schemes obey them (exact for |id| < 2^24).
    segment [B,T] int32 or None: document of the row, from 1; 0 is padding; None: one document.
    index [B,T] int32: tokens before this one in its document.
    length scalar: how many tokens the request holds, which a length-dependent scheme is told:
    constant over a request, and never its padding.
    moved [B,T] float32 or None: ids that a scheme's data transform gave to text that it moved.
    """

    order: jax.Array
    ids: jax.Array
    segment: jax.Array | None
    index: jax.Array
    length: jax.Array
    moved: jax.Array | None = None

    def __getitem__(self, window: slice) -> Sequence:
        """Tokens `window` of the sequence, `length` kept: the pieces of a streamed request."""
        cut = lambda a: None if a is None else a[:, window]
        return self.replace(order=cut(self.order), ids=cut(self.ids), segment=cut(self.segment),
                            index=cut(self.index), moved=cut(self.moved))


def sequence(batch: int, length: int, *, segment=None, ids=None, start: int = 0,
             told_length=None, moved=None) -> Sequence:
    """The sequence of `length` tokens that continues a stream at `start`.

    segment [B,T] restarts ids and index at each document; ids [B,T,A] overrides the ids.
    `batch` is 1 for rows that share everything, which is cheaper.
    """
    order = jnp.broadcast_to(start + jnp.arange(length, dtype=jnp.int32), (batch, length))
    index = order
    if segment is not None:
        segment = jnp.asarray(segment, jnp.int32)
        first = jnp.concatenate([jnp.ones_like(segment[:, :1], bool),
                                 segment[:, 1:] != segment[:, :-1]], axis=1)
        index = order - jax.lax.cummax(jnp.where(first, order, 0), axis=1)
    ids = wide(index)[..., None] if ids is None else jnp.asarray(ids, wide_dtype())
    told = length + start if told_length is None else told_length
    return Sequence(order, ids, segment, index, jnp.asarray(told, jnp.int32), moved)


@struct.dataclass
class Last:
    """The last token that a stream has seen: ids [B,A], segment [B] (-1 before the first)."""

    ids: jax.Array
    segment: jax.Array


def nothing_seen(batch: int, axes: int = 1) -> Last:
    """The `Last` of a fresh stream."""
    return Last(jnp.zeros((batch, axes), wide_dtype()), jnp.full((batch,), -1, jnp.int32))


def advance(seq: Sequence, last: Last) -> tuple[jax.Array, jax.Array, Last]:
    """Steps of the ids [B,T,A], segment starts [B,T] and the new `Last`.

    The one place where increments are zeroed at segment starts (before any exp), so that nothing
    decays or turns across documents. A is that of `last`: further axes of the ids are not read.
    """
    axes = last.ids.shape[-1]
    ids = jnp.broadcast_to(seq.ids[..., :axes], (*seq.ids.shape[:2], axes))
    segment = jnp.ones_like(seq.order) if seq.segment is None else seq.segment
    rows = max(segment.shape[0], ids.shape[0], 1)
    fits = lambda a: a[:1] if rows == 1 and a.shape[0] > 1 else a
    before = jnp.concatenate([jnp.broadcast_to(fits(last.segment)[:, None], (rows, 1)),
                              jnp.broadcast_to(segment, (rows, segment.shape[1]))[:, :-1]], axis=1)
    previous = jnp.concatenate(
        [jnp.broadcast_to(fits(last.ids)[:, None], (rows, 1, ids.shape[-1])),
         jnp.broadcast_to(ids, (rows, *ids.shape[1:]))[:, :-1]], axis=1)
    starts = segment != before
    step = jnp.where(starts[..., None], 0.0, ids - previous)
    like = lambda new, old: jnp.broadcast_to(new, old.shape).astype(old.dtype)
    return step, starts, Last(like(ids[:, -1], last.ids), like(segment[:, -1], last.segment))


def place_in_run(ends: jax.Array, starts: jax.Array, before: jax.Array) -> tuple[jax.Array, ...]:
    """Each token's place in its run, from 0, [B,T] int32; and the place of the next token [B].

    A run ends with a token of `ends` [B,T] and before one of `starts` (`advance`); the first token
    goes on at `before` [B].
    """
    place = jnp.arange(ends.shape[1], dtype=jnp.int32)
    begins = starts | jnp.pad(ends[:, :-1], ((0, 0), (1, 0)))
    begin = jax.lax.cummax(jnp.where(begins, place, -before[:, None]), axis=1)
    inside = place - begin
    return inside, jnp.where(ends[:, -1], 0, inside[:, -1] + 1)


def with_axis(seq: Sequence, axis: int, values: jax.Array) -> Sequence:
    """The sequence with one more axis of ids, values [B,T]. Raises ConfigError if not the next."""
    if axis != seq.ids.shape[-1]:
        raise ConfigError(f"axis {axis} cannot be added to ids of {seq.ids.shape[-1]}: number the "
                          "axes that schemes of a stack add in their order, from 1")
    values = wide(values)[..., None]
    ids = jnp.broadcast_to(seq.ids, (*values.shape[:-1], axis))
    return seq.replace(ids=jnp.concatenate([ids, values], -1))


def known(*arrays) -> bool:
    """Whether arrays (or None) hold values that the host can read while a program is traced."""
    return not any(isinstance(a, jax.core.Tracer) for a in arrays)


def served(seq: Sequence, limit: int, what: str) -> jax.Array:
    """Whether a table of `limit` places has each token's: bool [B,T], by tokens before it.

    Raises TableEnd, which says `what` ends, where the places are known and one is beyond it.
    """
    if known(seq.index, seq.segment):
        padding = False if seq.segment is None else np.asarray(seq.segment) == 0
        last = int(np.where(padding, 0, np.asarray(seq.index)).max())
        if last >= limit:
            raise TableEnd(f"{what} serves the first {limit} tokens of a document, and token "
                           f"{last + 1} is asked for: ask for fewer, or train with a longer one")
    return seq.index < limit
