"""Windows of documents: which tokens a model is shown, and which of its predictions count."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from lcx.errors import DataError


class Document(Protocol):
    """One text: token ids [n], UTF-8 bytes of each token [n], and a name for messages."""

    name: str
    tokens: np.ndarray
    token_bytes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Prefix:
    """Foreign text over the first `length` tokens of each window: document [N], start [N]."""

    document: np.ndarray
    start: np.ndarray
    length: int


@dataclasses.dataclass(frozen=True)
class Windows:
    """N windows of `length` input tokens; window n shows document[n] from start[n] on.

    Prediction j of a window is the token after input j, so its context is j+1 tokens. Predictions
    first[n] <= j < stop[n] are scored, unless their target is a synthetic token (no bytes: an EOS
    that no author wrote). Inputs past the end of a document are padding, which is
    never scored (and which a causal model never sees before a scored token).
    document, start, first, stop: int [N]; told, int [N]: how many tokens window n holds, padding
    excluded, which a length-dependent scheme is told (default: `length` each).
    """

    document: np.ndarray
    start: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    length: int
    told: np.ndarray | None = None
    prefix: Prefix | None = None

    def __len__(self) -> int:
        return len(self.document)

    def lengths(self) -> np.ndarray:
        """`told`, or its default, int [N]."""
        return np.full(len(self), self.length) if self.told is None else self.told


@dataclasses.dataclass(frozen=True)
class Cut:
    """Arrays [n,T] of some windows; mask says what is scored, the last two describe the targets."""

    inputs: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    position: np.ndarray
    bytes: np.ndarray


def check(documents: Sequence[Document], windows: Windows) -> None:
    """Raise DataError unless every scored token lies inside its document and its window."""
    size = np.array([len(documents[d].tokens) for d in windows.document], np.int64)
    bad = ((windows.start < 0) | (windows.first < 0) | (windows.stop > windows.length)
           | (windows.first >= windows.stop) | (windows.start + windows.stop >= size))
    if windows.prefix is not None:
        foreign = np.array([len(documents[d].tokens) for d in windows.prefix.document], np.int64)
        bad |= (windows.prefix.start < 0) | (windows.first < windows.prefix.length)
        bad |= windows.prefix.start + windows.prefix.length > foreign
    if bad.any():
        n = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"window {n} would be truncated: predictions {windows.first[n]}..{windows.stop[n]} of "
            f"{windows.length} inputs from token {windows.start[n]} of "
            f"'{documents[windows.document[n]].name}', which has {size[n]} tokens")


def cut(documents: Sequence[Document], windows: Windows, rows: np.ndarray) -> Cut:
    """The arrays of windows `rows` [n]."""
    length = windows.length
    text = np.zeros((2, len(rows), length + 1), np.int32)
    for at, n in enumerate(rows):
        document, start = documents[windows.document[n]], windows.start[n]
        for field, of in zip(text, (document.tokens, document.token_bytes)):
            piece = of[start:start + length + 1]
            field[at, :len(piece)] = piece
    inputs, targets = text[0, :, :-1].copy(), text[0, :, 1:]
    prefix = windows.prefix
    if prefix is not None:  # targets inside the prefix are not scored, so they may stay
        for at, n in enumerate(rows):
            foreign = documents[prefix.document[n]].tokens
            start = prefix.start[n]
            inputs[at, :prefix.length] = foreign[start:start + prefix.length]
    step = np.arange(length)[None]
    mask = (windows.first[rows, None] <= step) & (step < windows.stop[rows, None])
    spans = text[1, :, 1:]
    return Cut(inputs, targets, mask & (spans > 0), windows.start[rows, None] + 1 + step, spans)


def batches(windows: Windows, batch: int, *,
            by_length: bool) -> Iterator[tuple[int, np.ndarray, int]]:
    """The length told, rows [batch] and how many of them are real, of each batch.

    by_length: the windows of a batch hold equally many tokens; else the longest is told, to a model
    that does not read it. A batch that is not full repeats its first row: all have one shape.
    """
    told = windows.lengths()
    if not by_length:
        told = np.full(len(windows), told.max(initial=0))
    for length in np.unique(told):
        members = np.flatnonzero(told == length)
        for at in range(0, len(members), batch):
            rows = members[at:at + batch]
            filled = np.concatenate([rows, np.full(batch - len(rows), rows[0])])
            yield int(length), filled, len(rows)
