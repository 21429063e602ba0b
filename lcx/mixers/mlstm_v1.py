"""mLSTM as first published: behind a convolution, between an up- and a down-projection."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.domains import Count, Expansion
from lcx.errors import ConfigError
from lcx.layers import Dense, HeadNorm, ShortConv
from lcx.mixers.mlstm_family import MlstmMixer, MlstmState, three_to_six
from lcx.ops import conv
from lcx.types import wide
from lcx.weights import free, matrix


@struct.dataclass
class MlstmV1State:
    """The inputs that the convolution still reads, and the memory."""

    tail: conv.ConvState
    memory: MlstmState


class MlstmV1(MlstmMixer):
    """mLSTM block of xLSTM (arXiv:2405.04517): [B,T,D] -> [B,T,D].

    y = W_down ((norm(h) + skip * c) * SiLU(z)), [u | z] = W_up x, c = SiLU(conv(u)). q and k are
    maps of c and v of u, all block-diagonal; i and f are linear in [q | k | v], h is that of
    `mlstm`, the norm a layer norm of each head; u and z have `expand` widths. It is a whole block:
    published models give it no MLP (`mlp=None`). Lanes act as in `mlstm`; gates read raw q and k.

    block: channels of a block of the maps, which must divide those of a head. W_up and the blocks
    start normal with variance 2/(5 D), skip at 1; W of the gates at 0, b of i normal with deviation
    0.1, of f evenly from 3 to 6 over the heads.
    """

    num_heads: Count = 4
    expand: Expansion = 2.0
    conv_window: Count = 4
    block: Count = 4

    paper: ClassVar[str] = "arXiv:2405.04517"
    examples: ClassVar[tuple[dict, ...]] = (
        {}, dict(num_heads=2, expand=1.5, conv_window=3, block=8))

    def site(self) -> L.Site:
        channels = int(self.width * self.expand)
        dim = channels // self.num_heads
        if channels % self.num_heads or dim % self.block or not dim:
            raise ConfigError(f"num_heads={self.num_heads} and block={self.block} must divide "
                              f"expand x width, {channels} channels, into whole heads of blocks")
        return L.Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                      value_dim=dim)

    @nn.compact
    def __call__(self, x: jax.Array, seq: L.Sequence, state: MlstmV1State | None = None,
                 shared: L.Lanes | None = None) -> tuple[jax.Array, Any]:
        shape, axes = (self.num_heads, self.site().value_dim), ("heads", "value_dim")
        small = nn.initializers.normal(math.sqrt(0.4 / self.width))
        both = Dense((shape[0], 2, shape[1]), (axes[0], None, axes[1]), init=small, name="up")(x)
        inner, gate = both[..., 0, :], both[..., 1, :]
        seen, tail = ShortConv(self.conv_window, use_bias=True, name="conv")(
            inner.reshape(*x.shape[:2], -1), seq, None if state is None else state.tail)
        seen = nn.silu(seen).reshape(inner.shape)
        query, key = self._blocks("query", small, seen), self._blocks("key", small, seen)
        value = self._blocks("value", small, inner)
        told = jnp.stack([query, key, value], -2)
        log_input = self._gate("input_gate", nn.initializers.normal(0.1), told)
        log_forget = nn.log_sigmoid(self._gate("forget_gate", three_to_six, told))
        memory = None if state is None else state.memory
        lanes, carry = self.see(x, seq, None if state is None else memory.core.carry, shared)
        out, memory = self.remember(query * shape[1]**-0.5, key, value, log_forget, log_input, seq,
                                    lanes, carry, memory)
        skip = self.param("skip_scale", free(
            nn.initializers.ones_init(), axes), shape)
        out = HeadNorm(axes, name="norm")(out) + skip.astype(x.dtype) * seen
        out = Dense((self.width,), ("width",), axes, scale=self.output_scale, name="down")(
            out * nn.silu(gate))
        return out, None if state is None else MlstmV1State(tail, memory)

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> MlstmV1State:
        site = self.site()
        tail = conv.init_state(batch, self.conv_window, site.num_heads * site.value_dim, dtype)
        return MlstmV1State(tail, self.empty_memory(batch, max_length, dtype))

    def _blocks(self, name: str, init, x: jax.Array) -> jax.Array:
        """A block-diagonal map of each head's channels [B,T,H,V]."""
        shape = (x.shape[2], x.shape[3] // self.block, self.block, self.block)
        axes = ("heads", "width", None, None)  # "width", so that fsdp alone splits them too
        kernel = self.param(name, matrix(init, axes), shape)
        apart = x.reshape(*x.shape[:3], -1, self.block)
        return jnp.einsum("bthni,hnio->bthno", apart, kernel.astype(x.dtype)).reshape(x.shape)

    def _gate(self, name: str, bias, told: jax.Array) -> jax.Array:
        """A gate of each head, of all heads' q, k and v [B,T,H,3,V], wide."""
        return wide(Dense((self.num_heads,), ("heads",), ("heads", None, "width"),
                          use_bias=True, bias_init=bias, init=nn.initializers.zeros_init(),
                          name=name)(told))
