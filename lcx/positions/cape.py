"""CAPE: in training, ids are shifted, jittered and stretched at random."""

from __future__ import annotations

import math
from typing import ClassVar

import jax

from lcx.domains import AtLeastOne, NonNegative
from lcx.errors import ConfigError
from lcx.lanes import Sequence
from lcx.positions import Position
from lcx.positions.shape import of_document
from lcx.types import wide


class Cape(Position):
    """Continuous augmented positions (arXiv:2106.03143): (id + D + e_id) x s in training.

    D ~ U(-global_shift, global_shift) and ln s ~ U(-ln scaling, ln scaling) for each document and
    row of ids, e ~ U(-local_shift, local_shift) for each token; up to 0.5 the order stays. The ids
    are real and may be negative: stack it over sinusoidal or rotary positions. Defaults: the text
    example of a port by others (github.com/gcambara/cape, read; the order of the three maps is its
    own too); the centring of ids that the paper uses on images and speech is left out.
    """

    global_shift: NonNegative = 5.0
    local_shift: NonNegative = 0.5
    scaling: AtLeastOne = 1.03

    paper: ClassVar[str] = "arXiv:2106.03143"

    def remap(self, seq: Sequence, key=None) -> Sequence:
        if self.scaling < 1:
            raise ConfigError(f"cape: scaling is the largest factor, at least 1: {self.scaling}")
        if key is None:
            return seq
        keys = jax.random.split(key, 3)

        def uniform(number, most):
            return jax.random.uniform(keys[number], seq.ids.shape[:2], wide(most).dtype,
                                      -most, most)[..., None]

        of_all = lambda drawn: of_document(seq, drawn[..., 0])[..., None]
        shift = of_all(uniform(0, self.global_shift))
        stretch = of_all(uniform(1, math.log(self.scaling)))
        jitter = uniform(2, self.local_shift)
        return seq.replace(ids=(seq.ids + shift + jitter) * jax.numpy.exp(stretch))
