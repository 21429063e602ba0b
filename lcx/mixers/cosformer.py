"""cosFormer: linear attention of ReLU features, with weights that fade like a cosine."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.domains import Count
from lcx.errors import ConfigError
from lcx.layers import Dense
from lcx.mixers.kernel_family import empty_cache, remember
from lcx.mixers.linear_family import LinearMixer, MemoryState, RingState
from lcx.ops import endpoint
from lcx.ops.attention import cache, pointwise
from lcx.ops.linear import ring
from lcx.types import wide, wide_dtype

FLOOR = 1e-6  # of the sum of weights


@struct.dataclass
class CosformerState:
    """Memories of the weighted values and, where a transport tells them apart, of the weights."""

    core: Any
    total: Any

    @property
    def carry(self) -> Any:
        """What the scheme remembers."""
        return self.core.carry


class Cosformer(LinearMixer):
    """cosFormer (arXiv:2202.08791): weights ReLU(q).ReLU(k) cos(pi (i - j) / 2M) over their sum.

    cos of a difference is a kernel of rank 2, so the state is a memory twice as wide: values
    times cos and times sin of the token's number in its document. M is `max_length`, fixed (the
    published code takes the length of the input, which no decoder knows): twice train_length if
    None. Weights turn negative beyond distance M: set it to the longest length that will be read.
    The sum is at least 1e-6. A transport acts on the ReLU features in the numerator only, where it
    may turn a weight negative; a bias is a factor of both.

    head_dim: width/num_heads if None. Projections are bias-free and start normal with variance
    1/fan_in.
    """

    num_heads: Count = 4
    head_dim: Count | None = None
    max_length: Count | None = None

    paper: ClassVar[str] = "arXiv:2202.08791"
    # Of 8 channels a tenth of all pairs share no feature: their weight is rounding over the floor.
    examples: ClassVar[tuple[dict, ...]] = (
        dict(num_heads=2), dict(num_heads=2, head_dim=8, max_length=40))

    def site(self) -> L.Site:
        if self.head_dim is None and self.width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide width={self.width}, or "
                              "set head_dim")
        dim = self.head_dim or self.width // self.num_heads
        return L.Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                      value_dim=dim)

    @nn.compact
    def __call__(self, x: jax.Array, seq: L.Sequence, state: Any = None,
                 shared: L.Lanes | None = None) -> tuple[jax.Array, Any]:
        heads, dim = self.num_heads, self.site().key_dim
        dense = lambda name: Dense((heads, dim), ("heads", "head_dim"), name=name)(x)
        query, key, value = nn.relu(dense("query")), nn.relu(dense("key")), dense("value")
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        self.sow("intermediates", "inner", {"core": {"cosine": dict(
            query=query, key=key, value=value, max_length=self._period(), index=seq.index)}})
        over_pairs = self._way(lanes, state) == self._over_pairs
        run = self._pairs if over_pairs else self._memories
        out, state = run(query, key, value, seq, lanes, carry, state)
        out = out.astype(x.dtype)
        self.sow("intermediates", "outer", out)
        out = Dense((self.width,), ("width",), ("heads", "head_dim"), scale=self.output_scale,
                    name="out")(out)
        return out, state

    def _period(self) -> int:
        return 2 * self.train_length if self.max_length is None else self.max_length

    def _memories(self, query, key, value, seq, lanes, carry, state):
        """cos(a_i - a_j) = cos a_i cos a_j + sin a_i sin a_j: factors of values and outputs."""
        turns = seq.index % (4 * self._period())  # whole turns gone, the angle is exact
        angle = (wide(turns) * (jnp.pi / (2 * self._period())))[..., None, None]
        wave = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -2)  # [B,T,1,2,1]
        value = endpoint.turn_values(value, seq, lanes.value)
        ones = jnp.ones_like(value[..., :1])
        cores = (None, None) if state is None else (state.core, state.total)

        def read(values, lanes, core):
            """sum_j w_ij cos(a_i - a_j) v_j and the memory after it."""
            waves = (values[..., None, :] * wave.astype(values.dtype))
            flat = waves.reshape(*values.shape[:3], -1)
            run = self._way(lanes, core)
            out, core = run(query, key, flat, seq, lanes, carry, core, None, None)
            out = wide(out).reshape(*out.shape[:3], *waves.shape[-2:])
            return jnp.sum(out * wave, -2), core

        rotation, lanes = lanes.value, lanes.replace(temperature=None, value=None)
        if lanes.transport is None:
            both, core = read(jnp.concatenate([value, ones], -1), lanes, cores[0])
            out, sums, total = both[..., :-1], both[..., -1:], None
        else:
            out, core = read(value, lanes, cores[0])
            sums, total = read(ones, lanes.replace(transport=None), cores[1])
        out = endpoint.turn_values(out / jnp.maximum(sums, FLOOR), seq, rotation, sign=-1)
        return out, None if state is None else CosformerState(core, total)

    def _pairs(self, query, key, value, seq, lanes, carry, state):
        core = None if state is None else state.core
        queries, keys, core = remember(query, key, value, seq, lanes, carry, core)
        out = pointwise.attend(
            queries, keys, lanes.replace(temperature=None),
            functools.partial(_weigh, period=self._period()), rotary_dim=self.site().rotary_dim,
            normalise=lambda out, total: out / jnp.maximum(total, FLOOR), transported=False,
            chunk=self.chunk)
        return out, None if state is None else CosformerState(core, None)

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> CosformerState:
        site = self.site()
        lanes, carry = self.structure(batch)
        if self.over_pairs(lanes):
            return CosformerState(empty_cache(lanes, carry, site, batch, max_length,
                                              site.value_dim, dtype), None)
        empty = lambda size: self.empty_state(batch, max_length, site.num_heads, size, dtype)
        if lanes.transport is None:
            return CosformerState(empty(2 * site.value_dim + 2), None)
        bare = lanes.replace(transport=None)  # of the sums, whose weights have none
        window = ring.reach(bare)
        if window is None:
            total = jnp.zeros((batch, site.num_heads, site.key_dim, 2), wide_dtype())
            sums = MemoryState(total, None, L.nothing_seen(batch).segment, carry)
        else:
            like = cache.like(bare, batch, site.num_kv_heads, site.key_dim, 2, dtype)
            sums = RingState(ring.init(like, site.num_heads, site.key_dim, batch, window, False),
                             carry)
        return CosformerState(empty(2 * site.value_dim), sums)


def _weigh(z, bias, queries, keys, rows, *, period):
    between = (queries.index[..., :, None] - keys.index[..., None, :])[:, None]
    return z * jnp.exp(bias) * jnp.cos(wide(between % (4 * period)) * (jnp.pi / (2 * period)))
