"""Mamba-3: a scalar gate, a trapezoid of writes, and angles that the tokens decide."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.errors import ConfigError
from lcx.layers import Dense, RmsNorm
from lcx.mixers import Support
from lcx.mixers.linear_family import KeysState, LinearMixer, MemoryState
from lcx.mixers.mamba2 import _step_bias
from lcx.ops import endpoint, pairs
from lcx.types import wide, wide_dtype


@struct.dataclass
class Mamba3State:
    """State of the linear core; the angle [B,H,P] and, of the last token, key [B,H,K] as the memory
    holds it and value [B,H,V]: half of its write waits for the next token."""

    core: Any
    angle: jax.Array
    key: jax.Array
    value: jax.Array


class Mamba3(LinearMixer):
    """Mamba-3 with one input and output per head (SISO, arXiv:2603.15569); no convolution.

    S_t = a_t (S_{t-1} + (1 - l_t) step_t k_{t-1} v_{t-1}^T) + l_t step_t k_t v_t^T, y = S^T q +
    skip v, out = W_o (y silu(gate)): the trapezoid rule, of which l_t = sigmoid(W_l x) = 1 is
    Mamba-2's. a_t = exp(-rate_t step_t), rate = 1 + r or 1 / (1 - r) on the two sides of r = W_r x,
    at least 1e-4; step = softplus(W x + bias). Query and key are RMS norms of W x (`num_groups` of
    them, `state_dim` channels), plus a bias per head that starts at 1, whose first
    rope_fraction / 2 state_dim interleaved pairs turn by the sum of pi tanh(W_p x) step.

    As weights of pairs, token j counts l_j step_j + (1 - l_{j+1}) step_{j+1} for all later readers
    and l_j step_j for itself, so that one linear attention and a correction of the diagonal do it.
    A scheme's pair m is pair m of the mixer, whatever channels they are: angles add.
    """

    num_heads: int = 4
    head_dim: int | None = None
    state_dim: int = 64
    num_groups: int = 1
    rope_fraction: float = 0.5

    paper: ClassVar[str] = "arXiv:2603.15569"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(state_dim=8), dict(state_dim=12, head_dim=6, num_groups=2, rope_fraction=1.0))
    supports = {
        **LinearMixer.supports,
        L.FeatureMap: Support(reason="its features would have to turn by the mixer's own angles"),
        L.Pairwise: Support(reason="a token's own weight counts apart, and its kernel gives rows"),
        L.ValueTable: Support(reason="a token's own weight counts apart, its table's row with it"),
    }

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
        heads, dim, size = self.num_heads, self._head_dim(), self.state_dim
        gate = Dense((heads, dim), ("heads", "head_dim"), name="gate")(x)
        value = Dense((heads, dim), ("heads", "head_dim"), name="value")(x)
        per_head = lambda name: wide(Dense((heads,), ("heads",), name=name)(x))
        number = lambda name, init, *axes, shape=(heads,): wide(self.param(
            name, nn.with_logical_partitioning(init, ("heads", *axes)), shape))
        step = nn.softplus(per_head("step") + number("step_bias", _step_bias))
        rate, share = per_head("rate"), nn.sigmoid(per_head("trapezoid"))
        rate = jnp.maximum(jnp.maximum(rate, 0) + 1 / (1 - jnp.minimum(rate, 0)), 1e-4)
        turn = jnp.tanh(wide(Dense((self._angles(),), ("rank",), name="angle")(x)))
        turn = jnp.pi * turn[:, :, None] * step[..., None]
        angle = L.running_phase(turn, None if state is None else state.angle)

        def normed(name):
            y = Dense((self.num_groups, size), ("kv_heads", "state"), name=name)(x)
            y = pairs.repeat_heads(RmsNorm("state", 1e-5, name=f"{name}_norm")(y), heads)
            bias = number(f"{name}_bias", nn.initializers.ones_init(), "state", shape=(heads, size))
            return endpoint.rotate(wide(y) + bias, angle, size, interleaved=True)

        lanes, carry = self.see(x, seq, None if state is None else state.core.carry, shared)
        query, key = (_laid_out(normed(name), lanes).astype(x.dtype) for name in ("query", "key"))
        if isinstance(lanes.transport, L.Householder):  # in the frame that turns with the mixer
            vector = wide(pairs.repeat_heads(lanes.transport.vector, heads))
            vector = jnp.broadcast_to(vector, query.shape)
            vector = endpoint.rotate(vector, angle - turn, size, interleaved=True)
            beta = pairs.repeat_heads(lanes.transport.beta, heads)
            lanes = lanes.replace(transport=L.Householder(vector, beta))

        own, trail = share * step, (1 - share) * step
        if state is not None:
            state = state.replace(core=_written(state, trail[:, 0]))
        following = _following(trail, seq)
        y, core = self.mix(query, key, ((own + following)[..., None] * value).astype(x.dtype), seq,
                           lanes, carry, None if state is None else state.core,
                           log_decay=-rate * step)
        extra = following * _own_weight(query, key, lanes, seq)
        skip = number("skip", nn.initializers.ones_init())
        y = (wide(y) + (skip - extra)[..., None] * value).astype(x.dtype) * nn.silu(gate)
        out = Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                    name="out")(y)
        if state is not None:
            like = lambda new, old: jnp.broadcast_to(new[:, -1], old.shape).astype(old.dtype)
            held = _held(key, value, seq, lanes, core)
            state = Mamba3State(core, like(angle, state.angle), like(held[0], state.key),
                                like(held[1], state.value))
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Mamba3State:
        heads, dim = self.num_heads, self._head_dim()
        core = self.empty_state(batch, max_length, heads, dim, dtype, log_decay=True)
        nothing = lambda size: jnp.zeros((batch, heads, size), wide_dtype())
        return Mamba3State(core, nothing(self._angles()), nothing(self.state_dim), nothing(dim))

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
    pairs, rest = x[..., :2 * count], x[..., 2 * count:]
    return jnp.concatenate([pairs[..., 0::2], pairs[..., 1::2], rest], -1)


def _following(trail: jax.Array, seq: L.Sequence) -> jax.Array:
    """What the next token of the same document and call adds to each token's write [B,T,H]."""
    after = jnp.roll(trail, -1, axis=1).at[:, -1].set(0.0)
    if seq.segment is None:
        return after
    same = jnp.roll(seq.segment, -1, axis=1) == seq.segment
    return jnp.where(same[..., None], after, 0.0)


