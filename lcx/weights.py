"""What weight decay may do to a parameter, said where the parameter is made."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
from flax import struct


class Weight(nn.LogicallyPartitioned, eq=False):
    """A parameter, the logical names of its axes, and whether weight decay shrinks it."""

    decays: bool = struct.field(pytree_node=False, kw_only=True)


def matrix(init: Callable, names: Sequence[str | None]) -> Callable:
    """Initializer of a matrix that multiplies activations, or of convolution taps: it decays."""
    return _boxed(init, names, True)


def free(init: Callable, names: Sequence[str | None]) -> Callable:
    """Initializer of any other parameter: weight decay leaves it alone.

    Such are timescales, state matrices (A, B, C and D of a state space), gains, norms, biases,
    skips, blends, initial states, and tables whose rows are looked up: a rare row would decay more
    than it learns. Zero means nothing to them (a log rate of 0 is a memory of one token), so decay
    would not make them smaller but other.
    """
    return _boxed(init, names, False)


def _boxed(init: Callable, names: Sequence[str | None], decays: bool) -> Callable:
    @functools.wraps(init)
    def boxed(*args, **kwargs) -> Weight:
        return Weight(init(*args, **kwargs), tuple(names), decays=decays)

    return boxed
