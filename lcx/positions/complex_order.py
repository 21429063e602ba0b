"""Complex word order: every word turns in the complex plane, channel by channel, as it moves."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx.domains import AtLeastOne
from lcx.errors import ConfigError, did_you_mean
from lcx.lanes import Rotation, Sequence, phase, split_frequency
from lcx.positions import Position
from lcx.positions.rope import ladder
from lcx.types import wide
from lcx.weights import free


class ComplexOrder(Position):
    """Complex word embedding (arXiv:1912.12333): channel m of word j at id p is the number
    r_jm exp(i (w_jm p + theta_jm)), with a trained frequency w for each word and channel.

    Real channels m and m + D/2 of the token embedding are real and imaginary part, so amplitude r
    and initial phase theta are its own, and only w is new. shared: "nothing", a table of all w that
    starts with the same ladder 10000^(-2m/D) for every word; "channels", one w for each word, from
    N(0,1); "words", one w for each channel. All three are in the authors' code (github.com/
    iclr-complex-order/complex-order, schemas 0, 1, 2), whose layers are complex too: here a real
    model reads both parts as channels. w = 0 is no position.
    """

    shared: str = "nothing"
    base: AtLeastOne = 10000.0

    paper: ClassVar[str] = "arXiv:1912.12333"
    relative: ClassVar[bool] = False
    examples: ClassVar[tuple[dict, ...]] = (dict(shared="words"),)


class Embed(nn.Module):
    """Turns the channel pairs of x [B,T,D] by id x frequency of each token [B,T]."""

    width: int
    vocab_size: int | None
    shared: str
    base: float

    @nn.compact
    def __call__(self, x: jax.Array, seq: Sequence, tokens=None) -> jax.Array:
        if self.shared not in SHARED:
            raise ConfigError(f"complex_order: shared has no '{self.shared}'"
                              + did_you_mean(self.shared, SHARED))
        if self.width % 2:
            raise ConfigError(f"complex_order pairs channels: width {self.width} must be even")
        by_word, by_channel = SHARED[self.shared]
        if by_word and (tokens is None or self.vocab_size is None):
            raise ConfigError("complex_order has a frequency for each token, and there are none "
                              "here: run it in a model, or set shared='words'")
        pairs = self.width // 2
        shape = (self.vocab_size if by_word else 1, pairs if by_channel else 1)
        start = jnp.asarray(ladder(self.base, self.width), jnp.float32)
        init = (lambda key, shape, dtype=jnp.float32: jnp.broadcast_to(start, shape).astype(dtype)
                ) if by_channel else nn.initializers.normal(1.0)
        names = ("vocab" if by_word else None, "width" if by_channel else None)
        table = wide(self.param("frequency", free(init, names), shape))
        word = tokens if by_word else jnp.zeros_like(seq.order)
        frequency = table.at[word].get(mode="fill", fill_value=jnp.nan)
        angle = phase(Rotation(split_frequency(frequency)), seq.ids)
        real, imaginary = jnp.split(wide(x), 2, axis=-1)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return jnp.concatenate([real * cos - imaginary * sin, real * sin + imaginary * cos],
                               -1).astype(x.dtype)


SHARED = {"nothing": (True, True), "channels": (True, False), "words": (False, True)}
