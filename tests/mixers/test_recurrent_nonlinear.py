"""LSTM, GRU and sLSTM: beside Flax's cells and NumPy loops, extreme gates, starts, refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.mixers import nonlinear_family as family
from tests import mixer_cases as cases
from tests.mixer_cases import DOCUMENTS, B, D, T, conv, sigmoid, silu

GRU, SLSTM = dict(name="gru", num_heads=2), dict(name="slstm", num_heads=2)


def flax_cell(name, p):
    """Flax's cell and its parameters from ours (its gates have a map each)."""
    split = lambda key, n, bias=None: {
        "kernel": key[:, n], **({} if bias is None else {"bias": bias})}
    told, said = np.asarray(family.dense(jnp.asarray(p["recurrent"]))), p["inputs"]["kernel"]
    if name == "gru":
        params = {f"i{g}": split(said, n, p["inputs"]["bias"][n]) for n, g in enumerate("rzn")}
        params |= {f"h{g}": split(told, n, p["bias"] if g == "n" else None)
                   for n, g in enumerate("rzn")}
        return nn.GRUCell(D, param_dtype=float), params
    params = {f"i{g}": split(said, n) for n, g in enumerate("ifgo")}
    params |= {f"h{g}": split(told, n, p["bias"][n]) for n, g in enumerate("ifgo")}
    return nn.LSTMCell(D, param_dtype=float), params


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("name", ["gru", "lstm"])
def test_the_cell_is_that_of_flax(name, apart, x64):
    mixer = cases.build(dict(name=name, num_heads=2, heads_apart=apart))
    found, x = cases.variables(mixer, cases.packed()), cases.inputs()
    p = jax.tree.map(np.asarray, found["params"])
    y, _, outer = cases.captured(mixer, found, x, cases.packed())
    cell, params = flax_cell(name, p)
    alone = [nn.RNN(cell).apply({"params": {"cell": params}}, x[:, a:b]) for a, b in DOCUMENTS]
    np.testing.assert_allclose(outer, np.concatenate(alone, 1), rtol=0, atol=1e-12)
    np.testing.assert_allclose(y, outer @ p["out"]["kernel"], rtol=0, atol=1e-12)


def slstm_layer(p, x, window, fade):
    """arXiv:2405.04517, unstabilised."""
    heads = lambda a: a.reshape(*a.shape[:-1], 2, -1)
    seen = silu(conv(x, p["conv"]["kernel"], p["conv"]["bias"])) if window else x
    said = np.stack([np.einsum("bthk,hkv->bthv", heads(source), p["inputs"][:, :, g])
                     for g, source in enumerate((seen, seen, x, x))], 2)
    out = np.zeros((B, T, 2, D // 2))
    for t in range(T):
        if cases.starts()[t]:
            h, c, n = np.zeros((3, B, 2, D // 2))
        i, f, z, o = np.moveaxis(said[:, t] + np.einsum("bhk,hkgv->bghv", h, p["recurrent"])
                                 + p["bias"], 1, 0)
        keep = sigmoid(f) * np.exp(fade[t])[:, None]
        c, n = keep * c + np.exp(i) * np.tanh(z), keep * n + np.exp(i)
        h = out[:, t] = sigmoid(o) * c / n
    apart = out - out.mean(-1, keepdims=True)
    norm = apart / np.sqrt((apart**2).mean(-1, keepdims=True) + 1e-5) * p["norm"]["scale"]
    return norm.reshape(B, T, D)


@pytest.mark.parametrize("window", [4, 0])
def test_slstm_is_the_published_layer(window, x64):
    mixer, seq = cases.build(dict(SLSTM, conv_window=window)), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    p = jax.tree.map(np.asarray, found["params"])
    draw = -np.random.default_rng(3).random((T, 2))
    draw = np.where(cases.starts()[:, None], 0.0, draw)
    lanes = L.Lanes(bias=(L.Separable(jnp.asarray(draw)[None]),))
    for fade, said in ((np.zeros((T, 2)), None), (draw, lanes)):
        y = mixer.apply(found, x, seq, None, said)[0]
        np.testing.assert_allclose(y, slstm_layer(p, np.asarray(x), window, fade), atol=1e-10)


def test_slstm_bears_extreme_gates():
    """Gates of +-200 overflow exp: in the frame m nothing does, forwards or backwards."""
    mixer, seq = cases.build(SLSTM), cases.packed()
    found = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), cases.variables(mixer, seq))
    rng = np.random.default_rng(0)
    loss = lambda found, x: jnp.sum(mixer.apply(found, x, seq)[0] ** 2)
    for _ in range(3):
        found["params"]["bias"] = jnp.asarray(rng.choice([-200.0, 0, 200], (4, 2, 8)), jnp.float32)
        value, slope = jax.jit(jax.value_and_grad(loss))(
            found, cases.inputs().astype(jnp.float32))
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_starts():
    init = lambda spec: nn.unbox(jax.jit(cases.build(spec).init)(
        jax.random.key(0), cases.inputs(), cases.packed()))["params"]
    params = jax.tree.map(np.asarray, init(dict(SLSTM, depth_ratio=1.0)))
    assert not params["recurrent"].any() and not params["bias"][[0, 2, 3]].any()
    place = np.arange(8) / 7
    np.testing.assert_allclose(params["bias"][1], np.tile(5 - 12 * place**1.6, (2, 1)), rtol=1e-5)
    np.testing.assert_allclose(params["inputs"].std(), np.sqrt(2 / 5 / 8), rtol=0.1)
    for gate in np.moveaxis(np.asarray(init(GRU)["recurrent"]), 1, 0):
        np.testing.assert_allclose(gate @ gate.T, np.eye(D), atol=1e-5)


@pytest.mark.parametrize("spec,position", [
    (SLSTM, "fox"), (dict(GRU, heads_apart=True), "no_pe")], ids=str)
def test_every_way_of_running_agrees(spec, position, x64):
    cases.agree(cases.ways(spec, position, ("step",)))
