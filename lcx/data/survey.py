"""First pass over a corpus: counters, content digest, duplicates, a split for every document."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from lcx.data.documents import REASONS, Corpus, Document, Skip, screen
from lcx.errors import ConfigError, DataError

SPLITS = ("train", "validation", "test")


@dataclass
class Counters:
    """What went in and what came of it: `read` = kept + skipped (+ removed bytes), always."""

    read: int = 0
    read_bytes: int = 0
    kept: int = 0
    kept_bytes: int = 0
    removed_bytes: int = 0
    skipped: Counter = field(default_factory=Counter)
    skipped_bytes: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def count(self, item: Document | Skip) -> None:
        """Add one document, kept or skipped."""
        size = len(item.text) if isinstance(item, Document) else item.num_bytes
        self.read += 1
        self.read_bytes += size + item.removed
        self.removed_bytes += item.removed
        if isinstance(item, Document):
            self.kept += 1
            self.kept_bytes += size
        else:
            self.skipped[item.reason] += 1
            self.skipped_bytes[item.reason] += size
            if len(names := self.examples.setdefault(item.reason, [])) < 5:
                names.append(item.name)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; documents and bytes each reconcile: read = kept + skipped + removed."""
        return {
            "documents": {"read": self.read, "kept": self.kept, "skipped": dict(self.skipped)},
            "bytes": {"read": self.read_bytes, "kept": self.kept_bytes,
                      "skipped": dict(self.skipped_bytes), "removed": self.removed_bytes},
            "skipped_names": self.examples,
        }


@dataclass
class Survey:
    """The plan that the second pass follows: digests and splits of the kept documents in order.

    content: `content_of` the corpus. named: the same of kept documents with their names, which
    stood for a corpus before places ceased to count (schema 1 of run ids).
    """

    content: str
    named: str
    digests: list[bytes]
    sizes: list[int]
    splits: list[str]
    counters: Counters


def unique(corpus: Corpus, deduplicate: bool):
    """Screened documents with the sha256 of their text; repeats turned into skips if asked.

    The digest of what is no text is empty.
    """
    seen = set()
    for item in screen(corpus):
        if isinstance(item, Skip):
            yield item, b""
            continue
        digest = hashlib.sha256(item.text).digest()
        if deduplicate and digest in seen:
            yield Skip(item.name, "duplicate", len(item.text), item.removed), digest
        else:
            if deduplicate:
                seen.add(digest)
            yield item, digest


def content_of(corpus: Corpus) -> str:
    """sha256 over the texts of a corpus in order, whatever they are called and wherever they lie.

    Raises DataError where there is none, or one that is no text.
    """
    return survey(corpus, 0.0, 0.0, False).content


def survey(corpus: Corpus, validation: float, test: float, deduplicate: bool) -> Survey:
    """Read everything once, holding one document at a time. Raises DataError on an empty corpus."""
    counters, digests, sizes = Counters(), [], []
    content, named = hashlib.sha256(), hashlib.sha256()
    for item, digest in unique(corpus, deduplicate):
        counters.count(item)
        content.update(digest)
        if isinstance(item, Document):
            digests.append(digest)
            sizes.append(len(item.text))
            name = item.name.encode("utf-8", "surrogateescape")
            named.update(len(name).to_bytes(8, "little") + name + digest)
    if not digests:
        why = ", ".join(f"{n} {REASONS[r]}" for r, n in counters.skipped.items()) or "none found"
        raise DataError(f"the corpus holds no text ({counters.read} documents read: {why}); "
                        "point it at UTF-8 text")
    return Survey(content.hexdigest(), named.hexdigest(), digests, sizes,
                  assign_splits(digests, validation, test), counters)


def assign_splits(digests: list[bytes], validation: float, test: float) -> list[str]:
    """A split per document by the hash of its content: equal texts never straddle two splits.

    A new document never moves another one. The exception is a corpus so small that a split would
    stay empty: the content nearest to its border moves in (train first, then validation, test).
    Raises ConfigError on fractions outside [0, 1).
    """
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise ConfigError(f"validation={validation} and test={test} must be fractions that leave "
                          "something to train on")
    place = {d: int.from_bytes(hashlib.sha256(b"lcx split 1" + d).digest()[:8], "big") / 2**64
             for d in digests}
    count_test = sum(p < test for p in place.values())
    count_held = sum(p < test + validation for p in place.values())
    count_train = len(place) - count_held
    count_validation = count_held - count_test
    if not count_train or (validation and not count_validation) or (test and not count_test):
        wanted = {"train": 1.0, "validation": validation, "test": test}
        return _spread(digests, sorted(place, key=place.get), wanted)
    return [_split(place[d], validation, test) for d in digests]


def _split(place: float, validation: float, test: float) -> str:
    return "test" if place < test else "validation" if place < test + validation else "train"


def _spread(digests, ordered, wanted) -> list[str]:
    """At least one content per wanted split, as far as they go, in the order of their places."""
    total = len(ordered)
    validation = max(1, round(total * wanted["validation"])) if wanted["validation"] else 0
    test = max(1, round(total * wanted["test"])) if wanted["test"] else 0
    validation = min(validation, total - 1)
    test = min(test, total - 1 - validation)
    of = {d: "test" if i < test else "validation" if i < test + validation else "train"
          for i, d in enumerate(ordered)}
    return [of[d] for d in digests]
