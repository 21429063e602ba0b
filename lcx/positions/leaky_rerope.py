"""Leaky ReRoPE: beyond a window the distance goes on growing, but more slowly."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from lcx.errors import ConfigError
from lcx.positions.rerope import Rerope


class LeakyRerope(Rerope):
    """Leaky ReRoPE (kexue.fm/archives/9708): distance d up to window w, then w + (d - w)/leak.

    leak: 1 is RoPE, infinity ReRoPE. Below 1 it is the *inverse* Leaky ReRoPE (archives/9728):
    train with stretched distances (1/16, window L0/4), then test with plain rope. window:
    train_length/8 if None, the authors' code. Checked against bojone/rerope.
    Phases are exact at long ids where ids/leak is exact in float32: leak a power of two.
    """

    leak: float = 16.0

    paper: ClassVar[str] = "https://kexue.fm/archives/9708"
    examples: ClassVar[tuple[dict, ...]] = (dict(window=4, leak=2.0), dict(leak=0.0625))

    @property
    def reach(self) -> int:
        return self.site.train_length // 8 if self.window is None else self.window

    def numbers(self) -> dict[str, np.ndarray]:
        if self.leak <= 0:
            raise ConfigError(f"leaky_rerope needs a leak above 0, not {self.leak}: 1 is RoPE, "
                              "more slows distances beyond the window down, less stretches them")
        return {**super().numbers(), "leak": np.array(self.leak)}

    def params(self) -> dict[str, Any]:
        return {**super().params(), "leak": self.number("leak")}

    def far(self) -> tuple:
        return moved, slowed


def moved(params, ids):
    """(id + w (leak - 1)) / leak: meets the near piece at the window."""
    return (ids + params["window"] * (params["leak"] - 1.0)) / params["leak"]


def slowed(params, ids):
    return ids / params["leak"]
