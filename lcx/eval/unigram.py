"""The baseline that knows no context: add-one unigram frequencies of the training tokens."""

from __future__ import annotations

import numpy as np

from lcx.errors import DataError


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
