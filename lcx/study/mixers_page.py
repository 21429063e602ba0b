"""The page of all mixers: what each one computes, its paper, forms, state and cost."""

from __future__ import annotations

import csv
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lcx import lookup, mixers
from lcx.mixers import matrix
from lcx.study.gallery import linked
from lcx.study.grid import FIRST

WIDTH, LENGTHS = 128, (1024, 65536)  # of the layer whose state is counted
COMMAND, COSTS = "lcx mixers --page docs", "mixers_cost.csv"
COST_COMMAND = "python bench/mixers_cost.py"
PICTURE = ("lcx matrix --html matrix.html && chromium --headless --hide-scrollbars "
           "--window-size=1680,2500 --screenshot=docs/figures/matrix.png matrix.html")
FAMILIES = {
    "softmax": "a softmax (or another function) of the logits of each pair of tokens",
    "linear": "a memory S = decay S + k v^T, read by q: a scalar decay per head",
    "vector": "the same with a decay per channel of the key",
    "kernel": "the same behind a feature map that takes every transport inside its kernel",
    "delta": "the same with an erase: S = (I - beta k k^T) decay S + beta k v^T",
    "diagonal": "a gate per channel: h = a h + b, run as an associative scan",
    "lti": "a fixed filter: a convolution, and a diagonal state in a stream",
    "nonlinear": "a recurrence through a non-linearity, token by token",
    "selected": "softmax over the keys that the content of blocks selects",
}


def record(name: str) -> dict[str, Any]:
    """One mixer: name, family, summary, paper, forms, and the state of a layer of WIDTH channels
    after each of LENGTHS tokens (numbers per row, under no scheme)."""
    cls = lookup.find(mixers.PACKAGE, name)
    sizes = [mixers.make(name, position="no_pe", width=WIDTH, train_length=LENGTHS[0],
                         parent=None).state_size(length) for length in LENGTHS]
    return {"name": name, "family": cls.family, "summary": summary(cls), "paper": cls.paper,
            "forms": list(cls.forms), "state": sizes}


def summary(cls: type) -> str:
    """The docstring's first paragraph; where that only names the layer, one sentence more."""
    first, *rest = inspect.cleandoc(cls.__doc__ or "").split("\n\n")
    text = re.sub(r"\s*\[B,T,D\] -> \[B,T,D\]\.?", "", _one_line(first))
    if text.endswith(":") or text != _one_line(first):
        text = text.rstrip(":.") + ": " + _sentence(_one_line(rest[0] if rest else ""))
    return re.sub(r"\s*\((?:[^()]*, )?arXiv:[^()]*\)", "", text)


def names_in_order() -> list[str]:
    """All mixers, by family."""
    family = lambda name: lookup.find(mixers.PACKAGE, name).family
    kinds = [*FAMILIES, *FIRST]
    place = lambda name: kinds.index(family(name)) if family(name) in kinds else len(kinds)
    return sorted(lookup.names(mixers.PACKAGE), key=lambda name: (place(name), family(name), name))


def text(records: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any]],
         costs: Sequence[Mapping[str, str]] = ()) -> str:
    """The page in Markdown; cells: the grid, as `matrix.cells` gives it."""
    lines = [
        "# Every sequence mixer", "",
        f"Made by `{COMMAND}`, from the code. `lcx mixers --json` gives the same as data; "
        "`docs/design.md` says what families and forms are, and [running.md](running.md) how a "
        "`pattern` makes hybrids of them (`configs/hybrids.py` holds those of published models).",
        "", f"The state is what a stream of one row keeps in a layer of {WIDTH} channels, in "
        "numbers: one figure where it is the same after any length, else after "
        + " and ".join(f"{length:,}" for length in LENGTHS) + " tokens.", ""]
    families = list(dict.fromkeys(r["family"] for r in records))
    lines += [f"- **{family}**: {FAMILIES[family]}." for family in families if family in FAMILIES]
    lines += ["", "| mixer | family | what it computes | paper | state | forms |",
              "|---|---|---|---|---|---|"]
    for r in records:
        lines.append(f"| `{r['name']}` | {r['family']} | {_cell(r['summary'])} | "
                     f"{linked(r['paper'])} | {_state(r['state'])} | {', '.join(r['forms'])} |")
    lines += ["", "## Which scheme on which mixer", "",
              _counted(cells), "",
              "![the grid of schemes and mixers](figures/matrix.png)", "",
              f"`{PICTURE}` draws it; the page says the reason for each cell on hover."]
    return "\n".join([*lines, *_costs(costs)]) + "\n"


