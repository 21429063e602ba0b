"""The grid of schemes and mixers, drawn: as text for a terminal, and as one HTML page."""

from __future__ import annotations

import dataclasses
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lcx import lookup
from lcx.study.gallery import CLASSES
from lcx.study.markup import escape

SIGNS = {"native": "+", "partial": "o", "refused": "-", "unimplemented": "?"}
WORDS = {
    "native": "in every form the mixer has (notes on hover)",
    "partial": "in some forms; on hover which are missing, and why",
    "refused": "the mixer's algebra gives it no meaning; on hover the reason",
    "unimplemented": "has a meaning, but no code yet",
}
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .3rem; } p { margin: .3rem 0; max-width: 60rem; }
.key span { display: inline-block; margin-right: 1.2rem; }
.key b { display: inline-block; min-width: 1.3rem; text-align: center; border-radius: 3px; }
.wide { overflow: auto; max-height: 85vh; width: fit-content; max-width: 100%;
  border: 1px solid #ccc; margin-top: .6rem; }
table { border-collapse: separate; border-spacing: 1px; font-size: .8rem; }
thead th { position: sticky; top: 0; background: #fff; z-index: 2; vertical-align: bottom; }
thead th > span { writing-mode: vertical-rl; transform: rotate(180deg); font-weight: 500;
  padding: .2rem 0; }
thead tr.family th { height: 1.4rem; font-weight: 600; border-bottom: 2px solid #777;
  text-align: left; overflow: hidden; max-width: 1rem; white-space: nowrap; position: static; }
tbody th { position: sticky; left: 0; background: #fff; text-align: left; font-weight: 400;
  padding: 0 .5rem; white-space: nowrap; z-index: 1; }
tr.class th { font-weight: 700; } tr.class td { border-top: 2px solid #555; font-weight: 600; }
td { min-width: 1.35rem; height: 1.25rem; text-align: center; cursor: default; }
.first { border-left: 3px solid #fff; }
.native { background: #8fd3bd; } .partial { background: #f5cf7a; }
.refused { background: #d9d9d9; color: #666; } .unimplemented { background: #e8926b; }
#brief:checked ~ .wide tr.scheme { display: none; }
td:hover { outline: 2px solid #000; }
"""
COLOURS = {"native": "#8fd3bd", "partial": "#f5cf7a", "refused": "#d9d9d9",
           "unimplemented": "#e8926b"}
FIRST, OTHER = ("softmax", "linear", "delta", "diagonal", "nonlinear"), "other"
Cell = Mapping[str, Any]  # as `lcx.mixers.matrix.cell` gives it


@dataclasses.dataclass(frozen=True)
class Grid:
    """Cells in the order of a page: classes of schemes down, families of mixers across."""

    cells: Mapping[tuple[str, str], Cell]
    classes: Mapping[str, Sequence[str]]  # class -> its schemes
    families: Mapping[str, Sequence[str]]  # family -> its mixers

    @property
    def mixers(self) -> list[str]:
        return [mixer for members in self.families.values() for mixer in members]

    def counts(self) -> Counter:
        """How many cells of each status."""
        return Counter(cell["status"] for cell in self.cells.values())

    def of_class(self, kind: str, mixer: str) -> Counter:
        """How many schemes of a class a mixer takes with which status."""
        return Counter(self.cells[scheme, mixer]["status"] for scheme in self.classes[kind]
                       if (scheme, mixer) in self.cells)


def arrange(cells: Sequence[Cell]) -> Grid:
    """A grid of cells: classes as in the gallery, the families of FIRST and then by size.

    Mixers that are alone in their family stand together as "other".
    """
    schemes = list(dict.fromkeys(cell["position"] for cell in cells))
    mixers = list(dict.fromkeys(cell["mixer"] for cell in cells))
    kind = lambda name: lookup.find("lcx.positions", name).structure
    own = lambda name: lookup.find("lcx.mixers", name).family
    sizes = Counter(own(name) for name in lookup.names("lcx.mixers"))
    family = lambda name: own(name) if sizes[own(name)] > 1 else OTHER
    kinds = [*CLASSES, *sorted({kind(name) for name in schemes} - set(CLASSES))]
    classes = {k: [name for name in schemes if kind(name) == k] for k in kinds}
    place = lambda f: (f == OTHER, FIRST.index(f) if f in FIRST else len(FIRST), -sizes[f], f)
    order = sorted({family(name) for name in mixers}, key=place)
    families = {f: [name for name in mixers if family(name) == f] for f in order}
    return Grid({(cell["position"], cell["mixer"]): cell for cell in cells},
                {k: names for k, names in classes.items() if names}, families)


def by_class(grid: Grid) -> str:
    """Mixers down, classes of schemes across; a cell shows how many schemes have which status."""
    kinds = list(grid.classes)
    rows = [["", *(f"{kind} {len(grid.classes[kind])}" for kind in kinds)]]
    for family, members in grid.families.items():
        for mixer in members:
            rows.append([f"{family}: {mixer}" if mixer == members[0] else
                         " " * (len(family) + 2) + mixer,
                         *(_signs(grid.of_class(kind, mixer)) for kind in kinds)])
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip()
                     for row in rows)


def members(grid: Grid, width: int = 100) -> str:
    """The schemes of each class by name, for `by_class` counts them."""
    start = max(map(len, grid.classes), default=0) + 2
    return "\n".join(textwrap.fill(", ".join(names), width, initial_indent=kind.ljust(start),
                                    subsequent_indent=" " * start)
                     for kind, names in grid.classes.items())


def by_scheme(grid: Grid) -> str:
    """Schemes down, mixers across as one sign each, their names written downwards."""
    groups = list(grid.families.values())
    names = " ".join("".join("\0" for _ in members) for members in groups)
    width = max((len(name) for members in grid.classes.values() for name in members), default=0)
    tall, lines = max(map(len, grid.mixers), default=0), []
    for row in range(tall):
        letters = iter(name.rjust(tall)[row] for name in grid.mixers)
        lines.append(" " * (width + 2) + "".join(
            next(letters) if sign == "\0" else sign for sign in names))
    for kind, schemes in grid.classes.items():
        lines.append(f"{kind}: {CLASSES.get(kind, 'other')}")
        for scheme in schemes:
            signs = " ".join("".join(
                SIGNS[grid.cells[scheme, mixer]["status"]] if (scheme, mixer) in grid.cells
                else " " for mixer in members) for members in groups)
            lines.append(f"{scheme.ljust(width)}  {signs}")
    return "\n".join(line.rstrip() for line in lines)


def told(cell: Cell) -> str:
    """A cell in words: status, forms, and the reason of all that is missing."""
    code = f" ({cell['code']})" if cell.get("code") else ""
    parts = [f"{cell['position']} on {cell['mixer']}: {cell['status']}{code}"]
    parts += [cell["reason"]] if cell.get("reason") else []
    parts += [f"forms: {', '.join(cell['forms'])}"] if cell.get("forms") else []
    parts += [f"no {form} form: {why}" for form, why in (cell.get("missing") or {}).items()]
    parts += [f"note: {note}" for note in cell.get("notes") or ()]
    return "\n".join(parts)


def html(grid: Grid, version: str) -> str:
    """The page: counts, a key, and the table; it needs nothing but itself."""
    counts = grid.counts()
    key = "".join(f'<span><b class="{s}">{SIGNS[s]}</b> {counts[s]:,} {s}: {WORDS[s]}</span>'
                  for s in SIGNS)
    head = "".join(f'<th colspan="{len(members)}" class="first" title="family: {escape(family)}">'
                   f"{escape(family)}</th>" for family, members in grid.families.items())
    first = {members[0] for members in grid.families.values()}
    edge = lambda mixer: ' class="first"' if mixer in first else ""
    names = "".join(f"<th{edge(mixer)}><span>{escape(mixer)}</span></th>" for mixer in grid.mixers)
    lines = []
    for kind, schemes in grid.classes.items():
        lines.append(f'<tr class="class"><th title="{escape(CLASSES.get(kind, ""))}">'
                     f"{escape(kind)} ({len(schemes)})</th>" + "".join(
                         _summary(grid.of_class(kind, mixer), kind, mixer, edge(mixer))
                         for mixer in grid.mixers) + "</tr>")
        for scheme in schemes:
            lines.append(f'<tr class="scheme"><th>{escape(scheme)}</th>' + "".join(
                _cell(grid.cells.get((scheme, mixer)), mixer in first)
                for mixer in grid.mixers) + "</tr>")
    size = f"{sum(map(len, grid.classes.values()))} schemes by {len(grid.mixers)} mixers"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>lcx: {size}</title><style>{STYLE}</style></head>\n<body>\n"
        f"<h1>Which positional scheme goes with which mixer: {size}</h1>\n"
        f'<p class="key">{key}</p>\n<p>Hover a cell for the reason. A bold row sums up a class '
        "of schemes: the sign where all agree, else how many schemes are taken in full.</p>\n"
        '<input type="checkbox" id="brief"><label for="brief"> classes only</label>\n'
        f'<div class="wide"><table><thead><tr class="family"><th></th>{head}</tr>'
        f"<tr><th></th>{names}</tr></thead>\n<tbody>" + "\n".join(lines)
        + f"</tbody></table></div>\n<p>lcx matrix --html, code {escape(version)}</p>\n"
        "</body></html>\n")


def _signs(counts: Counter) -> str:
    """"+", or "12+ 2o" where schemes of a class differ."""
    found = [s for s in SIGNS if counts[s]]
    return SIGNS[found[0]] if len(found) == 1 else " ".join(
        f"{counts[s]}{SIGNS[s]}" for s in found)


def _cell(cell: Cell | None, first: bool) -> str:
    if cell is None:
        return "<td></td>"
    kind = cell["status"] + " first" * first
    sign = "" if cell["status"] == "native" else SIGNS[cell["status"]]
    return f'<td class="{kind}" title="{escape(told(cell))}">{sign}</td>'


def _summary(counts: Counter, kind: str, mixer: str, edge: str) -> str:
    """A class on a mixer: its statuses as bands, in proportion."""
    total, at, bands = sum(counts.values()) or 1, 0.0, []
    for status in SIGNS:
        if counts[status]:
            after = at + 100 * counts[status] / total
            bands.append(f"{COLOURS[status]} {at:.3g}% {after:.3g}%")
            at = after
    words = f"{kind} on {mixer}: " + ", ".join(f"{counts[s]} {s}" for s in SIGNS if counts[s])
    text = _signs(counts) if len(bands) == 1 else str(counts["native"])
    return (f'<td{edge} style="background: linear-gradient(to right, {", ".join(bands)})" '
            f'title="{escape(words)}">{text}</td>')
