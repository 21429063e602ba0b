"""Leaky ReRoPE: beyond a window the distance goes on growing, but more slowly."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from lcx.domains import Positive
from lcx.errors import ConfigError
from lcx.positions.rerope import Rerope


class LeakyRerope(Rerope):
    """Leaky ReRoPE (kexue.fm/archives/9708): distance d up to window w, then w + (d - w)/leak.

    leak: 1 is RoPE, infinity ReRoPE. Below 1 it is the *inverse* Leaky ReRoPE (archives/9728):
    train with stretched distances (1/16, window L0/4), then test with plain rope. window:
    train_length/8 if None, the authors' code. Checked against bojone/rerope.
    """

    leak: Positive = 16.0

    paper: ClassVar[str] = "https://kexue.fm/archives/9708"
    examples: ClassVar[tuple[dict, ...]] = (dict(window=4, leak=2.5), dict(leak=0.0625))

    @property
    def reach(self) -> int:
        return self.site.train_length // 8 if self.window is None else self.window

    def ladder(self) -> np.ndarray:
        return super().ladder() / self.steps()[0]

    def numbers(self) -> dict[str, np.ndarray]:
        near, far = map(np.array, self.steps())
        return {**super().numbers(), "near": near, "far": far}

    def steps(self) -> tuple[float, float]:
        """Steps of an id in the near and the far piece; frequencies are divided by the first.

        leak = near/far. In whole numbers, as 5/2 for 2.5, if small ones do it (beyond 16 ids would
        pass 2^24), so that phases are exact; else ids/leak is rounded, and far phases with it:
        6e-5 rad at the millionth token for 1024, more where leak is no power of two.
        """
        if self.leak <= 0:
            raise ConfigError(f"leaky_rerope needs a leak above 0, not {self.leak}: 1 is RoPE, "
                              "more slows distances beyond the window down, less stretches them")
        whole = Fraction(self.leak).limit_denominator(16)
        if whole.numerator in range(1, 17) and abs(whole / Fraction(self.leak) - 1) < 1e-12:
            return float(whole.numerator), float(whole.denominator)
        return 1.0, 1.0 / self.leak

    def params(self) -> dict[str, Any]:
        return {**super().params(), "near": self.number("near"), "far": self.number("far")}

    def near(self) -> tuple:
        return full_step, full_step

    def far(self) -> tuple:
        return moved, short_step


def full_step(params, ids):
    return ids * params["near"]


def short_step(params, ids):
    return ids * params["far"]


def moved(params, ids):
    """(d - w) short steps after w full ones: it meets the near piece at the window."""
    return ids * params["far"] + params["window"] * (params["near"] - params["far"])
