"""How far a model goes: a table of positions ends, and that is known before anything compiles."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lcx import lanes, sharding
from lcx.errors import ConfigError
from lcx.ops.attention import api as attention
from lcx.types import wide_dtype


class Same:
    """A key for programs: the same model, or an equal one, under the same attention backend.

    A model need not be hashable. Two that are opened from one config are equal, and share what was
    compiled; a stand-in is the same as itself alone.
    """

    def __init__(self, model: Any):
        self.model, self._backend = model, attention.chosen()

    def __hash__(self) -> int:
        return hash((type(self.model), self._backend, getattr(self.model, "train_length", None)))

    def __eq__(self, other: object) -> bool:
        return (isinstance(other, Same) and self._backend == other._backend
                and (self.model is other.model or self.model == other.model))


class Reach:
    """The longest request, from 0 on, that a model was found to serve.

    A call of it is traced by shape, with its position ids known, so that a table that ends before
    them says so. Ids that are made from others while it runs (random ones, those of the tokens) are
    not known: there a read past a table gives NaN.
    """

    def __init__(self):
        self.longest = 0

    def require(self, call: Callable, variables: Any, length: int) -> None:
        """Raise TableEnd unless call(variables, tokens [B,T], seq) serves `length` tokens.

        What is no longer than a request that was served is not traced again.
        """
        if length <= self.longest:
            return
        mesh = jax.sharding.get_abstract_mesh()
        rows = 1 if mesh.empty else sharding.batch_ways(mesh)
        place = np.arange(length, dtype=np.int32)[None]  # of the host: nothing compiles for it
        seq = jax.device_put(lanes.Sequence(
            place, place[..., None].astype(wide_dtype()), None, place, np.int32(length)))
        jax.eval_shape(lambda v, tokens: call(v, tokens, seq), variables,
                       jax.ShapeDtypeStruct((rows, length), np.int32))
        self.longest = length

    def serves(self, call: Callable, variables: Any, length: int) -> bool:
        """Whether `require` is content."""
        try:
            self.require(call, variables, length)
        except ConfigError:
            return False
        return True


def reach_of(model: Any) -> Reach:
    """The `Reach` of a model, kept while the process lives."""
    return _reach(Same(model))


@functools.lru_cache(maxsize=64)
def _reach(same: Same) -> Reach:
    return Reach()
