"""What a person sees of lcx's log: warnings on stderr, all of it with -v."""

from __future__ import annotations

import logging


def set_up(verbose: bool = False) -> None:
    """For a process of lcx's own (never on import): the log stays with lcx, libraries keep out."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("lcx: %(levelname)s: %(message)s"))
    handler.setLevel(logging.INFO if verbose else logging.WARNING)
    logger = logging.getLogger("lcx")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
