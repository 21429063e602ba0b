"""mLSTM: the op against its naive twin, the layer against its definition, retention, long gates."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.ops.linear import linear_attention
from lcx.ops.linear.mlstm import mlstm
from tests import mixer_cases as cases
from tests.mixer_cases import DOCUMENTS, B, D, T, sigmoid

SPEC = dict(name="mlstm", num_heads=2)
FORMS = ("quadratic", "chunked", "step")
NAMES = ("query", "key", "value", "log_forget", "log_input")


def draw(length=37, seed=0, spread=1.0):
    """Arrays of two heads [B,T,2,*]; gates with a spread of several e-folds."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(rng.normal(size=(B, length, 2, *shape)))
    return dict(query=normal(4), key=normal(4), value=normal(6),
                log_forget=-jnp.abs(spread * normal()), log_input=3 * spread * normal())


def naive(x, starts=(0,), eps=0.0):
    """Sums over pairs, outside any frame."""
    x = {k: np.asarray(v) for k, v in x.items()}
    out = np.zeros(x["value"].shape)
    for b, h, i in np.ndindex(B, 2, out.shape[1]):
        first = max(s for s in starts if s <= i)
        fall = np.array([x["log_forget"][b, j + 1: i + 1, h].sum() for j in range(first, i + 1)])
        scores = x["key"][b, first: i + 1, h] @ x["query"][b, i, h]
        weights = scores * np.exp(fall + x["log_input"][b, first: i + 1, h])
        out[b, i, h] = weights @ x["value"][b, first: i + 1, h] / max(abs(weights.sum()), 1.0)
    return out


def test_chunks_tokens_and_pieces_are_the_definition(x64):
    x, starts = draw(), np.zeros((1, 37), bool)
    starts[0, [0, 9, 10, 30]] = True

    def pieces(x, form):
        state, outs = None, []
        for a, b in ((0, 5), (5, 6), (6, 29), (29, 37)):
            out, state = mlstm(**{k: v[:, a:b] for k, v in x.items()}, start=starts[:, a:b],
                               state=state, form=form, chunk=8, eps=0.0)
            outs.append(out)
        return jnp.concatenate(outs, 1)

    wanted = naive(x, (0, 9, 10, 30))
    for form in ("chunked", "recurrent"):
        found = jax.jit(lambda x, form=form: (mlstm(
            **x, start=starts, form=form, chunk=8, eps=0.0)[0], pieces(x, form)))(x)
        for out in found:
            np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-10, err_msg=form)


def test_gradients_of_the_chunks_are_those_of_the_tokens(x64):
    x = draw()
    weight = np.random.default_rng(1).normal(size=x["value"].shape)
    slope = lambda form: jax.jit(jax.grad(lambda x: jnp.sum(
        weight * mlstm(**x, form=form, chunk=8, eps=0.0)[0])))(x)
    got, wanted = slope("chunked"), slope("recurrent")
    for name in NAMES:
        assert np.abs(wanted[name]).max() > 1e-2
        np.testing.assert_allclose(got[name], wanted[name], rtol=0, atol=1e-9, err_msg=name)


def test_epsilon_stays_inside_the_frame(x64):
    """An input gate of e^15 leaves max(|sum|, 1) + 1e-6 e^15: 3.3 beside the sum."""
    one = jnp.ones((1, 1, 1, 1))
    gates = dict(log_forget=jnp.zeros((1, 1, 1)), log_input=jnp.full((1, 1, 1), 15.0))
    for form in ("chunked", "recurrent"):
        out, state = mlstm(1e-9 * one, one, one, **gates, form=form)
        np.testing.assert_allclose(out, 1e-9 * np.exp(15) / (1 + 1e-6 * np.exp(15)), rtol=1e-12)
        np.testing.assert_allclose(state.level, 15.0)


