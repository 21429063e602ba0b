"""Curves against context, and loss by position: a line per arm, bands over documents and seeds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lcx.eval.exact import METHOD
from lcx.eval.lengths import STABLE_WITHIN
from lcx.study.answers import chances
from lcx.study.arms import CURVE, SAME, Arm, Point, Row, arms, baseline, curves, train_lengths
from lcx.study.figures.canvas import Plot
from lcx.study.figures.style import GREY, LINE, handles, styles
from lcx.study.figures.words import words

CONTEXT = "context before the scored block (tokens)"
Curves = Mapping[Arm, Sequence[Point]]


def bpb(rows: Sequence[Row]) -> list[Plot]:
    """The headline."""
    caption = ("The same target tokens, scored with more and more context before them. From a "
               "context of the train length on, the scored block lies beyond it.")
    if baseline(rows) is not None:
        caption += " The grey line is a unigram model of the training text."
    return _plot(rows, "bpb", "Bits per byte against context length", caption, _paint_bpb)


def perplexity(rows: Sequence[Row]) -> list[Plot]:
    """The same curve in the unit of the literature."""
    unit = "byte" if _byte_tokens(rows) else "token"
    caption = (f"Perplexity per {unit}: exp of the mean loss per token, on the same targets. ")
    caption += ("Here a token is a byte." if unit == "byte" else
                "Compare it only between models of one tokenizer; bits per byte compare all.")
    return _plot(rows, "perplexity", "Perplexity against context length", caption,
                 functools.partial(_paint_perplexity, unit=unit))


def gap(rows: Sequence[Row]) -> list[Plot]:
    """G(c)."""
    caption = ("G(c) = bits per byte with context c minus those with the train length as context, "
               f"paired by token. The grey band is +-{STABLE_WITHIN}: inside it a length counts as "
               "stable.")
    return _plot(rows, "bpb_gap", "Gap against context length", caption, _paint_gap, name="gap")


def position(rows: Sequence[Row]) -> list[Plot]:
    """Loss by position."""
    return _plot(rows, "nll", "Loss by position", "Mean loss by position in the longest window, "
                 "in log-spaced buckets: position n was predicted from n tokens.",
                 _paint_position, name="position", method=CURVE)


def accuracy(rows: Sequence[Row]) -> list[Plot]:
    """Answers of a synthetic task."""
    return _plot(rows, "accuracy", "Accuracy against length", "The share of answers that are right,"
                 " on rows of the train length and of longer ones. The dotted line is a guess.",
                 _paint_accuracy, method=METHOD)


def length_axis(axes, rows: Sequence[Row], lengths: Sequence[int], label: str) -> None:
    """A log axis of lengths with the train length marked above."""
    axes.set_xscale("log", base=2)
    lengths = sorted(set(lengths))
    ticks = [c for c in lengths if c & (c - 1) == 0] or lengths
    every = math.ceil(len(ticks) / 9)
    ticks = ticks[::-1][::every][::-1]  # the longest always has its tick
    axes.set_xticks(ticks, [words(c) for c in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(words(label))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for number, length in enumerate(train_lengths(rows)):
        axes.axvline(length, color=LINE, linewidth=1, linestyle=(0, (2, 2)))
        text = f"trained at {length}" if number == 0 else str(length)
        axes.annotate(words(text), (length, 1), xycoords=("data", "axes fraction"), xytext=(0, 2),
                      textcoords="offset points", ha="center", va="bottom", fontsize=7.5,
                      color=LINE)


def band(axes, x: Sequence[float], points: Sequence[Any], colour: str) -> None:
    """Light: 95% over documents; darker: from the lowest to the highest seed, and a dot each."""
    if all(p.low is not None for p in points):
        axes.fill_between(x, [p.low for p in points], [p.high for p in points], color=colour,
                          alpha=0.13, linewidth=0)
    if any(len(p.seeds) > 1 for p in points):
        axes.fill_between(x, [min(p.seeds) for p in points], [max(p.seeds) for p in points],
                          color=colour, alpha=0.25, linewidth=0)
        for at, p in zip(x, points):
            axes.plot([at] * len(p.seeds), p.seeds, ".", color=colour, markersize=3, alpha=0.7)


def bands_said(points: Sequence[Any]) -> str:
    """The sentence that a caption ends with: what the bands are, where there are any."""
    documents = any(p.low is not None for p in points)
    seeds = any(len(p.seeds) > 1 for p in points)
    told = ["Light bands: 95% intervals over documents."] if documents else []
    told += ["Darker bands and dots: the seeds; lines: their mean."] if seeds else []
    return " ".join(told)


def _plot(rows, metric: str, title: str, caption: str, paint: Callable, *, name: str = "",
          method: str = SAME) -> list[Plot]:
    found = {arm: [p for p in points if p.estimate is not None]
             for arm, points in curves(rows, metric, method).items()}
    found = {arm: points for arm, points in found.items() if points}
    if not found:
        return []
    looks = styles(arms(rows))

    def draw(axes) -> None:
        for arm, points in found.items():
            x = [p.length for p in points]
            axes.plot(x, [p.estimate.value for p in points], linewidth=1.5, markersize=4.5,
                      **looks[arm])
            band(axes, x, points, looks[arm]["color"])
        paint(axes, rows, found)

    said = bands_said([p for points in found.values() for p in points])
    return [Plot(name or metric, title, f"{caption} {said}".strip(), draw,
                 lambda: handles(found, looks))]


def _lengths(found: Curves) -> list[int]:
    return [p.length for points in found.values() for p in points]


def _paint_bpb(axes, rows, found) -> None:
    length_axis(axes, rows, _lengths(found), CONTEXT)
    axes.set_ylabel("bits per byte (lower is better)")
    if (row := baseline(rows)) is not None:
        axes.axhline(row["value"], color="#888888", linewidth=1)
        # Above it, since trained models lie below.
        axes.annotate("unigram: knows no context", (0, row["value"]), ha="left", va="bottom",
                      xycoords=("axes fraction", "data"), xytext=(3, 1), fontsize=7.5,
                      textcoords="offset points", color=GREY)


def _paint_perplexity(axes, rows, found, *, unit: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    length_axis(axes, rows, _lengths(found), CONTEXT)
    axes.set_ylabel(words(f"perplexity per {unit} (lower is better)"))
    values = [p.estimate.value for points in found.values() for p in points]
    if max(values) > 20 * min(values):  # one that blew up would flatten all others
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _paint_gap(axes, rows, found) -> None:
    length_axis(axes, rows, _lengths(found), CONTEXT)
    axes.set_ylabel("G: bits per byte minus those at L")
    axes.axhspan(-STABLE_WITHIN, STABLE_WITHIN, color="#bbbbbb", alpha=0.35, linewidth=0)
    axes.axhline(0, color=LINE, linewidth=0.8)


def _paint_position(axes, rows, found) -> None:
    length_axis(axes, rows, _lengths(found), "position in the window (tokens seen before)")
    axes.set_ylabel("mean loss per token (nats)")


def _paint_accuracy(axes, rows, found) -> None:
    length_axis(axes, rows, _lengths(found), "length of the row (tokens)")
    axes.set_ylabel("accuracy per answer (higher is better)")
    axes.set_ylim(0, 1.02)
    for chance in set(chances(rows).values()):
        axes.axhline(chance, color="#888888", linewidth=1, linestyle=":")


def _byte_tokens(rows: Sequence[Row]) -> bool:
    """Whether every scored token was one byte, by the sums that rows keep."""
    kept = [(sum(row["extra"]["bytes_by_document"]), row["tokens"]) for row in rows
            if (row["extra"] or {}).get("bytes_by_document")]
    return bool(kept) and all(spans == tokens for spans, tokens in kept)
