"""Whole documents for evaluation: long enough, chosen by content, with the bytes of each token."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from lcx.data.tokens import Tokens
from lcx.errors import DataError


@dataclass(frozen=True)
class EvaluationDocument:
    """A tokenized document: tokens int32 [n], token_bytes int32 [n] (UTF-8 bytes of each)."""

    name: str
    index: int  # within its split, as `document` of a batch counts
    split: str
    tokens: np.ndarray
    token_bytes: np.ndarray


def evaluation_documents(tokens: Tokens, token_bytes: np.ndarray, split: str, min_tokens: int,
                         limit: int | None, seed: int) -> list[EvaluationDocument]:
    """Documents of a split with at least min_tokens tokens, in the split's order.

    With a limit, those whose tokens hash lowest under the seed: the same choice on every machine
    and under any name, and a document that joins the corpus displaces at most one. Raises DataError
    where none is so long.
    """
    lengths = tokens.lengths
    reach = np.flatnonzero(lengths >= max(min_tokens, 1)).tolist()
    if not reach:
        held = f"the longest has {lengths.max()}" if len(lengths) else "the split is empty"
        raise DataError(f"no document of the {split} split has {min_tokens} tokens ({held}); "
                        "lower the evaluation length, add longer documents or raise the share "
                        f"of '{split}' in the data config")
    if limit is not None:
        reach = sorted(sorted(reach, key=lambda d: _rank(_ids(tokens, d), seed))[:limit])
    return [_document(tokens, token_bytes, split, d) for d in reach]


def reach_table(lengths: np.ndarray) -> dict[int, int]:
    """How many documents have at least 1k, 2k, 4k, ... tokens: {1024: n, ...} while n > 0."""
    table, length = {}, 1024
    while count := int((lengths >= length).sum()):
        table[length] = count
        length *= 2
    return table


def unigram_bits_per_byte(train: Tokens, held: Tokens) -> float:
    """Bits per byte of held-out text under the training split's token frequencies (add-one).

    The number that a model which ignores its context can reach: above it nothing was learned.
    """
    if not held.num_bytes.sum():
        raise DataError("the split is empty, so there is no text to score a unigram baseline on")
    smoothed = train.counts + 1
    bits = -np.log2(smoothed / smoothed.sum())
    return math.fsum(held.counts * bits) / int(held.num_bytes.sum())


def _rank(ids: np.ndarray, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:".encode() + ids.astype("<i4").tobytes()).digest()


def _ids(tokens: Tokens, index: int) -> np.ndarray:
    return tokens.ids[tokens.offsets[index]:tokens.offsets[index + 1]].astype(np.int32)


def _document(tokens: Tokens, token_bytes, split: str, index: int) -> EvaluationDocument:
    ids = _ids(tokens, index)
    return EvaluationDocument(tokens.names[index], index, split, ids, token_bytes[ids])
