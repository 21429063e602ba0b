"""Sliding-window and non-overlapping perplexity, for comparison with published numbers only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lcx.errors import ConfigError, DataError
from lcx.eval.rows import check_fairness, row
from lcx.eval.scorer import stream
from lcx.eval.statistics import bootstrap
from lcx.eval.tally import Sums, exp
from lcx.eval.windows import Document, Windows


def slide(documents: Sequence[Document], *, window: int, stride: int) -> Windows:
    """Windows of `window` inputs, `stride` apart, that score every token but the first once.

    The first window of a document scores all its predictions, each later one its last `stride`.
    stride = window is the non-overlapping cut. A window that its document does not fill holds, and
    is told, the tokens that are there: a short text scores as it does alone, whatever the window.
    Raises DataError where no document has two tokens.
    """
    if not 1 <= stride <= window:
        raise ConfigError(f"stride={stride} must lie between 1 and window={window}: a larger one "
                          "would leave tokens out")
    cells = []
    for d, document in enumerate(documents):
        predictions = len(document.tokens) - 1
        start, done = 0, 0
        while done < predictions:
            stop = min(start + window, predictions)
            cells.append((d, start, done - start, stop - start))
            done, start = stop, start + stride
    if not cells:
        raise DataError("no document has two tokens, so there is nothing to predict")
    document, start, first, stop = np.array(cells, np.int64).T
    return Windows(document, start, first, stop, length=window, told=stop)


def perplexity(model: Any, variables: Any, documents: Sequence[Document], *, window: int,
               train_length: int, fairness: Mapping[str, Any], stride: int | None = None,
               batch_tokens: int = 16_384, chunk: int | None = None,
               resamples: int = 10_000) -> Iterator[dict[str, Any]]:
    """Rows of perplexity and bpb over whole documents, labelled with window and stride.

    With stride = window (the default) early tokens of every window see almost no context, so a
    longer window looks better without any skill: this never shows extrapolation.
    """
    check_fairness(fairness)
    stride = window if stride is None else stride
    windows = slide(documents, window=window, stride=stride)
    sums = Sums.zeros(len(documents))
    batch = max(1, min(batch_tokens // window, len(windows)))
    for table in stream(model, variables, documents, windows, batch=batch, chunk=chunk):
        sums.add(table.document, table.nll, table.bytes)
    sums = sums.of(np.flatnonzero(sums.tokens))
    status, found = "nan", (None, None)
    if np.isfinite(sums.nll).all():
        status, found = "ok", bootstrap(np.stack([sums.bits(), sums.nll], 1),
                                        np.stack([sums.bytes, sums.tokens], 1),
                                        resamples=resamples)
    method = f"non_overlapping(window={window})" if stride == window else (
        f"sliding(window={window},stride={stride})")
    for metric, estimate in (("bpb", found[0]), ("perplexity", found[1] and exp(found[1]))):
        yield row(fairness, train_length=train_length, length=window, metric=metric, method=method,
                  estimate=estimate, documents=len(sums.nll), tokens=sums.tokens.sum(),
                  extra=dict(status=status, window=window, stride=stride, batch=batch, chunk=chunk))
