"""The figures of a report, drawn from rows alone: colour-blind safe, one style per arm."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcx.errors import ConfigError
from lcx.eval.lengths import STABLE_WITHIN
from lcx.study.arms import CURVE, Arm, Point, Row, arms, baseline, curves, train_lengths

# Okabe and Ito's palette without its yellow, which white paper swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
MARKERS = "osD^vPX*<>"
DASHES = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)))
STYLE = {"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "legend.frameon": False,
         "axes.spines.right": False, "svg.fonttype": "path", "figure.dpi": 150,
         "legend.fontsize": 8.5, "axes.titlelocation": "left", "axes.titleweight": "bold"}


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawn figure: its name, what it shows, inline SVG, and the files written beside."""

    name: str
    caption: str
    svg: str
    files: tuple[Path, ...]


def draw(rows: Sequence[Row], folder: Path, stamp: str) -> list[Figure]:
    """Write SVG, PDF and PNG of each figure that the rows have data for.

    `stamp` (command and config hash) is printed under each figure and kept in each file.
    """
    drawn = []
    for name, caption, metric, method, paint in _FIGURES:
        found = {arm: [p for p in points if p.estimate is not None]
                 for arm, points in curves(rows, metric, method).items()}
        found = {arm: points for arm, points in found.items() if points}
        if found:
            drawn.append(_draw(name, caption, rows, found, paint, folder, stamp))
    return drawn


def matplotlib_or_hint() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise ConfigError("figures need matplotlib: pip install lcx[report]") from None
    return matplotlib


def _draw(name, caption, rows, found, paint, folder: Path, stamp: str) -> Figure:
    matplotlib = matplotlib_or_hint()
    from matplotlib.figure import Figure as Canvas

    looks = styles(arms(rows))
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        # No pyplot: nothing global, and the same picture whatever the user's own settings.
        # Small, so that its type is still read at the width of a telephone.
        handles = _legend(found, looks)
        columns = 2 if max(len(h.get_label()) for h in handles) < 30 else 1
        height = 3.4 + 0.17 * math.ceil(len(handles) / columns)
        canvas = Canvas(figsize=(5.2, height), layout="constrained")
        canvas.get_layout_engine().set(rect=(0, 0.14 / height, 1, 1 - 0.14 / height))
        axes = canvas.subplots()
        for arm, points in found.items():
            _line(axes, points, looks[arm])
        paint(axes, rows, found)
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.16),
                    ncols=columns, handlelength=3)
        canvas.text(0.01, 0.05 / height, stamp, fontsize=5, color="#666666")
        return Figure(name, caption, *_save(canvas, folder, name, caption, stamp))


def styles(all_arms: Sequence[Arm]) -> Mapping[Arm, dict[str, Any]]:
    """One colour and marker per scheme, one dash per mixer: an arm looks the same everywhere."""
    schemes = list(dict.fromkeys((arm.position, arm.note) for arm in sorted(
        all_arms, key=lambda a: (a.position, a.note))))
    mixers = list(dict.fromkeys(arm.mixer for arm in all_arms))
    found = {}
    for arm in all_arms:
        scheme, mixer = schemes.index((arm.position, arm.note)), mixers.index(arm.mixer)
        colour = COLOURS[scheme % len(COLOURS)]
        found[arm] = dict(color=colour, linestyle=DASHES[mixer % len(DASHES)],
                          marker=MARKERS[scheme % len(MARKERS)],
                          markerfacecolor=colour if mixer % 2 == 0 else "white")
    return found


def _legend(found, looks) -> list[Any]:
    """An entry per scheme (colour, marker); where there are several mixers, one per dash too."""
    from matplotlib.lines import Line2D

    several = len({arm.mixer for arm in found}) > 1
    handles = {}
    for arm in found:
        label = Arm("", arm.position, arm.note).label()
        look = dict(looks[arm], markersize=4.5)
        if several:
            look |= dict(linestyle="none", markerfacecolor=look["color"], markersize=6)
        handles.setdefault(label, Line2D([], [], label=label, **look))
    for arm in found:
        if several and f"on {arm.mixer}" not in handles:
            handles[f"on {arm.mixer}"] = Line2D([], [], label=f"on {arm.mixer}", color="#444444",
                                                linestyle=looks[arm]["linestyle"])
    return list(handles.values())


