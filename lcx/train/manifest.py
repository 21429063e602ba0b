"""What a state is, leaf by leaf: names, shapes, dtypes and sha256; the hash of a whole state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np


def flat(tree: Any) -> dict[str, Any]:
    """Leaves by dotted path, in path order: `params.layers.mlp.up`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in leaves}
    if len(named) != len(leaves):
        raise ValueError("two leaves of a state have the same dotted path; rename one")
    return dict(sorted(named.items()))


def unflat(named: Mapping[str, Any], like: Any) -> Any:
    """The tree of the structure of `like` with the leaves that `flat` named."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: named[jax.tree_util.keystr(path, simple=True, separator=".")], like
    )


def describe(named: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Shape and dtype of each leaf, abstract or not."""
    return {n: {"shape": list(x.shape), "dtype": str(x.dtype)} for n, x in named.items()}


def hashes(named: Mapping[str, Any]) -> dict[str, str]:
    """sha256 of each leaf's bytes in row-major order, whatever its sharding."""
    with ThreadPoolExecutor() as pool:  # hashlib lets go of the interpreter lock
        return dict(zip(named, pool.map(_hash, named.values())))


def digest(value: Any) -> str:
    """sha256 of JSON-able data in one canonical spelling."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def state_hash(state: Any, data: Any = None) -> str:
    """One hash of every leaf (name, shape, dtype, bytes) and of the data iterator's state.

    Two runs are the same when this, their metric rows and their batch ids are equal.
    """
    named = flat(state)
    return digest({"leaves": describe(named), "sha256": hashes(named), "data": data})


def batch_id(batch: Mapping[str, np.ndarray]) -> str:
    """Sixteen hex digits that tell which tokens, with which weights, a step saw."""
    found = hashlib.blake2b(digest_size=8)
    for name in sorted(batch):
        found.update(name.encode())
        found.update(np.ascontiguousarray(batch[name]).data)
    return found.hexdigest()


def _hash(leaf: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(jax.device_get(leaf)).tobytes()).hexdigest()
