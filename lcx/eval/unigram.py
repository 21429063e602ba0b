"""The baseline that knows no context: add-one unigram frequencies of the training tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lcx.errors import DataError
from lcx.eval.tally import Sums
from lcx.eval.targets import Targets
from lcx.eval.windows import Document


def count(tokens: np.ndarray, vocab_size: int) -> np.ndarray:
    """How often each id occurs in training tokens: [n] -> [V]. Raises DataError on a foreign id."""
    counts = np.bincount(np.asarray(tokens).ravel(), minlength=vocab_size)
    if len(counts) > vocab_size:
        raise DataError(f"token id {len(counts) - 1} is outside the vocabulary of {vocab_size}")
    return counts


def unigram_nll(counts: np.ndarray) -> np.ndarray:
    """NLL in nats of each id [V] under (count + 1) / (total + V)."""
    counts = np.asarray(counts, np.float64)
    return np.log(counts.sum() + len(counts)) - np.log(counts + 1.0)


def unigram_sums(documents: Sequence[Document], targets: Targets, counts: np.ndarray) -> Sums:
    """Sums per document over a ladder's target blocks, from counts [V]."""
    nll, sums = unigram_nll(counts), Sums.zeros(len(documents))
    for d, start in zip(targets.document, targets.start):
        block = slice(start, start + targets.block)
        tokens, spans = documents[d].tokens[block], documents[d].token_bytes[block]
        real = spans > 0  # as in a window: a synthetic token is not scored
        sums.add(np.full(real.sum(), d), nll[tokens[real]], spans[real])
    return sums
