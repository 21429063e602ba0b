"""Parameters of a checkpoint under another model: what fits is taken, the rest has names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lcx.train.checkpoint import compare, read_leaves, read_manifest
from lcx.train.manifest import flat, unflat


def load_onto(folder: str | os.PathLike, abstract: Any, step: int,
              init: Callable[[], Any]) -> tuple[Any, list[str], list[str]]:
    """(parameters, leaves of the checkpoint that were dropped, leaves that `init` gave).

    `abstract` is the model's unboxed parameters as shapes with shardings; `init()` gives its
    initial ones and is only called where the checkpoint lacks some. Raises CheckpointMismatch
    listing leaves of one name that differ in shape, CheckpointError on damage.
    """
    path = Path(folder).absolute() / str(step)
    manifest = read_manifest(path)
    target = flat({"params": abstract})
    kept = {n: leaf for n, leaf in manifest["leaves"].items() if n.startswith("params.")}
    dropped, new = sorted(kept.keys() - target.keys()), sorted(target.keys() - kept.keys())
    compare(path, {n: leaf for n, leaf in kept.items() if n in target},
            {n: leaf for n, leaf in target.items() if n in kept})
    host = lambda leaf: np.empty(leaf["shape"], jnp.dtype(leaf["dtype"]))  # not onto the devices
    named = read_leaves(path, manifest, {n: target[n] if n in target else host(kept[n])
                                         for n in kept})
    if new:
        fresh = flat({"params": init()})
        named |= {name: fresh[name] for name in new}
    return unflat(named, {"params": abstract})["params"], dropped, new
