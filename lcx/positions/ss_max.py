"""Scalable softmax: logits grow with the learned multiple of ln n that each head wants."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp

from lcx.domains import Finite
from lcx.lanes import Lanes, Sequence, Temperature
from lcx.positions import Position
from lcx.positions.log_n import keys_seen
from lcx.types import wide
from lcx.weights import free


class SsMax(Position):
    """SSMax (arXiv:2501.19399): softmax with base n^s, a factor s ln n on query i's logits.

    n counts the keys that the query may see, s is learned for each head and layer. bias: the
    paper's variant s ln n + b; it trains better and generalises worse. start: initial s, 0.168
    second-hand (authors' code was not seen; the paper draws its figure with 0.43).
    """

    start: Finite = 0.168
    bias: bool = False

    paper: ClassVar[str] = "arXiv:2501.19399"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(bias=True))

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        heads = (self.site.num_heads,)
        make = lambda name, value: wide(self.param(name, free(
            nn.initializers.constant(value), ("heads",)), heads))
        factor = make("scale", self.start) * jnp.log(keys_seen(seq, self.site.causal))[..., None]
        if self.bias:
            factor = factor + make("bias", 0.0)
        return Lanes(temperature=Temperature(factor)), carry