@pytest.mark.parametrize("form", ["chunked", "recurrent"])
def test_closed_gates_are_zero_and_not_nan(form):
    """m falls to -2000, where e^-m overflows: the output is 0, its gradients are finite."""
    x = {k: v.astype(jnp.float32) for k, v in draw(40).items()}
    x |= dict(log_forget=jnp.full_like(x["log_forget"], -50.0),
              log_input=jnp.full_like(x["log_input"], -3000.0))
    out, slope = jax.jit(jax.value_and_grad(lambda x: jnp.sum(mlstm(**x, form=form)[0])))(x)
    assert out == 0 and all(np.isfinite(leaf).all() for leaf in slope.values())


def test_e21_constant_gates_without_the_denominator_are_retention(x64):
    """U.8 E21: f = gamma, i = 1; the sums are made small, so that the denominator is 1."""
    x, gamma = draw(), np.log(np.array([0.9, 0.97]))
    fixed = dict(log_forget=jnp.broadcast_to(gamma, x["log_forget"].shape),
                 log_input=jnp.zeros_like(x["log_input"]))
    small = x["query"] * 1e-4
    out, _ = jax.jit(partial(mlstm, eps=0.0, chunk=8))(small, x["key"], x["value"], **fixed)
    wanted, _ = jax.jit(linear_attention)(small, x["key"], x["value"],
                                          log_decay=fixed["log_forget"])
    cases.close(1e4 * out, 1e4 * wanted, 1e-12)


def test_the_layer_is_the_published_one_under_rotation_and_gate(x64):
    mixer, seq = cases.build(SPEC), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    p, plain = jax.tree.map(np.asarray, found["params"]), np.asarray(x)
    into = lambda name: np.einsum("btd,dhk->bthk", plain, p[name]["kernel"])
    gate = lambda name: 15 * np.tanh((plain @ p[name]["kernel"] + p[name]["bias"]) / 15)
    log_forget = np.log(sigmoid(gate("forget_gate")))
    q, k, v = into("query") / 2, into("key"), into("value")  # keys of 4 channels

    def layer(angle, fade):
        ids = np.asarray(seq.ids)[0, :, 0]
        turned = lambda a: a if angle is None else np.stack(
            [a[:, t] @ cases.turn(angle * ids[t], 4).T for t in range(T)], 1)
        h = naive(dict(query=turned(q), key=turned(k), value=v, log_forget=log_forget + fade,
                       log_input=gate("input_gate")), [a for a, _ in DOCUMENTS])
        apart = h - h.mean(-1, keepdims=True)
        h = apart / np.sqrt((apart**2).mean(-1, keepdims=True) + 1e-6) * p["norm"]["scale"]
        return np.einsum("bthv,hvd->btd", sigmoid(into("gate")) * h, p["out"]["kernel"])

    run = jax.jit(mixer.apply)
    np.testing.assert_allclose(run(found, x, seq)[0], layer(None, 0.0), atol=2e-4)
    angle = np.array([1.1, 0.2])
    fade = np.where(cases.starts()[:, None], 0.0, -np.random.default_rng(3).random((T, 2)))
    lanes = L.Lanes(L.Rotation(jnp.asarray(L.split_frequency(angle))),
                    (L.Separable(jnp.asarray(fade)[None]),))
    np.testing.assert_allclose(run(found, x, seq, None, lanes)[0], layer(angle, fade),
                               atol=2e-4)  # eps of the denominator is not in the definition


@pytest.mark.parametrize("position,forms", [
    (["rope", "fox"], FORMS), (["fox", "t5_bias"], ("quadratic",))], ids=str)
def test_every_way_of_running_agrees(position, forms, x64):
    cases.agree(cases.ways(dict(SPEC, chunk=4), position, forms))


def test_starts():
    params = nn.unbox(jax.jit(cases.build(SPEC).init)(
        jax.random.key(0), cases.inputs(), cases.packed()))["params"]
    for name in ("input_gate", "forget_gate"):
        assert not np.any(params[name]["kernel"])
    np.testing.assert_array_equal(params["input_gate"]["bias"], [-10, -10])
    np.testing.assert_array_equal(params["forget_gate"]["bias"], [3, 6])
    np.testing.assert_allclose(params["value"]["kernel"].std(), np.sqrt(0.4 / D), rtol=0.15)
