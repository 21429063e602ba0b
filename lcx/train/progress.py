"""A progress bar on a terminal; elsewhere a plain line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

PAUSE = 30.0  # seconds between plain lines


class Progress:
    """Shows steps, loss, tokens/s and the time left."""

    def __init__(self, steps: int, start: int, *, stream: TextIO | None = None,
                 clock: Callable[[], float] = time.monotonic):
        self.steps, self.stream, self.clock = steps, stream or sys.stderr, clock
        self.bar = None
        if self.stream.isatty():
            self.bar = tqdm(total=steps, initial=start, unit="step", file=self.stream,
                            dynamic_ncols=True)
        self._began: tuple[float, int] | None = None  # after the first step, which compiles
        self._tokens, self._said = 0, -PAUSE
        self._shown = start

    def update(self, step: int, loss: float, tokens: int) -> float | None:
        """Report a finished step of `tokens` tokens; returns tokens/s since the first one."""
        now = self.clock()
        if self._began is None:
            self._began, rate = (now, step), None
        else:
            self._tokens += tokens
            rate = self._tokens / max(now - self._began[0], 1e-9)
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.4f}" + (f", {rate:,.0f} tok/s" if rate else ""),
                                     refresh=False)
            self.bar.update(step - self._shown)
        elif now - self._said >= PAUSE or step == self.steps:
            self._said = now
            print(self._plain(step, loss, rate, now), file=self.stream, flush=True)
        self._shown = step
        return rate

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def _plain(self, step: int, loss: float, rate: float | None, now: float) -> str:
        line = f"step {step}/{self.steps}  loss {loss:.4f}"
        if rate is None:
            return line
        began, first = self._began
        left = (now - began) / (step - first) * (self.steps - step)
        return f"{line}  {rate:,.0f} tokens/s  {int(left) // 60}:{int(left) % 60:02d} left"
