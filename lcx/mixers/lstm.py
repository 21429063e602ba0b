"""LSTM: gates that read the previous output, and so one token after another."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import Finite
from lcx.lanes import Lanes, Sequence
from lcx.layers import Dense
from lcx.mixers.nonlinear_family import NonlinearMixer, dense, read
from lcx.types import wide
from lcx.weights import free


class Lstm(NonlinearMixer):
    """Long short-term memory with a forget gate (Hochreiter and Schmidhuber 1997; Gers 2000).

    i, f, g, o = W x_t + R h_{t-1} + b; c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g);
    h_t = sigmoid(o) tanh(c_t); the layer returns W_o h. A gate of the scheme is a further factor of
    sigmoid(f), each head's on its own channels: the cell is linear given its gates.

    heads_apart: R acts within each head (a block-diagonal matrix); dense otherwise. R starts
    orthogonal for each gate (and head), b at 0 but `forget_bias` for f, W with variance 1/fan_in.
    """

    heads_apart: bool = False
    forget_bias: Finite = 1.0

    paper: ClassVar[str] = "doi:10.1162/neco.1997.9.8.1735"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(num_heads=2, heads_apart=True))
    nothing: ClassVar[tuple[float, ...]] = (0.0, 0.0)  # output, cell

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None,
                 shared: Lanes | None = None) -> tuple[jax.Array, Any]:
        inputs = Dense((4, self.width), (None, "channels"), name="inputs")(x)
        recurrent = self.recurrent(4, self.heads_apart)
        bias = wide(self.param("bias", free(
            self._bias, (None, "channels")), (4, self.width)))
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        self.sow("intermediates", "inner", dict(inputs=inputs, recurrent=dense(recurrent),
                                                bias=bias))

        def cell(held, token):
            (hidden, cell), (inputs, factor) = held, token
            gates = wide(inputs) + read(hidden, recurrent, x.dtype) + bias
            i, f, g, o = jnp.moveaxis(gates, 1, 0)
            cell = factor * nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
            return nn.sigmoid(o) * jnp.tanh(cell), cell

        out, state = self.unroll(cell, (inputs, jnp.exp(self.fade(lanes))), x, seq, carry, state)
        self.sow("intermediates", "outer", out)
        out = Dense((self.width,), ("width",), ("channels",), scale=self.output_scale,
                    name="out")(out.astype(x.dtype))
        return out, state

    def _bias(self, key, shape, dtype=jnp.float32):
        return jnp.zeros(shape, dtype).at[1].set(self.forget_bias)
