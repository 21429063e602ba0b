"""A layer that shows its attention weights: what a scheme does to given queries and keys."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.lanes import Sequence, Site
from lcx.mixers.softmax_family import SoftmaxMixer


class Probe(SoftmaxMixer):
    """Causal softmax attention over one-hot values, so that its output is its weights.

    Everything else is the path of every softmax mixer: scheme, lanes, binding, op.
    """

    num_heads: int = 4
    head_dim: int = 64

    def site(self) -> Site:
        return Site(self.num_heads, self.num_heads, self.head_dim, self.head_dim, self.width,
                    self.train_length)

    @nn.compact
    def __call__(self, query, key, x, seq: Sequence) -> jax.Array:
        """Weights [1,H,T,T] of query [1,T,H,K] over key [1,T,H,K], with layer input x [1,T,D]."""
        lanes, carry = self.see(x, seq)
        lanes = lanes.replace(value=None)  # a map of the values would act on the one-hot ones
        length = query.shape[1]
        one_hot = jnp.broadcast_to(jnp.eye(length, dtype=query.dtype)[None, :, None],
                                   (1, length, self.num_heads, length))
        out, _ = self.attend(query, key, one_hot, seq, lanes, carry, None,
                             scale=self.head_dim**-0.5)
        return jnp.moveaxis(out, 2, 1)


def weights(position: Any, query, key, x, seq: Sequence, *, train_length: int, change=None,
            random_key=None, length: int | None = None) -> jax.Array:
    """Attention weights [H,T,T] under a scheme at fresh parameters, which `change` may move.

    seq goes through the scheme's id map, with random_key as in training.
    """
    probe = Probe(position=position, width=x.shape[-1], train_length=train_length,
                  num_heads=query.shape[2], head_dim=query.shape[3])
    seq = moved(position, probe.site(), seq, random_key)

    @jax.jit
    def run(query, key, x, seq):
        found = nn.unbox(probe.init(jax.random.key(0), query, key, x, seq))
        found.pop("intermediates", None)
        return probe.apply(found if change is None else change(found), query, key, x, seq)[0]

    return run(query, key, x, seq)


def moved(position: Any, site: Site, seq: Sequence, random_key=None) -> Sequence:
    """The sequence after the scheme's id map."""
    from lcx import positions

    return positions.make(position, site, parent=None).remap(seq, random_key)
