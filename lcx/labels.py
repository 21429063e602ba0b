"""Labels are data: text that a person or a config wrote, made safe for where it is shown.

One function per place: `visible` (beneath all of them), `show` for a terminal, `file_name` for a
folder. HTML has `lcx.study.markup.escape`, figures have `lcx.study.figures.words.words`.
"""

from __future__ import annotations

import hashlib
import re
import sys
import unicodedata
from typing import Any, TextIO

# Letters and marks to Unicode, nothing to the eye: joiners, fillers, variation selectors.
UNSEEN = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
                   + "".join(map(chr, range(0xFE00, 0xFE10))))
WHITE = "\t\n\r\v\f"
LONGEST = 100  # characters of a folder's name that lcx makes; file systems take 255 bytes
MARKED = re.compile(r"(.*?)( #[0-9a-f]{4,64})?", re.S)
UNSAFE = re.compile(r"[/\\\0]")


def visible(text: Any, keep: str = "") -> str:
    """Text without what no one sees or what moves its neighbours, such as <U+001B> and <U+202E>.

    Control, direction, zero-width and unassigned characters and lone surrogates are written out,
    but for those in `keep`; other spaces become a space.
    """
    text = str(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep else _shown(c) for c in text)


def one_line(text: Any) -> str:
    """Visible text on one line, its white space single spaces, composed (NFC): what a name is made
    of, so that what looks equal is equal.
    """
    return unicodedata.normalize("NFC", " ".join(visible(text, keep=WHITE).split()))


def digest(text: str, digits: int = 4) -> str:
    """A short id of a text."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:digits]


def cut(text: str, width: int) -> str:
    """Text of at most `width` characters: a longer one loses its middle, and ends in an id.

    What was cut before keeps its id.
    """
    if len(text) <= width:
        return text
    body, mark = MARKED.fullmatch(text).groups()
    mark = mark or f" #{digest(text)}"
    room = max(width - len(mark) - 3, 2)
    head = (room + 1) // 2
    return f"{body[:head].rstrip()}...{body[len(body) - (room - head):].lstrip()}{mark}"


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: East Asian letters and emoji two, marks none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF"
               else 1 for c in text)


def pad(text: str, width: int, right: bool = False) -> str:
    """Text filled up to `width` columns, to the left or to the right."""
    space = " " * (width - columns(text))
    return space + text if right else text + space


def show(text: Any = "", *, file: TextIO | None = None, end: str = "\n",
         flush: bool = False) -> None:
    """Print to a terminal, or into a pipe. Nothing in the text can act on the terminal, and a
    letter that its encoding lacks is written out."""
    file = sys.stdout if file is None else file
    text = visible(text, keep="\n\t")
    encoding = getattr(file, "encoding", None) or "utf-8"
    file.write(text.encode(encoding, "backslashreplace").decode(encoding) + end)
    if flush:
        file.flush()


def file_name(text: str) -> str:
    """A folder's name made of a text; one that had to be changed ends in an id of the text."""
    safe = UNSAFE.sub("-", visible(text)).lstrip(".") or "-"
    safe = safe.encode()[:LONGEST].decode(errors="ignore")
    return text if safe == text else f"{safe}-{digest(text, 8)}"


def why_no_file_name(text: str) -> str:
    """What keeps a text from being a folder's name; empty where nothing does."""
    if text in (".", "..") or UNSAFE.search(text):
        return "it is a path"
    if visible(text) != text:
        return "it has characters that no one sees"
    return f"it has more than {LONGEST * 2} bytes" if len(text.encode()) > LONGEST * 2 else ""


def _shown(character: str) -> str:
    if character.isprintable() and character not in UNSEEN:
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    return f"<U+{ord(character):04X}>"
