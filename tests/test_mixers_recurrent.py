"""Recurrent mixers: full layers against NumPy loops, every way of running them, and refusals."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers
from lcx.errors import ConfigError, Refusal, Unimplemented
from lcx.mixers import rglru
from tests import mixer_cases as cases
from tests.mixer_cases import B, D, T, conv, rms, sigmoid, silu, softplus, turn

GDN = dict(name="gated_delta_net", num_heads=2, head_dim=4)
RGLRU = dict(name="rglru", num_heads=2)
LSTM = dict(name="lstm", num_heads=2)
FORMS = ("quadratic", "chunked", "step")
ANGLES = np.array([1.1, 0.2])


def increments(heads=2):
    """Log-gates [T,H], zero at segment starts."""
    draw = -np.random.default_rng(3).random((T, heads))
    return np.where(cases.starts()[:, None], 0.0, draw)


def path(heads=2, size=4):
    """Householder vectors [T,H,K] and strengths [T,H]."""
    rng = np.random.default_rng(4)
    w = rng.normal(size=(T, heads, size))
    return w / np.linalg.norm(w, axis=-1, keepdims=True), 2 * rng.random((T, heads))


def rotation(angles=ANGLES, **options):
    return L.Rotation(jnp.asarray(L.split_frequency(angles)), **options)


def separable(increment):
    return L.Separable(jnp.asarray(increment)[None])


# ---- gated delta net ---------------------------------------------------------------------------


def delta_layer(params, x, transport=None, increment=None, gain=1.0):
    """arXiv:2412.06464 token by token; transport(t, h) -> matrix that precedes the erase."""
    p = jax.tree.map(np.asarray, params)
    heads, dim = 2, 4
    flat = np.einsum("btd,dhc->bthc", x, p["qkv"]["kernel"]).reshape(B, T, -1)
    q, k, v = np.split(silu(conv(flat, p["conv"]["kernel"])).reshape(B, T, heads, -1),
                       [dim, 2 * dim], -1)
    unit = lambda a: a / np.sqrt((a * a).sum(-1, keepdims=True) + 1e-6)
    q, k = unit(q) / np.sqrt(dim), unit(k)
    beta = sigmoid(x @ p["beta"]["kernel"])
    alpha = np.exp(-np.exp(p["a_log"]) * softplus(x @ p["rate"]["kernel"] + p["dt_bias"]))
    o = np.zeros_like(v)
    for b in range(B):
        for h in range(heads):
            for t in range(T):
                if cases.starts()[t]:
                    memory = np.zeros((dim, v.shape[-1]))
                matrix = np.eye(dim) if transport is None else transport(t, h)
                fade = alpha[b, t, h] * (1 if increment is None else np.exp(increment[t, h]))
                memory = fade * matrix @ memory
                key = k[b, t, h]
                memory = memory + beta[b, t, h] * np.outer(key, v[b, t, h] - memory.T @ key)
                o[b, t, h] = (q[b, t, h] * gain) @ memory
    z = np.einsum("btd,dhv->bthv", x, p["gate"]["kernel"])
    return np.einsum("bthv,hvd->btd", rms(o, p["norm"]["scale"]) * silu(z), p["out"]["kernel"])


def test_gated_delta_net_is_the_published_layer_under_every_lane(x64):
    mixer, seq = cases.build(GDN), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    params, plain = found["params"], np.asarray(x)
    y, _, _ = cases.captured(mixer, found, x, seq)
    np.testing.assert_allclose(y, delta_layer(params, plain), atol=1e-11)

    # Turning q and k (the erase key too) is turning the memory before the erase; g acts once.
    gain = np.sqrt(1.3)
    lanes = L.Lanes(rotation(amplitude=jnp.asarray(gain)), (separable(increments()),))
    wanted = delta_layer(params, plain, lambda t, h: turn(-ANGLES, 4), increments(), gain**2)
    np.testing.assert_allclose(cases.captured(mixer, found, x, seq, lanes)[0], wanted, atol=1e-9)

    w, strength = path()
    house = L.Householder(jnp.asarray(w)[None], jnp.asarray(strength)[None])
    reflect = lambda t, h: np.eye(4) - strength[t, h] * np.outer(w[t, h], w[t, h])
    lanes = L.Lanes(house, (separable(increments()),))
    wanted = delta_layer(params, plain, reflect, increments())
    np.testing.assert_allclose(cases.captured(mixer, found, x, seq, lanes)[0], wanted, atol=1e-10)

    # R4: bound with a note, cancelled by the norm of the output but for its epsilon.
    lanes = L.Lanes(temperature=L.Temperature(jnp.full((1, T, 1), 3.0)))
    assert "R4" in mixers.bind(type(mixer), lanes)[0]
    np.testing.assert_array_equal(cases.captured(mixer, found, x, seq, lanes)[0], y)


def test_gated_delta_net_without_decay_is_delta_net(x64):
    mixer, seq = cases.build(GDN), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    found["params"]["a_log"] = jnp.full((2,), -80.0)  # alpha = 1
    _, inner, outer = cases.captured(mixer, found, x, seq)
    memory = np.zeros((B, 2, 4, 8))
    for t in range(T):
        if cases.starts()[t]:
            memory *= 0
        k, v, beta = (inner[name][:, t] for name in ("key", "value", "beta"))
        error = v - np.einsum("bhkv,bhk->bhv", memory, k)
        memory = memory + np.einsum("bh,bhk,bhv->bhkv", beta, k, error)
        np.testing.assert_allclose(
            np.einsum("bhkv,bhk->bhv", memory, inner["query"][:, t]), outer[:, t], atol=1e-12)


@pytest.mark.parametrize("position", ["rope", ["path", "fox"]], ids=str)
@pytest.mark.full  # the law suite runs every mixer so
def test_gated_delta_net_runs_every_way_alike(x64, position):
    cases.agree(cases.ways(dict(GDN, chunk=4), position, FORMS))


# ---- RG-LRU ------------------------------------------------------------------------------------


def griffin_layer(params, x, angles=None, increment=None, weight=None, interleaved=False):
    """arXiv:2402.19427 token by token; weight(distance) [H] is a static factor of a pair."""
    p = jax.tree.map(np.asarray, params)
    heads, dim = p["rate"].shape
    affine = lambda name, a: a @ p[name]["kernel"] + p[name]["bias"]
    gelu = lambda a: 0.5 * a * (1 + np.tanh(np.sqrt(2 / np.pi) * (a + 0.044715 * a**3)))
    c = conv(affine("in", x), p["conv"]["kernel"], p["conv"]["bias"]).reshape(B, T, heads, dim)
    gate = lambda name: sigmoid(
        np.einsum("bthk,hkv->bthv", c, p[name]["kernel"]) + p[name]["bias"])
    a = np.exp(-8 * gate("recurrence_gate") * softplus(p["rate"]))
    root = np.where(cases.starts()[None, :, None, None], 1.0, np.sqrt(1 - a * a))
    u = root * gate("input_gate") * c
    ids = np.asarray(cases.packed(3).ids)[0]
    out = np.zeros_like(u)
    for h in range(heads):
        for j in range(T):  # each input on its own, so that a static factor can weigh it
            state = u[:, j, h]
            for t in range(j, T):
                if t > j:
                    if cases.starts()[t]:
                        break
                    if angles is not None:  # one axis of the ids per pair
                        step = angles * (ids[t] - ids[t - 1])[: len(angles)]
                        state = state @ turn(-step, dim, interleaved).T
                    state = state * a[:, t, h] * np.exp(0 if increment is None else increment[t, h])
                factor = 1.0 if weight is None else weight(ids[t, 0] - ids[j, 0])[h]
                out[:, t, h] += factor * state
    return affine("out", gelu(affine("gate", x)) * out.reshape(B, T, -1))


def falling(params, distance):
    """A static bias per head: a logarithm, and a bump at distance 2."""
    bump = jnp.where(distance == 2, 0.7, 0.0)
    return jnp.stack([-jnp.log1p(jnp.abs(distance)), bump], -1) * params


def test_rglru_is_the_published_layer_under_every_lane(x64):
    mixer, seq = cases.build(RGLRU), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    params, plain = found["params"], np.asarray(x)
    y, inner, _ = cases.captured(mixer, found, x, seq)
    np.testing.assert_allclose(y, griffin_layer(params, plain), atol=1e-12)
    assert np.ptp(inner["log_decay"], axis=-1).min() > 0.01  # gates of a pair differ

    # Three of four pairs turn, each by its own axis of the ids; the gate leaves the root alone.
    angles = np.array([1.1, 0.4, 0.2])
    for interleaved in (False, True):
        lanes = L.Lanes(rotation(angles, axis=(0, 1, 2), interleaved=interleaved),
                        (separable(increments()),))
        wanted = griffin_layer(params, plain, angles, increments(), interleaved=interleaved)
        got = cases.captured(mixer, found, x, cases.packed(3), lanes)[0]
        np.testing.assert_allclose(got, wanted, atol=1e-9)

    static = L.Toeplitz(jnp.asarray(1.0), falling)
    lanes = L.Lanes(bias=(separable(increments()), static))
    weight = lambda distance: np.exp(np.asarray(falling(1.0, jnp.asarray(distance))))
    wanted = griffin_layer(params, plain, None, increments(), weight)
    np.testing.assert_allclose(cases.captured(mixer, found, x, seq, lanes)[0], wanted, atol=1e-11)


def test_rglru_golden_gate_and_its_bounded_root():
    log_decay, root = rglru.transition(jnp.array(0.5), jnp.array(0.0))
    np.testing.assert_allclose(np.exp(log_decay), 0.0625, rtol=1e-6)
    np.testing.assert_allclose(root, 0.998045, rtol=1e-6)
    slope = jax.grad(lambda rate: rglru.transition(jnp.array(0.5), rate)[1])
    assert np.isfinite(slope(-200.0))  # a = 1: the root of 0
    _, change = jax.jvp(rglru._bounded_sqrt, (jnp.zeros(()),), (jnp.ones(()),))
    np.testing.assert_allclose(change, 1000.0, rtol=1e-5)
    rate = rglru._rate(jax.random.key(0), (1000,))
    start = np.exp(-softplus(np.asarray(rate)))
    assert 0.9 <= start.min() < 0.91 and 0.99 < start.max() <= 0.999001


@pytest.mark.parametrize("position,forms", [
    (dict(name="rope", fraction=0.5, interleaved=True), ("chunked", "step")), ("fox", FORMS),
    (["fox", "t5_bias"], ("quadratic",)), (dict(name="rerope", window=3, fraction=0.5), FORMS),
    (["rope", "t5_bias"], FORMS), (["rope", "kerple"], ("quadratic",))], ids=str)
@pytest.mark.full  # the law suite runs every mixer so
def test_rglru_runs_every_way_alike(x64, position, forms):
    cases.agree(cases.ways(dict(RGLRU, chunk=4), position, forms))


def test_rglru_streams_ids_of_several_axes(x64):
    cases.agree(cases.ways(RGLRU, dict(name="m_rope", sections=(2, 1, 1)), ("auto",), axes=3))


# ---- LSTM --------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [False, True])
def test_lstm_is_the_published_cell(x64, apart):
    mixer, seq = cases.build(dict(LSTM, heads_apart=apart)), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    lanes = L.Lanes(bias=(separable(increments()),))
    p = jax.tree.map(np.asarray, found["params"])
    for fade, said in ((np.zeros((T, 2)), None), (increments(), lanes)):
        out = np.zeros((B, T, D))
        for t in range(T):
            if cases.starts()[t]:
                h = c = np.zeros((B, D))
            if apart:
                read = np.concatenate([np.einsum("bk,kgv->bgv", half, kernel) for half, kernel
                                       in zip(np.split(h, 2, -1), p["recurrent"])], -1)
            else:
                read = np.einsum("bd,dge->bge", h, p["recurrent"])
            z = np.einsum("bd,dge->bge", x[:, t], p["inputs"]["kernel"]) + read + p["bias"]
            i, f, g, o = np.moveaxis(z, 1, 0)
            c = np.repeat(np.exp(fade[t]), D // 2) * sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = out[:, t] = sigmoid(o) * np.tanh(c)
        y, _, outer = cases.captured(mixer, found, x, seq, said)
        np.testing.assert_allclose(outer, out, atol=1e-12)
        np.testing.assert_allclose(y, out @ p["out"]["kernel"], atol=1e-12)


def test_lstm_starts_orthogonal_and_remembering():
    for apart in (False, True):
        mixer = cases.build(dict(LSTM, heads_apart=apart))
        init = jax.jit(mixer.init)(jax.random.key(0), cases.inputs(), cases.packed())
        params = nn.unbox(init)["params"]
        for kernel in params["recurrent"] if apart else params["recurrent"][None]:
            for gate in np.moveaxis(np.asarray(kernel), 1, 0):
                np.testing.assert_allclose(gate @ gate.T, np.eye(len(gate)), atol=1e-5)
        np.testing.assert_array_equal(params["bias"], np.eye(4)[1][:, None] * np.ones(D))


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.full  # the law suite runs every mixer so
def test_lstm_runs_every_way_alike(x64, apart):
    cases.agree(cases.ways(dict(LSTM, heads_apart=apart), "fox", ("step",)))


# ---- refusals ----------------------------------------------------------------------------------


def _kernel(params, tile):
    return 0.0


LANES = {
    "rotation": L.Lanes(rotation()),
    "householder": L.Lanes(L.Householder(*map(jnp.asarray, path()))),
    "piecewise": L.Lanes(L.Piecewise(rotation(), (), _kernel, ())),
    "toeplitz": L.Lanes(bias=(L.Toeplitz(jnp.asarray(1.0), falling),)),
    "constant": L.Lanes(bias=(L.EventuallyConstant(jnp.asarray(1.0), falling, 3),)),
    "pairwise": L.Lanes(bias=(L.Pairwise((), _kernel),)),
    "temperature": L.Lanes(temperature=L.Temperature(jnp.ones((1, T, 1)))),
    "amplitude": L.Lanes(rotation(amplitude=jnp.asarray(1.2))),
    "both": L.Lanes(rotation(), (L.Toeplitz(jnp.asarray(1.0), falling),)),
}


def refusal(spec, lane, form="auto"):
    """What tracing a mixer with a lane raises."""
    mixer, x = cases.build(spec, form=form), cases.inputs()
    with pytest.raises((Refusal, Unimplemented)) as caught:
        jax.eval_shape(lambda: mixer.init(jax.random.key(0), x, cases.packed(), None, LANES[lane]))
    assert spec["name"] in str(caught.value)
    return getattr(caught.value, "code", "unimplemented")


@pytest.mark.parametrize("spec,code,lanes", [
    (GDN, "R3", ("toeplitz", "constant", "pairwise", "piecewise")),
    (RGLRU, "R1", ("householder", "pairwise", "temperature", "amplitude")),
    (LSTM, "R1", ("rotation", "householder", "piecewise", "toeplitz", "constant", "pairwise",
                  "temperature")),
], ids=lambda value: value["name"] if isinstance(value, dict) else None)
def test_refusals_carry_their_code_before_anything_compiles(spec, code, lanes):
    for lane in lanes:
        assert refusal(spec, lane) == code, lane


def test_a_form_that_a_lane_lacks_is_refused_by_name():
    assert refusal(RGLRU, "toeplitz", "step") == "R2"
    assert refusal(RGLRU, "toeplitz", "chunked") == "unimplemented"
    assert refusal(RGLRU, "piecewise", "step") == "R2"  # it says no window
    for spec in (GDN, RGLRU, LSTM):
        with pytest.raises(ConfigError, match="fast"):
            mixer = cases.build(spec, form="fast")
            jax.eval_shape(lambda m=mixer: m.init(jax.random.key(0), cases.inputs(),
                                                  cases.packed()))
