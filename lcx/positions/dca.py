"""Dual chunk attention: positions inside a chunk, to the chunk before, and to all earlier ones."""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from lcx.domains import Count, NonNegative, Positive
from lcx.errors import ConfigError
from lcx.lanes import Lanes, Piecewise, Rotation, Sequence
from lcx.positions.rope import Rope
from lcx.positions.self_extend import whole
from lcx.types import wide


class Dca(Rope):
    """Dual chunk attention (arXiv:2402.17463) on a RoPE checkpoint, without training.

    Chunks of s = chunk - local tokens; a key's id is j mod s, a query's depends on how many
    chunks lie between: 0: i mod s; 1: min(i mod s + s, chunk); more: min(2s - 1, chunk). Exact up
    to the distance `local`. chunk: 3/4, local: 1/8 of original_length (train_length) if None.
    factor: also interpolate all ids. gain: cos and sin grow by gain x ln(L/L0) + 1 with the length
    L told; 0 in the paper, 0.05 in the authors' code. Relative only for shifts by multiples of s.
    Checked against HKUNLP/ChunkLlama. It says nothing about tokens to come: causal only.
    """

    chunk: Count | None = None
    local: Count | None = None
    original_length: Count | None = None
    factor: Positive = 1.0
    gain: NonNegative = 0.0

    structure: ClassVar[str] = "PW"
    paper: ClassVar[str] = "arXiv:2402.17463"
    examples: ClassVar[tuple[dict, ...]] = (dict(chunk=9, local=2), dict(gain=0.05, factor=2.0))
    represents: ClassVar[bool] = True

    @property
    def relative(self) -> int:
        """Only for shifts by multiples of the stride."""
        return self.sizes()[1]

    @property
    def trained(self) -> int:
        return self.original_length or self.site.train_length

    def sizes(self) -> tuple[int, int]:
        """Chunk size c and stride s. Raises ConfigError unless c > s > 0."""
        chunk = self.trained * 3 // 4 if self.chunk is None else self.chunk
        local = self.trained // 8 if self.local is None else self.local
        if not 0 < local < chunk:
            raise ConfigError(f"dca needs 0 < local < chunk, not local {local} of chunk {chunk}")
        return chunk, chunk - local

    def ladder(self) -> np.ndarray:
        return super().ladder() / self.factor

    def numbers(self) -> dict[str, np.ndarray]:
        chunk, stride = self.sizes()
        return {**super().numbers(), "chunk": np.array(float(chunk)),
                "stride": np.array(float(stride)), "original_length": np.array(float(self.trained))}

    def rotation(self, seq: Sequence) -> Rotation:
        if not self.gain:
            return super().rotation(seq)
        scale = jnp.maximum(wide(seq.length) / self.number("original_length"), 1.0)
        return super().rotation(seq).replace(amplitude=self.gain * jnp.log(scale) + 1.0)

    @nn.compact
    def lanes(self, x, seq: Sequence, carry: Any) -> tuple[Lanes, Any]:
        if not self.site.causal:
            raise ConfigError("dca has no positions for tokens to come: use it with a causal mixer")
        params = {"chunk": self.number("chunk"), "stride": self.number("stride")}
        pieces = ((inside, inside), (next_chunk, inside), (farther, inside))
        return Lanes(Piecewise(self.rotation(seq), params, chunks_apart, pieces,
                               window=2 * self.sizes()[1], far=2)), carry


def chunks_apart(params, query_ids, key_ids):
    """0 in one chunk, 1 in the next, 2 farther; a masked key of the future counts as inside."""
    stride = whole(params["stride"])
    return jnp.clip(whole(query_ids) // stride - whole(key_ids) // stride, 0, 2)


def inside(params, ids):
    return wide(whole(ids) % whole(params["stride"]))


def next_chunk(params, ids):
    return jnp.minimum(inside(params, ids) + params["stride"], params["chunk"])


def farther(params, ids):
    farthest = jnp.minimum(2 * params["stride"] - 1, params["chunk"])
    return jnp.broadcast_to(farthest, ids.shape)
