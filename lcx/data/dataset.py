"""`load`: a data config becomes `Data`, from which training and evaluation read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcx import lookup
from lcx.data import evaluation, store
from lcx.data.batches import Batches, Cutter, share_of, shuffle_of
from lcx.data.evaluation import EvaluationDocument
from lcx.data.generated import TaskData, load_task
from lcx.data.packings import Packing, Plan
from lcx.data.prepare import Prepared, prepare
from lcx.data.survey import SPLITS
from lcx.data.tokenizers import Tokenizer
from lcx.data.tokens import Tokens, tokenize
from lcx.domains import BelowOne, Count, Seed, checked
from lcx.errors import ConfigError, DataError, did_you_mean
from lcx.positions import DataTransform

SHARED = {"train_length", "batch_size", "task"}  # keys that a task reads, too


@dataclass(frozen=True)
class Settings:
    """The keys of `config.experiment.data`; every one but train_length has a default.

    corpus, tokenizer, packing: components, `dict(name="files", paths="my_text/")` or a bare name.
    train_length: tokens per row. batch_size: rows of the *global* batch, over all processes.
    validation, test: fractions of the documents, drawn by the hash of their content.
    deduplicate: drop (and count) documents that repeat an earlier one byte for byte.
    epochs: None trains without end, each epoch in its own order.
    task: a synthetic task instead of all the keys from corpus to epochs (`lcx/tasks/`).
    """

    train_length: Count
    batch_size: Count = 32
    corpus: Any = "stdlib"
    tokenizer: Any = "bytes"
    packing: Any = "contiguous"
    validation: BelowOne = 0.1
    test: BelowOne = 0.05
    deduplicate: bool = True
    epochs: Count | None = None
    task: Any = None

    @classmethod
    def of(cls, spec: Mapping[str, Any]) -> Settings:
        """Raises ConfigError on an unknown key (with a suggestion), a missing or a wrong one."""
        known = {f.name for f in dataclasses.fields(cls)}
        for key in spec:
            if key not in known:
                raise ConfigError(f"data has no key '{key}'" + did_you_mean(key, known))
        if "train_length" not in spec:
            raise ConfigError("data needs train_length=..., the tokens per training row")
        return cls(**lookup.fitted(cls, spec, "data"))


@dataclass(frozen=True)
class Data:
    """A corpus ready for use; made by `load`."""

    settings: Settings
    prepared: Prepared
    tokenizer: Tokenizer
    splits: dict[str, Tokens]
    packing: Packing
    plan: Plan
    seed: int
    process_index: int
    process_count: int

    @property
    def vocab_size(self) -> int:
        """Token ids are 0 .. vocab_size - 1."""
        return self.tokenizer.vocab_size

    @property
    def content_hash(self) -> str:
        """sha256 over texts and preparation settings; goes into a run's record."""
        return self.prepared.content_hash

    @property
    def fingerprint(self) -> str:
        """What the integer state of an iterator counts in: other data, other fingerprint."""
        return self._fingerprint(self.content_hash, lookup.stated(self.packing))

    @property
    def former_fingerprint(self) -> str:
        """The same under schema 1 of run ids, which named folders and every option's default."""
        return self._fingerprint(self.prepared.former_hash, repr(self.packing))

    def _fingerprint(self, content: str, packing: Any) -> str:
        parts = [content, self.tokenizer.identity(), packing, self.seed,
                 self.settings.train_length, self.settings.batch_size, self.settings.epochs,
                 *shuffle_of(len(self.plan))]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    @property
    def steps_per_epoch(self) -> float:
        """Global batches in one pass over the rows."""
        return len(self.plan) / self.settings.batch_size

    def train_batches(self, transform: DataTransform | None = None) -> Batches:
        """This process's share of the training batches, from the first step.

        transform: what the model's schemes do to the text (`model.data_transform()`).
        """
        length, prints = self.settings.train_length, (self.fingerprint, self.former_fingerprint)
        if transform is not None:
            prints = (hashlib.sha256(f"{p} {transform}".encode()).hexdigest()[:16] for p in prints)
        fingerprint, former = prints
        cutter = Cutter(self.splits["train"], self.plan, length, self.packing.segments, transform)
        return Batches(cutter, batch_size=self.settings.batch_size, seed=self.seed,
                       fingerprint=fingerprint, former=former, epochs=self.settings.epochs,
                       process_index=self.process_index, process_count=self.process_count)

    @checked
    def evaluation_documents(self, min_tokens: int, *, split: str = "validation",
                             limit: Count | None = None,
                             seed: Seed = 0) -> list[EvaluationDocument]:
        """Whole documents of a split with at least `min_tokens` tokens; at most `limit` of them.

        Every process gets all of them. Raises DataError where none is so long.
        """
        return evaluation.evaluation_documents(
            self._split(split), self.tokenizer.token_bytes(), split, min_tokens, limit, seed)

    def unigram_bits_per_byte(self, split: str = "validation") -> float:
        """The baseline of a model without context: training frequencies on held-out text."""
        return evaluation.unigram_bits_per_byte(self.splits["train"], self._split(split))

    def keep(self, folder: Path) -> None:
        """Write into a run's folder what serves the run without its corpus (`tokenizer_of`)."""
        if self.process_index == 0:
            self.tokenizer.keep(folder)

    def require_vocab(self, vocab_size: int) -> None:
        """Raise ConfigError where a model's table is smaller than the tokenizer's vocabulary."""
        if vocab_size < self.vocab_size:
            raise ConfigError(f"model.vocab_size={vocab_size} is smaller than the tokenizer's "
                              f"{self.vocab_size}; set it to {self.vocab_size} or more")

    def describe(self) -> dict[str, Any]:
        """JSON-able: folder, hash, counters, and for each split its tokens and long documents."""
        return {
            "folder": str(self.prepared.folder), "content_hash": self.content_hash,
            "counters": self.prepared.counters, "vocab_size": self.vocab_size,
            "tokenizer": self.tokenizer.identity(), "packing": repr(self.packing),
            "train": self.plan.describe() | {"steps_per_epoch": self.steps_per_epoch},
            "splits": {name: {"documents": len(tokens.lengths), "tokens": int(tokens.offsets[-1]),
                              "bytes": int(tokens.num_bytes.sum()),
                              "documents_at_least": evaluation.reach_table(tokens.lengths)}
                       for name, tokens in self.splits.items()},
        }

    def summary(self) -> str:
        """A few lines for a terminal: what was read, what was left out, how long documents are."""
        counters = self.prepared.counters
        skipped = counters["documents"]["skipped"]
        why = ", ".join(f"{n} {reason}" for reason, n in sorted(skipped.items())) or "none"
        lines = [f"{counters['documents']['kept']} documents, {counters['bytes']['kept']:,} bytes "
                 f"(skipped: {why}); vocabulary {self.vocab_size}; {self.prepared.folder}"]
        for name, tokens in self.splits.items():
            reach = evaluation.reach_table(tokens.lengths).items()
            table = ", ".join(f"{n} of {length // 1024}k+" for length, n in reach) or "all below 1k"
            lines.append(f"{name:<11}{len(tokens.lengths):>8} documents "
                         f"{int(tokens.offsets[-1]):>14,} tokens: {table}")
        plan = self.plan.describe()
        lines.append(f"training   {plan['rows']:>8} rows of {self.settings.train_length}, "
                     f"{self.steps_per_epoch:.1f} steps an epoch; {plan['left_out']:,} targets "
                     f"left out, {plan['padding']:,} of padding")
        return "\n".join(lines)

    def _split(self, name: str) -> Tokens:
        if name not in self.splits:
            raise ConfigError(f"unknown split '{name}'" + did_you_mean(name, SPLITS))
        if not len(self.splits[name].lengths):
            kept = self.prepared.counters["documents"]["kept"]
            raise DataError(f"the {name} split is empty: the corpus has {kept} document(s); add "
                            "documents, cut one big file with separator=..., or raise data."
                            f"{name}")
        return self.splits[name]


