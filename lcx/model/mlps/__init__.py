"""Channel mixers (feed-forward layers), one file each, found by its name."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.lanes import Sequence


class StreamedMlp(nn.Module):
    """An MLP that reads tokens before its own: `mlp(x, seq, state) -> (y, state)`, as mixers do.

    All others are functions of one token, `mlp(x) -> y`, and remember nothing.
    """

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        """Fixed buffers for a stream of up to `max_length` tokens. For an unbound module."""
        raise NotImplementedError


class CountingMlp(nn.Module):
    """A function of one token that tells training a statistic over tokens: `mlp(x, counted) -> y`.

    counted: which tokens the statistic counts, bool [.,T]; None: all of them.
    """


def init_state(mlp: nn.Module | None, batch: int, max_length: int, dtype=jnp.float32) -> Any:
    """What an MLP remembers before any token; None: nothing."""
    streams = isinstance(mlp, StreamedMlp)
    return mlp.init_state(batch, max_length, dtype) if streams else None


def run(mlp: nn.Module, x: jax.Array, seq: Sequence, state: Any) -> tuple[jax.Array, Any]:
    """An MLP of any kind on tokens [B,T,D]: its output and its next state."""
    match mlp:
        case StreamedMlp():
            return mlp(x, seq, state)
        case CountingMlp():  # padding is no token of a document
            return mlp(x, None if seq.segment is None else seq.segment > 0), state
    return mlp(x), state
