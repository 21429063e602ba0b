"""The processes that run the members of a sweep: started, limited, replaced, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from lcx.config import resolve
from lcx.study.devices import Share
from lcx.train.interrupt import EXIT_CODE, Interrupted

GRACE = 60.0  # seconds between the request to save and leave, and the kill


class Worker:
    """A `lcx.study.worker` process, started on first use and again after its end."""

    command = (sys.executable, "-m", "lcx.study.worker")

    def __init__(self, share: Share = Share(), log: Path | None = None,  # noqa: B008
                 timeout: float | None = None):
        self.share, self.log, self.timeout = share, log, timeout
        self.process: subprocess.Popen | None = None
        self.stopped = self.expired = False

    def ask(self, what: str, config: ConfigDict, **more: Any) -> dict[str, Any]:
        """Send a member's config and wait for the answer; a dead worker answers "failed".

        One that was asked to stop answers "waiting", and is not started again.
        """
        if self.stopped:
            return {"state": "waiting"}
        if self.process is None or self.process.poll() is not None:
            self._start()
        limit = threading.Timer(self.timeout or 0, self._expire)
        if self.timeout and what == "run":
            limit.start()
        try:
            self.process.stdin.write(json.dumps({what: resolve(config), **more}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        finally:
            limit.cancel()
        if line:
            return json.loads(line)
        code = self.process.wait()
        see = f"see {self.log or 'above'} and log.txt in its folder"
        if self.expired:
            return {"state": "failed", "died": True, "error": f"not done in {self.timeout:g} s "
                    f"(--timeout) and ended; the same command goes on with it; {see}"}
        if self.stopped or code == EXIT_CODE:
            return {"state": "waiting", "error": "stopped on request"}
        why = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return {"state": "failed", "died": True,
                "error": f"its process ended: {why} (out of memory?); {see}"}

    def retire(self) -> None:
        """End the process; the next member gets one of its own, with all of the memory."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()  # training saves on it; one that idles just ends
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def stop(self) -> None:
        """End the process for good."""
        self.stopped = True
        self.retire()

    def _expire(self) -> None:
        self.expired = True
        self.retire()

    def _start(self) -> None:
        self.expired = False
        command = [*self.command]
        command += [json.dumps(list(self.share.cores))] if self.share.cores else []
        stderr = open(self.log, "a") if self.log else None  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True,
            env={**os.environ, **self.share.environment()})
        if stderr:
            stderr.close()


@contextlib.contextmanager
def workers(root: Path, shares: Sequence[Share], timeout: float | None = None
            ) -> Iterator[list[Worker]]:
    """A worker per share; all are stopped on the way out, and on SIGTERM."""
    if many := len(shares) > 1:
        root.mkdir(parents=True, exist_ok=True)
    found = [Worker(share, root / f"worker-{n}.log" if many else None, timeout)
             for n, share in enumerate(shares)]
    before = None
    if threading.current_thread() is threading.main_thread():
        before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield found
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        for worker in found:
            worker.stop()


def _stop(*_) -> None:
    raise Interrupted("the sweep was stopped on request; run the same command again to go on")