def write(folder: Path) -> Path:
    """Write `folder`/mixers.md, with the costs that the bench left beside it."""
    file, costs = folder / COSTS, []
    if file.is_file():
        with file.open() as lines:
            costs = list(csv.DictReader(lines))
    page = folder / "mixers.md"
    page.write_text(text([record(name) for name in names_in_order()], matrix.cells(), costs),
                    encoding="utf-8")
    return page


def _counted(cells: Sequence[Mapping[str, Any]]) -> str:
    """How many cells the grid has of each status, and which of them wait."""
    found = matrix.counts(cells)
    waiting = [f"`{cell['position']}` on `{cell['mixer']}`" for cell in cells
               if cell["status"] == "unimplemented"]
    schemes, kinds = ({cell[key] for cell in cells} for key in ("position", "mixer"))
    return (f"{len(schemes)} schemes with {len(kinds)} mixers make {len(cells):,} cells: "
            f"{found['native']:,} native, {found['partial']:,} partial (some form is missing, and "
            f"says why), {found['refused']:,} refused by the algebra, {found['unimplemented']:,} "
            "unimplemented" + (f" ({', '.join(waiting)})." if waiting else "."))


def _costs(costs: Sequence[Mapping[str, str]]) -> list[str]:
    """The table of costs: a row per mixer, a group of columns per length."""
    if not costs:
        return []
    lengths = sorted({int(c["length"]) for c in costs})
    by = {(c["mixer"], int(c["length"])): c for c in costs}
    head = [f"{what} at {length // 1024}k" for what in ("kFLOPs/token", "MiB")
            for length in lengths]
    lines = [
        "", "## What it costs", "",
        f"Made by `{COST_COMMAND}`, on a CPU and without running anything: the forward pass of one "
        f"layer of {costs[0]['width']} channels on one row in float32, without a scheme, in the "
        "chunked form where there is one. FLOPs are those of the matrix products, counted through "
        "loops (element-wise work, which is all of a diagonal recurrence, is left out); MiB is the "
        "temporary memory that XLA plans. FLOPs per token that do not grow are a cost linear in "
        "the length; memory that grows no faster than the length is that of the activations. A "
        "window reads its own keys alone (`streaming_attention` as it is has one as long as the "
        "text); the sparse patterns of attention and the choices of `moba` and `nsa` are masks: "
        "what they leave out is computed all the same.", "",
        "| mixer | form | " + " | ".join(head) + " |", "|---|---|" + "---:|" * len(head)]
    for mixer in dict.fromkeys(c["mixer"] for c in costs):
        found = [by.get((mixer, length)) for length in lengths]
        form = next(c["form"] for c in found if c)
        flops = [f"{float(c['flops']) / int(c['length']) / 1e3:,.0f}" if c and c["flops"] else "-"
                 for c in found]
        memory = [f"{float(c['temporary_bytes']) / 2**20:,.1f}"
                  if c and c["temporary_bytes"] else "-" for c in found]
        lines.append(f"| `{mixer}` | {form} | " + " | ".join([*flops, *memory]) + " |")
    return lines


def _state(sizes: Sequence[int]) -> str:
    return " / ".join(f"{size:,}" for size in dict.fromkeys(sizes))


def _sentence(text: str) -> str:
    """Up to the first semicolon or full stop; the dot of a product ("C . h") stands apart."""
    return re.split(r"(?<=[^\s.])(?:\.\s|;\s)", text)[0].rstrip(".") + "."


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    """Text that Markdown leaves as it is inside a table."""
    for sign in "|*_^<~":
        text = text.replace(sign, "\\" + sign)
    return text
