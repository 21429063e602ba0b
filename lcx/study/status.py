"""Where a run stands, in its status.json, and the lock on its folder."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lcx.errors import ConfigError

STATES = ("waiting", "running", "finished", "failed")


class Busy(ConfigError):
    """Another process is at work in this run's folder."""


def read_status(folder: str | Path) -> dict[str, Any]:
    """The status of a run; {"state": "waiting"} where it has not begun or the file is torn."""
    try:
        status = json.loads((Path(folder) / "status.json").read_text())
        return status if status.get("state") in STATES else {"state": "waiting"}
    except (OSError, ValueError, AttributeError):
        return {"state": "waiting"}


def write_status(folder: str | Path, state: str, **fields: Any) -> dict[str, Any]:
    """Replace status.json atomically."""
    status = {"state": state, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **fields}
    write_atomically(Path(folder) / "status.json", json.dumps(status, indent=1) + "\n")
    return status


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(text)
        os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise ConfigError(f"cannot write {len(text)} bytes to {path}: {error.strerror}; free space "
                          "or choose another --config.runtime.out") from error


@contextlib.contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold a run's folder; a kill releases it. Raises Busy where another process holds it."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / "member.lock", "w")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"cannot write to {folder}: {error.strerror}; choose another "
                          "--config.runtime.out") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another process is at work in {folder}; wait for it, or give this one "
                       "another --config.runtime.out") from None
        yield


def held(folder: str | Path) -> bool:
    """Whether a living process holds a run's folder."""
    try:
        with open(Path(folder) / "member.lock") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # never begun
        return False
    return False
