"""What recurrences whose gates read their own output share: one token after another.

No weight between two tokens exists, so that positions enter through the input; where the cell is
linear given its gates, a gate of the scheme may be a factor of its forget gate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from lcx import lanes as L
from lcx.domains import Count
from lcx.errors import ConfigError
from lcx.mixers import STEP, Mixer, Support, refuses
from lcx.ops.conv import ConvState
from lcx.types import precise, wide, wide_dtype
from lcx.weights import matrix

NO_PAIRS = refuses("R1", "the gates read the previous output, so no weight between two tokens "
                   "exists; positions enter through the input (embed) or the cell's forget gate")
SUPPORTS = {
    L.Separable: Support((STEP,)),
    **dict.fromkeys((L.Rotation, L.ContentRotation, L.Diagonal, L.FeatureMap, L.Householder,
                     L.Piecewise, L.Toeplitz, L.Rowwise, L.Pairwise, L.Temperature,
                     L.ValueRotation, L.ValueTable), NO_PAIRS),
    L.LogitMap: refuses("R11", "an operator on the logits of a row needs a softmax over them"),
}


@struct.dataclass
class RecurrentState:
    """held: what the cell remembers, output first, [B,D] each and wide; segment [B] of the last
    token; conv: the inputs that a short convolution still reads; what the scheme remembers."""

    held: tuple[jax.Array, ...]
    segment: jax.Array
    conv: ConvState | None
    carry: Any


class NonlinearMixer(Mixer):
    """Shared by mixers whose gates read W x_t + R h_{t-1}. num_heads: groups of channels that
    share a gate of the scheme, and within which R acts where it is not dense."""

    num_heads: Count = 4

    family: ClassVar[str] = "nonlinear"
    forms: ClassVar[tuple[str, ...]] = (STEP,)
    supports = SUPPORTS
    nothing: ClassVar[tuple[float, ...]] = (0.0,)  # what the cell holds before a document

    def site(self) -> L.Site:
        if self.width % self.num_heads:
            raise ConfigError(f"num_heads={self.num_heads} must divide width={self.width}")
        dim = self.width // self.num_heads
        return L.Site(self.num_heads, self.num_heads, dim, dim, self.width, self.train_length,
                      value_dim=dim)

    def unroll(self, cell: Callable, inputs: tuple, x: jax.Array, seq: L.Sequence, carry: Any,
               state: RecurrentState | None, conv: ConvState | None = None):
        """cell(held, token) -> held over the tokens of inputs [.,T,...]: outputs [B,T,D], wide, and
        the next state. held[0] is the output."""
        batch = x.shape[0]
        before = self.empty_state(batch, carry, conv) if state is None else state
        last = L.nothing_seen(batch).replace(segment=before.segment)
        _, starts, last = L.advance(seq.replace(ids=seq.ids[..., :1]), last)

        def step(held, token):
            start, token = token
            fresh = lambda a, value: jnp.where(start[:, None], value, a)
            held = cell(tuple(map(fresh, held, self.nothing)), token)
            return held, held[0]

        tokens = jax.tree.map(lambda a: jnp.moveaxis(jnp.broadcast_to(
            a, (*x.shape[:2], *a.shape[2:])), 1, 0), (starts, inputs))
        held, out = jax.lax.scan(step, before.held, tokens)
        if state is not None:
            state = RecurrentState(held, last.segment, conv, carry)
        return jnp.moveaxis(out, 0, 1), state

    def empty_state(self, batch: int, carry: Any, conv: ConvState | None = None) -> RecurrentState:
        """The state before any token."""
        held = tuple(jnp.full((batch, self.width), value, wide_dtype()) for value in self.nothing)
        return RecurrentState(held, L.nothing_seen(batch).segment, conv, carry)

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> RecurrentState:
        return self.empty_state(batch, self.structure(batch)[1])

    def fade(self, lanes: L.Lanes) -> jax.Array:
        """Log of the scheme's factor on the forget gate of each channel [.,T,D]."""
        fade = sum((wide(lane.increment) for lane in lanes.bias),
                   jnp.zeros((1, 1, self.num_heads), wide_dtype()))
        return jnp.repeat(fade, self.width // self.num_heads, -1)

    def recurrent(self, gates: int, apart: bool, init: Callable | None = None) -> jax.Array:
        """R: [D,G,D], or [H,K,G,K] within each head; orthogonal for each gate by default."""
        heads, dim = self.num_heads, self.site().key_dim
        names, shape = ("width", None, "channels"), (self.width, gates, self.width)
        if apart:
            names, shape = ("heads", "head_dim", None, "value_dim"), (heads, dim, gates, dim)
        return self.param("recurrent", matrix(init or orthogonal, names),
                          shape)


def read(hidden: jax.Array, kernel: jax.Array, dtype) -> jax.Array:
    """R h of all gates: hidden [B,D], wide, -> [B,G,D]; multiplied in `dtype`."""
    hidden, kernel = hidden.astype(dtype), kernel.astype(dtype)
    if kernel.ndim == 3:
        return jnp.einsum("bd,dge->bge", hidden, kernel, preferred_element_type=wide_dtype())
    apart = hidden.reshape(hidden.shape[0], *kernel.shape[:2])
    out = jnp.einsum("bhk,hkgv->bghv", apart, kernel, preferred_element_type=wide_dtype())
    return out.reshape(*out.shape[:2], -1)


def dense(kernel: jax.Array) -> jax.Array:
    """R as [D,G,D]."""
    if kernel.ndim == 3:
        return kernel
    heads, dim, gates, _ = kernel.shape
    apart = precise("hkgv,hi->hkgiv", kernel, jnp.eye(heads, dtype=kernel.dtype))
    return apart.reshape(heads * dim, gates, heads * dim)


def orthogonal(key, shape, dtype=jnp.float32):
    """[(H,)K,G,K]: an orthogonal matrix per gate (and head)."""
    *heads, dim, gates, _ = shape
    one = nn.initializers.orthogonal()
    keys = jax.random.split(key, (*heads, gates))
    make = lambda k: one(k, (dim, dim), dtype)
    for _ in keys.shape:
        make = jax.vmap(make)
    return jnp.swapaxes(make(keys), -3, -2)
