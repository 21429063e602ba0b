"""Multi-token prediction: further tokens are predicted from the same states, in training only."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.lanes import Sequence
from lcx.layers import Dense, RmsNorm
from lcx.model.layer import Layer
from lcx.types import wide


class Ahead(nn.Module):
    """One module of multi-token prediction (DeepSeek-V3, arXiv:2412.19437, equations 21 to 24).

    h^k_t = layer(M [norm(h^(k-1)_t); norm(embedding of token t+k)]), of which a norm goes to the
    model's own head for token t+k+1; h^0 is what that head reads. Modules follow one another, so
    that each keeps the causal chain. layer, common: options of `Layer`.
    """

    layer: Any
    common: Any

    @nn.compact
    def __call__(self, x: jax.Array, embedded: jax.Array, seq: Sequence):
        """States and embeddings of the tokens k later [B,T,D] -> states, and what the head reads,
        [B,T,D] each."""
        both = jnp.concatenate([RmsNorm(name="state_norm")(x),
                                RmsNorm(name="token_norm")(embedded)], -1)
        x = Dense((x.shape[-1],), ("width",), ("mlp",), name="join")(both)
        x, *_ = Layer(**self.layer, **self.common, name="layer")(x, seq, None, None, {})
        return x, RmsNorm(name="final_norm")(x)


def shifted(x: jax.Array, steps: int) -> jax.Array:
    """x [B,T] of the place `steps` later; the last ones repeat the last place, and do not count."""
    return jnp.concatenate([x[:, steps:]] + [x[:, -1:]] * min(steps, x.shape[1]), 1)[:, :x.shape[1]]


def weights_ahead(weights: jax.Array, steps: int, *, segment: jax.Array | None = None,
                  document: jax.Array | None = None) -> jax.Array:
    """What the token `steps` after each target counts in its loss: [B,T], wide.

    weights [B,T] of the targets themselves; segment and document [B,T]: of the inputs, None where
    a row is one. The token is the target of the place `steps` later, and takes its weight there;
    0 where that place is in another document or beyond the row. steps 0 gives `weights`.
    """
    place = jnp.arange(weights.shape[1])
    inside = jnp.broadcast_to(place + steps < weights.shape[1], weights.shape)
    for owner in (segment, document):
        if owner is not None:
            inside &= shifted(owner, steps) == owner
    return jnp.where(inside, wide(shifted(weights, steps)), 0)
