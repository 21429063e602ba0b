"""How rows spell schemes and mixers, read again: "rglru/rglru/attention(window=64)", a layer each.

`lcx.study.describe` writes it. What does not read as such stays the text that it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from lcx.labels import digest, one_line

PART = re.compile(r"(\w+)\((.+)\)")
NUMBER = re.compile(r"(-?\d+?)(0*)(?:\.0)?")
FACTOR = re.compile(r"\d+(\.\d+)?")
NESTED = re.compile(r"\b(\w+)=(?=[\[{]).")
SAID = ("position", "mixer", "pattern")  # of these scheme and mixer of the name say all
Part = tuple[str, tuple[tuple[str, str], ...]]  # a component: its name, and options with values
Layer = tuple[Part, ...]  # a stack of them


def layers(text: str) -> list[Layer]:
    """The layers of one period; one where all are alike."""
    return [tuple(_part(part) for part in split(layer, "+"))
            for layer in split(one_line(text), "/")]


def split(text: str, separator: str) -> list[str]:
    """The parts between separators that stand outside brackets and quotes."""
    parts, begin, depth, quoted = [], 0, 0, False
    for place, character in enumerate(text):
        if character == '"' and text[place - 1:place] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif depth == 0 and text.startswith(separator, place):
            parts.append(text[begin:place])
            begin = place + len(separator)
    return [*parts, text[begin:]]


def spellings(period: Sequence[Layer]) -> list[list[str]]:
    """A period's layers as text: with the options that tell them apart, with none, with all."""
    every = {(part[0], key) for layer in period for part in layer for key, _ in part[1]}
    if len(period) == 1:
        return [[_text(period[0], every)]]
    apart = {(name, key) for name, key in every
             if len({dict(part[1]).get(key) for layer in period for part in layer
                     if part[0] == name}) > 1}
    found = [[_text(layer, shown) for layer in period] for shown in (apart, set(), every)]
    return [level for n, level in enumerate(found) if level not in found[:n]]


def grouped(texts: Sequence[str], period: Sequence) -> str:
    """"3x rglru + attention": neighbours that are alike in the period, counted."""
    runs = [[texts[n] for n, _ in run]
            for _, run in groupby(enumerate(period), key=lambda pair: pair[1])]
    return " + ".join(f"{len(run)}x {run[0]}" if len(run) > 1 else run[0] for run in runs)


def replaced(old: Sequence[Layer], new: Sequence[Layer]) -> list[str]:
    """What came for what: the new scheme where it took the place of one old one everywhere, else
    with the layers that it is in, counted from 0; then the whole period."""
    whole = [grouped(level, new) for level in spellings(new)]
    size = max(len(old), len(new))
    if len(new) == 1 or {len(old), len(new)} - {1, size}:
        return whole
    pairs = list(zip(list(old) * (size // len(old)), list(new) * (size // len(new))))
    places = [n for n, (was, now) in enumerate(pairs) if was != now]
    if len({pairs[n][1] for n in places}) != 1:
        return whole
    told = [level[0] for level in spellings([pairs[places[0]][1]])]
    gone, kept = {pairs[n][0] for n in places}, {was for was, now in pairs if was == now}
    if len(gone) > 1 or gone & kept:
        told = [f"{text} in layer {', '.join(map(str, places))}" for text in told]
    return [*told, *whole]


def flat(label: str) -> str:
    """A label of before names were short, its nested settings as an id: "overrides=#3fa2"."""
    found, place = [], 0
    while match := NESTED.search(label, place):
        end = _closed(label, match.end() - 1)
        if end == 0:  # it was cut, or is no setting
            break
        nested = "" if match[1] in SAID else f"{match[1]}=#{digest(label[match.end() - 1:end])}"
        found += [label[place:match.start()], nested]
        place = end
    return " ".join("".join([*found, label[place:]]).split())


def _closed(text: str, begin: int) -> int:
    """Where the bracket at `begin` is closed, behind it; 0 where it is not."""
    open_ones, quote = [], ""
    for place in range(begin, len(text)):
        character = text[place]
        if quote:
            quote = "" if character == quote and text[place - 1] != "\\" else quote
        elif character in "'\"":
            quote = character
        elif character in "[{(":
            open_ones.append(character)
        elif character in ")}]":
            open_ones.pop()
            if not open_ones:
                return place + 1
    return 0


def _part(text: str) -> Part:
    if not (found := PART.fullmatch(text)):
        return text, ()
    pairs = [option.partition("=") for option in split(found[2], ", ")]
    if not all(equals for _, equals, _ in pairs):
        return text, ()
    return found[1], tuple((key, _number(value)) for key, _, value in pairs)


def _number(text: str) -> str:
    """8.0 as 8, 1000000.0 as 1e6; anything else as it is."""
    if not (found := NUMBER.fullmatch(text)):
        return text
    digits, zeros = found.groups()
    return f"{digits}e{len(zeros)}" if len(zeros) > 3 else digits + zeros


def _text(layer: Layer, shown: set[tuple[str, str]]) -> str:
    """"randomized+yarn x8": the factor of a scheme is a number of times."""
    parts = []
    for name, pairs in layer:
        options = {key: value for key, value in pairs if (name, key) in shown}
        times = options.pop("factor") if FACTOR.fullmatch(options.get("factor", "")) else ""
        rest = ", ".join(f"{key}={value}" for key, value in options.items())
        parts.append(name + (f" x{times}" if times else "") + (f"({rest})" if rest else ""))
    return "+".join(parts)
