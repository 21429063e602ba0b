"""Mamba-3: a scalar gate, a trapezoid of writes, and angles that the tokens decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.domains import Count, PositiveFraction, whole
from lcx.errors import ConfigError
from lcx.layers import Dense, RmsNorm
from lcx.mixers import Support
from lcx.mixers.linear_family import KeysState, LinearMixer, MemoryState
from lcx.mixers.mamba2 import _step_bias
from lcx.ops import endpoint, pairs
from lcx.ops.linear import own as itself
from lcx.types import wide, wide_dtype
from lcx.weights import free


@struct.dataclass
class Mamba3State:
    """State of the linear core; the angle [B,H,P] and, of the last token, its keys [B,R,H,K] as the
    memory holds them and values [B,R,H,V]: half of its write waits for the next token."""

    core: Any
    angle: jax.Array
    key: jax.Array
    value: jax.Array


@struct.dataclass
class Gates:
    """What tokens say of the memory [B,T,H]: log_decay; by what a write counts for its own token
    (own), for all later ones besides (after), and by what a token adds to the write of the one
    before (trail). The angle [B,T,H,P], and by how much the token turned it."""

    log_decay: jax.Array
    own: jax.Array
    after: jax.Array
    trail: jax.Array
    angle: jax.Array
    turn: jax.Array


class Mamba3(LinearMixer):
    """Mamba-3 with one input and output per head (SISO, arXiv:2603.15569); no convolution.

    S_t = a_t (S_{t-1} + (1 - l_t) step_t k_{t-1} v_{t-1}^T) + l_t step_t k_t v_t^T, y = S^T q +
    skip v, out = W_o (y silu(gate)): the trapezoid rule, of which l_t = sigmoid(W_l x) = 1 is
    Mamba-2's. a_t = exp(-rate_t step_t), rate = 1 + r or 1 / (1 - r) on the two sides of r = W_r x,
    at least 1e-4; step = softplus(W x + bias). Query and key are RMS norms of W x (`num_groups` of
    them, `state_dim` channels), plus a bias per head that starts at 1, whose first
    rope_fraction / 2 state_dim interleaved pairs turn by the sum of pi tanh(W_p x) step.

    As weights of pairs, token j counts l_j step_j + (1 - l_{j+1}) step_{j+1} for all later readers
    and l_j step_j for itself, so that one linear attention with a diagonal of its own does it.
    A scheme's pair m is pair m of the mixer, whatever channels they are: angles add. What
    reads queries and keys, a pairwise bias or a feature map, reads those that have not been turned;
    the mixer then turns pairs (m, m + half) of the features, with which such maps commute.
    """

    num_heads: Count = 4
    head_dim: Count | None = None
    state_dim: Annotated[int, whole(2)] = 64
    num_groups: Count = 1
    rope_fraction: PositiveFraction = 0.5

    rank: ClassVar[int] = 1  # keys and values of a token
    paper: ClassVar[str] = "arXiv:2603.15569"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(state_dim=8), dict(state_dim=12, head_dim=6, num_groups=2, rope_fraction=1.0))

    @classmethod
    def support(cls, lane: Any, among: L.Lanes | None = None) -> Support:
        if isinstance(lane, L.Diagonal) and lane.rotation is None:
            return Support(reason="channels of a pair that fade apart do not commute with the "
                                  "mixer's own turn")
        return super().support(lane, among)

    def site(self) -> L.Site:
        if self.num_heads % self.num_groups:
            raise ConfigError(f"num_groups={self.num_groups} must divide "
                              f"num_heads={self.num_heads}")
        if self.state_dim % 2 or not 0 < self._angles() <= self.state_dim // 2:
            raise ConfigError(f"state_dim={self.state_dim} must be even, rope_fraction="
                              f"{self.rope_fraction} in (0, 1] and leave a pair to turn")
        return L.Site(self.num_heads, self.num_heads, self.state_dim, self.state_dim, self.width,
                      self.train_length, value_dim=self._head_dim())

    @nn.compact
    def __call__(self, x: jax.Array, seq: L.Sequence, state: Mamba3State | None = None,
                 shared: L.Lanes | None = None) -> tuple[jax.Array, Any]:
        heads, dim = self.num_heads, self._head_dim()
        gate = Dense((heads, dim), ("heads", "head_dim"), name="gate")(x)
        value = Dense((heads, dim), ("heads", "head_dim"), name="value")(x)
        gates = self._gates(x, seq, state)
        lanes, carry = self.see(x, seq, None if state is None else state.core.carry, shared)
        query, key = self._features(x, "query"), self._features(x, "key")
        value = self._inputs(value)
        y, state = self._recall(query, key, value, gates, seq, lanes, carry, state)
        skip = self._number("skip", nn.initializers.ones_init())
        y = self._output((wide(y) + skip[..., None] * value).astype(x.dtype), gate)
        out = Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                    name="out")(y)
        return out, state

    def _number(self, name: str, init, *axes: str | None, shape: tuple[int, ...] = ()):
        """A parameter [H,*shape], wide."""
        return wide(self.param(name, free(init, ("heads", *axes)), (self.num_heads, *shape)))

    def _gates(self, x: jax.Array, seq: L.Sequence, state: Mamba3State | None) -> Gates:
        per_head = lambda name: wide(Dense((self.num_heads,), ("heads",), name=name)(x))
        step = nn.softplus(per_head("step") + self._number("step_bias", _step_bias))
        rate, share = per_head("rate"), nn.sigmoid(per_head("trapezoid"))
        rate = jnp.maximum(jnp.maximum(rate, 0) + 1 / (1 - jnp.minimum(rate, 0)), 1e-4)
        turn = jnp.tanh(wide(Dense((self._angles(),), ("rank",), name="angle")(x)))
        turn = jnp.pi * turn[:, :, None] * step[..., None]
        angle = L.running_phase(turn, None if state is None else state.angle)
        trail = (1 - share) * step
        return Gates(-rate * step, share * step, _following(trail, seq), trail, angle, turn)

    def _features(self, x: jax.Array, name: str) -> jax.Array:
        """The query or key [B,T,H,K] before any turn, wide."""
        y = Dense((self.num_groups, self.state_dim), ("kv_heads", "state"), name=name)(x)
        y = pairs.repeat_heads(RmsNorm("state", 1e-5, name=f"{name}_norm")(y), self.num_heads)
        return wide(y) + self._number(f"{name}_bias", nn.initializers.ones_init(), "state",
                                      shape=(self.state_dim,))

    def _inputs(self, value: jax.Array) -> jax.Array:
        """What the memory is given of the projection [B,T,H,V]."""
        return value

    def _output(self, y: jax.Array, gate: jax.Array) -> jax.Array:
        """What W_o is given."""
        return y * nn.silu(gate)

    def _own(self, share: jax.Array, query: jax.Array, key: jax.Array, lanes: L.Lanes):
        """The products of a token with itself, `share` [B,T,H] of its write counted."""
        return share * itself.product(query, key, lanes)

    def _recall(self, query, key, value, gates: Gates, seq, lanes, carry,
                state: Mamba3State | None):
        """query, key, value [B,T,H,*] -> what the memory answers [B,T,H,V], and the next state."""
        query, key, lanes = self._turned(query, key, value, gates, seq, lanes)
        query, key = query.astype(value.dtype), key.astype(value.dtype)
        core = None if state is None else _written(state, gates.trail[:, 0])
        written = ((gates.own + gates.after)[..., None] * key).astype(value.dtype)
        y, core = self.mix(query, written, value, seq, lanes, carry, core,
                           log_decay=gates.log_decay, own=self._own(gates.own, query, key, lanes))
        if state is not None:
            like = lambda new, old: jnp.broadcast_to(new, old.shape).astype(old.dtype)
            held = _held(key, value, seq, lanes, core, self.rank)
            state = Mamba3State(core, like(gates.angle[:, -1], state.angle),
                                like(held[0], state.key), like(held[1], state.value))
        return y, state

    def _turned(self, query, key, value, gates: Gates, seq, lanes):
        """Query and key turned by the mixer's own angles, and the lanes in that frame."""
        angle, size = gates.angle, self.state_dim
        lanes = _reading(lanes, query, key)
        if isinstance(lanes.transport, L.FeatureMap):
            query, key = endpoint.mapped(pairs.Queries(_halves(query, size), seq),
                                         pairs.Keys(_halves(key, size), value, seq),
                                         lanes.transport, size)
            spare = query.shape[-1] // 2 - angle.shape[-1]
            turned = jnp.pad(angle, [(0, 0)] * 3 + [(0, spare)])
            query, key = (endpoint.rotate(a, turned, a.shape[-1]) for a in (query, key))
            return query, key, lanes.replace(transport=None)
        query, key = (_laid_out(endpoint.rotate(a, angle, size, interleaved=True), lanes)
                      for a in (query, key))
        if isinstance(lanes.transport, L.Householder):  # in the frame that turns with the mixer
            vector = wide(pairs.repeat_heads(lanes.transport.vector, self.num_heads))
            vector = jnp.broadcast_to(vector, query.shape)
            vector = endpoint.rotate(vector, angle - gates.turn, size, interleaved=True)
            beta = pairs.repeat_heads(lanes.transport.beta, self.num_heads)
            lanes = lanes.replace(transport=L.Householder(vector, beta))
        return query, key, lanes

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Mamba3State:
        heads, dim = self.num_heads, self._head_dim()
        features = endpoint.mapped_dim(self.structure()[0].transport, self.site())
        core = self.empty_state(batch, max_length * self.rank, heads, dim, dtype, log_decay=True,
                                key_dim=features)
        nothing = lambda *shape: jnp.zeros((batch, *shape), wide_dtype())
        return Mamba3State(core, nothing(heads, self._angles()),
                           nothing(self.rank, heads, features), nothing(self.rank, heads, dim))

    def structure(self, batch: int = 1) -> tuple[L.Lanes, Any]:
        lanes, carry = super().structure(batch)
        raw = jax.ShapeDtypeStruct((batch, 1, self.num_heads, self.state_dim), wide_dtype())
        return _reading(lanes, raw, raw), carry

    def _angles(self) -> int:
        return int(self.state_dim * self.rope_fraction) // 2

    def _head_dim(self) -> int:
        if self.head_dim is None and 2 * self.width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide 2 x width={2 * self.width}, "
                              "or set head_dim")
        return self.head_dim or 2 * self.width // self.num_heads


