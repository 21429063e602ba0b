"""GRU: gates that read the previous output, and one state that is output and memory at once."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.layers import Dense
from lcx.mixers import refuses
from lcx.mixers.nonlinear_family import SUPPORTS, NonlinearMixer, dense, read
from lcx.types import wide
from lcx.weights import free


class Gru(NonlinearMixer):
    """Gated recurrent unit (arXiv:1406.1078) with the reset after the matrix, as in cuDNN and Flax.

    r, z = sigmoid(W x_t + b + R h_{t-1}); n = tanh(W_n x_t + b_n + r (R_n h_{t-1} + c));
    h_t = (1 - z) n + z h_{t-1}; the layer returns W_o h. A factor on z would also change what is
    written, so that no gate of a scheme has a place here.

    heads_apart: R acts within each head (a block-diagonal matrix); dense otherwise. R starts
    orthogonal for each gate (and head), b and c at 0, W with variance 1/fan_in.
    """

    heads_apart: bool = False

    family: ClassVar[str] = "gru"
    paper: ClassVar[str] = "arXiv:1406.1078"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(num_heads=2, heads_apart=True))
    supports = {**SUPPORTS, L.Separable: refuses(
        "R1", "the update gate both keeps and writes, so that no forget gate of a cell could take "
        "the scheme's; positions enter through the input (embed)")}

    @nn.compact
    def __call__(self, x: jax.Array, seq: L.Sequence, state: Any = None,
                 shared: L.Lanes | None = None) -> tuple[jax.Array, Any]:
        inputs = Dense((3, self.width), (None, "channels"), use_bias=True, name="inputs")(x)
        recurrent = self.recurrent(3, self.heads_apart)
        bias = wide(self.param("bias", free(
            nn.initializers.zeros_init(), ("channels",)), (self.width,)))
        _, carry = self.see(x, seq, None if state is None else state.carry, shared)
        self.sow("intermediates", "inner", dict(inputs=inputs, recurrent=dense(recurrent),
                                                bias=bias))

        def cell(held, inputs):
            (hidden,), inputs = held, wide(inputs)
            told = read(hidden, recurrent, x.dtype)
            reset, keep = (nn.sigmoid(inputs[:, n] + told[:, n]) for n in (0, 1))
            new = jnp.tanh(inputs[:, 2] + reset * (told[:, 2] + bias))
            return ((1 - keep) * new + keep * hidden,)

        out, state = self.unroll(cell, inputs, x, seq, carry, state)
        self.sow("intermediates", "outer", out)
        out = Dense((self.width,), ("width",), ("channels",), scale=self.output_scale,
                    name="out")(out.astype(x.dtype))
        return out, state
