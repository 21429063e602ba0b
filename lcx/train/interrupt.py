"""SIGTERM asks a run to save and leave; the handler only sets a flag."""

from __future__ import annotations

import signal
import threading

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: run the same command again to go on


class Interrupted(SystemExit):
    """The run was asked to stop and has saved a checkpoint; the process exits with code 75."""

    def __init__(self, message: str):
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Interrupt:
    """While entered, SIGTERM sets `asked` and nothing else; a second one is as harmless."""

    def __init__(self) -> None:
        self.asked = False
        self._before = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # Python allows it only there
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number, frame) -> None:
        self.asked = True
