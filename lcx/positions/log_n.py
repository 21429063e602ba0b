"""Log-n scaling: logits grow with the logarithm of the number of keys, so that entropy stays."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lcx.domains import whole
from lcx.lanes import Lanes, Sequence, Temperature
from lcx.positions import Position
from lcx.types import wide


class LogN(Position):
    """Log-n scaled attention (kexue.fm/archives/8823): factor ln n / ln L0 on query i's logits.

    n counts the keys that the query may see (its document up to itself, or all of it without a
    causal mask); it never reads ids, which may be random, so it stays as it is when ids shift,
    although the count is an absolute position.
    trained: the factor also below L0, for a model trained with it; else it starts at 1 from L0
    on, which fits any checkpoint. original_length: L0, train_length if None.
    """

    trained: bool = False
    original_length: Annotated[int, whole(2)] | None = None

    examples: ClassVar[tuple[dict, ...]] = (dict(original_length=4), dict(trained=True))
    paper: ClassVar[str] = "https://kexue.fm/archives/8823"
    represents: ClassVar[bool] = True

    def numbers(self) -> dict[str, np.ndarray]:
        original = self.original_length or self.site.train_length
        return {"log_length": np.log(float(original))}

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        factor = jnp.log(keys_seen(seq, self.site.causal)) / self.number("log_length")
        if not self.trained:
            factor = jnp.maximum(factor, 1.0)
        return Lanes(temperature=Temperature(factor[..., None])), carry


def keys_seen(seq: Sequence, causal: bool) -> jax.Array:
    """How many keys each query of a whole document may see [B,T]: n of log-n and SSMax."""
    seen = seq.index + 1
    if not causal:
        place = jnp.arange(seen.shape[1])
        segment = jnp.zeros_like(seen) if seq.segment is None else seq.segment
        last = jnp.pad(segment[:, 1:] != segment[:, :-1], ((0, 0), (0, 1)), constant_values=True)
        ends = jax.lax.cummin(jnp.where(last, place, seen.shape[1]), axis=1, reverse=True)
        seen = seen + ends - place  # and those that follow in the document
    return wide(seen)