@checked
def load(spec: Mapping[str, Any], *, seed: Seed = 0, cache: str | os.PathLike | None = None,
         process_index: int = 0, process_count: int = 1,
         tokenizer: Tokenizer | None = None) -> Data | TaskData:
    """Prepare (once) and open the data of a config: see `Settings` for the keys of `spec`.

    seed: the order of the training rows. cache: where prepared corpora live (default $LCX_DATA,
    else ~/.cache/lcx). tokenizer: one of `tokenizer_of`. Raises ConfigError on a bad config and
    DataError on bad input, one line that says what to do; what is on disk stays whole.
    """
    settings = Settings.of(spec)
    share_of(settings.batch_size, process_index, process_count)
    if settings.task is not None:
        of_text = {f.name: f.default for f in dataclasses.fields(Settings) if f.name not in SHARED}
        return load_task(settings, of_text, seed=seed, process_index=process_index,
                         process_count=process_count)
    corpus = lookup.build("lcx.data.corpora", settings.corpus)
    if tokenizer is None:
        tokenizer = lookup.build("lcx.data.tokenizers", settings.tokenizer)
    packing = lookup.build("lcx.data.packings", settings.packing)
    name = settings.corpus if isinstance(settings.corpus, str) else settings.corpus["name"]
    prepared = prepare(name, corpus, store.cache_root(cache), validation=settings.validation,
                       test=settings.test, deduplicate=settings.deduplicate)
    splits = tokenize(prepared, tokenizer)
    plan = packing.plan(splits["train"].offsets, settings.train_length)
    return Data(settings, prepared, tokenizer, splits, packing, plan, seed, process_index,
                process_count)


def tokenizer_of(spec: Mapping[str, Any], folder: str | os.PathLike) -> Tokenizer | None:
    """The tokenizer that a run's folder keeps, or None: then only the corpus can give it."""
    settings = Settings.of(spec)
    if settings.task is not None:
        return load(spec).tokenizer
    tokenizer = lookup.build("lcx.data.tokenizers", settings.tokenizer)
    return tokenizer if tokenizer.reopen(Path(folder)) else None
