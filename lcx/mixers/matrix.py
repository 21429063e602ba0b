"""The grid of every scheme with every mixer: native, partial, refused or unimplemented.

Each scheme is traced once per mixer by shape alone and bound against the mixer's `supports` table;
no cell is built or compiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lcx import lookup, mixers, positions

_WORST = ("refused", "unimplemented", "partial", "native")  # a cell is its worst lane


def cells(schemes: Sequence[str] | None = None, of_mixers: Sequence[str] | None = None, *,
          width: int = 64, train_length: int = 64) -> list[dict[str, Any]]:
    """One record per cell, of some schemes and mixers or of all: position, mixer, status, forms,
    missing, code, reason, notes."""
    return [cell(position, mixer, width=width, train_length=train_length)
            for position in schemes or lookup.names(positions.PACKAGE)
            for mixer in of_mixers or lookup.names(mixers.PACKAGE)]


def counts(grid: list[dict[str, Any]]) -> dict[str, int]:
    """How many cells of each status."""
    found = Counter(cell["status"] for cell in grid)
    return {status: found[status] for status in ("native", "partial", "refused", "unimplemented")}


def cell(position: Any, mixer: Any, *, width: int = 64, train_length: int = 64) -> dict[str, Any]:
    """How a mixer takes a scheme (specs as in a config); a fault of theirs says which they are."""
    try:
        return _cell(position, mixer, width, train_length)
    except Exception as error:
        error.add_note(f"(scheme '{positions.label(position)}' on mixer "
                       f"'{positions.label(mixer)}')")
        raise


def _cell(position: Any, mixer: Any, width: int, train_length: int) -> dict[str, Any]:
    module = mixers.make(mixer, position=position, width=width, train_length=train_length,
                         parent=None)
    scheme = positions.make(position, module.site(), parent=None)
    lanes = mixers.lane_shapes(scheme, width)
    found = [(type(value).__name__, module.support(value, lanes))
             for value in lanes.values()]
    status = min((support.status for _, support in found), key=_WORST.index, default="native")
    forms = [form for form in module.forms if all(form in s.forms for _, s in found)]
    worst = [(lane, s) for lane, s in found if s.status == status]
    missing = {form: f"{lane}: {reason}" for lane, s in found for form, reason in s.missing.items()}
    notes = [f"{lane}: {s.code} {s.reason}" for lane, s in found if s.forms and s.code]
    blocked = status in ("refused", "unimplemented")
    return {
        "position": positions.label(position),
        "mixer": lookup.file_name(type(module)),
        "status": status,
        "forms": [] if blocked else forms,
        "missing": missing if status == "partial" else {},
        "code": worst[0][1].code if status == "refused" else None,
        "reason": f"{worst[0][0]}: {worst[0][1].reason}" if blocked and worst else "",
        "notes": [] if blocked else notes,
    }
