"""Latent attention: the layer against a NumPy loop, and the absorbed stream against it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers
from lcx.mixers import matrix
from tests import mixer_cases as cases

SPEC = dict(name="mla", num_heads=2, nope_dim=6, rope_dim=4, value_dim=5, kv_rank=7)


def layer(params, x, angles=None, increment=None):
    """Section 2.1 of arXiv:2405.04434 pair by pair; increment [T,H] of a log-gate."""
    p = jax.tree.map(np.asarray, params)
    seq, heads, rope = cases.packed(), 2, 4
    ids = np.asarray(seq.ids)[0, :, 0]
    hidden = x
    if "query_down" in p:
        hidden = cases.rms(x @ p["query_down"]["kernel"], p["query_norm"]["scale"])
    query = np.einsum("btd,dhk->bthk", hidden, p["query"]["kernel"])
    latent = x @ p["latent"]["kernel"]
    rotary, latent = latent[..., :rope], cases.rms(latent[..., rope:], p["latent_norm"]["scale"])
    out = np.zeros((cases.B, cases.T, heads, p["value_up"].shape[-1]))
    for b in range(cases.B):
        for h in range(heads):
            for i in range(cases.T):
                logits, values = [], []
                for j in range(i + 1):
                    if cases.SEGMENT[0, i] != cases.SEGMENT[0, j]:
                        continue
                    moved = np.eye(rope)
                    if angles is not None:  # <R_i q, R_j k> = <q, R_{j-i} k>
                        moved = cases.turn(angles * (ids[j] - ids[i]), rope)
                    score = query[b, i, h, :rope] @ moved @ rotary[b, j]
                    score += query[b, i, h, rope:] @ (latent[b, j] @ p["key_up"][:, h])
                    bias = 0.0 if increment is None else increment[j + 1 : i + 1, h].sum()
                    logits.append(score / np.sqrt(6 + 4) + bias)
                    values.append(latent[b, j] @ p["value_up"][:, h])
                weights = np.exp(logits - np.max(logits))
                out[b, i, h] = weights @ np.array(values) / weights.sum()
    return np.einsum("bthv,hvd->btd", out, p["out"]["kernel"])


@pytest.mark.parametrize("query_rank", [None, 9])
def test_layer_is_the_published_one(x64, query_rank):
    mixer, seq = cases.build(dict(SPEC, query_rank=query_rank)), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    y, inner, _ = cases.captured(mixer, found, x, seq)
    np.testing.assert_allclose(y, layer(found["params"], np.asarray(x)), atol=1e-12)
    assert inner["scale"] == 10**-0.5

    angles = np.array([1.0, 0.3])
    increment = np.where(cases.starts()[:, None], 0, -np.random.default_rng(3).random((cases.T, 2)))
    lanes = L.Lanes(L.Rotation(jnp.asarray(L.split_frequency(angles))),
                    (L.Separable(jnp.asarray(increment)[None]),))
    y, _, _ = cases.captured(mixer, found, x, seq, lanes)
    wanted = layer(found["params"], np.asarray(x), angles, increment)
    np.testing.assert_allclose(y, wanted, atol=1e-10)


SCHEMES = ["no_pe", "rope", ["fox", "t5_bias"], ["path", "fox"], "rerope", ["rope", "log_n"],
           "cope"]


@pytest.mark.parametrize("position", SCHEMES, ids=str)
def test_absorbed_stream_is_the_expanded_layer(x64, position):
    """Every lane: whole, in pieces and document by document."""
    cases.agree(cases.ways(SPEC, position, ("auto",)))


def test_stream_remembers_the_latent_and_the_rotary_key():
    per_token = lambda position: np.diff(
        [cases.build(SPEC, position).state_size(n) for n in (100, 101)])[0]
    assert per_token("rope") == 7 + 4 + 1  # latent, rotary key, id
    assert per_token("cope") == 2 * (6 + 4 + 5) + 1  # each head's own key and value
    cell = matrix.cell("cope", SPEC, width=cases.D)
    assert cell["status"] == "partial" and "R8" in cell["missing"]["absorbed"]


def test_channels_without_rotation_stay(x64):
    """NoPE-MLA: a rotation by zero is the layer without one, scale included."""
    mixer, seq = cases.build(SPEC), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    still = L.Lanes(L.Rotation(jnp.zeros((3, 2))))
    np.testing.assert_allclose(cases.captured(mixer, found, x, seq, still)[0],
                               cases.captured(mixer, found, x, seq)[0], atol=1e-13)


def test_past_the_cache_is_nan(x64):
    mixer, seq = cases.build(SPEC, "rope"), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    state = mixer.init_state(cases.B, 4, x.dtype)
    call = jax.jit(mixer.apply)
    y, state = call(found, x[:, :3], seq[:3], state)
    assert np.isfinite(y).all()
    y, state = call(found, x[:, 3:6], seq[3:6], state)
    assert np.isnan(y).all()


def test_default_sizes_follow_the_width():
    """DeepSeek's proportions: rotary half of the content channels, latent four times them."""
    mixer = mixers.make("mla", position="rope", width=512, train_length=8)
    assert mixer.sizes() == (128, 64, 128, 512)
    assert mixer.site() == L.Site(4, 1, 64, 192, 512, 8, value_dim=128)
