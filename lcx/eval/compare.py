"""Two runs on the same targets: a paired difference, document by document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lcx.errors import ConfigError
from lcx.eval.statistics import Estimate, bootstrap
from lcx.eval.tally import LN2


def difference(row: Mapping[str, Any], reference: Mapping[str, Any], *,
               resamples: int = 10_000) -> Estimate:
    """bpb of `row` minus bpb of `reference`, with its paired interval over documents.

    Both are "bpb" rows of a ladder; at lengths up to the train length this is the short cost.
    Pairing is by target token, so the interval is many times narrower than the two rows' own.
    Raises ConfigError where a row has no value, or where the two scored other targets.
    """
    for one in (row, reference):
        if "nll_by_document" not in one["extra"]:
            raise ConfigError(f"the row of run {one['run']} ({one['metric']}, {one['method']}, "
                              f"length {one['length']}) has no sums per document to compare; "
                              "take 'bpb' rows of the method 'same_target' that have a value")
    ours, theirs = row["extra"], reference["extra"]
    if ours["targets"] != theirs["targets"]:
        raise ConfigError(f"runs {row['run']} and {reference['run']} were scored on different "
                          "targets; evaluate both on the same corpus with equal evaluation "
                          "settings (train length, max_factor, targets, seed)")
    nats = np.array(ours["nll_by_document"]) - np.array(theirs["nll_by_document"])
    return bootstrap(nats[:, None] / LN2, np.array(ours["bytes_by_document"])[:, None],
                     resamples=resamples)[0]
