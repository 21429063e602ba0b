"""The channel mixing of RWKV: as published, in a stream, on a packed row, on a mesh."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import lookup
from lcx.model import build_model
from lcx.train.decay import decayed
from tests import mixer_cases as cases
from tests.mixer_cases import D, T, packed
from tests.test_train_model import losses, small

GATED, BARE = dict(name="channel_mix", hidden=24), dict(name="channel_mix", gated=False)


def mlp_of(spec, width=D):
    return lookup.build("lcx.model.mlps", spec, width=width)


def initial(spec, width=D):
    x = jnp.zeros((1, 2, width))
    return mlp_of(spec, width).init(jax.random.key(0), x, L.sequence(1, 2))["params"]


@pytest.mark.parametrize("spec", [GATED, BARE], ids=["gated", "bare"])
def test_it_is_the_published_formula_on_a_packed_row_and_in_pieces(spec, x64):
    mlp, seq, x = mlp_of(spec), packed(), cases.inputs()
    rng = np.random.default_rng(1)
    p = jax.tree.map(lambda a: 0.4 * rng.normal(size=a.shape), nn.unbox(initial(spec)))
    plain = np.asarray(x)
    before = np.zeros_like(plain)
    for t in range(T):
        if not cases.starts()[t]:
            before[:, t] = plain[:, t - 1]
    moved = [plain + (before - plain) * mu for mu in p["blend_scale"]]
    wanted = np.maximum(moved[0] @ p["key"]["kernel"], 0) ** 2 @ p["out"]["kernel"]
    if "gate" in p:
        wanted = wanted * cases.sigmoid(moved[1] @ p["gate"]["kernel"])
    assert ("gate" in p) == (spec is GATED)
    run = lambda x, seq, state=None: mlp.apply({"params": p}, x, seq, state)
    np.testing.assert_allclose(run(x, seq)[0], wanted, atol=1e-12)
    state, parts = mlp.init_state(len(x), T, x.dtype), []
    for a, b in cases.PIECES:
        y, state = run(x[:, a:b], seq[a:b], state)
        parts.append(y)
    np.testing.assert_allclose(np.concatenate(parts, 1), wanted, atol=1e-12)


def test_initial_values():
    boxed = initial(dict(name="channel_mix", layer=1, num_layers=4, power=3.0), 64)
    p = jax.tree.map(np.asarray, nn.unbox(boxed))
    np.testing.assert_allclose(p["blend_scale"][:, 32], 1 - 0.5 ** (0.75**3), rtol=1e-6)
    key = p["key"]["kernel"]
    assert key.shape == (64, 256)
    np.testing.assert_allclose(key @ key.T, 4 * np.eye(64), atol=1e-5)
    assert not p["out"]["kernel"].any() and not p["gate"]["kernel"].any()
    assert not decayed(boxed)["blend_scale"] and decayed(boxed)["key"]["kernel"]
    bare = np.asarray(nn.unbox(initial(BARE, 64))["key"]["kernel"])
    assert 0.9 / 16 < np.abs(bare).max() <= 1 / 16


def test_a_model_streams_it_and_keeps_documents_apart(x64):
    model = build_model(dict(
        vocab_size=11, width=D, depth=4, position="no_pe", dtype="float64",
        mixer=dict(name="short_conv"), mlp=GATED, pattern=[{}, dict(mlp="plain")]), T)
    seq, rng, text = packed(), np.random.default_rng(1), np.arange(2 * T).reshape(2, T) % 11
    shapes = jax.eval_shape(lambda: nn.unbox(model.init(jax.random.key(0), text, seq)))
    found = jax.tree.map(lambda a: 0.4 * rng.normal(size=a.shape), shapes)
    apply = jax.jit(model.apply)
    whole, state, pieces = apply(found, text, seq)[0], model.init_state(2, T), []
    for a, b in cases.PIECES:
        y, state = apply(found, text[:, a:b], seq[a:b], state)
        pieces.append(y)
    np.testing.assert_allclose(jnp.concatenate(pieces, 1), whole, atol=1e-10)
    a, b = cases.DOCUMENTS[-1]
    alone = apply(found, text[:, a:b], L.sequence(1, b - a, told_length=T))[0]
    np.testing.assert_allclose(alone, whole[:, a:b], atol=1e-10)


@pytest.mark.full
def test_it_trains_on_a_mesh_as_on_one_device():
    settings = small(dict(name="attention", num_heads=4), "rope")
    settings.experiment.model.mlp = {"name": "channel_mix"}
    wanted, start, _ = losses(settings, (1, 1, 1))
    assert losses(settings, (2, 2, 2), start)[0] == pytest.approx(wanted, rel=1e-5)
