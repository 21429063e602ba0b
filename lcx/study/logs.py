"""What a person sees of lcx's log: warnings on stderr, all of it with -v."""

from __future__ import annotations

import logging

from lcx.labels import visible


class Plain(logging.Formatter):
    """Lines in which no label acts on the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), keep="\n\t")


def set_up(verbose: bool = False) -> None:
    """For a process of lcx's own (never on import): the log stays with lcx, libraries keep out."""
    handler = logging.StreamHandler()
    handler.setFormatter(Plain("lcx: %(levelname)s: %(message)s"))
    handler.setLevel(logging.INFO if verbose else logging.WARNING)
    logger = logging.getLogger("lcx")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
