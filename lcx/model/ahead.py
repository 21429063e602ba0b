"""Multi-token prediction: further tokens are predicted from the same states, in training only."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.lanes import Sequence
from lcx.layers import Dense, RmsNorm
from lcx.model.layer import Layer
from lcx.ops.loss import cross_entropy
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
    """x [B,T] of the token `steps` later; the last ones repeat the last token, and do not count."""
    return jnp.concatenate([x[:, steps:]] + [x[:, -1:]] * min(steps, x.shape[1]), 1)[:, :x.shape[1]]


def counted(seq: Sequence, steps: int) -> jax.Array:
    """Tokens [.,T] whose document goes on for `steps` more tokens of this row, as weights."""
    length = seq.order.shape[1]
    inside = jnp.arange(length)[None] + steps < length
    if seq.segment is not None:
        inside &= (shifted(seq.segment, steps) == seq.segment) & (seq.segment > 0)
    return wide(inside)


def term(x: jax.Array, head: jax.Array, targets: jax.Array, seq: Sequence,
         steps: int) -> jax.Array:
    """Mean nll of the token `steps` after each target, over tokens where it is of their document.

    x [B,T,D]; head [V,D]; targets [B,T]: the token after each. A target counts where the token
    itself is in the row too, so that no document's last one is asked for the next document's.
    """
    nll = cross_entropy(x, head, shifted(targets, steps))
    weight = jnp.broadcast_to(counted(seq, steps + 1), nll.shape)
    return jnp.sum(nll * weight) / jnp.maximum(jnp.sum(weight), 1.0)
