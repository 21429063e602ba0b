"""Documents: what a corpus yields, and what counts as text (UTF-8, no NUL, not empty)."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from lcx.errors import ConfigError, DataError

# What each reason to pass a document over means to its owner.
REASONS = {
    "empty": "no bytes",
    "binary": "NUL bytes",
    "not_utf8": "not UTF-8",
    "too_large": "larger than max_bytes",
    "unreadable": "cannot be opened",
    "not_a_file": "a FIFO, socket or device",
    "duplicate": "the same bytes as an earlier document",
}
ALWAYS_COUNTED = {"empty", "not_a_file", "duplicate"}  # harmless whatever `on_bad` says


@dataclass(frozen=True)
class Document:
    """One text: a name and its UTF-8 bytes; `removed` counts bytes cut off (BOM, separator)."""

    name: str
    text: bytes
    removed: int = 0


@dataclass(frozen=True)
class Skip:
    """A document that was passed over: its name, a key of `REASONS` and its size in bytes."""

    name: str
    reason: str
    num_bytes: int
    removed: int = 0


class Corpus(Protocol):
    """A source of documents, in the same order every time.

    `identity` names the source exactly and cheaply (a catalogue entry with checksums), or is None
    where only the content itself can tell (files): lcx then hashes every document on every load.

    A corpus of one's own files has an option `content`, the sha256 of its texts (`content_of`), and
    `read_content()`, which finds it: in a run id it stands for the whole component, and it is
    compared with what is read. Options named in a class's `PLACES` say where and not what, and do
    not count in the id.
    """

    on_bad: str  # "raise" or "skip": what happens to documents that are not text

    def documents(self) -> Iterator[Document | Skip]: ...

    def identity(self) -> dict[str, Any] | None: ...


def check_policy(on_bad: str) -> None:
    """Raise ConfigError unless `on_bad` is one of the two policies."""
    if on_bad not in ("raise", "skip"):
        raise ConfigError(f"on_bad must be 'raise' or 'skip' (and count), got '{on_bad}'")


def screen(corpus: Corpus) -> Iterator[Document | Skip]:
    """The documents of a corpus after the text checks; a byte-order mark is cut off and counted.

    Raises DataError on the first document that is not text, unless the corpus says "skip".
    """
    for item in corpus.documents():
        if isinstance(item, Document):
            item = _inspect(item)
        if isinstance(item, Skip) and item.reason not in ALWAYS_COUNTED:
            if corpus.on_bad == "raise":
                raise DataError(
                    f"'{item.name}' is not text ({REASONS[item.reason]}, {item.num_bytes} bytes); "
                    "leave it out, convert it to UTF-8, or set on_bad='skip' to count and skip it")
        yield item


def _inspect(document: Document) -> Document | Skip:
    name, text, removed = document.name, document.text, document.removed
    if text.startswith(codecs.BOM_UTF8):
        text, removed = text[len(codecs.BOM_UTF8):], removed + len(codecs.BOM_UTF8)
    if not text:
        return Skip(name, "empty", 0, removed)
    if b"\0" in text:
        return Skip(name, "binary", len(text), removed)
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return Skip(name, "not_utf8", len(text), removed)
    return Document(name, text, removed)
