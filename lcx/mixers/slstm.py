"""sLSTM: an LSTM with exponential gates, a normaliser, and memory that mixes within heads."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Fraction, Whole
from lcx.lanes import Lanes, Sequence
from lcx.layers import HeadNorm, ShortConv
from lcx.mixers.nonlinear_family import NonlinearMixer, dense, read
from lcx.ops import conv
from lcx.types import wide
from lcx.weights import free, matrix


class Slstm(NonlinearMixer):
    """sLSTM layer of xLSTM (arXiv:2405.04517): [B,T,D] -> [B,T,D].

    i, f, z, o = W (x or SiLU(conv(x)) for i and f) + R h_{t-1} + b, W and R within each head;
    c_t = sigmoid(f) c_{t-1} + e^i tanh(z), n_t = sigmoid(f) n_{t-1} + e^i, h = sigmoid(o) c / n,
    with c and n held times e^-m, m_t = max(log sigmoid(f) + m_{t-1}, i). The layer returns a layer
    norm of each head's h and no projection, as published. A gate of the scheme is a further factor
    of sigmoid(f).

    conv_window: tokens that the convolution of i and f reads, 0 for none. W starts normal with
    variance 2/(5 K), R at 0, b at 0 but for f: -(-5 + 12 (c/(K-1))^(0.3 + 1.3 depth_ratio)) over
    the channels c of a head; depth_ratio l/(depth-1) is 0 in the first layer and 1 in the last,
    which a layer does not know: set it in the pattern.
    """

    conv_window: Whole = 4
    depth_ratio: Fraction = 0.0

    paper: ClassVar[str] = "arXiv:2405.04517"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(num_heads=2, conv_window=0, depth_ratio=0.5))
    nothing: ClassVar[tuple[float, ...]] = (0.0, 0.0, 0.0, -1e30)  # output, c, n, m

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        site, seen, tail = self.site(), x, None
        if self.conv_window:
            seen, tail = ShortConv(self.conv_window, "width", use_bias=True, name="conv")(
                x, seq, None if state is None else state.conv)
            seen = nn.silu(seen)
        shape = (site.num_heads, site.key_dim)
        small = nn.initializers.normal(math.sqrt(0.4 / site.key_dim))
        kernel = self.param("inputs", matrix(
            small, ("heads", "head_dim", None, "value_dim")), (*shape, 4, site.key_dim))
        apart = lambda a: a.reshape(*a.shape[:2], *shape)
        kernel = kernel.astype(x.dtype)
        inputs = jnp.concatenate(
            [jnp.einsum("bthk,hkgv->btghv", apart(seen), kernel[:, :, :2]),
             jnp.einsum("bthk,hkgv->btghv", apart(x), kernel[:, :, 2:])], 2)
        inputs = inputs.reshape(*x.shape[:2], 4, self.width)
        recurrent = self.recurrent(4, True, nn.initializers.zeros_init())
        bias = wide(self.param("bias", free(
            self._bias, (None, "heads", "head_dim")), (4, *shape))).reshape(4, -1)
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        self.sow("intermediates", "inner", {"core": {"slstm": dict(
            inputs=inputs, recurrent=dense(recurrent), bias=bias)}})

        def cell(held, token):
            (hidden, cell, total, frame), (inputs, fade) = held, token
            i, f, z, o = jnp.moveaxis(
                wide(inputs) + read(hidden, recurrent, x.dtype) + bias, 1, 0)
            kept = nn.log_sigmoid(f) + fade + frame
            frame = jnp.maximum(kept, i)
            keep, write = jnp.exp(kept - frame), jnp.exp(i - frame)
            cell, total = keep * cell + write * jnp.tanh(z), keep * total + write
            return nn.sigmoid(o) * cell / total, cell, total, frame

        out, state = self.unroll(cell, (inputs, self.fade(lanes)), x, seq, carry, state, tail)
        self.sow("intermediates", "outer", out)
        out = HeadNorm(name="norm")(apart(out.astype(x.dtype)))
        return out.reshape(x.shape), state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        tail = None
        if self.conv_window:
            tail = conv.init_state(batch, self.conv_window, self.width, dtype)
        return self.empty_state(batch, self.structure(batch)[1], tail)

    def _bias(self, key, shape, dtype=jnp.float32):
        place = jnp.arange(shape[-1]) / max(1, shape[-1] - 1)
        forget = 5 - 12 * place ** (0.3 + 1.3 * self.depth_ratio)
        return jnp.zeros(shape, dtype).at[1].set(forget.astype(dtype))
