"""Preparation: a corpus becomes an ArrayRecord dataset once, named by the hash of its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcx.data import store
from lcx.data.documents import Corpus, Document
from lcx.data.survey import SPLITS, Survey, survey, unique
from lcx.errors import DataError

LAYOUT = 1  # raise it when prepared folders change their meaning


@dataclass(frozen=True)
class Prepared:
    """A prepared corpus: its folder, its hash, and counters that reconcile with the input.

    former_hash: the hash under which checkpoints made before know the same corpus.
    """

    folder: Path
    content_hash: str
    counters: dict[str, Any]
    former_hash: str

    def texts(self, split: str) -> Iterator[tuple[str, bytes]]:
        """(name, text) of every document of a split, in order."""
        from lcx.data.builder import open_documents  # imports TFDS: only where it is needed
        sources = open_documents(self.folder / "documents")
        for example in sources.get(split, ()):
            yield example["name"].decode("utf-8", "surrogateescape"), example["text"]


def prepare(name: str, corpus: Corpus, root: Path, *, validation: float, test: float,
            deduplicate: bool) -> Prepared:
    """Find or write the prepared form of a corpus under `root`.

    Its key is the sha256 of the documents (or of the corpus's identity) and of these settings, so
    a changed source is prepared again and an old folder is never mistaken for it. Raises DataError
    on bad or empty input, where the texts are not those that the corpus says it has, and where the
    source changes while it is read; nothing half-written stays.
    """
    settings = {"layout": LAYOUT, "corpus": name, "validation": validation, "test": test,
                "deduplicate": deduplicate}
    identity, plan = corpus.identity(), None
    if identity is None:
        plan = survey(corpus, validation, test, deduplicate)
        _compare(name, plan.content, getattr(corpus, "content", ""))
        settings["content"] = plan.content
    else:
        settings["identity"] = identity
    key = _key(settings)
    former = _key(settings | {"content": plan.named}) if plan else key
    folder = root / f"{name}-{key[:20]}"

    def write(aside: Path) -> dict[str, Any]:
        first = plan or survey(corpus, validation, test, deduplicate)
        _write(aside, corpus, first, deduplicate)
        return {"settings": settings, "content": first.content, "counters": _counters(first)}

    need = 2 * plan.counters.kept_bytes if plan else 0
    info = store.ensure(folder / "documents", write, need)
    return Prepared(folder, key, info["counters"], former)


def _key(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _compare(name: str, found: str, stated: str) -> None:
    if stated and found != stated:
        raise DataError(
            f"the texts of corpus '{name}' are not those that this run is known by (content "
            f"{stated[:12]}, here {found[:12]}): restore them, say where they lie now "
            "(--config.experiment.data.corpus.paths=FOLDER), or name the corpus anew without "
            "content=..., which is another experiment")


def _write(aside: Path, corpus: Corpus, plan: Survey, deduplicate: bool) -> None:
    from lcx.data.builder import open_documents, write_documents
    sizes = {split: [n for n, s in zip(plan.sizes, plan.splits) if s == split] for split in SPLITS}
    sizes = {split: found for split, found in sizes.items() if found}

    def documents(split: str) -> Iterator[dict]:
        kept = 0
        for item, digest in unique(corpus, deduplicate):
            if not isinstance(item, Document):
                continue
            if kept >= len(plan.digests) or digest != plan.digests[kept]:
                raise DataError(f"'{item.name}' changed while the corpus was read; run again when "
                                "nothing writes to it")
            if plan.splits[kept] == split:
                yield {"name": item.name.encode("utf-8", "surrogateescape"), "text": item.text}
            kept += 1

    write_documents(aside, documents, sizes)
    sources = open_documents(aside)
    for split in sizes:  # read it back: what cannot be read as it was written is never used
        planned = [d for d, s in zip(plan.digests, plan.splits) if s == split]
        found = [hashlib.sha256(example["text"]).digest() for example in sources[split]]
        if found != planned:
            raise DataError(f"the {split} split reads back {len(found)} documents that differ from "
                            f"the {len(planned)} written; the source changed or the disk failed: "
                            "run again")


def _counters(plan: Survey) -> dict[str, Any]:
    counters = plan.counters.as_dict()
    counters["splits"] = {
        split: {"documents": plan.splits.count(split),
                "bytes": sum(n for n, s in zip(plan.sizes, plan.splits) if s == split)}
        for split in SPLITS}
    return counters
