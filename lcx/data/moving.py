"""Which tokens a training row holds where a scheme moves the text (PoSE, CREAM), and their ids."""

from __future__ import annotations

import numpy as np

from lcx.data.tokens import IdFile
from lcx.errors import DataError
from lcx.positions import DataTransform


def moved(transform: DataTransform, offsets: np.ndarray, start: int, length: int,
          by_document: bool, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Places in the token file [length + 1] of a run's inputs and of the target of the last one,
    and the ids [length] of the inputs.

    The run's inputs began as [start, start + length). by_document: each document in it is moved
    for itself, and stays in its own text; else the run is one text, up to the end of the document
    that it ends in.
    """
    owner = np.searchsorted(offsets, np.arange(start, start + length), "right") - 1
    inner = np.flatnonzero(np.diff(owner)) + 1 if by_document else []
    places, ids = [], []
    for first, last in zip([0, *inner], [*inner, length]):
        here, count = start + first, last - first
        # the last token of a document has no target, so it is no input where one can choose
        available = max(count, int(offsets[owner[last - 1] + 1]) - here - 1)
        source, place = transform(draw, count, available)
        if len(source) != count or source.min() < 0 or source.max() >= available:
            raise DataError(f"{transform} took tokens {source.min()} to {source.max()} of a text of"
                            f" {available}, {len(source)} instead of {count}; mend the scheme")
        places.append(here + source)
        ids.append(place)
    places = np.concatenate(places)
    return np.append(places, places[-1] + 1), np.concatenate(ids)


def gather(ids: IdFile, places: np.ndarray) -> np.ndarray:
    """Tokens at places [n] of a file, read run by run."""
    cuts = np.flatnonzero(np.diff(places) != 1) + 1
    return np.concatenate([ids[run[0]:run[-1] + 1] for run in np.split(places, cuts)])
