"""Which weights decay: matrices do; norms, biases and looked-up tables do not."""

from __future__ import annotations

from typing import Any

import jax

from lcx.sharding import is_boxed

# Rows of these axes are looked up one at a time: a rare row would decay more than it learns.
TABLES = ("vocab", "positions", "buckets")
_NEVER = ("bias", "scale")


def decayed(params: Any) -> Any:
    """A tree of bools like the unboxed `params`, True where weight decay applies.

    It applies to leaves with two axes or more, the scanned depth not counted, that are not named
    bias or scale and are not a table (a first axis of `TABLES`). The logical names decide, since
    under the scan a norm's scale [depth, width] has the shape of a matrix.
    """

    def one(path, leaf) -> bool:
        names = list(leaf.names if is_boxed(leaf) else (None,) * leaf.ndim)
        axes = [name for name in names if name != "depth"]
        if len(axes) < 2 or axes[0] in TABLES:
            return False
        keys = [p.key for p in path if isinstance(p, jax.tree_util.DictKey)]
        return not (keys and keys[-1].endswith(_NEVER))

    return jax.tree_util.tree_map_with_path(one, params, is_leaf=is_boxed)
