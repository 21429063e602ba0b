"""NoPE: no positional operation at all; a causal mask alone breaks the symmetry of order."""

from __future__ import annotations

from typing import ClassVar

from lcx.positions import Position


class NoPe(Position):
    """No position (arXiv:2305.19466): the identity of every lane."""

    paper: ClassVar[str] = "arXiv:2305.19466"
    represents: ClassVar[bool] = True
