"""Stick-breaking attention: recent keys first, each takes a share of what is left."""

from __future__ import annotations

from typing import ClassVar

from lcx.mixers import CHUNKED, QUADRATIC, STEP
from lcx.mixers.attention import Attention
from lcx.ops.attention import stick_breaking


class StickBreaking(Attention):
    """Stick-breaking attention (arXiv:2410.17980): w_ij = s(z_ij) prod_{j<t<i} (1 - s(z_it)).

    s is the sigmoid. No token reads itself, and the weights of a row sum to at most 1; remainder:
    what is left goes to the token's own value (otherwise to nothing). It needs no positional
    scheme, but takes every lane: temperature and bias act inside the sigmoid, where a constant of
    a row counts.
    """

    remainder: bool = False

    family = "stick"
    paper: ClassVar[str] = "arXiv:2410.17980"
    forms: ClassVar[tuple[str, ...]] = (QUADRATIC, CHUNKED, STEP)
    examples: ClassVar[tuple[dict, ...]] = (dict(num_kv_heads=2), dict(remainder=True))

    def softmax(self, queries, keys, lanes, own, *, scale: float, window: int | None = None):
        """The op in place of the softmax; own: key and value of this call."""
        self.sow("intermediates", "inner", dict(query=queries.query, key=own[0], value=own[1],
                                                scale=scale, window=window,
                                                rotary_dim=self.site().rotary_dim,
                                                remainder=self.remainder))
        chunk = queries.query.shape[1] if self.form == QUADRATIC else self.chunk
        out = stick_breaking.attend(queries, keys, own[1], lanes, scale=scale, window=window,
                                    rotary_dim=self.site().rotary_dim, chunk=chunk,
                                    remainder=self.remainder)
        self.sow("intermediates", "outer", out)
        return out
