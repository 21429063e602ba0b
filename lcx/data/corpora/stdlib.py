"""The Python standard library's own source: real text that every machine already has."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcx.data.documents import Document, Skip
from lcx.errors import DataError

# Tests are data rather than prose, site-packages differ between machines.
EXCLUDED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


@dataclass(frozen=True)
class Stdlib:
    """Every .py file of the standard library, sorted by path; about 12 MB in 700 documents.

    The text depends on the Python version, so the content hash tells two versions apart.
    Files that are not UTF-8 are skipped and counted. Raises DataError where no source is found.
    """

    on_bad = "skip"  # not options
    root = None

    def documents(self) -> Iterator[Document | Skip]:
        """(path below the library's folder, bytes), in the same order on every machine."""
        root = Path(self.root or sysconfig.get_path("stdlib"))
        paths = list(_sources(root))
        if not paths:
            raise DataError(f"no .py source of the standard library under '{root}' (a zipped or "
                            "stripped Python?); use corpus=dict(name='files', paths=...) instead")
        for path in paths:
            yield Document(path.relative_to(root).as_posix(), path.read_bytes())

    def identity(self) -> dict[str, Any] | None:
        """None: an installation may be patched, so the content itself is hashed."""
        return None


def _sources(root: Path) -> list[Path]:
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [s for s in subfolders if s not in EXCLUDED]
        found += [Path(folder, f) for f in files
                  # _sysconfigdata* is written by the build and names the build machine.
                  if f.endswith(".py") and not f.startswith("_sysconfigdata")]
    return sorted((p for p in found if p.is_file()), key=lambda p: p.relative_to(root).as_posix())
