"""The channel mixing of RWKV: a squared ReLU of each token blended with the one before it."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcx.domains import Count, NonNegative, Whole, in_depth
from lcx.lanes import Sequence
from lcx.layers import Dense, token_before
from lcx.model.mlps import StreamedMlp
from lcx.ops import conv
from lcx.types import wide
from lcx.weights import free


class ChannelMix(StreamedMlp):
    """sigmoid(W_r x_r) * W_v relu(W_k x_k)^2 (RWKV-4, arXiv:2305.13048): [B,T,D] -> [B,T,D].

    x_k and x_r are x + mu (x' - x), x' the token before, each by its own mu. gated=False leaves the
    factor of r out, as RWKV-7 does (arXiv:2503.14456). hidden: four times the width by default; the
    published RWKV-6 has 3.5 times.

    layer, num_layers: which layer of how many it is, from 0, and power: 1 in RWKV-4 and RWKV-5, 3
    in RWKV-6, 4 in RWKV-7; read by the published initial values alone, mu = 1 - (c/D)^(p^power) of
    channel c with p = 1 - layer/num_layers. W_v and W_r start at zero, W_k orthogonal (uniform
    within 0.5/sqrt(D) where there is no gate).
    """

    width: int
    output_scale: float = 1.0
    hidden: Count | None = None
    gated: bool = True
    layer: Whole = 0
    num_layers: Count = 1
    power: NonNegative = 1.0

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, state: Any = None) -> tuple[jax.Array, Any]:
        hidden, zeros = self.hidden or 4 * self.width, nn.initializers.zeros_init()
        before, state = token_before(x, seq, state)
        blend = wide(self.param("blend_scale", free(
            self._blend, (None, "width")), (1 + self.gated, self.width)))
        moved = [(x + (before - x) * mu).astype(x.dtype) for mu in blend]
        key = Dense((hidden,), ("mlp",), init=self._key, name="key")(moved[0])
        out = Dense((self.width,), ("width",), ("mlp",), init=zeros, name="out")(nn.relu(key) ** 2)
        if self.gated:
            out = out * nn.sigmoid(Dense((self.width,), (None,), init=zeros, name="gate")(moved[1]))
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> conv.ConvState:
        return conv.init_state(batch, 2, self.width, dtype)

    def _blend(self, key, shape, dtype=jnp.float32):
        left = (1 - in_depth(self.layer, self.num_layers)) ** self.power
        return jnp.broadcast_to(1 - (np.arange(self.width) / self.width) ** left, shape).astype(
            dtype)

    def _key(self, key, shape, dtype=jnp.float32):
        if self.gated:
            grown = math.sqrt(max(1.0, shape[1] / shape[0]))
            return nn.initializers.orthogonal(grown)(key, shape, dtype)
        bound = 0.5 / math.sqrt(self.width)
        return jax.random.uniform(key, shape, dtype, -bound, bound)
