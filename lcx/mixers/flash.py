"""FLASH: a gated attention unit over groups of tokens, linear attention to all earlier groups."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.domains import Count, Expansion, NonNegative, expanded
from lcx.layers import Dense
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Support
from lcx.mixers.gau import gated_unit
from lcx.mixers.kernel_family import remember
from lcx.mixers.linear_family import KeysState, LinearMixer
from lcx.ops.attention import cache, local, pointwise
from lcx.types import wide_dtype


@struct.dataclass
class FlashState:
    """Keys and values of the last `group` tokens, and the memory of all tokens; or all keys and
    values, and no memory, where a lane weighs far pairs one by one."""

    near: KeysState
    far: Any


class Flash(LinearMixer):
    """FLASH, mixed chunks (arXiv:2202.10447): W_o (u * (near + far)) in groups of `group` g tokens.

    near_i = sum over its group of ReLU(q_i.k_j / g + bias_ij)^2 v_j; far_i = q'_i . sum over
    earlier groups of k'_j v_j^T / g; u, v and the base of q, k, q', k' as in `gau`, each with a
    gain and a shift of its own; `gain_deviation` as there. Groups are counted from the start of a
    document. A bias acts inside the square near by, and as a factor exp(bias) of a weight far away,
    where a pairwise one reads q' and k'; a transport and a temperature act on both. The published
    layer's own relative bias, normalisation and token shift are left to the scheme and the block.
    """

    key_dim: Count = 128
    expand: Expansion = 2.0
    group: Count = 256
    gain_deviation: NonNegative = 0.02

    family: ClassVar[str] = "flash"
    paper: ClassVar[str] = "arXiv:2202.10447"
    examples: ClassVar[tuple[dict, ...]] = (dict(key_dim=8, group=5),
                                            dict(key_dim=12, expand=1.5, group=16))
    supports = {**LinearMixer.supports, L.Temperature: Support((QUADRATIC, CHUNKED, STEP))}

    def site(self) -> L.Site:
        return L.Site(1, 1, self.key_dim, self.key_dim, self.width, self.train_length,
                      value_dim=self.value_dim())

    def value_dim(self) -> int:
        """Channels of u and v."""
        return expanded(self.width, self.expand)

    @nn.compact
    def __call__(self, x: jax.Array, seq: L.Sequence, state: FlashState | None = None,
                 shared: L.Lanes | None = None) -> tuple[jax.Array, Any]:
        gate, value, *found = gated_unit(self, x, ("near_query", "far_query", "near_key",
                                                   "far_key"))
        lanes, carry = self.see(x, seq, None if state is None else state.near.carry, shared)
        near_query, far_query, near_key, far_key = found
        self.sow("intermediates", "inner", dict(
            query=near_query, key=near_key, far_query=far_query, far_key=far_key, value=value,
            group=self.group, index=seq.index))
        far = self._way(lanes, state)
        if far == self._over_pairs:
            out, state = self._over_all(found, value, seq, lanes, carry, state)
        else:
            out, state = self._branches(far, found, value, seq, lanes, carry, state)
        out = out.astype(x.dtype)
        self.sow("intermediates", "outer", out)
        out = Dense((self.width,), ("width",), ("channels",), scale=self.output_scale,
                    name="out")(gate * out[..., 0, :])
        return out, state

    def _over_all(self, found, value, seq, lanes, carry, state):
        """Near and far weights of all pairs."""
        near_query, far_query, near_key, far_key = found
        both = jnp.concatenate([near_key, far_key], -1)
        queries, keys, near = remember(near_query, both, value, seq, lanes, carry,
                                       None if state is None else state.near)

        def read(query, key, weigh, scale):
            inside = functools.partial(weigh, group=self.group)
            return pointwise.attend(queries.replace(query=query), keys.replace(key=key), lanes,
                                    inside, scale=scale, rotary_dim=self.key_dim, chunk=self.chunk)

        out = read(near_query, keys.key[..., : self.key_dim], _square, 1 / self.group)
        out += read(far_query, keys.key[..., self.key_dim :], _earlier, 1.0)
        return out, None if state is None else FlashState(near, None)

    def _branches(self, run, found, value, seq, lanes, carry, state):
        """Near by: squares. Far away: linear attention to all tokens less that to the group."""
        if lanes.temperature is not None:
            factor = lanes.temperature.factor[..., None].astype(value.dtype)
            found = [a * factor for a in found[:2]] + found[2:]
            lanes = lanes.replace(temperature=None)
        near_query, far_query, near_key, far_key = found
        both = jnp.concatenate([near_key, far_key], -1)
        near = None if state is None else state.near
        queries, keys, near = remember(near_query, both, value, seq, lanes, carry, near)
        if state is None:
            keys = local.behind(keys, self.group)

        def read(query, key, weigh):
            parts = local.windows(queries.replace(query=query), keys.replace(key=key), None,
                                  self.group)
            inside = functools.partial(weigh, group=self.group)
            return parts[3](pointwise.attend(*parts[:2], lanes, inside, scale=1 / self.group,
                                             rotary_dim=self.key_dim))

        out = read(near_query, keys.key[..., : self.key_dim], _square)
        out -= read(far_query, keys.key[..., self.key_dim :], _linear)
        total, far = run(far_query, far_key, value, seq, lanes, carry,
                         None if state is None else state.far, None, None)
        return out + total / self.group, None if state is None else FlashState(near, far)

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> FlashState:
        lanes, carry = self.structure(batch)
        like = cache.like(lanes, batch, 1, 2 * self.key_dim, self.value_dim(), dtype)
        if self.over_pairs(lanes):
            return FlashState(KeysState(cache.init(like, batch, max_length), carry), None)
        near = KeysState(cache.init(like, batch, self.group, self.group), carry)
        return FlashState(near, self.empty_state(batch, max_length, 1, self.value_dim(),
                                                 wide_dtype()))


def _same_group(queries, keys, group):
    number = lambda seq: seq.index // group
    return (number(queries)[..., :, None] == number(keys)[..., None, :])[:, None]


def _square(z, bias, queries, keys, rows, *, group):
    return jnp.where(_same_group(queries, keys, group), jnp.square(nn.relu(z + bias)), 0.0)


def _earlier(z, bias, queries, keys, rows, *, group):
    return jnp.where(_same_group(queries, keys, group), 0.0, z * jnp.exp(bias) / group)


def _linear(z, bias, queries, keys, rows, *, group):
    return jnp.where(_same_group(queries, keys, group), z * jnp.exp(bias), 0.0)