def _laid_out(x: jax.Array, lanes: L.Lanes) -> jax.Array:
    """Interleaved pairs of x [B,T,H,K] -> those of the scheme's rotation, pair by pair."""
    rotation = getattr(lanes.transport, "rotation", lanes.transport)
    if isinstance(rotation, L.ContentRotation):
        count = rotation.phase.shape[-1]
    elif isinstance(rotation, L.Rotation):
        count = rotation.frequency.shape[-1]
    else:
        return x
    if rotation.interleaved:
        return x
    return _halves(x, 2 * count)


def _halves(x: jax.Array, width: int) -> jax.Array:
    """Pairs (2m, 2m + 1) of the leading `width` channels as (m, m + width / 2)."""
    turned, rest = x[..., :width], x[..., width:]
    return jnp.concatenate([turned[..., 0::2], turned[..., 1::2], rest], -1)


def _following(trail: jax.Array, seq: L.Sequence) -> jax.Array:
    """What the next token of the same document and call adds to each token's write [B,T,H]."""
    after = jnp.roll(trail, -1, axis=1).at[:, -1].set(0.0)
    if seq.segment is None:
        return after
    same = jnp.roll(seq.segment, -1, axis=1) == seq.segment
    return jnp.where(same[..., None], after, 0.0)


def _held(key, value, seq: L.Sequence, lanes: L.Lanes, core: Any,
          rank: int) -> tuple[jax.Array, jax.Array]:
    """The last `rank` keys and values [B,R,H,*] as the core holds them: turned by their own places,
    but raw where it holds keys."""
    seq, key, value = seq[-rank:], key[:, -rank:], value[:, -rank:]
    if not isinstance(core, MemoryState):
        return key, value
    transport = getattr(lanes.transport, "rotation", lanes.transport)
    if isinstance(transport, (L.Rotation, L.ContentRotation)):
        path = pairs.path_of(transport)
        path = None if path is None else path.replace(phase=path.phase[:, -rank:])
        last = pairs.Keys(key, value, seq, path=path)
        query = pairs.Queries(key, seq, path=path)
        key = endpoint.mapped(query, last, transport, key.shape[-1])[1]
    return key, endpoint.turn_values(value, seq, lanes.value)


