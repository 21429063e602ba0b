"""GRAPE-M: RoPE whose frequencies are learned."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from lcx.domains import Positive
from lcx.lanes import Rotation, Sequence, split_frequency
from lcx.positions.rope import Rope
from lcx.types import wide
from lcx.weights import free


class GrapeM(Rope):
    """Multiplicative group representation, commuting form (arXiv:2512.07805): G(id) = exp(id X).

    X turns fixed channel pairs at frequencies exp(p / scale), p learned from RoPE's ladder on and
    shared by the heads; scale slows learning down. The paper also has learned planes; its published
    models, against whose code this was checked, have these.
    """

    scale: Positive = 16.0

    paper: ClassVar[str] = "arXiv:2512.07805"
    examples: ClassVar[tuple[dict, ...]] = ({},)

    def numbers(self) -> dict[str, np.ndarray]:
        return {}

    def rotation(self, seq: Sequence) -> Rotation:
        start = lambda key, shape: jnp.asarray(np.log(self.ladder()) * self.scale, jnp.float32)
        init = free(start, ("head_dim",))
        frequency = jnp.exp(wide(self.param("log_freq", init, (self.width // 2,))) / self.scale)
        return Rotation(split_frequency(frequency), interleaved=self.interleaved)
