"""The errors that a user can act on; every message says what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A config names something that does not exist or cannot be; the CLI exits with code 2."""


class DataError(ValueError):
    """A corpus cannot be read, prepared or cut as asked; the CLI exits with code 2."""


class TableEnd(ConfigError):
    """A table of positions ends before a token that is asked for; nothing is ever clamped."""


class Refusal(ConfigError):
    """The algebra of a mixer has no meaning for a lane (a dash in the composition grid).

    `code` is one of R1..R11, explained in docs/design.md.
    """

    def __init__(self, lane: str, mixer: str, code: str, reason: str):
        super().__init__(f"mixer '{mixer}' refuses the lane {lane} ({code}): {reason}")
        self.lane, self.mixer, self.code, self.reason = lane, mixer, code, reason


class Unimplemented(ConfigError):
    """The algebra allows this lane (or form) but lcx has no code for it yet; counted apart."""

    def __init__(self, lane: str, mixer: str, reason: str):
        super().__init__(f"mixer '{mixer}' does not implement the lane {lane} yet: {reason}")
        self.lane, self.mixer, self.reason = lane, mixer, reason


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suggestion clause for an unknown name: `; did you mean 'rope'? Known: ...`."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"; did you mean '{close[0]}'?" if close else "."
    return f"{guess} Known: {', '.join(known)}"
