"""Names of arms, short, stable and distinct: "3x rglru + attention [rope]", "rope, tested as yarn
x8". The whole settings stay in rows (`position`, `mixer`, `extra`) and in each run's config.json.

A name is made of its own arm alone, unless another arm has the same one: then both say more, and
an id in the end. Nothing here needs jax or numpy: `lcx status` names runs, too.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from lcx.labels import cut, digest, one_line
from lcx.study.spelling import Layer, flat, grouped, layers, replaced, spellings

WIDTH = 48  # characters of a name: what a legend and a table's first column hold
LEAST = 24  # of them for scheme and mixer, whatever the label
Key = TypeVar("Key")


@dataclasses.dataclass(frozen=True, order=True)
class Arm:
    """What is compared; `note` tells arms apart that differ in something else (runtime.label).

    mixer, position and note are names on an axis; `whole` and `scheme` are those of the arm, with
    and without its mixer, where they are not just the three of them in a row.
    """

    mixer: str
    position: str
    note: str = ""
    whole: str = dataclasses.field(default="", compare=False)
    scheme: str = dataclasses.field(default="", compare=False)

    def label(self, mixers: bool = True) -> str:
        """"rope, attention"; the mixer may be left out where there is only one."""
        if known := self.whole if mixers else self.scheme:
            return known
        parts = [self.position, self.mixer if mixers else "", self.note]
        return ", ".join(part for part in parts if part)


@dataclasses.dataclass(frozen=True)
class Facts:
    """What rows and members say of an arm, in full.

    trained: the position and the mixer that it was trained with, where it is tested under others;
    tested: what else that test changes; id: a hash of the experiment without its seed.
    """

    position: str
    mixer: str
    note: str = ""
    trained: tuple[str, str] = ("", "")
    tested: str = ""
    id: str = ""


def names(found: Iterable[Facts]) -> dict[Facts, Arm]:
    """An arm for each, no two of one name."""
    found = list(dict.fromkeys(found))
    mixers = distinct({_mixer(f): _axis(*_mixer(f)) for f in found})
    schemes = distinct({_scheme(f): _axis(*_scheme(f)) for f in found})
    noted = distinct({_note(f): [cut(one_line(", ".join(filter(None, _note(f)))), WIDTH)]
                      for f in found})
    notes = _with_ids({f: (mixers[_mixer(f)], schemes[_scheme(f)], noted[_note(f)])
                       for f in found})
    whole = distinct({f: _fitted(*_wholes(f), notes[f]) for f in found})
    short = distinct({(_scheme(f), notes[f]): _fitted(_axis(*_scheme(f)), (), notes[f])
                      for f in found})
    return {f: Arm(mixers[_mixer(f)], schemes[_scheme(f)], notes[f], whole[f],
                   short[_scheme(f), notes[f]]) for f in found}


@functools.lru_cache(maxsize=4096)
def alone(position: str, mixer: str, note: str = "") -> Arm:
    """The arm of a row or a member that no other is beside."""
    (arm,) = names([Facts(position, mixer, flat(note))]).values()
    return arm


def member_name(member: Mapping[str, Any]) -> str:
    """The name of a member in sweep.json, with its seed; by its own facts where none is kept."""
    known = member.get("arm") or alone(*(str(member.get(key) or "") for key in
                                         ("position", "mixer", "label"))).label()
    return f"{known}, seed {member.get('seed')}"


def distinct(candidates: Mapping[Key, Sequence[str]]) -> dict[Key, str]:
    """For each key the first of its names that no other has; all that share one go on alike.

    Where none is left, the last one and an id of the key.
    """
    place, digits = dict.fromkeys(candidates, 0), 0
    while True:
        chosen = {key: _at(key, candidates[key], place[key], digits) for key in candidates}
        counts = Counter(chosen.values())
        if not (shared := [key for key, name in chosen.items() if counts[name] > 1]):
            return chosen
        if all(place[key] >= len(candidates[key]) for key in shared):
            digits += 4
        for key in shared:
            place[key] += 1


def _at(key: Key, names: Sequence[str], place: int, digits: int) -> str:
    if place < len(names):
        return names[place]
    mark = f"#{digest(repr(key), 4 + digits)}"
    return f"{cut(names[-1], WIDTH - len(mark) - 1)} {mark}".strip()


def _with_ids(places: Mapping[Facts, tuple[str, str, str]]) -> dict[Facts, str]:
    """Notes. Arms that all three names leave alike differ in what no name says: by their ids."""
    alike: dict[tuple, list[Facts]] = {}
    for facts, place in places.items():
        alike.setdefault(place, []).append(facts)
    found = {}
    for (_, _, note), group in alike.items():
        ids = {facts: facts.id or digest(repr(facts), 64) for facts in group}
        digits = next(n for n in range(4, 65) if len({i[:n] for i in ids.values()}) == len(ids)
                      or n == 64)
        for facts in group:
            mark = f"#{ids[facts][:digits]}" if len(group) > 1 else ""
            short = cut(note, WIDTH - len(mark) - 1) if mark else note
            found[facts] = " ".join(part for part in (short, mark) if part)
    return found


def _mixer(facts: Facts) -> tuple[str, str]:
    return facts.mixer, facts.trained[1] or facts.mixer


def _scheme(facts: Facts) -> tuple[str, str]:
    return facts.position, facts.trained[0] or facts.position


def _note(facts: Facts) -> tuple[str, str]:
    return facts.note, facts.tested and f"tested with {facts.tested}"


def _axis(text: str, trained: str) -> list[str]:
    """Names of a scheme or of a mixer, from the one that is wanted to the one that says all."""
    new, old = layers(text), layers(trained)
    if text == trained:
        return _bounded([grouped(level, new) for level in spellings(new)])
    return _bounded(*_tested(_axis(trained, trained), replaced(old, new)))


def _wholes(facts: Facts) -> tuple[list[str], list[str]]:
    """Names of scheme and mixer together, and those that may stand in where none of them fits."""
    position, mixer = _scheme(facts)[1], _mixer(facts)[1]
    own, brief = _together(layers(position), layers(mixer))
    ways = [replaced(layers(old), layers(new)) for new, old in (_scheme(facts), _mixer(facts))
            if new != old]
    if not ways:
        return own, brief
    return _tested([*own, *brief], [" on ".join(way) for way in itertools.product(*ways)])


def _tested(own: Sequence[str], ways: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of what is tested under another scheme or mixer; in the brief ones it is cut."""
    tails = [f", tested as {way}" for way in ways]
    return ([name + tail for name in own for tail in tails],
            [cut(own[0], WIDTH - len(tail)) + tail for tail in tails if len(tail) <= LEAST + 8])


