"""Strided sparse attention: half of the heads look near, half look at every s-th token back."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from lcx.domains import Count
from lcx.mixers.attention import Attention
from lcx.ops.attention.patterns import Strided


class StridedSparse(Attention):
    """Sparse Transformer, strided (arXiv:1904.10509): heads 0, 2, ... read the last `stride`
    tokens, itself included, heads 1, 3, ... the tokens 0, s, 2s, ... back.

    Two layers reach every token. stride: about the square root of train_length if None. Every key
    stays in the cache. Lanes act on all earlier tokens before the pattern picks.
    """

    stride: Count | None = None

    paper: ClassVar[str] = "arXiv:1904.10509"
    examples: ClassVar[tuple[dict, ...]] = (dict(stride=3, num_kv_heads=2), dict())

    def options(self) -> dict[str, Any]:
        stride = self.stride or max(1, math.isqrt(self.train_length))
        return dict(pattern=Strided(stride, self.num_heads))
