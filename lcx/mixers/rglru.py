"""Griffin's recurrent block: a gated diagonal recurrence behind a short convolution."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Count
from lcx.lanes import Lanes, Sequence, Site
from lcx.layers import Dense, ShortConv
from lcx.mixers.diagonal_family import DiagonalMixer
from lcx.ops import conv
from lcx.types import wide
from lcx.weights import free, matrix


class Rglru(DiagonalMixer):
    """Recurrent block of Griffin (arXiv:2402.19427): [B,T,D] -> [B,T,D].

    W_o(GELU(W_y x) * h), with c = conv(W_x x), log a_t = -8 sigmoid(W_r c_t) softplus(Lambda) and
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) sigmoid(W_i c_t) * c_t; at a segment's first token h_{t-1}
    is 0 and the root 1. W_r and W_i act within each head; every map and the convolution have
    biases. A gate of the scheme multiplies a_t after the root was taken.

    inner_width: channels of h, width if None; conv_window: tokens that the convolution reads.
    exp(-softplus(Lambda)) starts with its square uniform in (0.9^2, 0.999^2), as in the authors'
    code (the paper says: its 8th power uniform in (0.9, 0.999)); kernels normal with variance
    1/fan_in, biases of the maps 0.
    """

    num_heads: Count = 4
    inner_width: Count | None = None
    conv_window: Count = 4

    paper: ClassVar[str] = "arXiv:2402.19427"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(num_heads=2, inner_width=24))

    def site(self) -> Site:
        return self.channel_site(self.inner_width)

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        heads, dim = self.num_heads, self.site().key_dim
        inward = lambda name: Dense((heads * dim,), ("channels",), use_bias=True, name=name)(x)
        gate = nn.gelu(inward("gate"), approximate=True)
        hidden, tail = ShortConv(
            self.conv_window, use_bias=True, name="conv", bias_init=nn.initializers.zeros_init(),
            kernel_init=nn.initializers.normal(0.1 / math.sqrt(self.conv_window)))(
            inward("in"), seq, None if state is None else state.conv)
        hidden = hidden.reshape(*x.shape[:2], heads, dim)

        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        step, starts, last = self.advance(seq, lanes, state, x.shape[0])
        rate = self.param("rate", free(_rate, ("heads", "head_dim")), (heads, dim))
        recurrence = nn.sigmoid(wide(PerHead(name="recurrence_gate")(hidden)))
        log_decay, root = transition(recurrence, wide(rate))
        root = jnp.where(starts[..., None, None], 1.0, root)
        value = root * nn.sigmoid(wide(PerHead(name="input_gate")(hidden))) * wide(hidden)
        out, memory = self.recur(log_decay, value, seq, lanes, step, starts,
                                 None if state is None else state.memory)

        out = gate * out.astype(x.dtype).reshape(gate.shape)
        out = Dense((self.width,), ("width",), ("channels",), use_bias=True,
                    scale=self.output_scale, name="out")(out)
        if state is not None:
            state = state.replace(memory=memory, conv=tail, last=last, carry=carry)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        channels = self.num_heads * self.site().key_dim
        tail = conv.init_state(batch, self.conv_window, channels, dtype)
        return self.empty_state(batch, max_length, tail)


class PerHead(nn.Module):
    """Affine map within each head: [B,T,H,K] -> [B,T,H,K] (a block-diagonal matrix)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        heads, dim = x.shape[-2:]
        kernel = self.param("kernel", matrix(
            nn.initializers.normal(1 / math.sqrt(dim)), ("heads", "head_dim", "value_dim")),
            (heads, dim, dim))
        bias = self.param("bias", free(
            nn.initializers.zeros_init(), ("heads", "value_dim")), (heads, dim))
        return jnp.einsum("bthk,hkv->bthv", x, kernel.astype(x.dtype)) + bias.astype(x.dtype)


def transition(gate: jax.Array, rate: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log a = -8 gate softplus(rate), and sqrt(1 - a^2)."""
    log_decay = -8.0 * gate * nn.softplus(rate)
    return log_decay, _bounded_sqrt(-jnp.expm1(2.0 * log_decay))


@jax.custom_jvp
def _bounded_sqrt(x):
    """Square root whose derivative is at most 1000, also at 0."""
    return jnp.sqrt(x)


@_bounded_sqrt.defjvp
def _bounded_sqrt_jvp(primals, tangents):
    (x,), (change,) = primals, tangents
    return jnp.sqrt(x), change * jax.lax.rsqrt(jnp.maximum(4.0 * x, 1e-6))


def _rate(key, shape, dtype=jnp.float32):
    square = jax.random.uniform(key, shape, dtype, 0.9**2, 0.999**2)
    return jnp.log(jnp.expm1(-0.5 * jnp.log(square)))  # softplus of it is -log a
