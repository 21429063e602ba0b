"""Window attention that keeps the first tokens: a stream without end in a bounded cache."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp

from lcx import lanes as L
from lcx.domains import Whole
from lcx.errors import ConfigError
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Support
from lcx.mixers.attention import Attention
from lcx.mixers.softmax_family import SUPPORTS, SoftmaxState
from lcx.ops.attention import cache, sink_cache

_WHOLE = Support((QUADRATIC, CHUNKED, STEP), missing={
    "ring": "it reads what lies between a sink and the window: a stream keeps every key"})


class StreamingAttention(Attention):
    """Attention sinks (StreamingLLM, arXiv:2309.17453): a query reads the last `window` tokens,
    itself included, and the first `sinks` tokens of its document.

    A stream remembers window + sinks keys. A sink has its true id, and no bias reaches it, wherever
    the query is: a gate or a slope would forget the tokens that were kept on purpose. For the ids
    of cache slots that the paper uses, take the scheme `streaming_sinks` with the same numbers
    (sinks, and recent = window); it then masks nothing that this mixer does not.
    window: train_length - sinks if None.
    """

    sinks: Whole = 4

    paper: ClassVar[str] = "arXiv:2309.17453"
    examples: ClassVar[tuple[dict, ...]] = (dict(sinks=2, window=5, num_kv_heads=2),
                                            dict(sinks=3, window=4, gate=True))
    supports = {**SUPPORTS, L.Householder: _WHOLE, L.LogitMap: _WHOLE}

    def __post_init__(self):
        if self.window is None:
            self.window = self.train_length - self.sinks
        if self.sinks < 0 or self.window < 1:
            raise ConfigError(f"streaming_attention needs sinks >= 0 and window >= 1, not "
                              f"{self.sinks} and {self.window}")
        super().__post_init__()

    def options(self) -> dict[str, Any]:
        return dict(sinks=self.sinks)

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        site, (lanes, carry) = self.site(), self.structure(batch)
        like = cache.like(lanes, batch, site.num_kv_heads, site.key_dim, site.key_dim, dtype)
        if self.support(L.Householder) in [self.support(lane) for lane in lanes.values()]:
            return SoftmaxState(cache.init(like, batch, max_length), carry)
        kept = sink_cache.init(like, batch, max_length, self.window, self.sinks)
        return SoftmaxState(kept, carry)
