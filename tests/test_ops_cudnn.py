"""What cuDNN's attention is not asked for: each refusal comes before the call."""

import jax
import jax.numpy as jnp
import pytest

from lcx import lanes as L
from lcx.ops import pairs
from lcx.ops.attention import cudnn

B, T, H = 1, 4, 2


def call(dtype=jnp.bfloat16, dim=16, value_dim=None, keys=T, value_heads=H, segment=None,
         lanes=None, **options):
    """Shapes alone: nothing runs."""
    def run():
        query = jnp.zeros((B, T, H, dim), dtype)
        key = jnp.zeros((B, keys, H, dim), dtype)
        value = jnp.zeros((B, keys, value_heads, value_dim or dim), dtype)
        seq = L.sequence(1, T, segment=segment)
        of_keys = seq if keys == T else L.sequence(1, keys)
        return cudnn.attend(pairs.Queries(query, seq), pairs.Keys(key, value, of_keys),
                            lanes or L.Lanes(), rotary_dim=dim, scale=1.0,
                            **{"causal": True, "window": None, **options})
    return jax.eval_shape(run)


@pytest.mark.parametrize("change, words", [
    (dict(dtype=jnp.float32), "bfloat16 or float16"),
    (dict(keys=T + 1), "not a cache"),
    (dict(segment=[[1, 1, 2, 2]]), "packing mask"),
    (dict(lanes=L.Lanes(bias=(L.Separable(jnp.zeros((1, T, H))),))), "bias"),
    (dict(lanes=L.Lanes(logits=L.LogitMap(None, None))), "weights and logits"),
    (dict(sinks=1), "plain softmax"),
    (dict(window=2, causal=False), "windows are causal"),
    (dict(lanes=L.Lanes(L.Householder(None, None))), "no Householder"),
    (dict(value_heads=1), "as many value heads"),
    (dict(dim=12), "multiple of 8"),
    (dict(dim=264), "up to 256"),
    (dict(value_dim=8), "one head_dim"),
], ids=str)
def test_what_it_cannot_do_is_said_before_it_is_called(change, words, monkeypatch):
    with pytest.raises(NotImplementedError, match="NVIDIA GPU"):
        call()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda query, *_, **__: query)
    assert call().shape == (B, T, H, 16)
    with pytest.raises(NotImplementedError, match=words):
        call(**change)
