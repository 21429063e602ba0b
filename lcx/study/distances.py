"""What a scheme does to a constant query and key, over distance, at the train length and beyond."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lcx import lanes as L
from lcx import positions
from lcx.errors import ConfigError
from lcx.positions import listing
from lcx.study import probe
from lcx.study.figures.canvas import matplotlib_or_hint
from lcx.study.figures.style import COLOURS, GREY, RC
from lcx.study.figures.words import words

HEADS, HEAD_DIM, FACTOR, FLOOR = 4, 64, 8, -20.0
OVER = {"Temperature": "rope", "remap": "rope", "LogitMap": "alibi"}  # nothing to see alone


@dataclasses.dataclass(frozen=True)
class Curve:
    """Logits [H,N] of the last of `length` tokens at distances [N], less that of itself.

    note: what else to know, or why there is nothing to draw.
    """

    length: int
    distances: np.ndarray
    logits: np.ndarray
    note: str = ""


def curve(spec: Any, length: int, train_length: int, random_key=None) -> Curve:
    """Log weights through the attention of every softmax mixer, in float64, at fresh parameters.

    Query, key and layer input are constant: the difference between tokens is their position.
    random_key: ids as in training.
    """
    distances = np.unique(np.round(np.geomspace(1, length - 1, 240)).astype(int))
    distances = np.r_[0, distances]
    with jax.enable_x64(True):
        try:
            weights = np.asarray(_weights(spec, length, train_length, random_key))[:, -1]
        except (ValueError, ConfigError) as reason:
            words = " ".join(str(reason).split())
            return Curve(length, distances, np.full((HEADS, len(distances)), np.nan), words)
    with np.errstate(divide="ignore"):
        logits = np.log(weights[:, ::-1])[:, distances]
    return Curve(length, distances, logits - logits[:, :1])


def _weights(spec, length, train_length, random_key):
    seq = L.sequence(1, length)
    width = HEADS * HEAD_DIM
    site = probe.Probe(position=spec, width=width, train_length=train_length, num_heads=HEADS,
                       head_dim=HEAD_DIM).site()
    x, tokens = jnp.ones((1, length, width)), jnp.zeros((1, length), jnp.int32)  # one word
    scheme = positions.make(spec, site, parent=None)
    seq, _ = scheme.read(tokens, seq, scheme.init_read(1))
    if random_key is not None and (transform := scheme.data_transform()) is not None:
        _, places = transform(np.random.default_rng(0), length, FACTOR * length)
        seq = seq.replace(moved=jnp.asarray(places[None], float))
    ids = scheme.remap(seq, random_key)
    for number, embed in enumerate(positions.make_embed(spec, width, train_length, vocab_size=1)):
        found = jax.jit(embed.init)(jax.random.key(number), x[:, :1], ids[:1], tokens[:, :1])
        x = embed.apply(found, x, ids, tokens)
    vectors = x.reshape(1, length, HEADS, HEAD_DIM)
    return probe.weights(spec, vectors, vectors, x, seq, train_length=train_length,
                         random_key=random_key)


def shown(spec: Any) -> Any:
    """The spec, over another scheme where it has nothing to show on its own."""
    parts = positions.parts(spec)
    if len(parts) > 1:
        return spec
    lanes = listing.record(parts[0]["name"])["lanes"]
    return [OVER[lanes[0]], parts[0]] if len(lanes) == 1 and lanes[0] in OVER else spec


def panels(spec: Any, train_length: int) -> list[Curve]:
    """One curve at the train length (id maps as in training), one at 8 times that."""
    drawn = shown(spec)
    return [curve(drawn, train_length, train_length, jax.random.key(0)),
            curve(drawn, FACTOR * train_length, train_length)]


def draw(specs: Sequence[Any], file: Path, train_length: int = 128) -> Path:
    """One page with a row of two panels for each scheme. Raises ConfigError without matplotlib."""
    matplotlib_or_hint()
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", {**RC, "svg.hashsalt": file.stem, "svg.fonttype": "none",
                                    "font.size": 8, "axes.titlesize": 8.5}]):
        canvas = Figure(figsize=(6.4, 1.7 * len(specs) + 0.25), layout="constrained")
        grid = canvas.subplots(len(specs), 2, squeeze=False, sharey="row")
        for row, spec in zip(grid, specs):
            for axes, found in zip(row, panels(spec, train_length)):
                paint(axes, found, train_length)
            row[0].set_title(words(positions.label(shown(spec)).replace("+", " + ")), loc="left")
        grid[0, 1].set_title(words(f"at {FACTOR}x the train length"), loc="left", weight="normal")
        for axes in grid[-1]:
            axes.set_xlabel("distance to the key")
        canvas.supylabel("logit, less that of the token itself", fontsize=8)
        file.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    return file


def paint(axes, found: Curve, train_length: int) -> None:
    """The lines of all heads; one if they agree."""
    seen = np.maximum(found.logits, FLOOR)  # a weight of 0 is drawn at the floor
    alike = np.allclose(seen, seen[:1], equal_nan=True)
    for head, line in enumerate(seen[:1] if alike else seen):
        axes.plot(found.distances[1:], line[1:], lw=1.1,
                  color=COLOURS[head % len(COLOURS)])
    if not np.nanmax(np.abs(seen), initial=0.0) > 1e-6:  # flat: not rounding, magnified
        axes.set_ylim(-1, 1)
    axes.set_xscale("log")
    axes.set_xlim(1, found.length)
    if found.length > train_length:
        axes.axvline(train_length, color=GREY, lw=0.7, ls=":")
    if np.isnan(seen).all():
        axes.text(0.5, 0.5, words(found.note, 38, most=400), transform=axes.transAxes, ha="center",
                  va="center", fontsize=6.5, color=GREY)
