"""Draws docs/figures/hippo.svg: a signal, and what HiPPO-LegS remembers of it.

Run from the repository: python docs/figures/hippo.py
"""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from lcx.ops import hippo

LENGTH, SIZES, COLOURS = 2000, (4, 16, 64), ("#D55E00", "#009E73", "#0072B2")


def signal() -> np.ndarray:
    """A smooth curve with a step at 70 % of it."""
    time = np.linspace(0, 1, LENGTH)
    return np.sin(9 * time) + 0.5 * np.sin(31 * time + 1) + 0.8 * (time > 0.7)


def errors(samples: np.ndarray) -> dict[int, float]:
    """Root mean square of what is lost by each size of the state."""
    return {size: float(np.sqrt(np.mean((remembered(samples, size) - samples) ** 2)))
            for size in SIZES}


def remembered(samples: np.ndarray, size: int) -> np.ndarray:
    """The whole past, read from the last state."""
    return hippo.reconstruct(hippo.project(samples, size)[-1], len(samples))


def draw(path: Path) -> None:
    samples = signal()
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "hippo", "svg.fonttype": "path",
                                "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6.2, 4.6), layout="constrained")
        above, below = figure.subplots(2)
        above.plot(samples, color="#BBBBBB", linewidth=4, label="signal")
        for size, colour in zip(SIZES, COLOURS):
            above.plot(remembered(samples, size), color=colour, linewidth=1.1,
                       label=f"from {size} numbers")
        above.set(title="The past after 2000 steps, read from the state alone", xlabel="step",
                  ylim=(-1.7, 3.4))
        above.legend(ncols=4, frameon=False, loc="upper left", fontsize=8)
        states = hippo.project(samples, 6)
        for order in range(6):
            below.plot(states[:, order], linewidth=1.1, color=matplotlib.cm.viridis(order / 6),
                       label=f"$c_{order}$")
        below.set(title="The state itself, N = 6: Legendre coefficients of the whole past",
                  xlabel="step", ylim=(-0.8, 1.15))
        below.legend(ncols=6, frameon=False, loc="upper left", fontsize=8)
        figure.savefig(path, metadata={"Date": None, "Creator": "lcx"})


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".svg"))
    print({size: round(error, 3) for size, error in errors(signal()).items()})
