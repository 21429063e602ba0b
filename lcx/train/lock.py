"""One trainer per run folder: a lock that the kernel drops with the process."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Locked(RuntimeError):
    """Another process is training in this run folder."""


@contextmanager
def lock(run_dir: str | os.PathLike) -> Iterator[None]:
    """Hold `<run_dir>/lock`. Raises Locked if another process does."""
    path = Path(run_dir) / "lock"
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(f"{run_dir} is in use by another process; wait for it, or name "
                         "another runtime.out") from None
        yield
