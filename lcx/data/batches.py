"""Training batches: a global shuffle by seed, epochs, rows shared out over processes.

grain shuffles (large sets; NumPy permutes small ones), repeats and batches *row numbers*, which are
random access; the rows themselves are cut from the token files afterwards. The state is one
integer, the number of batches taken, whatever the number of processes: step s is the same global
batch on 1 host and on 8. (grain's stateful packing is avoided: its ConcatThenSplit loses a document
on resume, and the order of several workers differs from that of one.)
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from lcx.data.moving import gather, moved
from lcx.data.packings import Plan
from lcx.data.tokens import Tokens
from lcx.errors import ConfigError, DataError
from lcx.positions import DataTransform

Batch = dict[str, np.ndarray]
MAX_ROWS = 2**32 - 1  # grain's index shuffle is 32 bits wide
SMALL = 4096  # rows up to which NumPy shuffles: grain needs 40 ms an element at 2 rows, 1 at 100


@dataclass(frozen=True)
class Cutter:
    """Cuts rows [B] of a plan out of the token files -> batch of arrays [B,T]."""

    tokens: Tokens
    plan: Plan
    train_length: int
    segments: bool
    transform: DataTransform | None = None

    def __call__(self, rows: np.ndarray, draws: list[np.random.Generator]) -> Batch:
        """Row numbers [B] -> inputs, targets, weights, ids, document and, if asked, segment; under
        a transform, which draws from `draws` [B], moved as well."""
        shape = (len(rows), self.train_length)
        inputs, targets = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        weights, ids = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        document, segment = np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
        offsets, new_ids = self.tokens.offsets, np.zeros(shape, np.float32)
        for r, row in enumerate(rows.tolist()):
            at = count = 0
            for start, length in self.plan.spans(row):
                here = np.s_[r, at:at + length]
                places = np.arange(start, start + length + 1)
                if self.transform is not None:
                    places, new_ids[here] = moved(self.transform, offsets, start, length,
                                                  self.segments, draws[r])
                run = gather(self.tokens.ids, places)
                owner = np.searchsorted(offsets, places, "right") - 1
                inputs[here], targets[here] = run[:-1], run[1:]
                weights[here] = owner[1:] == owner[:-1]  # a target in the next document is not one
                document[here] = owner[:-1]
                place = np.arange(length)
                if self.segments:
                    # Documents may be empty, so count changes rather than subtract their numbers.
                    change = np.diff(owner[:-1], prepend=owner[0]) != 0
                    segment[here] = count + 1 + np.cumsum(change)
                    place = place - np.maximum.accumulate(np.where(change, place, 0))
                    count = segment[r, at + length - 1]
                ids[here] = place
                at += length
        batch = {"inputs": inputs, "targets": targets, "weights": weights, "ids": ids[..., None],
                 "document": document}
        if self.transform is not None:
            batch["moved"] = new_ids
        return batch | {"segment": segment} if self.segments else batch


class Batches(Iterator[Batch]):
    """An endless (or `epochs` long) iterator of this process's share of every global batch.

    `get_state()` is {"step": batches taken, "data": fingerprint}, small and JSON-able;
    `set_state()` continues bit for bit, and refuses the state of other data with a DataError.
    former: the fingerprint under which older checkpoints know the same data.
    """

    def __init__(self, cutter: Cutter, *, batch_size: int, seed: int, fingerprint: str,
                 former: str | None = None, epochs: int | None = None, process_index: int = 0,
                 process_count: int = 1):
        share = share_of(batch_size, process_index, process_count)
        rows = len(cutter.plan)
        if rows > MAX_ROWS:
            raise DataError(f"{rows} rows are more than the shuffle can index; raise train_length")
        if epochs is not None and epochs * rows < batch_size:
            raise DataError(f"{epochs} epoch(s) of {rows} rows do not fill one batch of "
                            f"{batch_size}; lower batch_size, add text or leave epochs=None")
        self._fingerprint, self._former = fingerprint, former
        self._order = _shuffled(rows, seed, epochs).batch(batch_size, drop_remainder=True)

        def rows_of(step: int, whole: np.ndarray) -> Batch:  # its draws are its own, whoever asks
            slots = range(share.start, share.stop)
            draws = [np.random.default_rng([seed, int(step), slot]) for slot in slots]
            return cutter(whole[share], draws)

        cut = self._order.map_with_index(rows_of)
        self._iterator = iter(cut.to_iter_dataset(
            grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    @property
    def step(self) -> int:
        """The number of batches taken so far."""
        return int(self._iterator.get_state()["next_index"])

    def rows(self, step: int) -> list[int]:
        """Row numbers of the global batch at a step: what to look at when a step went wrong."""
        return [int(r) for r in self._order[step]]

    def get_state(self) -> dict[str, Any]:
        """One integer, and the fingerprint of the data that it counts in."""
        return {"step": self.step, "data": self._fingerprint}

    def knows(self, state: Mapping[str, Any] | None) -> bool:
        """Whether a state counts in the data of this iterator."""
        named = (state or {}).get("data")
        return named is not None and named in (self._fingerprint, self._former)

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state, also one saved on another number of processes."""
        if not self.knows(state):
            raise DataError(
                f"this iterator state belongs to other data ({state.get('data')}, here "
                f"{self._fingerprint}): the corpus (of stdlib: the Python that runs), tokenizer, "
                "split, packing, length, batch size or seed changed, or an earlier version of lcx "
                "shuffled it; restore them, or start a new run: another --config.runtime.out or "
                "name")
        step = state.get("step")
        if not isinstance(step, int) or not 0 <= step <= len(self._order):
            raise DataError(f"iterator state {step} is not a step of 0..{len(self._order)}; "
                            "the saved state is damaged")
        self._iterator.set_state({"next_index": step})


def share_of(batch_size: int, process_index: int, process_count: int) -> slice:
    """The rows of a global batch that belong to one process. Raises ConfigError if uneven."""
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(f"batch_size={batch_size} (global) must be a positive multiple of the "
                          f"{process_count} processes")
    if not 0 <= process_index < process_count:
        raise ConfigError(f"process_index={process_index} is not one of {process_count} processes")
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)


def shuffle_of(rows: int) -> list[str]:
    """How so many rows are shuffled, for a fingerprint: nothing where it is by grain."""
    return ["permuted"] if rows <= SMALL else []


def _shuffled(rows: int, seed: int, epochs: int | None) -> grain.MapDataset:
    """Row numbers, each epoch in an order of its own."""
    whole = grain.MapDataset.range(rows)
    if rows > SMALL:
        return whole.shuffle(seed=_spread_seed(seed)).repeat(epochs)

    @functools.lru_cache(maxsize=8)
    def order(epoch: int) -> list[int]:
        # Raw bits, and not Generator.permutation: its numbers may change from NumPy to NumPy.
        bits = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(epoch,)))
        return np.argsort(bits.random_raw(rows), kind="stable").tolist()

    return whole.repeat(epochs).map_with_index(lambda at, row: order(at // rows)[row])


def _spread_seed(seed: int) -> int:
    # grain adds the epoch to the seed: without this, seed 0's second epoch is seed 1's first.
    return int(np.random.SeedSequence(seed).generate_state(1)[0])
