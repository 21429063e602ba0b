"""Folders that are either whole or absent: written aside, hashed, then renamed into place."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lcx.errors import DataError

MANIFEST = "manifest.json"
log = logging.getLogger(__name__)


def cache_root(cache: str | os.PathLike | None = None) -> Path:
    """The folder of prepared corpora: `cache`, else $LCX_DATA, else ~/.cache/lcx."""
    return Path(cache or os.environ.get("LCX_DATA") or "~/.cache/lcx").expanduser().absolute()


def ensure(folder: Path, write: Callable[[Path], dict[str, Any]], need: int = 0) -> dict[str, Any]:
    """The manifest's `info` of a folder; `write(temporary folder) -> info` makes a missing one.

    Every file is hashed into the manifest and checked on every later call: a torn, truncated or
    altered folder is removed with a warning and written again, never used. `need` is the space in
    bytes that writing takes. Raises DataError on a full or read-only disk; nothing half-written
    stays behind.
    """
    if folder.exists():
        if fault := find_fault(folder):
            log.warning("%s: %s; it is removed and prepared again", folder, fault)
            shutil.rmtree(folder)
        else:
            return _manifest(folder)["info"]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if need > free:
            raise DataError(f"'{folder.parent}' has {free} bytes free and {need} are needed; "
                            "free some or set LCX_DATA to a folder on another disk")
        _publish(folder, write)
    except OSError as error:
        hint = "the disk is full" if error.errno == errno.ENOSPC else (error.strerror or error)
        raise DataError(f"cannot write prepared data to '{folder.parent}': {hint} (about {need} "
                        "bytes are needed); set LCX_DATA to a folder with space") from error
    return _manifest(folder)["info"]


def find_fault(folder: Path) -> str | None:
    """What is wrong with a prepared folder (names the file), or None when it is whole."""
    try:
        files = _manifest(folder)["files"]
        for name, stated in files.items():
            path = folder / name
            if path.stat().st_size != stated["bytes"]:
                return f"'{name}' has {path.stat().st_size} bytes instead of {stated['bytes']}"
            if file_hash(path) != stated["sha256"]:
                return f"'{name}' does not match its sha256"
    except FileNotFoundError as error:
        return f"'{Path(error.filename).name}' is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"'{MANIFEST}' is torn"
    return None


def file_hash(path: Path) -> str:
    """sha256 of a file, in constant memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


def _publish(folder: Path, write: Callable[[Path], dict[str, Any]]) -> None:
    _sweep(folder.parent)
    mark = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    aside = folder.parent / f".{folder.name}@{mark}.partial"
    aside.mkdir()
    try:
        info = write(aside)
        files = {}
        for path in sorted(p for p in aside.rglob("*") if p.is_file()):
            _sync(path)
            files[path.relative_to(aside).as_posix()] = {
                "bytes": path.stat().st_size, "sha256": file_hash(path)}
        manifest = aside / MANIFEST
        manifest.write_text(json.dumps({"files": files, "info": info}, indent=1))
        _sync(manifest)
        try:
            aside.rename(folder)
            _sync(folder.parent)
        except OSError:
            if find_fault(folder):  # otherwise another process finished the same work first
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sweep(parent: Path) -> None:
    """Remove what processes of this host that are gone left half-written."""
    for path in parent.glob(".*.partial"):
        *_, host, pid, _ = path.name.rsplit("@", 1)[-1].removesuffix(".partial").rsplit(".", 2)
        if host == socket.gethostname() and pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
