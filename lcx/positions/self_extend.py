"""Self-Extend: far tokens share the position of their group, near ones keep their own."""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from lcx.domains import Count
from lcx.errors import ConfigError
from lcx.positions.rerope import Rerope
from lcx.types import wide


class SelfExtend(Rerope):
    """Self-Extend (arXiv:2401.01325) on a RoPE checkpoint, without training.

    Distances below window w are RoPE's; beyond it, query and key get the ids floor(i/g) + w -
    floor(w/g) and floor(j/g), g = group. Usable up to (L0 - w) g + w tokens. window: train_length
    /4 if None (1024 of 4096). A shift of all ids by anything but a multiple of g changes where
    groups begin, and with it the result. Checked against datamllab/LongLM; several of its files
    divide w/g without the floor, so that their prefill and decode disagree unless g divides w.
    """

    group: Count = 8

    paper: ClassVar[str] = "arXiv:2401.01325"
    examples: ClassVar[tuple[dict, ...]] = (dict(window=6, group=4), dict(group=2))

    @property
    def relative(self) -> int:
        """Only for shifts by multiples of the group."""
        return self.group

    @property
    def reach(self) -> int:
        return self.site.train_length // 4 if self.window is None else self.window

    def numbers(self) -> dict[str, np.ndarray]:
        if self.group < 1:
            raise ConfigError(f"self_extend needs groups of at least one token, not {self.group}")
        return {**super().numbers(), "group": np.array(float(self.group))}

    def params(self) -> dict[str, Any]:
        return {**super().params(), "group": self.number("group")}

    def far(self) -> tuple:
        return moved_group, group_of


def group_of(params, ids):
    return wide(whole(ids) // whole(params["group"]))


def moved_group(params, ids):
    window, group = whole(params["window"]), whole(params["group"])
    return wide(whole(ids) // group + window - window // group)


def whole(ids):
    """Integers: their division is exact on every device, that of floats is not."""
    return jnp.floor(ids).astype(jnp.int32)
