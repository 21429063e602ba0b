"""STRING, shifted rotary positions: long distances take the place of shorter, better trained."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from lcx.domains import Positive, Whole
from lcx.errors import ConfigError
from lcx.lanes import Rotation, Sequence
from lcx.positions.rerope import Rerope


class ShiftedRope(Rerope):
    """STRING (arXiv:2410.18745): distances d >= window become d - window + local.

    For a RoPE checkpoint, without training: large distances are rare there, so they are replaced
    by frequent ones, and a gap of `local` keeps the nearest tokens apart. window: 0.33 train_length
    if None (0.25 to 0.4 of the length tested); local: 128 (to 512), at most half of the window if
    None. The authors' code sets attention_factor 0.1 ln 2 + 1 on cos and sin, and its prefill
    counts the key at d = window twice, its decode and this once. Options checked against
    HKUNLP/STRING. (Another STRING, separable translation-invariant encodings, shares the name.)
    """

    local: Whole | None = None
    attention_factor: Positive = 1.0

    paper: ClassVar[str] = "arXiv:2410.18745"
    examples: ClassVar[tuple[dict, ...]] = ({}, dict(window=6, local=2, attention_factor=1.07))

    @property
    def reach(self) -> int:
        return int(0.33 * self.site.train_length) if self.window is None else self.window

    def numbers(self) -> dict[str, np.ndarray]:
        local = min(128, self.reach // 2) if self.local is None else self.local
        if not 0 <= local <= self.reach:
            raise ConfigError(f"shifted_rope needs a local part of 0 to window {self.reach}, not "
                              f"{local}: more would stretch the distances")
        return {**super().numbers(), "local": np.array(float(local)),
                "amplitude": np.array(self.attention_factor)}

    def rotation(self, seq: Sequence) -> Rotation:
        return super().rotation(seq).replace(amplitude=self.number("amplitude"))

    def params(self) -> dict[str, Any]:
        return {**super().params(), "local": self.number("local")}

    def far(self) -> tuple:
        return moved, kept


def moved(params, ids):
    return ids - params["window"] + params["local"]


def kept(params, ids):
    return ids
