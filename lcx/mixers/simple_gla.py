"""Simple gated linear attention: a memory whose heads forget by one learned gate per token."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lcx.domains import Count, Expansion, Whole
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, RmsNorm, ShortConv
from lcx.mixers.linear_family import LinearMixer
from lcx.ops import conv
from lcx.types import wide


@struct.dataclass
class SimpleGlaState:
    """Tails of the convolutions of query, key and value (none without), and the core's state."""

    tails: tuple[conv.ConvState, ...]
    core: Any


class SimpleGla(LinearMixer):
    """GLA with a scalar gate (arXiv:2312.06635): S_t = a_t S_{t-1} + k_t v_t^T, o = K^-1/2 q^T S.

    a = sigmoid(W_a x + b)^(1/16) per query head; query, key and value pass a bias-free causal
    convolution of `window` tokens and SiLU (window=0: neither); the layer returns
    W_o (RMSNorm(o) * SiLU(W_g x)), the norm of each head with a gain and eps 1e-5.

    num_kv_heads: key/value heads, num_heads if None; expand_key, expand_value: channels of all
    heads' keys and values over the width. Projections start normal with variance 1/fan_in, the
    gate's bias at 0. The core and its gate are those of Mamba-2 without step and skip.
    """

    num_heads: Count = 4
    num_kv_heads: Count | None = None
    expand_key: Expansion = 1.0
    expand_value: Expansion = 1.0
    window: Whole = 4

    paper: ClassVar[str] = "arXiv:2312.06635"
    examples: ClassVar[tuple[dict, ...]] = (
        {}, dict(num_kv_heads=2, expand_key=0.5, expand_value=2.0, window=0))

    def site(self) -> Site:
        kv_heads = self.num_kv_heads or self.num_heads
        if self.num_heads % kv_heads:
            raise ConfigError(f"num_kv_heads={kv_heads} must divide num_heads={self.num_heads}")
        sizes = [self.width * expand for expand in (self.expand_key, self.expand_value)]
        if any(size % self.num_heads for size in sizes):
            raise ConfigError(f"num_heads={self.num_heads} must divide the {sizes[0]:g} channels "
                              f"of keys and the {sizes[1]:g} of values (width x expand)")
        key_dim, value_dim = (int(size) // self.num_heads for size in sizes)
        return Site(self.num_heads, kv_heads, key_dim, key_dim, self.width, self.train_length,
                    value_dim=value_dim)

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: SimpleGlaState | None = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        site = self.site()
        tails, projected = [], []
        for number, (name, heads, size) in enumerate(self._projections()):
            axes = ("heads" if name == "query" else "kv_heads",
                    "value_dim" if name == "value" else "head_dim")
            y = Dense((heads, size), axes, name=name)(x)
            if self.window:
                tail = None if state is None else state.tails[number]
                flat, tail = ShortConv(self.window, name=f"{name}_conv")(
                    y.reshape(*x.shape[:2], -1), seq, tail)
                tails.append(tail)
                y = nn.silu(flat).reshape(y.shape)
            projected.append(y)
        query, key, value = projected
        rate = Dense((site.num_heads,), ("heads",), use_bias=True, name="rate")(x)
        log_decay = nn.log_sigmoid(wide(rate)) / 16
        core = None if state is None else state.core
        lanes, carry = self.see(x, seq, None if core is None else core.carry, shared)
        out, core = self.mix(query * site.key_dim**-0.5, key, value, seq, lanes, carry, core,
                             log_decay=log_decay)
        names = ("heads", "value_dim")
        gate = Dense((site.num_heads, site.value_dim), names, name="gate")(x)
        out = RmsNorm("value_dim", eps=1e-5, name="norm")(out) * nn.silu(gate)
        out = Dense((self.width,), ("width",), names, scale=self.output_scale, name="out")(out)
        return out, None if state is None else SimpleGlaState(tuple(tails), core)

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> SimpleGlaState:
        site, tails = self.site(), ()
        if self.window:
            tails = tuple(conv.init_state(batch, self.window, heads * size, dtype)
                          for _, heads, size in self._projections())
        return SimpleGlaState(tails, self.empty_state(
            batch, max_length, site.num_kv_heads, site.value_dim, dtype, log_decay=True))

    def _projections(self):
        site = self.site()
        return (("query", site.num_heads, site.key_dim), ("key", site.num_kv_heads, site.key_dim),
                ("value", site.num_kv_heads, site.value_dim))
