"""ReRoPE: a rotation whose distance stops growing at a window."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lcx.domains import Whole
from lcx.lanes import Lanes, Piecewise, Sequence
from lcx.positions.rope import Rope


class Rerope(Rope):
    """ReRoPE (kexue.fm/archives/9708): RoPE at the distance min(id_i - id_j, window).

    A near piece turns as usual; a far piece compares R_window q_i with the key as it is. It needs
    no training: put it on a RoPE checkpoint, best with log_n beside it. window: train_length/2 if
    None; a quarter to a half is good, the whole train_length is not.
    Schemes with other pieces override `near` and `far`; the future mirrors the past where there is
    no causal mask.
    """

    window: Whole | None = None

    structure: ClassVar[str] = "PW"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(window=5))
    paper: ClassVar[str] = "https://kexue.fm/archives/9708"

    @property
    def reach(self) -> int:
        """Distance from which a pair is far."""
        return self.site.train_length // 2 if self.window is None else self.window

    def numbers(self) -> dict[str, np.ndarray]:
        return {**super().numbers(), "window": np.array(float(self.reach))}

    def params(self) -> dict[str, Any]:
        """What the id maps read."""
        return {"window": self.number("window")}

    def near(self) -> tuple:
        """Id maps of query and key in the near piece."""
        return same, same

    def far(self) -> tuple:
        """Id maps of query and key in the far piece; distances are their difference."""
        return at_window, at_zero

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        pieces, select = (self.near(), self.far()), far_past
        if not self.site.causal:
            pieces, select = (*pieces, self.far()[::-1]), far_past_or_future
        return Lanes(Piecewise(self.rotation(seq), self.params(), select, pieces,
                               self.reach)), carry


def far_past(params, query_ids, key_ids):
    """0 near, 1 far."""
    return (query_ids - key_ids >= params["window"]).astype(jnp.int32)


def far_past_or_future(params, query_ids, key_ids):
    """0 near, 1 far in the past, 2 far in the future."""
    return far_past(params, query_ids, key_ids) + 2 * far_past(params, key_ids, query_ids)


def same(params, ids):
    return ids


def at_window(params, ids):
    return jnp.broadcast_to(params["window"], ids.shape)


def at_zero(params, ids):
    return jnp.zeros_like(ids)
