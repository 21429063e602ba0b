"""Which weights decay: those that say so where they are made (`lcx.weights`)."""

from __future__ import annotations

from typing import Any

import jax

from lcx.errors import ConfigError
from lcx.sharding import is_boxed
from lcx.weights import Weight


def decayed(params: Any) -> Any:
    """A tree of bools like the unboxed `params`, True where weight decay applies.

    Nothing is guessed from a shape or a name. Raises ConfigError on a parameter that says nothing.
    """

    def one(path, leaf) -> bool:
        if not isinstance(leaf, Weight):
            raise ConfigError(
                f"parameter {'/'.join(str(p.key) for p in path)} does not say whether it decays; "
                "wrap its initializer in lcx.weights.matrix(init, names), or in lcx.weights.free")
        return leaf.decays

    return jax.tree_util.tree_map_with_path(one, params, is_leaf=is_boxed)