def _written(state: Mamba3State, trail: jax.Array):
    """The core's state after the other half of the last token's write, trail [B,H] times it."""
    core, key = state.core, trail[:, None, :, None] * state.key
    if isinstance(core, MemoryState):
        return core.replace(memory=core.memory + jnp.einsum("brhk,brhv->bhkv", key, state.value))
    if isinstance(core, KeysState):
        return core.replace(cache=_added(core.cache, core.cache.used, key))
    slots = core.ring.keys.keys.key.shape[1]  # a ring slides: the last slots are the newest
    return core.replace(ring=core.ring.replace(keys=_added(core.ring.keys, slots, key)))


def _added(cache, end, key: jax.Array):
    """A cache with key [B,R,H,K] added to what its R slots before `end` hold."""
    held, rank = cache.keys.key, key.shape[1]
    place = jnp.arange(held.shape[1]) - (end - rank)
    here = ((place >= 0) & (place < rank))[None, :, None, None]
    added = jnp.where(here, jnp.take(key, jnp.clip(place, 0, rank - 1), axis=1), 0.0)
    return cache.replace(keys=cache.keys.replace(key=held + added.astype(held.dtype)))


@dataclasses.dataclass(frozen=True)
class _Unturned:
    """A pairwise kernel that reads the queries and keys among its extras, not those of the core."""

    kernel: Callable

    def __call__(self, params, tile: L.Tile) -> jax.Array:
        (of_query, query, _), (of_key, _, key) = tile.query_extras, tile.key_extras
        return self.kernel(params, dataclasses.replace(
            tile, query=query, key=key, query_extras=of_query, key_extras=of_key))


def _reading(lanes: L.Lanes, query: Any, key: Any) -> L.Lanes:
    """Lanes whose pairwise biases read query and key [B,T,H,K]."""
    return lanes.replace(bias=tuple(
        bias.replace(kernel=_Unturned(bias.kernel), extras=(bias.extras, query, key))
        if isinstance(bias, L.Pairwise) else bias for bias in lanes.bias))
