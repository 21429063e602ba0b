"""One's own text: files, folders and globs, one document per file or per separated part."""

from __future__ import annotations

import fnmatch
import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcx.data.documents import Document, Skip, check_policy
from lcx.data.survey import content_of
from lcx.domains import Size
from lcx.errors import ConfigError, DataError

BLOCK = 1 << 20


@dataclass(frozen=True)
class Files:
    """Text files by path, folder (searched downwards, hidden entries left out) or glob.

    patterns: file names taken from folders, such as ("*.txt", "*.md"); exclude: names left out.
    separator: text that ends a document, for one big file of many; None keeps files whole. One that
    is in none of the files is an error, for it would change nothing.
    on_bad: "raise" on a file that is not UTF-8 text, or "skip" and count it.
    max_bytes: the largest document; a larger one is bad (guards against sparse and runaway files).
    content: the sha256 of the texts in order, filled in when a config is read; a run is known by it
    and not by its paths. Files that differ from it are refused.
    Raises DataError on a path that does not exist or holds nothing.
    """

    paths: str | Sequence[str]
    patterns: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    separator: str | None = None
    on_bad: str = "raise"
    max_bytes: Size = 256 << 20
    content: str = ""

    def __post_init__(self):
        check_policy(self.on_bad)
        if self.separator == "":
            raise ConfigError("separator must not be empty; use None to keep files whole")

    def documents(self) -> Iterator[Document | Skip]:
        """(name, bytes) sorted by path; a name starts at the folder that was given."""
        read = cut = 0
        for name, path in self._paths():
            try:
                for item in self._read(name, path):
                    size = len(item.text) if isinstance(item, Document) else item.num_bytes
                    read, cut = read + size, cut + item.removed
                    yield item
            except OSError:
                yield Skip(name, "unreadable", 0)
        if self.separator is not None and read and not cut:
            raise DataError(f"the separator {self.separator!r} is in none of the files (do their "
                            "lines end in \\r\\n?), so each is one document; correct it, or set "
                            "separator=None to keep files whole")

    def identity(self) -> dict[str, Any] | None:
        """None: files change under one's hands, so the content itself is hashed."""
        return None

    def read_content(self) -> str:
        """The `content` of these files as they are now."""
        return content_of(self)

    def _paths(self) -> Iterator[tuple[str, Path]]:
        given = [self.paths] if isinstance(self.paths, (str, os.PathLike)) else list(self.paths)
        if not given:
            raise DataError("corpus 'files' needs at least one path: paths=('my_text/',)")
        seen = set()
        for entry in given:
            found = 0
            for name, path in self._expand(os.path.expanduser(str(entry))):
                found += 1
                if (key := path.resolve()) not in seen:
                    seen.add(key)
                    yield name, path
            if not found:
                raise DataError(f"'{entry}' holds no file that matches patterns="
                                f"{tuple(_listed(self.patterns))}; check folder and patterns")

    def _expand(self, entry: str) -> Iterator[tuple[str, Path]]:
        path = Path(entry)
        if path.is_dir():
            for child in _walk(path):
                if self._wanted(child.name):
                    yield f"{path.resolve().name}/{child.relative_to(path).as_posix()}", child
        elif path.exists():
            if not path.is_file():
                raise DataError(f"'{entry}' is not a regular file (a FIFO, socket or device); "
                                "give a file, a folder or a glob")
            yield path.name, path
        elif glob.has_magic(entry):
            matches = sorted(p for p in map(Path, glob.glob(entry, recursive=True))
                             if not p.is_dir())
            if not matches:
                raise DataError(f"the glob '{entry}' matches no file; check the pattern and the "
                                f"folder that it starts from ({os.getcwd()})")
            yield from ((p.name, p) for p in matches)
        else:
            raise DataError(f"no such file or folder: '{entry}' (from {os.getcwd()}); check paths "
                            "(a run's files have moved? --config.experiment.data.corpus.paths=...)")

    def _wanted(self, name: str) -> bool:
        return (any(fnmatch.fnmatch(name, p) for p in _listed(self.patterns))
                and not any(fnmatch.fnmatch(name, p) for p in _listed(self.exclude)))

    def _read(self, name: str, path: Path) -> Iterator[Document | Skip]:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            yield Skip(name, "not_a_file", 0)
        elif self.separator is None and status.st_size > self.max_bytes:
            yield Skip(name, "too_large", status.st_size)
        elif self.separator is None:
            yield Document(name, path.read_bytes())
        else:
            yield from self._parts(name, path, self.separator.encode())

    def _parts(self, name: str, path: Path, separator: bytes) -> Iterator[Document | Skip]:
        """Documents of a separated file, read in blocks: memory holds one document at a time."""
        rest, number = b"", 0
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                *parts, rest = (rest + block).split(separator)
                for part in parts:
                    yield Document(f"{name}#{number}", part, len(separator))
                    number += 1
                if len(rest) > self.max_bytes:  # no end in sight: the remainder is one bad document
                    size = len(rest) + path.stat().st_size - file.tell()
                    yield Skip(f"{name}#{number}", "too_large", size)
                    return
        yield Document(f"{name}#{number}", rest)


def _listed(patterns: str | Sequence[str]) -> Sequence[str]:
    return [patterns] if isinstance(patterns, str) else patterns


def _walk(root: Path) -> Iterator[Path]:
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [s for s in subfolders if not s.startswith(".")]
        found += [Path(folder, f) for f in files if not f.startswith(".")]
    yield from sorted(found, key=lambda p: p.relative_to(root).as_posix())
