"""Softmax attention with a learned sink: a head may also look at nothing."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn

from lcx.mixers.attention import Attention
from lcx.ops.attention.weights import Sink
from lcx.types import wide
from lcx.weights import free


class SinkAttention(Attention):
    """Attention with one learned logit per head in the denominator alone (gpt-oss,
    arXiv:2508.10925): w_ij = exp(z_ij) / (exp(sink_h) + sum_j exp(z_ij)).

    The weights of a row sum to less than 1, so that biases which differ from one row to the next
    count. The sink is no token: neither bias nor temperature touch it. It starts at 0. gpt-oss
    itself: use_bias=True, head_dim=64, and window=128 in every other layer, under `yarn`.
    """

    paper: ClassVar[str] = "arXiv:2508.10925"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(num_kv_heads=2), dict(window=5, use_bias=True, gate=True))

    def options(self) -> dict[str, Any]:
        start = free(nn.initializers.zeros_init(), ("heads",))
        return dict(normaliser=Sink(wide(self.param("sink", start, (self.num_heads,)))))
