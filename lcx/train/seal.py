"""The seal of a checkpoint: sha256 of every file in it, so that any damaged file has a name.

The manifest's hashes of leaves say that what was restored is what was saved; a seal also sees
damage in files that no leaf was read from, and says which file it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lcx.train.manifest import digest

NAME = "files.json"


def seal(checkpoint: Path) -> None:
    """Write the seal of a whole checkpoint, atomically."""
    aside = checkpoint / f".{NAME}"
    files = _hashes(checkpoint)
    aside.write_text(json.dumps({"files": files, "digest": digest(files)}, indent=1))
    os.replace(aside, checkpoint / NAME)


def broken(checkpoint: Path) -> list[str]:
    """What differs from the seal: "params/d/1f: changed". [] where there is no seal.

    A run that was killed between a save and its seal has none; its leaves still have hashes.
    """
    path = checkpoint / NAME
    if not path.is_file():
        return []
    try:
        found = json.loads(path.read_text())
        sealed, sound = dict(found["files"]), found["digest"] == digest(found["files"])
    except (ValueError, TypeError, KeyError):
        sealed, sound = {}, False
    if not sound:
        return [f"{NAME}: its digest does not fit its content"]
    found = _hashes(checkpoint)
    return [f"{name}: " + ("missing" if name not in found else
                           "added" if name not in sealed else "changed")
            for name in sorted({*sealed, *found}) if found.get(name) != sealed.get(name)]


def _hashes(checkpoint: Path) -> dict[str, str]:
    files = sorted(path for path in checkpoint.rglob("*")
                   if path.is_file() and path.name not in (NAME, f".{NAME}"))
    with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter lock
        return {str(path.relative_to(checkpoint)): value
                for path, value in zip(files, pool.map(_hash, files))}


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
