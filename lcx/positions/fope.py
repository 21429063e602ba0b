"""FoPE: each pair of channels turns by a mixture of the frequencies that training could see."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lcx.domains import NonNegative, Seed
from lcx.errors import ConfigError
from lcx.lanes import FeatureMap, Lanes, Rotation, Sequence, phase, split_frequency
from lcx.positions.rope import Rope
from lcx.types import precise


class Fope(Rope):
    """Fourier position embedding (arXiv:2412.17739): the tables of cos and sin become C cos, S sin.

    Frequencies that do not complete a turn within train_length are dropped; n remain, and
    m = min(n, d/4) pairs turn by mixtures of all of them: C and S per key head, an eye (every
    ceil(n/m)-th frequency) plus noise of deviation gain sqrt(2 / (n m + H m)), which is what the
    authors' Xavier draw comes to for all heads in one array; not trained. The other pairs meet a
    constant 1 in *both* tables, as in that code, which doubles their share of the product.
    Mixtures are no rotations: neither norms nor relativity hold. One draw of `seed` serves all
    layers (the authors draw for each). Checked against the authors' code.
    """

    gain: NonNegative = 0.3
    seed: Seed = 0

    structure: ClassVar[str] = "FIN"
    paper: ClassVar[str] = "arXiv:2412.17739"
    relative: ClassVar[bool] = False
    examples: ClassVar[tuple[dict, ...]] = (dict(base=10.0),)

    def numbers(self) -> dict[str, np.ndarray]:
        ladder = self.ladder()
        kept = ladder[ladder >= 2 * np.pi / self.site.train_length]
        mixtures = min(len(kept), self.width // 4)
        if not mixtures:
            raise ConfigError("fope: no frequency completes a turn within train_length="
                              f"{self.site.train_length}; lower base={self.base:g}")
        eye = np.zeros((len(kept), mixtures))
        places = np.arange(mixtures) * -(-len(kept) // mixtures)
        eye[places[places < len(kept)], np.flatnonzero(places < len(kept))] = 1.0
        noise = np.random.default_rng(self.seed).normal(
            size=(2, self.site.num_kv_heads, *eye.shape))
        noise *= self.gain * np.sqrt(2 / (mixtures * (len(kept) + self.site.num_kv_heads)))
        return {"frequency": split_frequency(kept), "mixture": eye + noise}

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        params = dict(rotation=Rotation(self.number("frequency")), mixture=self.number("mixture"))
        return Lanes(FeatureMap(params, features, features)), carry


def features(params, x, ids):
    """x C cos + (its half turned) S sin: [B,T,H,K] -> [B,T,H,K]; heads share in groups."""
    angle, (cosine, sine) = phase(params["rotation"], ids), params["mixture"]
    groups, pairs = x.shape[2] // cosine.shape[0], x.shape[-1] // 2

    def table(wave, mixture):  # [B,T,H,K]
        mixed = precise("btn,hnm->bthm", wave, mixture)
        mixed = jnp.pad(mixed, [(0, 0)] * 3 + [(0, pairs - mixed.shape[-1])], constant_values=1.0)
        return jnp.repeat(jnp.concatenate([mixed, mixed], -1), groups, axis=2)

    first, second = jnp.split(x, 2, -1)
    turned = jnp.concatenate([-second, first], -1)
    return x * table(jnp.cos(angle), cosine) + turned * table(jnp.sin(angle), sine)
