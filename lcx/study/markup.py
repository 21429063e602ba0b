"""The pieces of the page: style, the script that sorts, tables, figures and folded sections."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from lcx.labels import visible
from lcx.study.figures import Figure

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto;
  max-width: 66rem; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
nav { font-size: .85rem; } nav a { margin-right: .9rem; display: inline-block; }
a { color: #0072B2; } td a { color: inherit; text-decoration: underline dotted #999;
  text-underline-offset: 3px; } td a:hover { color: #0072B2; }
.figures { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit,
  minmax(min(100%, 28rem), 1fr)); align-items: start; }
figure { margin: 1rem 0; } .figures figure { margin: 0; }
figure svg { width: 100%; max-width: 44rem; height: auto; display: block; }
figcaption, .small { font-size: .85rem; color: #555; margin: .4rem 0 .8rem; }
.wide { overflow-x: auto; border: 1px solid #ddd; border-radius: 4px; max-width: 100%;
  width: fit-content; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; }
th { white-space: normal; }
th.stick, td.stick { position: sticky; left: 0; background: #fff; }
td.stick { white-space: normal; min-width: 12rem; overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
tbody tr:nth-child(even) td { background: #f6f6f6; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid #0072B2; }
th button::after { content: "\\00a0\\2195"; color: #999; }
th[aria-sort=ascending] button::after { content: "\\00a0\\2191"; color: #000; }
th[aria-sort=descending] button::after { content: "\\00a0\\2193"; color: #000; }
code, pre { font-size: .85rem; } pre { white-space: pre-wrap; background: #f6f6f6;
  padding: .6rem; border-radius: 4px; }
summary { cursor: pointer; padding: .2rem 0; } details { margin: .2rem 0; }
details details { margin-left: 1rem; }
:target > td, tr:target > td { background: #fff3c4 !important; }
.warn { border-left: 4px solid #D55E00; background: #fdf1ea; padding: .5rem .8rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem .8rem; font-size: .9rem; }
dt { font-weight: 600; } dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
@media (max-width: 30rem) { body { padding: .6rem; }
  th:not([aria-sort]) button::after { content: ""; } th, td { padding: .3rem .4rem; }
  td.stick { white-space: normal; min-width: 5.5rem; } dl { grid-template-columns: 1fr; }
  dd { margin: 0 0 .4rem; } }
@media print { .wide { overflow: visible; } th button::after { content: ""; } }
"""

# All of the page is there without it; it sorts tables and opens what a link leads to.
SCRIPT = """
document.querySelectorAll("table.sorts").forEach(table => {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent; head.textContent = ""; head.append(button);
    button.onclick = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const key = row => row.cells[column].dataset.key ?? row.cells[column].textContent;
      const order = (a, b) => {
        const x = key(a), y = key(b);
        if (x === "" || y === "") return (x === "") - (y === "");  // empty cells stay last
        const sign = up ? 1 : -1;
        return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
      };
      body.append(...[...body.rows].sort(order));
    };
  });
});
const reveal = () => {
  const at = location.hash && document.getElementById(location.hash.slice(1));
  for (let up = at; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
  if (at) at.scrollIntoView({block: "center"});
};
addEventListener("hashchange", reveal); reveal();
"""


def escape(text: Any) -> str:
    """Text for an element or an attribute: nothing in it is markup, or acts on what is around."""
    return html.escape(visible(text, keep="\n\t"))


def document(title: str, parts: Sequence[str]) -> str:
    """A whole HTML file that needs nothing else."""
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
            + "\n".join(parts) + f"\n<script>{SCRIPT}</script></body></html>\n")


def table(content: tuple[list[str], list[list[str]]], *, names: int = 1, ids: Sequence[str] = (),
          sorts: bool = True) -> str:
    """A table of plain strings and `Cell`s. names: leading columns of text; ids: of its rows."""
    header, body = content
    side = lambda column: (' class="text stick"' if column == names - 1 else ' class="text"'
                           if column < names else "")
    head = "".join(f'<th scope="col"{side(n)}>{escape(cell)}</th>' for n, cell in enumerate(header))
    lines = []
    for number, line in enumerate(body):
        own = f' id="{escape(ids[number])}"' if ids else ""
        lines.append(f"<tr{own}>" + "".join(_cell(cell, side(n)) for n, cell in enumerate(line))
                     + "</tr>")
    kind = ' class="sorts"' if sorts and len(body) > 1 else ""
    return (f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead>\n<tbody>'
            + "\n".join(lines) + "</tbody></table></div>")


def figure(drawn: Figure) -> str:
    """An inline SVG with its caption and its files."""
    links = ", ".join(f'<a href="{escape(path.parent.name)}/{escape(path.name)}">'
                      f"{path.suffix[1:].upper()}</a>" for path in drawn.files)
    label = f'role="img" aria-label="{escape(drawn.title)}" '
    # Each file names its parts for itself; on one page their names must differ.
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{drawn.name}-", drawn.svg)
    return (f'<figure id="figure-{escape(drawn.name)}">'
            f"{svg.replace('<svg ', '<svg ' + label, 1)}"
            f"<figcaption>{escape(drawn.caption)} Files: {links}.</figcaption></figure>")


def details(title: str, body: str, inner: str = "") -> str:
    """A folded section. inner: an id inside it, so that a link to it unfolds it."""
    body = f'<div id="{escape(inner)}">{body}</div>' if inner else body
    return f"<details><summary>{escape(title)}</summary>\n{body}</details>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """A list of names and values."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
                            for name, value in pairs) + "</dl>"


def small(text: str) -> str:
    return f'<p class="small">{escape(text)}</p>'


def _cell(cell: str, side: str) -> str:
    title = getattr(cell, "title", "") if hasattr(cell, "link") else ""  # str.title is a method
    hover = f' title="{escape(title)}"' if title else ""
    key = getattr(cell, "key", None)
    sort = "" if key is None else f' data-key="{key:.10g}"'
    link, text = getattr(cell, "link", ""), escape(cell)
    inside = f'<a href="#{escape(link)}"{hover}>{text}</a>' if link and text else text
    return f"<td{side}{sort}{'' if link else hover}>{inside}</td>"
