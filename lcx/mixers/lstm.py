"""LSTM: gates that read the previous output, and so one token after another."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.errors import ConfigError
from lcx.layers import Dense
from lcx.mixers import STEP, Mixer, Support, refuses
from lcx.types import wide, wide_dtype

_NO_PAIRS = refuses("R1", "the gates read the previous output, so no weight between two tokens "
                    "exists; positions enter through the input (embed) or the cell's forget gate")


@struct.dataclass
class LstmState:
    """Output h and cell c [B,D], wide; segment [B] of the last token; what the scheme remembers."""

    hidden: jax.Array
    cell: jax.Array
    segment: jax.Array
    carry: Any


class Lstm(Mixer):
    """Long short-term memory with a forget gate (Hochreiter and Schmidhuber 1997; Gers 2000).

    i, f, g, o = W x_t + R h_{t-1} + b; c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g);
    h_t = sigmoid(o) tanh(c_t); the layer returns W_o h. A gate of the scheme is a further factor of
    sigmoid(f), each head's on its own channels: the cell is linear given its gates.

    heads_apart: R acts within each head (a block-diagonal matrix); dense otherwise. R starts
    orthogonal for each gate (and head), b at 0 but `forget_bias` for f, W with variance 1/fan_in.
    """

    num_heads: int = 4
    heads_apart: bool = False
    forget_bias: float = 1.0

    family: ClassVar[str] = "nonlinear"
    paper: ClassVar[str] = "doi:10.1162/neco.1997.9.8.1735"
    forms: ClassVar[tuple[str, ...]] = (STEP,)
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(num_heads=2, heads_apart=True))
    supports = {
        L.Separable: Support((STEP,)),
        **dict.fromkeys((L.Rotation, L.ContentRotation, L.Diagonal, L.FeatureMap, L.Householder,
                         L.Piecewise, L.Toeplitz, L.Rowwise, L.Pairwise, L.Temperature,
                         L.ValueRotation, L.ValueTable), _NO_PAIRS),
        L.LogitMap: refuses("R11", "an operator on the logits of a row needs a softmax over them"),
    }

    def site(self) -> L.Site:
        if self.width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide width={self.width}")
        dim = self.width // self.num_heads
        return L.Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                      value_dim=dim)

    @nn.compact
    def __call__(self, x: jax.Array, seq: L.Sequence, state: Any = None,
                 shared: L.Lanes | None = None) -> tuple[jax.Array, Any]:
        if self.form not in ("auto", *self.forms):
            raise ConfigError(f"form={self.form!r}: choose one of {('auto', *self.forms)}")
        batch, heads = x.shape[0], self.num_heads
        inputs = Dense((4, self.width), (None, "channels"), name="inputs")(x)
        recurrent = self._recurrent()
        bias = wide(self.param("bias", nn.with_logical_partitioning(
            self._bias, (None, "channels")), (4, self.width)))
        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        self.sow("intermediates", "inner", dict(inputs=inputs, recurrent=_dense(recurrent),
                                                bias=bias))

        before = self._fresh(batch, carry) if state is None else state
        last = L.nothing_seen(batch).replace(segment=before.segment)
        _, starts, last = L.advance(seq.replace(ids=seq.ids[..., :1]), last)
        fade = sum((wide(lane.increment) for lane in lanes.bias), jnp.zeros((1, 1, heads)))
        factor = jnp.repeat(jnp.exp(fade), self.width // heads, -1)
        kernel = recurrent.astype(x.dtype)

        def step(held, token):
            inputs, start, factor = token
            hidden, cell = (jnp.where(start[:, None], 0.0, a) for a in held)
            read = _read(hidden.astype(x.dtype), kernel, hidden.dtype)
            i, f, g, o = jnp.moveaxis(wide(inputs) + read + bias, 1, 0)
            cell = factor * nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
            hidden = nn.sigmoid(o) * jnp.tanh(cell)
            return (hidden, cell), hidden

        tokens = [jnp.moveaxis(jnp.broadcast_to(a, (*x.shape[:2], *a.shape[2:])), 1, 0)
                  for a in (inputs, starts, factor)]
        held, out = jax.lax.scan(step, (before.hidden, before.cell), tokens)
        out = jnp.moveaxis(out, 0, 1)
        self.sow("intermediates", "outer", out)
        out = Dense((self.width,), ("width",), ("channels",), scale=self.output_scale,
                    name="out")(out.astype(x.dtype))
        return out, None if state is None else LstmState(*held, last.segment, carry)

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> LstmState:
        return self._fresh(batch, self.structure(batch)[1])

    def _fresh(self, batch: int, carry: Any) -> LstmState:
        nothing = jnp.zeros((batch, self.width), wide_dtype())
        return LstmState(nothing, nothing, L.nothing_seen(batch).segment, carry)

    def _recurrent(self) -> jax.Array:
        """R: [D,4,D], or [H,K,4,K] within each head."""
        heads, dim = self.num_heads, self.site().key_dim
        names, shape = ("width", None, "channels"), (self.width, 4, self.width)
        if self.heads_apart:
            names, shape = ("heads", "head_dim", None, "value_dim"), (heads, dim, 4, dim)
        return self.param("recurrent", nn.with_logical_partitioning(_orthogonal, names), shape)

    def _bias(self, key, shape, dtype=jnp.float32):
        return jnp.zeros(shape, dtype).at[1].set(self.forget_bias)


def _read(hidden: jax.Array, kernel: jax.Array, dtype) -> jax.Array:
    """R h of the four gates: hidden [B,D] -> [B,4,D]."""
    if kernel.ndim == 3:
        return jnp.einsum("bd,dge->bge", hidden, kernel, preferred_element_type=dtype)
    apart = hidden.reshape(hidden.shape[0], *kernel.shape[:2])
    out = jnp.einsum("bhk,hkgv->bghv", apart, kernel, preferred_element_type=dtype)
    return out.reshape(*out.shape[:2], -1)


def _dense(kernel: jax.Array) -> jax.Array:
    """R as [D,4,D]."""
    if kernel.ndim == 3:
        return kernel
    heads, dim = kernel.shape[:2]
    apart = jnp.einsum("hkgv,hi->hkgiv", kernel, jnp.eye(heads, dtype=kernel.dtype))
    return apart.reshape(heads * dim, 4, heads * dim)


def _orthogonal(key, shape, dtype=jnp.float32):
    """[(H,)K,4,K]: an orthogonal matrix per gate (and head)."""
    *heads, dim, gates, _ = shape
    one = nn.initializers.orthogonal()
    keys = jax.random.split(key, (*heads, gates))
    make = lambda k: one(k, (dim, dim), dtype)
    for _ in keys.shape:
        make = jax.vmap(make)
    return jnp.swapaxes(make(keys), -3, -2)
