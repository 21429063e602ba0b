"""Multi-head latent attention: one low-rank latent per token in place of keys and values."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from lcx import lanes as L
from lcx.domains import Count
from lcx.layers import Dense, RmsNorm
from lcx.mixers import CHUNKED, QUADRATIC, STEP, Support
from lcx.mixers.softmax_family import SUPPORTS, SoftmaxMixer
from lcx.ops import pairs
from lcx.weights import matrix

_EXPANDED = Support((QUADRATIC, CHUNKED, STEP), missing={
    "absorbed": "R8 it needs each head's own key or value: the stream caches expanded keys and "
                "values in place of the latent"})


class Mla(SoftmaxMixer):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): [B,T,D] -> [B,T,D].

    Each token gives one latent c = RMSNorm(W_c x) of kv_rank channels, from which every head reads
    its own content key and value, and one rotary key that all heads share; a transport acts on the
    rotary channels alone. Scores are scaled by (nope_dim + rope_dim)^-1/2. Without a state the keys
    are expanded per head; with one, W_uk moves to the query and W_uv to the output, so that a
    stream remembers kv_rank + rope_dim numbers per token. Both forms are one function.

    nope_dim: content channels of a head, width/num_heads if None; rope_dim: half of them if None;
    value_dim: nope_dim if None; kv_rank: 4 nope_dim if None (DeepSeek 512 = 4 x 128); query_rank:
    of a normalised query latent (DeepSeek 1536 = 12 x 128), a direct projection if None. Kernels
    start normal with variance 1/fan_in, norm gains at 1; there are no biases.
    """

    num_heads: Count = 4
    nope_dim: Count | None = None
    rope_dim: Count | None = None
    value_dim: Count | None = None
    kv_rank: Count | None = None
    query_rank: Count | None = None

    paper: ClassVar[str] = "arXiv:2405.04434"
    examples: ClassVar[tuple[dict, ...]] = (dict(), dict(query_rank=12, value_dim=6))
    supports = {**SUPPORTS, L.Pairwise: _EXPANDED, L.ValueRotation: _EXPANDED,
                L.ValueTable: _EXPANDED}

    def sizes(self) -> tuple[int, int, int, int]:
        """Channels of content key, rotary key and value, and rank of the latent."""
        nope = self.nope_dim or max(1, self.width // self.num_heads)
        rope = self.rope_dim or 4 * max(1, nope // 8)
        return nope, rope, self.value_dim or nope, self.kv_rank or 4 * nope

    def site(self) -> L.Site:
        nope, rope, value_dim, _ = self.sizes()
        return L.Site(self.num_heads, 1, rope, nope + rope, self.width, self.train_length,
                      value_dim=value_dim)

    @nn.compact
    def __call__(self, x: jax.Array, seq: L.Sequence, state: Any = None,
                 shared: L.Lanes | None = None) -> tuple[jax.Array, Any]:
        heads, (nope, rope, value_dim, rank) = self.num_heads, self.sizes()
        names = ("heads", "head_dim")
        hidden = x
        if self.query_rank is not None:
            hidden = Dense((self.query_rank,), ("rank",), name="query_down")(x)
            hidden = RmsNorm("rank", name="query_norm")(hidden)
        query = Dense((heads, rope + nope), names, ("width" if hidden is x else "rank",),
                      name="query")(hidden)
        latent = Dense((rope + rank,), ("rank",), name="latent")(x)
        rotary, latent = latent[..., None, :rope], latent[..., rope:]
        latent = RmsNorm("rank", name="latent_norm")(latent)
        up = lambda name, size: self.param(name, matrix(
            nn.initializers.normal(1 / math.sqrt(rank)), ("rank", *names)),
            (rank, heads, size)).astype(x.dtype)
        key_up, value_up = up("key_up", nope), up("value_up", value_dim)

        lanes, carry = self.see(x, seq, None if state is None else state.carry, shared)
        scale = (nope + rope) ** -0.5
        if state is None or _expanded(lanes):
            key = jnp.einsum("btr,rhk->bthk", latent, key_up)
            key = jnp.concatenate([jnp.broadcast_to(rotary, (*key.shape[:3], rope)), key], -1)
            value = jnp.einsum("btr,rhv->bthv", latent, value_up)
            out, state = self.attend(query, key, value, seq, lanes, carry, state, scale=scale)
        else:
            content = jnp.einsum("bthk,rhk->bthr", query[..., rope:], key_up)
            query = jnp.concatenate([query[..., :rope], content], -1)
            out, state = self._absorbed(query, rotary, latent[..., None, :], seq, lanes, carry,
                                        state, scale=scale)
            out = jnp.einsum("bthr,rhv->bthv", out, value_up)
        out = Dense((self.width,), ("width",), names, scale=self.output_scale, name="out")(out)
        return out, state

    def _absorbed(self, query, rotary, latent, seq, lanes, carry, state, *, scale):
        """As `attend`, over one shared key [rotary | latent] whose value is the latent itself."""
        keys, total, slot, state = self.remember(rotary, latent, seq, lanes, carry, state)
        join = lambda rotary, latent: jnp.concatenate([rotary, latent], -1).astype(query.dtype)
        keys = keys.replace(key=join(keys.key, keys.value), value=keys.value.astype(query.dtype))
        queries = pairs.Queries(query, seq, total, pairs.path_of(lanes.transport),
                                pairs.extras_of(lanes), slot)
        out = self.softmax(queries, keys, lanes, (join(rotary, latent), latent), scale=scale)
        return out, state

    def init_state(self, batch: int, max_length: int, dtype=jnp.float32) -> Any:
        nope, rope, value_dim, rank = self.sizes()
        if _expanded(self.structure()[0]):
            return self.empty_state(batch, max_length, self.num_heads, rope + nope, value_dim,
                                    dtype)
        return self.empty_state(batch, max_length, 1, rope, rank, dtype)


def _expanded(lanes: L.Lanes) -> bool:
    """Whether a stream must keep each head's own keys and values."""
    return lanes.reads_content or lanes.value is not None
