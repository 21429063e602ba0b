"""Positional schemes: one small file each, found by its name.

A scheme subclasses `Position` and overrides what it has: `remap` (new ids), `lanes` (transport,
bias, temperature), `read` (ids that the tokens themselves say), a class `Embed` beside it (the
input lane). It never sees a mixer; a mixer never sees its name. docs/adding_a_scheme.md walks
through one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.core import freeze

from lcx import lookup
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Sequence, Site
from lcx.types import wide

PACKAGE = "lcx.positions"


class DataTransform(Protocol):
    """What a scheme does to the text of training: (draw, length, available) -> (source, ids).

    A row, or a document in one, is to hold `length` tokens of a text that has `available` of them
    from there on: source [length] int64 says which, from 0, and ids [length] at what position ids
    they stand. Pure and frozen, equal to another of the same options; all chance is the generator
    `draw`.
    """

    def __call__(self, draw: np.random.Generator, length: int,
                 available: int) -> tuple[np.ndarray, np.ndarray]: ...


class Position(nn.Module):
    """A positional scheme at one site. Fields of a subclass are its options in a config."""

    site: Site

    structure: ClassVar[str] = "ID"  # structural class: ID GRP PATH SEP EVC TOEP ROW PAIR PW ...
    paper: ClassVar[str] = ""
    # Unchanged when all ids shift (a number: by its multiples); tested, exceptions are declared.
    relative: ClassVar[bool | int] = True
    examples: ClassVar[tuple[dict, ...]] = ({},)  # option sets that the contract tests enrol
    content: ClassVar[bool] = False  # lanes read x: such a scheme cannot be shared by layers
    # Of the schemes with the same types of lanes, the one that meets every kind of mixer in each
    # run of the tests: one of them says so, in its own class.
    represents: ClassVar[bool] = False

    def init_read(self, batch: int) -> Any:
        """What `read` remembers between the calls of a stream."""
        return ()

    def read(self, tokens, seq: Sequence, carry: Any) -> tuple[Sequence, Any]:
        """A sequence with ids that the tokens [B,T] say, before `remap`; and the next carry."""
        return seq, carry

    def data_transform(self) -> DataTransform | None:
        """What training does to the text, for schemes that move it; `moved_ids` has the ids."""
        return None

    def remap(self, seq: Sequence, key=None) -> Sequence:
        """A sequence with new ids. Pure; `key` is a PRNG key in training, None in evaluation."""
        return seq

    def init_carry(self, batch: int) -> Any:
        """What the lanes remember between the calls of a stream (a last id, a conv tail)."""
        return ()

    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        """Lane values for the layer input x [B,T,D], and the next carry.

        The ONE compact method of a scheme, so that parameters never collide.
        """
        return Lanes(), carry

    def numbers(self) -> dict[str, np.ndarray]:
        """Host-side float64 constants (frequencies, slopes): not trained, but traced."""
        return {}

    def number(self, name: str):
        """The traced value of one of `numbers()`: an override at test time needs no recompile."""
        initial = lambda: jnp.asarray(self.numbers()[name], jnp.float32)
        return wide(self.variable("numbers", name, initial).value)


def make(spec: Any, site: Site, **kwargs) -> Position:
    """The scheme of a config: a name, a dict(name=..., ...), or a list of them, stacked."""
    if isinstance(spec, (list, tuple)):
        from lcx.positions.compose import Stack

        return Stack(site=site, parts=tuple(freeze(part) for part in parts(spec)), **kwargs)
    return lookup.build(PACKAGE, spec, site=site, **kwargs)


def parts(spec: Any) -> tuple[Mapping[str, Any], ...]:
    """The components of a spec, each as dict(name=..., ...)."""
    specs = spec if isinstance(spec, (list, tuple)) else (spec,)
    return tuple({"name": s} if isinstance(s, str) else dict(s) for s in specs)


def label(spec: Any) -> str:
    """A short name for tables and legends: "rope", "randomized+alibi"."""
    return "+".join(part["name"] for part in parts(spec))


def make_embed(spec: Any, width: int, train_length: int, number: int = 0,
               vocab_size: int | None = None) -> list[nn.Module]:
    """The input lanes of a spec: the `Embed` of every component that has one.

    An `Embed` is a module (x [B,T,D], seq, tokens [B,T]) -> [B,T,D]; of its fields, width,
    train_length and vocab_size are set here and the rest are options of its scheme. `number` tells
    apart the distinct schemes of a pattern, each with parameters of its own.
    """
    found = []
    for part in parts(spec):
        name, options = part["name"], {k: v for k, v in part.items() if k != "name"}
        scheme = lookup.find(PACKAGE, name)
        embed = getattr(lookup.module(PACKAGE, name), "Embed", None)
        if embed is None:
            continue
        lookup.check_options(scheme, name, options, ("site",))
        options = lookup.fitted(scheme, options, name)
        known = {"width": width, "train_length": train_length, "vocab_size": vocab_size,
                 **lookup.fields(scheme), **options}
        wanted = {field: known[field] for field in lookup.fields(embed) if field in known}
        found.append(embed(name=f"embed_{name}_{number}", **wanted))
    return found


def describe() -> list[dict[str, Any]]:
    """One record per scheme: name, class, lanes, paper and summary (what `lcx positions` shows)."""
    from lcx.positions.listing import record

    return [record(name) for name in lookup.names(PACKAGE)]


def single(found: list, lane: str) -> Any:
    """The one value of a lane in a stack. Raises ConfigError where there are two."""
    found = [value for value in found if value is not None]
    if len(found) > 1:
        names = " and ".join(type(value).__name__ for value in found)
        raise ConfigError(f"two {lane} lanes in one stack ({names}) have no agreed order; "
                          "keep one, or write their product as a scheme of its own")
    return found[0] if found else None


def moved_ids(seq: Sequence, name: str) -> Sequence:
    """The sequence at the ids of its data transform. Raises ConfigError where none has run."""
    if seq.moved is None:
        raise ConfigError(f"{name} moves the text of training, and nothing has moved this one: "
                          "train through lcx.data, `data.train_batches(model.data_transform())`")
    return seq.replace(ids=wide(seq.moved)[..., None], moved=None)
