"""MoBA: every query reads the few blocks of keys whose mean fits it best."""

from __future__ import annotations

from typing import Any, ClassVar

from lcx.domains import Count
from lcx.errors import ConfigError
from lcx.mixers.attention import Attention
from lcx.mixers.selected_family import SUPPORTS
from lcx.ops.attention.selected import Best


class Moba(Attention):
    """Mixture of block attention (arXiv:2502.13189): softmax attention to `top` blocks of `block`
    tokens: the query's own one (up to itself) and the earlier ones of the largest q . mean(k).

    The means are of keys after their transport; scores are unscaled and see neither bias nor
    temperature; each query head chooses for itself; a choice has no gradient. Blocks are counted
    from the start of the document. The mask is computed for a chunk of queries at a time: memory is
    that of chunked attention, and so is the cost; a stream keeps every key.
    """

    block: Count = 256
    top: Count = 4

    family = "selected"
    supports = SUPPORTS
    paper: ClassVar[str] = "arXiv:2502.13189"
    examples: ClassVar[tuple[dict, ...]] = (
        dict(num_kv_heads=2, block=3, top=2), dict(block=2, top=4, qk_norm=True, gate=True))

    def options(self) -> dict[str, Any]:
        if self.window is not None:
            raise ConfigError("moba selects blocks over the whole past: leave out window")
        if self.block < 1 or self.top < 1:
            raise ConfigError(f"moba needs block >= 1 and top >= 1, not {self.block}, {self.top}")
        return dict(pattern=Best(self.block, self.top))