def _line(axes, points: list[Point], look: Mapping[str, Any]) -> None:
    x = [p.length for p in points]
    axes.plot(x, [p.estimate.value for p in points], linewidth=1.5, markersize=4.5, **look)
    if all(p.low is not None for p in points):
        axes.fill_between(x, [p.low for p in points], [p.high for p in points],
                          color=look["color"], alpha=0.15, linewidth=0)
    for p in points:
        if len(p.seeds) > 1:
            axes.plot([p.length] * len(p.seeds), p.seeds, ".", color=look["color"], markersize=3,
                      alpha=0.6)


def _length_axis(axes, rows, found, label: str) -> None:
    lengths = sorted({p.length for points in found.values() for p in points})
    axes.set_xscale("log", base=2)
    ticks = [c for c in lengths if c & (c - 1) == 0] or lengths
    axes.set_xticks(ticks, [str(c) for c in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(label)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for length in train_lengths(rows):
        axes.axvline(length, color="#444444", linewidth=1, linestyle=(0, (2, 2)))
        axes.annotate(f"trained at {length}", (length, 1), xycoords=("data", "axes fraction"),
                      xytext=(3, -2), textcoords="offset points", va="top", fontsize=7.5,
                      color="#444444", bbox=dict(facecolor="white", edgecolor="none", pad=0.5,
                                                 alpha=0.8))


def _paint_bpb(axes, rows, found) -> None:
    _length_axis(axes, rows, found, "context before the scored block (tokens)")
    axes.set_ylabel("bits per byte (lower is better)")
    axes.set_title("Bits per byte against context length")
    if (row := baseline(rows)) is not None:
        axes.axhline(row["value"], color="#888888", linewidth=1)
        # To the left, where trained models lie well below it.
        axes.annotate("unigram: knows no context", (0, row["value"]), ha="left", va="bottom",
                      xycoords=("axes fraction", "data"), xytext=(3, 2), fontsize=7.5,
                      textcoords="offset points", color="#666666")


def _paint_gap(axes, rows, found) -> None:
    _length_axis(axes, rows, found, "context before the scored block (tokens)")
    axes.set_ylabel("G: bpb minus bpb at the train length")
    axes.set_title("What context past the train length costs")
    axes.axhspan(-STABLE_WITHIN, STABLE_WITHIN, color="#bbbbbb", alpha=0.35, linewidth=0)
    axes.axhline(0, color="#444444", linewidth=0.8)


def _paint_position(axes, rows, found) -> None:
    _length_axis(axes, rows, found, "position in the window (tokens seen before)")
    axes.set_ylabel("mean NLL per token (nats)")
    axes.set_title("Loss by position")


_FIGURES = (
    ("bpb", "The same target tokens, scored with more and more context before them. Bands: 95% "
     "intervals over documents; dots: seeds. From a context of the train length on, the scored "
     "block lies beyond it. The grey line is a unigram model of the training text.",
     "bpb", "same_target", _paint_bpb),
    ("gap", "G(c) = bpb with context c minus bpb with the train length as context, paired by "
     f"token. The grey band is +-{STABLE_WITHIN} bpb: inside it a length counts as stable.",
     "bpb_gap", "same_target", _paint_gap),
    ("position", "Mean loss by position in the longest window, in log-spaced buckets. Bands: 95% "
     "intervals over documents.", "nll", CURVE, _paint_position),
)


def _save(canvas, folder: Path, name: str, caption: str, stamp: str) -> tuple[str, tuple]:
    folder.mkdir(parents=True, exist_ok=True)
    files = tuple(folder / f"{name}.{kind}" for kind in ("svg", "pdf", "png"))
    about = dict(Title=name, Creator="lcx")
    canvas.savefig(files[0], metadata={**about, "Description": f"{caption} {stamp}", "Date": None})
    canvas.savefig(files[1], metadata={**about, "Subject": stamp, "CreationDate": None})
    canvas.savefig(files[2], dpi=200, metadata={"Title": name, "Description": stamp})
    text = files[0].read_text()
    return text[text.index("<svg"):], files
