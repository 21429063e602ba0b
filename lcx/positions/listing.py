"""What each scheme is, for `lcx positions` and the docs: read off the code, kept in no table."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lcx import lookup, positions
from lcx.lanes import Site, sequence

_SITE = Site(num_heads=2, num_kv_heads=2, rotary_dim=16, key_dim=16, width=32, train_length=64,
             value_dim=16)


def record(name: str) -> dict[str, Any]:
    """One scheme: name, structural class, lanes (in the order they act), paper and a line on it.

    lanes: "read", "remap" and "embed" where the scheme has them, then the types of its lane values.
    """
    cls = lookup.find(positions.PACKAGE, name)
    has = lambda lane: getattr(cls, lane) is not getattr(positions.Position, lane)
    lanes = [lane for lane in ("read", "remap") if has(lane)]
    if hasattr(lookup.module(positions.PACKAGE, name), "Embed"):
        lanes.append("embed")
    lanes += [type(value).__name__ for value in _lanes(cls(site=_SITE)).values()]
    return {"name": name, "class": cls.structure, "lanes": lanes, "paper": cls.paper,
            "summary": _opening(cls.__doc__ or "")}


def _opening(text: str) -> str:
    """The first lines of a docstring, up to one that ends a sentence or a paragraph."""
    lines = []
    for line in map(str.strip, text.strip().splitlines()):
        lines.append(line)
        if not line or line[-1] in ".:":
            break
    return " ".join(lines).strip()


def _lanes(scheme: positions.Position):
    """Shapes of the lanes; nothing is computed."""
    run = lambda key, x: scheme.init_with_output(
        key, x, sequence(1, 1), scheme.init_carry(1), method="lanes")[0][0]
    return jax.eval_shape(run, jax.random.key(0), jnp.zeros((1, 1, _SITE.width)))
