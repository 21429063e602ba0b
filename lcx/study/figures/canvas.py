"""From a plot to files: SVG, PDF and PNG with the command and config hash in each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lcx.errors import ConfigError
from lcx.labels import visible
from lcx.study.figures.style import RC
from lcx.study.figures.words import words

WIDTH = 5.2  # inches: small, so that its type is still read at the width of a telephone
STAMP = 0.16  # inches at the foot for the command and the config hash
STAMPED = 130  # characters that fit there; the files and the page hold the whole


@dataclasses.dataclass(frozen=True)
class Plot:
    """What to draw: paint(axes) on a canvas `height` inches high, with a legend beneath.

    legend: a function giving names and their handles, called with matplotlib's settings in place.
    """

    name: str
    title: str
    caption: str
    paint: Callable[[Any], None]
    legend: Callable[[], Sequence[tuple[str, Any]]] = list
    height: float = 3.4


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawn figure: its name, what it shows, inline SVG, and the files written beside."""

    name: str
    title: str
    caption: str
    svg: str
    files: tuple[Path, ...]


def matplotlib_or_hint() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("figures need matplotlib: pip install lcx[report]") from None
    return matplotlib


def render(plot: Plot, folder: Path, stamp: str) -> Figure:
    """Draw one plot and write its files."""
    matplotlib_or_hint()
    from matplotlib import style
    from matplotlib.figure import Figure as Canvas

    # No pyplot: nothing global, and the same picture whatever the user's own settings.
    with style.context(["default", {**RC, "svg.hashsalt": plot.name}]):
        entries = [(words(name), handle) for name, handle in plot.legend()]
        widest = max((len(name) for name, _ in entries), default=0)
        columns = 3 if widest < 16 else 2 if widest < 30 else 1
        legend = 0.173 * math.ceil(len(entries) / columns) + 0.14 * bool(entries)
        height, below = plot.height + legend, STAMP + legend
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained")
        canvas.get_layout_engine().set(rect=(0, below / height, 1, 1 - below / height))
        plot.paint(canvas.subplots())
        canvas.suptitle(words(plot.title), x=0.012, ha="left", fontsize=10, fontweight="bold")
        if entries:
            drawn = canvas.legend([handle for _, handle in entries], ["name"] * len(entries),
                                  loc="lower center", ncols=columns, handlelength=3,
                                  columnspacing=1.2, bbox_to_anchor=(0.5, STAMP / height),
                                  borderaxespad=0)
            _name(drawn, [name for name, _ in entries], canvas)
        canvas.text(0.01, 0.05 / height, words(stamp, most=STAMPED), fontsize=5, color="#666666")
        return Figure(plot.name, plot.title, plot.caption, *_save(canvas, folder, plot, stamp))


def _name(legend, names: Sequence[str], canvas) -> None:
    """Set a legend's texts, in smaller type where they would leave the page.

    Not as labels of the handles: matplotlib leaves out those that begin with _.
    """
    for text, name in zip(legend.get_texts(), names):
        text.set_text(name)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    page = FigureCanvasAgg(canvas).get_renderer()
    wide = legend.get_window_extent(page).width / canvas.bbox.width
    for text in legend.get_texts():
        text.set_fontsize(text.get_fontsize() * min(1.0, 0.96 / wide))


def _save(canvas, folder: Path, plot: Plot, stamp: str) -> tuple[str, tuple[Path, ...]]:
    folder.mkdir(parents=True, exist_ok=True)
    files = tuple(folder / f"{plot.name}.{kind}" for kind in ("svg", "pdf", "png"))
    stamp, title = visible(stamp), visible(plot.title)
    about = dict(Title=title, Creator="lcx")
    canvas.savefig(files[0], metadata={**about, "Date": None,
                                       "Description": f"{visible(plot.caption)} {stamp}"})
    canvas.set_layout_engine("none")  # laid out now; once is enough
    canvas.savefig(files[1], metadata={**about, "Subject": stamp, "CreationDate": None})
    canvas.savefig(files[2], dpi=200, metadata={"Title": title, "Description": stamp})
    text = files[0].read_text(encoding="utf-8")
    return text[text.index("<svg"):], files
