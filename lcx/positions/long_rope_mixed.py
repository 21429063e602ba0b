"""LongRoPE that leaves the first tokens as they were trained."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lcx.domains import Whole
from lcx.errors import ConfigError
from lcx.lanes import FeatureMap, Lanes, Rotation, Sequence, phase, split_frequency
from lcx.ops import endpoint
from lcx.positions.long_rope import LongRope


class LongRopeMixed(LongRope):
    """LongRoPE's Mixed variant (arXiv:2402.13753): ids below `start` turn at theta, without g.

    Later ids turn as under `long_rope`, g included. `start` is found by a search together with the
    factors, so it has no default that means anything. A query beyond it and a key before it turn
    by different ladders: not relative. Half-split pairs only. Checked against microsoft/LongRoPE.
    """

    start: Whole = 4

    structure: ClassVar[str] = "FIN"
    relative: ClassVar[bool] = False
    examples: ClassVar[tuple[dict, ...]] = (dict(original_length=8),)

    def numbers(self) -> dict[str, np.ndarray]:
        return {**super().numbers(), "first": split_frequency(self.ladder()),
                "start": np.array(float(self.start))}

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        if self.interleaved:
            raise ConfigError("long_rope_mixed turns half-split pairs; leave interleaved=False")
        params = dict(first=Rotation(self.number("first")), later=self.rotation(seq),
                      start=self.number("start"))
        return Lanes(FeatureMap(params, features, features)), carry


def features(params, x, ids):
    """x [B,T,H,K], turned by the ladder of its id, and scaled by g from `start` on."""
    later, inside = params["later"], ids[..., :1] < params["start"]
    angle = jnp.where(inside, phase(params["first"], ids), phase(later, ids))
    width = 2 * angle.shape[-1]
    gain = jnp.where(inside, 1.0, later.amplitude)[..., None]
    turned = endpoint.rotate(x, angle, x.shape[-1])
    return jnp.concatenate([turned[..., :width] * gain, turned[..., width:]], -1)
