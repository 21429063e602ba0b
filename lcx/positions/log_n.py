"""Log-n scaling: logits grow with the logarithm of the number of keys, so that entropy stays."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lcx.lanes import Lanes, Sequence, Temperature
from lcx.positions import Position
from lcx.types import wide


class LogN(Position):
    """Log-n scaled attention (kexue.fm/archives/8823): factor ln n / ln L0 on query i's logits.

    n counts the tokens of the document up to the query; it never reads ids, which may be random,
    so it stays as it is when ids shift, although the count is an absolute position.
    trained: the factor also below L0, for a model trained with it; else it starts at 1 from L0
    on, which fits any checkpoint. original_length: L0, train_length if None.
    """

    trained: bool = False
    original_length: int | None = None

    examples: ClassVar[tuple[dict, ...]] = (dict(original_length=4), dict(trained=True))
    paper: ClassVar[str] = "https://kexue.fm/archives/8823"

    def numbers(self) -> dict[str, np.ndarray]:
        original = self.original_length or self.site.train_length
        return {"log_length": np.log(float(original))}

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        factor = jnp.log(wide(seq.index) + 1) / self.number("log_length")
        if not self.trained:
            factor = jnp.maximum(factor, 1.0)
        return Lanes(temperature=Temperature(factor[..., None])), carry
