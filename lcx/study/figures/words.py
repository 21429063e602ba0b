"""Text in a figure: no label is mathematics, hides itself or asks for a letter the font lacks."""

from __future__ import annotations

import functools
import textwrap
from typing import Any

from lcx.labels import cut, one_line

MOST = 64  # characters of a text, where nothing else is said


def words(text: Any, width: int = 0, most: int = MOST) -> str:
    """Text for matplotlib, which then draws it letter by letter; with `width` in lines of that.

    A letter without a glyph is written out, <U+4E2D>; more than `most` characters are cut in the
    middle.
    """
    glyphs = _glyphs()
    text = "".join(c if ord(c) in glyphs else f"<U+{ord(c):04X}>" for c in one_line(text))
    text = cut(text, most)
    text = textwrap.fill(text, width) if width else text
    return text.replace("$", r"\$")  # as matplotlib spells a dollar that opens no formula


@functools.cache
def _glyphs() -> frozenset[int]:
    from matplotlib import font_manager

    # The first font of matplotlib's own defaults, which comes with it.
    return frozenset(font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap())
