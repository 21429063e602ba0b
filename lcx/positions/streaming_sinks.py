"""StreamingLLM: the first tokens and a recent window stay visible, under the ids of cache slots."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lcx.domains import Count, Whole
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Piecewise, Rowwise, Sequence
from lcx.positions.rerope import same
from lcx.positions.rope import Rope

HIDDEN = -1e30  # a finite logit whose weight is exactly 0, in softmax and as exp(bias)


class StreamingSinks(Rope):
    """Attention sinks (arXiv:2309.17453): a query sees ids 0..sinks-1 and the last `recent`, itself
    included, on a RoPE checkpoint.

    The ids it turns by are slots of that small cache: recent keys keep their distance, a sink lies
    min(id, sinks + recent - 1) - j away, which never exceeds the cache. sinks: 4; recent:
    train_length - sinks if None. Meant are consecutive ids from 0 in each document. A long prompt
    is treated like a decoded one. Every key stays in the mixer's own cache: the numbers are
    StreamingLLM's, its constant cost is not. Checked against mit-han-lab/streaming-llm
    (evict_for_space; its perplexity script evicts after the step, so that it sees one more).
    """

    sinks: Whole = 4
    recent: Count | None = None

    structure: ClassVar[str] = "PW"
    relative: ClassVar[bool] = False  # the sinks are the ids 0, 1, ...
    paper: ClassVar[str] = "arXiv:2309.17453"
    examples: ClassVar[tuple[dict, ...]] = (dict(sinks=2, recent=5),)
    represents: ClassVar[bool] = True

    def numbers(self) -> dict[str, np.ndarray]:
        recent = self.site.train_length - self.sinks if self.recent is None else self.recent
        if recent < 1 or self.sinks < 0:
            raise ConfigError(f"streaming_sinks needs recent >= 1 and sinks >= 0, not {recent} and "
                              f"{self.sinks}")
        return {**super().numbers(), "sinks": np.array(float(self.sinks)),
                "recent": np.array(float(recent))}

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        if not self.site.causal:
            raise ConfigError("streaming_sinks evicts the past: use it with a causal mixer")
        params = {"sinks": self.number("sinks"), "recent": self.number("recent")}
        turned = Piecewise(self.rotation(seq), params, is_sink, ((same, same), (slot, same)))
        heads = jnp.zeros(self.site.num_heads, params["sinks"].dtype)
        evicted = Rowwise({**params, "heads": heads}, eviction)
        return Lanes(turned, bias=(evicted,)), carry


def is_sink(params, query_ids, key_ids):
    """1 for a key among the sinks, else 0."""
    return (key_ids < params["sinks"]).astype(jnp.int32) + jnp.zeros_like(query_ids, jnp.int32)


def slot(params, ids):
    """The query's own slot: the cache stops growing once it is full."""
    return jnp.minimum(ids, params["sinks"] + params["recent"] - 1)


def eviction(params, distance, query_id):
    """HIDDEN for keys that are neither sinks nor recent: [...] -> [..., H]."""
    gone = (query_id - distance >= params["sinks"]) & (distance >= params["recent"])
    return jnp.where(gone, HIDDEN, 0.0)[..., None] + params["heads"]
