"""A run stops on a loss, gradient or parameter that is not finite, and says how to reproduce it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WATCHED = ("loss", "grad_norm", "param_norm")


class NonFinite(RuntimeError):
    """Training has met NaN or inf; the message names the file that says which batch it was."""


def check(row: Mapping[str, Any], seed: int, documents: list[int], run_dir: Path) -> None:
    """Raise NonFinite, having written `nonfinite.json`, unless the watched scalars are finite.

    documents: indices of the batch's documents.
    """
    bad = [name for name in WATCHED if not math.isfinite(row[name])]
    if not bad:
        return
    report = run_dir / "nonfinite.json"
    facts = {name: value if isinstance(value, int | str) or math.isfinite(value) else str(value)
             for name, value in row.items() if name != "time"}
    report.write_text(json.dumps({**facts, "seed": seed, "documents": documents}, indent=1) + "\n")
    raise NonFinite(
        f"step {row['step']}: {', '.join(f'{n} is {row[n]}' for n in bad)}. Nothing of it was "
        f"saved; batch {row['batch']} (seed {seed}, {len(documents)} documents) is described in "
        f"{report}. Lower the learning rate, or look at that batch"
    )
