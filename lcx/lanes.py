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
from flax import struct

# Where tokens are, and how ids become angles, is part of the vocabulary.
from lcx.phases import phase, running_phase, split_frequency  # noqa: F401
from lcx.stream import (  # noqa: F401
    Last,
    Sequence,
    advance,
    known,
    nothing_seen,
    place_in_run,
    sequence,
    served,
    with_axis,
)


@dataclasses.dataclass(frozen=True)
class Site:
    """What a mixer tells its scheme about the place where it works.

    rotary_dim: leading channels of each query and key that a transport may touch.
    key_dim: channels of the vectors that the mixer compares; width: of the layer input.
    value_dim: channels of each value, or of each recurrent channel group; 0 where there are none.
    """

    num_heads: int
    num_kv_heads: int
    rotary_dim: int
    key_dim: int
    width: int
    train_length: int
    causal: bool = True
    value_dim: int = 0


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
    pieces: one (query map, key map) each, functions (params, ids) -> ids; window: distance of ids
    from which every pair of the past is of piece `far`, so that a recurrence may forget the ids of
    its inputs. None: there is no such distance.
    """

    rotation: Rotation
    params: Any
    select: Callable = struct.field(pytree_node=False)
    pieces: tuple[tuple[Callable, Callable], ...] = struct.field(pytree_node=False)
    window: int | None = struct.field(pytree_node=False, default=None)
    far: int = struct.field(pytree_node=False, default=1)


@struct.dataclass
class ContentRotation:
    """Class PATH, abelian: pairs turn by a step read from the content (Selective RoPE, GRAPE-M).

    phase [B,T,N,P] radians: the running sum of the steps (`running_phase`), of which only
    differences count; step [B,T,N,P]: of each token, zero at a segment's first (None in a cache).
    """

    phase: jax.Array
    step: jax.Array | None
    interleaved: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class Diagonal:
    """Class PATH, diagonal: channel n of key j fades by exp(sum of increment_s over j < s <= i)
    *inside* the product (xPos, Wall), where a Separable bias fades the weight.

    increment [B,T,N,K] <= 0, zero at a segment's first token, of the leading K channels; rotation:
    one that goes with it, where both channels of a pair fade alike; basis: a fixed orthogonal map
    of those channels, x [...,K] -> the same shape, that queries and keys take before all else
    (hyperbolic HoPE), so that it is its coordinates that fade; content: as in `Separable`.
    """

    increment: jax.Array
    rotation: Rotation | None = None
    basis: Callable | None = struct.field(pytree_node=False, default=None)
    content: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class FeatureMap:
    """Class FIN: q and k are mapped by their own ids, perhaps to another width (PoPE, FoPE).

    query, key: functions (params, x [B,T,H,K], ids [B,T,A]) -> [B,T,H,K'] of the channels that a
    transport may touch.
    """

    params: Any
    query: Callable = struct.field(pytree_node=False)
    key: Callable = struct.field(pytree_node=False)


# ---- bias: an additive term of the logit, a factor exp(bias) of a linear weight ------------------


@struct.dataclass
class Separable:
    """Class SEP: B_ij = sum of increment_s over j < s <= i (ALiBi, FoX).

    increment [B,T,H] log-gate of each token, <= 0, zero at a segment's first token; content: it is
    read from the tokens themselves (FoX), which a time-invariant mixer cannot follow.
    """

    increment: jax.Array
    content: bool = struct.field(pytree_node=False, default=False)


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
class Rowwise:
    """Class ROW: B_ij = kernel(params, id_i - id_j, id_i) -> [..., H], static (FIRE)."""

    params: Any
    kernel: Callable = struct.field(pytree_node=False)


@struct.dataclass
class Pairwise:
    """Class PAIR: kernel(params, Tile) -> [B,H,T,S], any pure function of queries and keys.

    row_global: an entry depends on the whole row of keys (CoPE), so keys may not be tiled; extras:
    arrays of each token [B,T,...] that the kernel reads beside q and k; axes: of the ids it reads.
    """

    params: Any
    kernel: Callable = struct.field(pytree_node=False)
    row_global: bool = struct.field(pytree_node=False, default=False)
    extras: Any = None
    axes: int = struct.field(pytree_node=False, default=1)


@struct.dataclass
class Tile:
    """What a pairwise kernel sees: raw query [B,T,H,K], key [B,S,H,K], mask [B,T,S], their ids
    [.,T,A] and [.,S,A], scale, and its own extras of the queries' and of the keys' tokens."""

    query: jax.Array
    key: jax.Array
    mask: jax.Array
    query_ids: jax.Array
    key_ids: jax.Array
    scale: float = struct.field(pytree_node=False)
    query_extras: Any = None
    key_extras: Any = None


# ---- temperature --------------------------------------------------------------------------------


@struct.dataclass
class Temperature:
    """A factor of the query-key product, never of a bias: factor [B,T,1] or [B,T,H].

    Positive where a query may choose; ln n is 0 for the first token, which sees itself alone.
    """

    factor: jax.Array


# ---- values and logits --------------------------------------------------------------------------


@struct.dataclass
class ValueRotation:
    """Class GRP, on values: o_i = sum_j w_ij R_{j-i} v_j (VO-RoPE, kexue.fm/archives/10862)."""

    rotation: Rotation


@struct.dataclass
class ValueTable:
    """Class PAIR: o_i += sum_j w_ij table[bucket(R, id_i - id_j)], table [R,V] (Shaw).

    bucket: a function of the number of rows and the distance -> a row.
    """

    table: jax.Array
    bucket: Callable = struct.field(pytree_node=False)


@struct.dataclass
class LogitMap:
    """An operator on the logits of a whole row of keys (DAPE), which only a softmax has.

    function(params, logits [B,H,T,S], bias [B,H,T,S], mask [B,T,S], distance [.,T,S]) -> logits;
    bias is the sum of the bias lanes, already part of the logits; distance is id_i - id_j.
    """

    params: Any
    function: Callable = struct.field(pytree_node=False)


@struct.dataclass
class Lanes:
    """Everything that a scheme says to one layer."""

    transport: Any = None
    bias: tuple = ()
    temperature: Temperature | None = None
    value: ValueRotation | ValueTable | None = None
    logits: LogitMap | None = None

    def values(self) -> list:
        """The lane values that are not the identity."""
        found = (self.transport, *self.bias, self.temperature, self.value, self.logits)
        return [v for v in found if v is not None]

    @property
    def axes(self) -> int:
        """How many axes of the ids the lanes read."""
        rotations = [getattr(v, "rotation", v) for v in (self.transport, self.value)]
        axes = [getattr(rotation, "axis", None) for rotation in rotations]
        read = [max(axis) + 1 for axis in axes if axis is not None]
        return max([1, *read, *(bias.axes for bias in self.bias if isinstance(bias, Pairwise))])

    @property
    def reads_content(self) -> bool:
        """Whether a bias reads raw queries and keys."""
        return any(isinstance(bias, Pairwise) for bias in self.bias)
