"""Lane values: the typed vocabulary between positional schemes and sequence mixers.

A scheme describes itself in lane values; ops and mixers dispatch on their *types*, never on a
scheme's name. Values are small pytrees of per-token generators, never arrays over pairs of tokens:
the op integrates them. Kernels inside lane values are top-level functions with explicit params (a
closure would break `custom_vjp` and caching).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from lcx.types import wide, wide_dtype


@struct.dataclass
class Sequence:
    """Where the tokens of a call sit. The leading dimension may be 1: shared by all rows.

    order [B,T] int32: arrival order in the stream; masks obey it; -1 marks an empty cache slot.
    ids [B,T,A] float32: position ids with A axes; schemes obey them (exact for |id| < 2^24).
    segment [B,T] int32 or None: document of the row, from 1; 0 is padding; None: one document.
    index [B,T] int32: tokens before this one in its document.
    length scalar: what a length-dependent scheme is told, constant over a request.
    """

    order: jax.Array
    ids: jax.Array
    segment: jax.Array | None
    index: jax.Array
    length: jax.Array

    def __getitem__(self, window: slice) -> Sequence:
        """Tokens `window` of the sequence, `length` kept: the pieces of a streamed request."""
        cut = lambda a: None if a is None else a[:, window]
        return self.replace(order=cut(self.order), ids=cut(self.ids), segment=cut(self.segment),
                            index=cut(self.index))


def sequence(batch: int, length: int, *, segment=None, ids=None, start: int = 0,
             told_length=None) -> Sequence:
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
    return Sequence(order, ids, segment, index, jnp.asarray(told, jnp.int32))


@dataclasses.dataclass(frozen=True)
class Site:
    """What a mixer tells its scheme about the place where it works.

    rotary_dim: leading channels of each query and key that a transport may touch.
    key_dim: channels of the vectors that the mixer compares; width: of the layer input.
    """

    num_heads: int
    num_kv_heads: int
    rotary_dim: int
    key_dim: int
    width: int
    train_length: int
    causal: bool = True


# ---- transport: a map of queries and keys -------------------------------------------------------


@struct.dataclass
class Rotation:
    """Class GRP: channel pairs turn by id x frequency (RoPE, arXiv:2104.09864).

    frequency [3,P]: `split_frequency` of radians per id; amplitude: factor g on cos and sin of
    both query and key (applied once, as g^2 on the query); axis: the id axis of each pair;
    interleaved: pairs (2m,2m+1), else half-split (m, m+P).
    """

    frequency: jax.Array
    amplitude: jax.Array | None = None
    axis: tuple[int, ...] | None = struct.field(pytree_node=False, default=None)
    interleaved: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class Householder:
    """Class PATH: key j reaches query i through H_{j+1}..H_i, H = I - beta w w^T.

    vector [B,T,N,K] (unit, N key heads), beta [B,T,N] in (0,2).
    """

    vector: jax.Array
    beta: jax.Array


@struct.dataclass
class Piecewise:
    """Class PW: a rotation whose id map depends on the pair (ReRoPE, Self-Extend, DCA).

    select(params, query_ids [...,T,1], key_ids [...,1,S]) -> piece number of each pair;
    pieces: one (query map, key map) each, functions (params, ids) -> ids.
    """

    rotation: Rotation
    params: Any
    select: Callable = struct.field(pytree_node=False)
    pieces: tuple[tuple[Callable, Callable], ...] = struct.field(pytree_node=False)


# ---- bias: an additive term of the logit, a factor exp(bias) of a linear weight ------------------


@struct.dataclass
class Separable:
    """Class SEP: B_ij = sum of increment_s over j < s <= i (ALiBi, FoX).

    increment [B,T,H] log-gate of each token, <= 0, zero at a segment's first token.
    """

    increment: jax.Array


@struct.dataclass
class Toeplitz:
    """Class TOEP: B_ij = kernel(params, id_i - id_j) -> [..., H], static."""

    params: Any
    kernel: Callable = struct.field(pytree_node=False)


@struct.dataclass
class EventuallyConstant(Toeplitz):
    """Class EVC: a Toeplitz bias that is constant from distance `window` on (T5 buckets)."""

    window: int = struct.field(pytree_node=False, default=0)


@struct.dataclass
class Pairwise:
    """Class PAIR: kernel(params, Tile) -> [B,H,T,S], any pure function of queries and keys.

    row_global: an entry depends on the whole row of keys (CoPE), so keys may not be tiled.
    """

    params: Any
    kernel: Callable = struct.field(pytree_node=False)
    row_global: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class Tile:
    """What a pairwise kernel sees: raw query [B,T,H,K], key [B,S,H,K], mask [B,T,S], scale."""

    query: jax.Array
    key: jax.Array
    mask: jax.Array
    scale: float = struct.field(pytree_node=False)


# ---- temperature --------------------------------------------------------------------------------


@struct.dataclass
class Temperature:
    """A positive factor of the query-key product, never of a bias: factor [B,T,1] or [B,T,H]."""

    factor: jax.Array


@struct.dataclass
class Lanes:
    """Everything that a scheme says to one layer."""

    transport: Any = None
    bias: tuple = ()
    temperature: Temperature | None = None

    def values(self) -> list:
        """The lane values that are not the identity."""
        return [v for v in (self.transport, *self.bias, self.temperature) if v is not None]

    @property
    def axes(self) -> int:
        """How many axes of the ids the lanes read."""
        axis = getattr(getattr(self.transport, "rotation", self.transport), "axis", None)
        return 1 if axis is None else max(axis) + 1

    @property
    def reads_content(self) -> bool:
        """Whether a bias reads raw queries and keys."""
        return any(isinstance(bias, Pairwise) for bias in self.bias)


# ---- generators: from numbers to phases and increments -------------------------------------------


def split_frequency(frequency) -> jax.Array:
    """Radians per id [P] -> turns per id in three parts [3,P] that multiply ids exactly.

    The first two parts hold 11 bits each, so that their product with a 12-bit half of an id is
    exact in float32; the third holds the rest. Host float64 in gives about 46 bits; a traced
    array keeps its own precision and its gradient.
    """
    xp = np if isinstance(frequency, np.ndarray) else jnp  # the host keeps float64
    turns = frequency / (2 * np.pi)
    high = xp.floor(turns * 2.0**11) / 2.0**11
    middle = xp.floor((turns - high) * 2.0**22) / 2.0**22
    return xp.stack([high, middle, turns - high - middle])


def phase(rotation: Rotation, ids: jax.Array) -> jax.Array:
    """Angles [B,T,P] in radians, reduced to one turn, of ids [B,T,A].

    Within 1e-5 rad of float64 for ids up to 2^20 in float32: every product below is exact or
    tiny, and whole turns are dropped before the sum (a plain float32 product misses by 0.06 rad).
    """
    if rotation.axis is not None and ids.shape[-1] > 1:
        if max(rotation.axis) >= ids.shape[-1]:  # a gather past the end would clamp in silence
            raise ValueError(f"the rotation reads {max(rotation.axis) + 1} axes of the ids, the "
                             f"sequence has {ids.shape[-1]}; give one axis (text) or all of them")
        ids = ids[..., jnp.array(rotation.axis)]
    else:
        ids = ids[..., :1]
    high, middle, low = wide(rotation.frequency)
    page = jnp.floor(ids / 4096.0)  # 4096 x high is a whole number of turns for every page
    rest = ids - page * 4096.0
    turns = (_part(page * (middle * 4096.0)) + _part(page * (low * 4096.0))
             + _part(rest * high) + _part(rest * middle) + rest * low)
    return 2 * jnp.pi * _part(turns)


def _part(turns):
    return turns - jnp.round(turns)


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
