"""Rows that a synthetic task makes as they are needed: nothing to prepare, nothing on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import grain
import numpy as np

from lcx import lookup
from lcx.data.batches import MAX_ROWS, Batch, Batches, share_of
from lcx.errors import ConfigError, DataError
from lcx.lookup import file_name
from lcx.positions import DataTransform

TRAIN, TEST = 0, 1  # first word of every draw's seed, so that no test row is a training row's twin


@dataclass(frozen=True)
class TaskData:
    """A synthetic task as a source of training batches and test rows; made by `lcx.data.load`.

    Batch s of a seed is a function of (task, seed, s) alone, on any number of processes.
    """

    settings: Any
    task: Any
    seed: int
    process_index: int
    process_count: int

    @property
    def name(self) -> str:
        return file_name(type(self.task))

    @property
    def vocab_size(self) -> int:
        return self.task.vocab_size

    @property
    def tokenizer(self) -> Numbers:
        """Reads and writes token ids as numbers."""
        return Numbers(self.vocab_size)

    @property
    def content_hash(self) -> str:
        """sha256 of the task and its options; goes into a run's record."""
        return _sha256(lookup.stated(self.task))

    @property
    def fingerprint(self) -> str:
        """What the integer state of an iterator counts in: other data, other fingerprint."""
        return self._fingerprint(self.content_hash)

    @property
    def former_fingerprint(self) -> str:
        """The same under schema 1 of run ids, which hashed every option of the task."""
        return self._fingerprint(_sha256([self.name, asdict(self.task)]))

    def _fingerprint(self, content: str) -> str:
        return _sha256([content, self.seed, self.settings.train_length,
                        self.settings.batch_size])[:16]

    def train_batches(self, transform: DataTransform | None = None) -> Batches:
        """This process's share of an endless stream of new rows, from the first step.

        Raises ConfigError where a scheme would move the text: a row is a whole.
        """
        if transform is not None:
            raise ConfigError(f"{transform} takes a row from several places of a document, but the "
                              f"rows of the task '{self.name}' are wholes; use another scheme")
        return TaskBatches(self)

    def test_rows(self, length: int, count: int, *, split: str = "validation", seed: int = 0):
        """`count` rows of `length` tokens that training never sees: `lcx.tasks.Rows`."""
        self.task.check(length)
        draw = np.random.default_rng([TEST, seed, length, *split.encode()])
        return self.task.rows(draw, count, length)

    def keep(self, folder: Any) -> None:
        """Nothing: a task is made anew."""

    def require_vocab(self, vocab_size: int) -> None:
        """Raise ConfigError where a model's table is smaller than the task's vocabulary."""
        if vocab_size < self.vocab_size:
            raise ConfigError(f"model.vocab_size={vocab_size} is smaller than the task's "
                              f"{self.vocab_size}; set it to {self.vocab_size} or more")

    def describe(self) -> dict[str, Any]:
        """JSON-able: the task, its options and its chance level."""
        return {"task": self.name, **asdict(self.task), "chance": self.task.chance,
                "content_hash": self.content_hash}

    def summary(self) -> str:
        """A line for a terminal."""
        options = ", ".join(f"{key}={value}" for key, value in asdict(self.task).items())
        return (f"{self.name} ({options}): new rows of {self.settings.train_length} tokens at "
                f"every step; a guess is right with probability {self.task.chance:.3g}")


@dataclass(frozen=True)
class Numbers:
    """A task's tokens as text: ids between spaces ("3 40 7")."""

    vocab_size: int

    def encode(self, text: bytes) -> np.ndarray:
        """Ids int32 [n]. Raises DataError on what is no id."""
        words = text.decode("utf-8").split()
        for word in words:
            if not word.isdecimal() or int(word) >= self.vocab_size:
                raise DataError(f"'{word}' is no token of this task; write ids of 0.."
                                f"{self.vocab_size - 1} with spaces between")
        return np.array([int(word) for word in words], np.int32)

    def decode(self, ids: Any) -> bytes:
        """A space before each id."""
        return "".join(f" {int(i)}" for i in ids).encode()


class TaskBatches(Batches):
    """Endless batches of a task; the state is the number of batches taken."""

    def __init__(self, data: TaskData):
        size, length = data.settings.batch_size, data.settings.train_length
        share = share_of(size, data.process_index, data.process_count)

        def make(step: int) -> Batch:
            draw = np.random.default_rng([TRAIN, data.seed, int(step)])
            rows = data.task.rows(draw, size, length, training=True)
            ids = np.broadcast_to(np.arange(length, dtype=np.float32)[None, :, None],
                                  (size, length, 1))
            batch = {"inputs": rows.inputs, "targets": rows.targets,
                     "weights": rows.answers.astype(np.float32), "ids": ids}
            return {name: value[share] for name, value in batch.items()}

        self._fingerprint, self._former = data.fingerprint, data.former_fingerprint
        self._order = grain.MapDataset.range(MAX_ROWS)
        self._iterator = iter(self._order.map(make).to_iter_dataset(
            grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)))

    def rows(self, step: int) -> list[int]:
        """The seeds of a batch's draw: rows have no numbers, and are made again from these."""
        raise DataError("a task's rows have no numbers; batch s is drawn from (seed, s)")


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def load_task(settings: Any, text_defaults: Mapping[str, Any], *, seed: int, process_index: int,
              process_count: int) -> TaskData:
    """The data of `settings.task`. Raises ConfigError where a key of text sources is set beside."""
    for key, default in text_defaults.items():
        if getattr(settings, key) not in (default, {"name": default}):
            raise ConfigError(f"data.{key} means nothing beside data.task: leave it at {default!r}"
                              ", or set data.task to None")
    task = lookup.build("lcx.tasks", settings.task)
    task.check(settings.train_length)
    return TaskData(settings, task, seed, process_index, process_count)
