"""The gallery: a page with a picture of every scheme and a table of what each one is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lcx import lookup, positions
from lcx.positions import listing
from lcx.study import distances

CLASSES = {  # of DESIGN and docs/design.md, in the order of the page
    "ID": "No term of their own inside a layer: input embeddings, maps of the ids, temperatures",
    "GRP": "Group actions: queries and keys turn, and only the difference of the ids counts",
    "PW": "Piecewise: one map of the ids near, another one far",
    "PATH": "Path products: one map per token between the key and the query",
    "SEP": "Separable biases: a sum over the tokens in between",
    "EVC": "Biases that are constant from some distance on",
    "TOEP": "Static biases of the distance",
    "ROW": "Static biases of the distance and the query's place",
    "FIN": "Feature maps of finite rank",
    "PAIR": "Functions of the contents of a pair",
}
COMMAND = "lcx positions --gallery docs"


def write(folder: Path, names: Sequence[str] | None = None, train_length: int = 128) -> Path:
    """Draw every scheme (or some) below `folder`/figures/positions, and write positions.md."""
    records = [listing.record(name) for name in names or lookup.names(positions.PACKAGE)]
    for record in records:
        file = folder / "figures" / "positions" / f"{record['name']}.svg"
        distances.draw([record["name"]], file, train_length)
    page = folder / "positions.md"
    page.write_text(text(records, train_length), encoding="utf-8")
    return page


def text(records: Sequence[dict], train_length: int) -> str:
    """The page in Markdown."""
    kinds = [*CLASSES, *sorted({record["class"] for record in records} - set(CLASSES))]
    groups = [(kind, [r for r in records if r["class"] == kind]) for kind in kinds]
    lines = [
        "# Every positional scheme", "",
        f"Made by `{COMMAND}`; `lcx positions rope yarn alibi --plot` draws a choice of them, "
        "`docs/design.md` says what the classes and lanes mean.", "",
        f"Each picture shows the logits of the last token over the distance to the key, less its "
        f"own, for a query, a key and an input that are the same everywhere, so that all that is "
        f"left is position. Left at the train length ({train_length}; maps of the ids as in "
        f"training), right at {distances.FACTOR} times that, with the train length dotted. One "
        f"line per head where the {distances.HEADS} heads differ. Parameters are as they start: "
        "a scheme that starts as no position is flat, and one that reads the content sees only a "
        "constant. What does nothing alone stands over another scheme, which the title names. "
        "Schemes of several id axes see text.", "",
        "| scheme | class | lanes | paper |", "|---|---|---|---|"]
    for _, members in groups:
        lines += [f"| [{r['name']}](#{r['name']}) | {r['class']} | "
                  f"{', '.join(r['lanes']) or 'none'} | {linked(r['paper'])} |" for r in members]
    for kind, members in groups:
        if members:
            lines += ["", f"## {kind}: {CLASSES.get(kind, 'other')}"]
        for record in members:
            lines += ["", f"### {record['name']}", "", record["summary"], "",
                      f"![{record['name']}](figures/positions/{record['name']}.svg)"]
    return "\n".join(lines) + "\n"


def linked(paper: str) -> str:
    """A paper as a link."""
    if paper.startswith("arXiv:"):
        return f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})"
    return f"[{paper.split('//')[1]}]({paper})" if paper.startswith("http") else paper
