"""Fixed sparse attention: a head reads its own block and a few summary tokens of earlier ones."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from lcx.domains import Count
from lcx.errors import ConfigError
from lcx.mixers.attention import Attention
from lcx.ops.attention.patterns import Fixed


class FixedSparse(Attention):
    """Sparse Transformer, fixed (arXiv:1904.10509): a query reads its own block of `stride` tokens
    and `columns` tokens of every earlier block, the same ones for all queries.

    Head h reads the (h mod groups)-th group of columns, from the last of a block backwards: each
    its own summary, as in the authors' kernels (openai/sparse_attention), where a head reads block
    and columns together. Blocks are counted from the start of the document. stride: about the
    square root of train_length if None; columns x groups must not exceed it. Every key stays in
    the cache.
    """

    stride: Count | None = None
    columns: Count = 1
    groups: Count = 1

    paper: ClassVar[str] = "arXiv:1904.10509"
    examples: ClassVar[tuple[dict, ...]] = (dict(stride=4, num_kv_heads=2),
                                            dict(stride=5, columns=2, groups=2))

    def options(self) -> dict[str, Any]:
        stride = self.stride or max(1, math.isqrt(self.train_length))
        if self.columns < 1 or self.groups < 1 or self.columns * self.groups > stride:
            raise ConfigError(f"fixed_sparse: {self.groups} groups of {self.columns} columns must "
                              f"fit a block of {stride} tokens; raise stride or lower them")
        return dict(pattern=Fixed(stride, self.columns, self.groups, self.num_heads))