def _own_weight(query, key, lanes: L.Lanes, seq: L.Sequence) -> jax.Array:
    """The weight [B,T,H] of a token for itself: no transport acts, a static bias does."""
    rotation = getattr(lanes.transport, "rotation", lanes.transport)
    if isinstance(rotation, L.Rotation):
        query = endpoint.amplified(query, rotation)
    weight = jnp.sum(wide(query) * wide(key), -1)
    nowhere = jnp.zeros(seq.ids.shape[:2], weight.dtype)
    for bias in lanes.bias:
        if isinstance(bias, L.Rowwise):
            weight = weight * jnp.exp(bias.kernel(bias.params, nowhere, seq.ids[..., 0]))
        elif isinstance(bias, L.Toeplitz):
            weight = weight * jnp.exp(bias.kernel(bias.params, nowhere))
    return weight


def _held(key, value, seq: L.Sequence, lanes: L.Lanes, core: Any) -> tuple[jax.Array, jax.Array]:
    """The last token's key and value [B,1,H,*] as the core holds them: turned by its own place, but
    in a cache of raw keys."""
    transport = getattr(lanes.transport, "rotation", lanes.transport)
    seq, key, value = seq[-1:], key[:, -1:], value[:, -1:]
    if isinstance(transport, (L.Rotation, L.ContentRotation)):
        path = pairs.path_of(transport)
        path = None if path is None else path.replace(phase=path.phase[:, -1:])
        last = pairs.Keys(key, value, seq, path=path)
        query = pairs.Queries(key, seq, path=path)
        key = endpoint.mapped(query, last, transport, key.shape[-1])[1]
    return key, value if isinstance(core, KeysState) else endpoint.turn_values(
        value, seq, lanes.value)


def _written(state: Mamba3State, trail: jax.Array):
    """The core's state after the other half of the last token's write, trail [B,H] times it."""
    core, value = state.core, trail[..., None] * state.value
    if isinstance(core, MemoryState):
        return core.replace(memory=core.memory + jnp.einsum("bhk,bhv->bhkv", state.key, value))
    if isinstance(core, KeysState):
        return core.replace(cache=_added(core.cache, core.cache.used - 1, value))
    newest = core.ring.keys.keys.value.shape[1] - 1  # a ring slides: it is the last slot
    return core.replace(ring=core.ring.replace(keys=_added(core.ring.keys, newest, value)))


def _added(cache, slot, value: jax.Array):
    """A cache with value [B,H,V] added to what one of its slots holds."""
    held = cache.keys.value
    here = (jnp.arange(held.shape[1]) == slot)[None, :, None, None]
    added = jnp.where(here, value[:, None], 0.0).astype(held.dtype)
    return cache.replace(keys=cache.keys.replace(value=held + added))
