"""Schemes against mixers: the rise at the longest context as a heat map."""

from __future__ import annotations

from collections.abc import Sequence

from lcx.study.arms import Arm, Row
from lcx.study.figures.canvas import Plot
from lcx.study.figures.words import words
from lcx.study.gaps import longest, rises

ACROSS = 48  # letters beside each other in all columns
CLIP = 1.0  # bits per byte at which the colour is full: beyond it broken is broken


def plots(rows: Sequence[Row]) -> list[Plot]:
    """Where there are two schemes and two mixers at least."""
    gaps = {gap.arm: gap for gap in rises(rows)}
    mixers = sorted({arm.mixer for arm in gaps})
    schemes = {(arm.position, arm.note): arm.label(mixers=False) for arm in sorted(gaps)}
    if min(len(mixers), len({position for position, _ in schemes})) < 2:
        return []
    room = ACROSS // len(mixers)
    upright = max(len(word) for mixer in mixers for word in words(mixer).split()) > room
    across = [words(mixer, 26 if upright else room) for mixer in mixers]
    down = [words(name, 26) for name in schemes.values()]
    lines = max(name.count("\n") for name in down) + 1
    high = (0.07 * max(len(line) for name in across for line in name.split("\n")) if upright
            else 0.14 * max(name.count("\n") for name in across))
    cells = [[gaps.get(Arm(mixer, *scheme)) for mixer in mixers] for scheme in schemes]
    values = [[cell.estimate.value if cell and cell.estimate else float("nan") for cell in line]
              for line in cells]

    def paint(axes) -> None:
        import matplotlib
        import numpy as np

        largest = np.nanmax(np.abs(values)) if np.isfinite(values).any() else 0.0
        limit = min(max(largest, 0.02), CLIP)
        colours = matplotlib.colormaps["RdBu_r"]  # blue lower, red higher; both read by all eyes
        axes.pcolormesh(np.ma.masked_invalid(values), cmap=colours, vmin=-limit, vmax=limit,
                        edgecolors="white", linewidth=1.5)
        for y, line in enumerate(cells):
            for x, cell in enumerate(line):
                known = cell is not None and cell.estimate is not None
                told = f"{cell.estimate.value:+.3f}" if known else cell.status if cell else "-"
                dark = known and abs(cell.estimate.value) > 0.6 * limit
                axes.text(x + 0.5, y + 0.5, words(told), ha="center", va="center", fontsize=8.5,
                          color="white" if dark else "#1a1a1a")
        axes.invert_yaxis()
        axes.set_xticks([x + 0.5 for x in range(len(mixers))], across,
                        rotation=90 * upright)
        axes.set_yticks([y + 0.5 for y in range(len(schemes))], down)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)

    caption = (f"Rise in bits per byte at {longest(rows)} tokens of context for each scheme (down) "
               "on each mixer (across). Blue: longer context helps; red: it hurts, in full colour "
               f"from +{CLIP:g} on. A dash: not run.")
    return [Plot("heatmap", "Scheme on mixer: rise at the longest context", caption, paint,
                 height=1.0 + high + (0.15 + 0.15 * lines) * len(schemes))]