def _together(schemes: Sequence[Layer], mixers: Sequence[Layer]) -> tuple[list[str], list[str]]:
    found = []
    for m, p in itertools.product(spellings(mixers), spellings(schemes)):
        if len(m) == 1:
            found.append(f"{grouped(p, schemes)}, {m[0]}")
        elif len(p) == 1:
            found.append(f"{grouped(m, mixers)} [{p[0]}]")
        elif len(p) == len(m):
            found.append(grouped([f"{a} [{b}]" for a, b in zip(m, p)],
                                 list(zip(mixers, schemes))))
        else:
            found.append(f"{grouped(p, schemes)}, {grouped(m, mixers)}")
    brief = [grouped(level, mixers) for level in spellings(mixers)] if len(mixers) > 1 else []
    return list(dict.fromkeys(found)), brief


def _bounded(candidates: Sequence[str], brief: Sequence[str] = (), width: int = WIDTH
             ) -> list[str]:
    """Those that fit; where none does, the brief ones; where none does, the first one, cut."""
    fit = lambda names: [name for name in names if len(name) <= width]
    return fit(candidates) or fit(brief) or [cut(candidates[0], width)]


def _fitted(candidates: Sequence[str], brief: Sequence[str], note: str) -> list[str]:
    if not note:
        return _bounded(candidates, brief)
    bases = _bounded(candidates, brief, max(LEAST, WIDTH - 2 - len(note)))
    return [f"{base}, {cut(note, WIDTH - 2 - len(base))}" for base in bases]
