"""The figures of a report, drawn from rows alone: colour-blind safe, one style per arm.

Files: `lengths` draws curves against context or position, `tokens` against training, `ranked` the
forest plot, `tradeoff` short cost against gap, `heatmap` scheme against mixer; `style` holds
colours and legends, `canvas` the page that each is drawn on. To add one: a function from rows to
`Plot`s, named in PLOTS.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lcx.study.arms import Row
from lcx.study.distinct import final
from lcx.study.figures import heatmap, lengths, ranked, tokens, tradeoff
from lcx.study.figures.canvas import Figure, Plot, matplotlib_or_hint, render
from lcx.study.figures.style import styles

__all__ = ["Figure", "Plot", "draw", "matplotlib_or_hint", "styles"]

PLOTS = (lengths.bpb, lengths.accuracy, ranked.plots, lengths.perplexity, lengths.gap,
         tradeoff.plots, heatmap.plots, lengths.position)  # in the order of the page


def draw(rows: Sequence[Row], folder: Path, stamp: str) -> list[Figure]:
    """Write SVG, PDF and PNG of each figure that the rows have data for.

    All but the figure over training use each run's last checkpoint. `stamp` (command and config
    hash) is printed under each figure and kept in each file.
    """
    last = final(rows)
    found = [plot for plots in PLOTS for plot in plots(last)] + tokens.plots(rows)
    return [render(plot, folder, stamp) for plot in found]
