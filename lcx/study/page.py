"""The report as one HTML file that needs nothing else: inline SVG, no scripts, no fonts."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcx.study import tables
from lcx.study.arms import Row, baseline, curves, inside, train_lengths
from lcx.study.figures import Figure

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto;
  max-width: 56rem; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
figure { margin: 1rem 0; } figure svg { width: 100%; max-width: 40rem; height: auto;
  display: block; }
figcaption, .small { font-size: .85rem; color: #555; }
.wide { overflow-x: auto; border: 1px solid #ddd; border-radius: 4px; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
thead th { border-bottom: 2px solid #888; } tbody tr:nth-child(even) td { background: #f6f6f6; }
code, pre { font-size: .85rem; } pre { white-space: pre-wrap; background: #f6f6f6;
  padding: .6rem; border-radius: 4px; }
.warn { border-left: 4px solid #D55E00; background: #fdf1ea; padding: .5rem .8rem; }
"""


def page(title: str, rows: Sequence[Row], figures: Sequence[Figure], *, stamp: str,
         command: str = "", warnings: Sequence[str] = (),
         members: Sequence[Mapping[str, Any]] = (),
         configs: Mapping[str, str] | None = None) -> str:
    """The HTML text. configs: the resolved config of each run, by run id."""
    parts = [f"<h1>{_e(title)}: train short, test long</h1>", f"<p>{_e(summary(rows))}</p>"]
    parts += [f'<p class="warn">{_e(text)}</p>' for text in warnings]
    parts += [_figure(figure) for figure in figures[:1]]
    parts += ["<h2>Bits per byte by context length</h2>", _table(tables.by_length(rows)),
              '<p class="small">* the train length. Rise: bits per byte at the longest context '
              "minus those at the last one whose scored block is still inside the train length. G: "
              "minus those with the train length as context, paired by token; verdict: tie where "
              "its 95% interval holds 0.</p>", _details("With 95% intervals",
                                                _table(tables.by_length(rows, True)))]
    parts += [_figure(figure) for figure in figures[1:]]
    if (reached := tables.lengths_reached(rows))[1]:
        parts += ["<h2>How far each model reaches</h2>", _table(reached),
                  '<p class="small">Stable: the longest context up to which the upper limit of G '
                  "stays within 0.02. Useful: the longest context that is still significantly "
                  "better than half of it.</p>"]
    parts += ["<h2>What each arm was given</h2>", _table(tables.fairness(rows)),
              '<p class="small">FLOPs per token: matrix products of the forward pass at the train '
              "length. State size: numbers a stream remembers after as many tokens.</p>"]
    parts += ["<h2>How this was made</h2>"]
    parts += [f"<pre>{_e(command)}</pre>"] if command else []
    parts += [f'<p class="small">{_e(stamp)}</p>', _method(rows)]
    if members:
        parts.append(_details(f"Runs ({len(members)})", _table(_members(members))))
    for run, text in sorted((configs or {}).items()):
        parts.append(_details(f"Config of {run}", f"<pre>{_e(text)}</pre>"))
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{_e(title)}: lcx report</title><style>{STYLE}</style></head>\n<body>\n"
            + "\n".join(parts) + "\n</body></html>\n")


def summary(rows: Sequence[Row]) -> str:
    """The answer in two sentences, from the rows alone."""
    bpb = curves(rows, "bpb")
    rises = {arm: tables.rise(points, rows) for arm, points in bpb.items()}
    longest = max((points[-1].length for points in bpb.values()), default=0)
    ranked = sorted((found, arm) for arm, found in rises.items()
                    if found is not None and bpb[arm][-1].length == longest)
    if not ranked:
        return "No length beyond the train length was measured yet."
    trained = ", ".join(str(length) for length in train_lengths(rows))
    told = []
    for (found, arm), word in zip((ranked[0], ranked[-1]), ("best", "worst")):
        value = bpb[arm][-1].estimate.value
        told.append(f"{arm.label()} holds up {word}, with {value:.2f} bits per byte "
                    f"({found:+.2f} against a context of "
                    f"{inside(bpb[arm], rows).length})")
    if len(ranked) == 1:
        told.pop()
    text = (f"Trained at length {trained} and tested with up to {longest} tokens of context. "
            f"At {longest}, {'; '.join(told)}.")
    if (row := baseline(rows)) is not None:
        text += f" A unigram model, which knows no context, scores {row['value']:.2f}."
    return text


def _figure(figure: Figure) -> str:
    links = ", ".join(f'<a href="{_e(path.parent.name)}/{_e(path.name)}">{path.suffix[1:]}</a>'
                      for path in figure.files)
    label = f'role="img" aria-label="{_e(figure.caption)}" '
    return (f"<figure>{figure.svg.replace('<svg ', '<svg ' + label, 1)}"
            f"<figcaption>{_e(figure.caption)} Files: {links}.</figcaption></figure>")


def _table(table: tables.Table) -> str:
    header, body = table
    head = "".join(f"<th>{_e(cell)}</th>" for cell in header)
    lines = "\n".join("<tr>" + "".join(f"<td>{_e(cell)}</td>" for cell in line) + "</tr>"
                      for line in body)
    return (f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{lines}</tbody>'
            "</table></div>")


def _method(rows: Sequence[Row]) -> str:
    """How the numbers were measured: the parameters that every row names."""
    shown: dict[str, list[str]] = {}
    for row in rows:
        if row["metric"] == "bpb" and row["value"] is not None:
            for key in ("block", "blocks", "targets", "split", "interval", "boundaries", "ids",
                        "bos", "resamples", "evaluation_seed", "chunk", "data"):
                value = json.dumps((row["extra"] or {}).get(key))
                if value not in shown.setdefault(key, []):
                    shown[key].append(value)
    lines = [[key, "; ".join(values)] for key, values in shown.items()]
    return _details("Method of evaluation", _table((["parameter", "value"], lines)))


def _members(members: Sequence[Mapping[str, Any]]) -> tables.Table:
    header = ["run", "position", "mixer", "seed", "label", "state", "error"]
    return header, [[str(member.get(key, "")) for key in header] for member in members]


def _details(title: str, body: str) -> str:
    return f"<details><summary>{_e(title)}</summary>\n{body}</details>"


def _e(text: Any) -> str:
    return html.escape(str(text))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
