"""Options of the attention layer: sink, output gate, biases, each against a NumPy twin."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.errors import ConfigError
from lcx.ops.attention import api, weights
from lcx.ops.pairs import Keys, Queries
from tests import mixer_cases as cases

SLOPES = np.array([0.5, 0.1])


def twin(params, x, *, window=None, gate=False):
    """One layer of two heads over one key head, row by row, under ALiBi slopes."""
    p = jax.tree.map(np.asarray, params)
    linear = lambda name: np.einsum("btd,dhk->bthk", x, p[name]["kernel"]) + p[name].get("bias", 0)
    query, key, value = linear("query"), linear("key"), linear("value")
    out = np.zeros_like(query)
    for b in range(cases.B):
        for h in range(2):
            for i in range(cases.T):
                seen = [j for j in range(i + 1) if cases.SEGMENT[0, j] == cases.SEGMENT[0, i]
                        and (window is None or i - j < window)]
                raised = np.exp([query[b, i, h] @ key[b, j, 0] / np.sqrt(8) - SLOPES[h] * (i - j)
                                 for j in seen])
                rest = np.exp(p["sink"][h]) if "sink" in p else 0.0
                out[b, i, h] = raised @ value[b, seen, 0] / (raised.sum() + rest)
    if gate:
        out = out * cases.sigmoid(linear("gate"))
    return np.einsum("bthk,hkd->btd", out, p["out"]["kernel"]) + p["out"].get("bias", 0)


@pytest.mark.parametrize("name", ["attention", "sink_attention"])
@pytest.mark.parametrize("options", [dict(), dict(gate=True, use_bias=True, window=3)], ids=str)
def test_layer_is_the_published_one(name, options, x64):
    spec = dict(name=name, num_heads=2, num_kv_heads=1, **options)
    mixer, seq = cases.build(spec), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    steps = np.where(cases.starts()[:, None], 0.0, -SLOPES)[None]
    y, _, _ = cases.captured(mixer, found, x, seq, L.Lanes(bias=(L.Separable(jnp.asarray(steps)),)))
    wanted = twin(found["params"], np.asarray(x), window=options.get("window"),
                  gate=options.get("gate", False))
    np.testing.assert_allclose(y, wanted, atol=1e-12)


@pytest.mark.parametrize("position", ["no_pe", ["rope", "fox"], "cope", "path"], ids=str)
@pytest.mark.full  # the law suite runs every mixer so
def test_a_sink_in_every_form_and_in_pieces(position, x64):
    spec = dict(name="sink_attention", num_heads=2, num_kv_heads=1, gate=True)
    cases.agree(cases.ways(spec, position, ("quadratic", "chunked")))


def test_goldens_of_the_sink(x64):
    logits, allowed = jnp.zeros((1, 2, 1, 3)), jnp.array([[[[True, True, False]]]])
    found = weights.Sink(jnp.array([0.0, np.log(2.0)]))(logits, allowed)
    np.testing.assert_allclose(found[0, :, 0], [[1 / 3, 1 / 3, 0], [1 / 4, 1 / 4, 0]], atol=1e-15)
    huge = weights.Sink(jnp.array([900.0, -900.0]))(logits, allowed)  # neither inf nor NaN
    np.testing.assert_allclose(huge[0, :, 0], [[0, 0, 0], [0.5, 0.5, 0]], atol=1e-15)


def test_cudnn_says_what_it_has_not():
    seq = L.sequence(1, 4)
    half = jnp.zeros((1, 4, 2, 8), jnp.bfloat16)
    with pytest.raises(ConfigError, match="cuDNN"), api.backend("cudnn"):
        api.attend(Queries(half, seq), Keys(half, half, seq), L.Lanes(), rotary_dim=8, scale=1.0,
                   normaliser=weights.Sink(jnp.zeros(2)))
