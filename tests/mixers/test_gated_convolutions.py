"""Gated convolutions (H3, Hyena, Monarch Mixer, LFM2's) against NumPy loops; streams; starts."""

import jax
import numpy as np
import pytest

from lcx.errors import ConfigError
from tests import mixer_cases as cases
from tests.mixer_cases import B, D, T

FORMS = ("quadratic", "chunked", "step")
HYENA = dict(name="hyena", num_heads=2, order=3, filter_width=4, filter_layers=2, bands=2,
             filter_length=7)
H3 = dict(name="h3", num_heads=2, head_dim=2, state_dim=4)
SHORT = dict(name="short_conv", num_heads=2)
MONARCH = dict(name="monarch_mixer", num_heads=2, filter_width=4, bands=2, filter_length=7)


def mixed(kernel, value):
    """sum_j K(i - j) x_j over the documents of the packed row."""
    out = np.zeros_like(value)
    for j in range(T):
        for i in range(j, T):
            if i > j and cases.starts()[i]:
                break
            out[:, i] += kernel[i - j] * value[:, j]
    return out


def written(f, length, channels):
    """Filters [T,*channels] of two bands as a network of `filter_length` 7 writes them."""
    place = np.arange(T)
    turn = 2 * np.pi * place[:, None] / length * np.array([1e-4, 1.0])
    hidden = np.concatenate([place[:, None] / (length - 1), np.cos(turn), -np.sin(turn)], -1)
    for n in range(3):
        hidden = np.sin(f["frequency"] * (hidden @ f[f"kernel_{n}"] + f[f"bias_{n}"]))
    rate = np.linspace(np.log(100) / 1.5, np.log(100) / 0.3, np.prod(channels)).reshape(channels)
    filters = (hidden @ f["out"].reshape(len(f["out"]), -1)).reshape(T, *channels)
    return filters * np.exp(-place.reshape(-1, *[1] * len(channels)) / (length - 1) * rate)


def parts_of(p, x, count):
    inward = np.einsum("btd,dnc->btnc", x, p["in"]["kernel"]).reshape(B, T, -1)
    return np.split(cases.conv(inward + p["in"]["bias"].reshape(-1), p["conv"]["kernel"],
                               p["conv"]["bias"]), count, -1)


def hyena_layer(params, x):
    p = jax.tree.map(np.asarray, params)
    first, second, third, v = parts_of(p, x, 4)
    filters = written(p["filter"], 7, (2, 2, D // 2))
    for n, gate in enumerate((third, second)):
        v = (v * gate).reshape(B, T, 2, -1)
        v = (mixed(filters[:, n], v) + p["skip"][n] * v).reshape(B, T, D)
    return (first * v) @ p["out"]["kernel"] + p["out"]["bias"]


def monarch_layer(params, x):
    p = jax.tree.map(np.asarray, params)
    before, after, v = parts_of(p, x, 3)

    def filtered(name, a):
        a = a.reshape(B, T, 2, -1)
        kernel = written(p[name], 7, (2, D // 2))
        return (mixed(kernel, a) + p[f"{name}_skip"] * a).reshape(B, T, D)

    y = after * filtered("filter", before * v) + filtered("residual", x)
    return y @ p["out"]["kernel"] + p["out"]["bias"]


def h3_layer(params, x):
    p = jax.tree.map(np.asarray, params)
    q, k, v = (x @ p[n]["kernel"] + p[n]["bias"] for n in ("query", "key", "value"))
    k = cases.conv(k, p["shift"]["kernel"]) + p["shift_skip"] * k
    apart = lambda a: a.reshape(B, T, 2, 4, 2)
    products = apart(k)[..., :, None] * apart(v)[..., None, :]
    s = p["kernel"]
    half = (-np.exp(s["log_rate"]) + 1j * s["frequency"]) * np.exp(s["log_step"])[..., None] / 2
    read = (s["read"][..., 0] + 1j * s["read"][..., 1]) * np.exp(s["log_step"])[..., None]
    taps = np.stack([(2 * read / (1 - half) * ((1 + half) / (1 - half))**n).sum(-1).real
                     for n in range(T)])
    y = mixed(np.repeat(taps, 4, -1), products.reshape(B, T, 2, -1)).reshape(products.shape)
    y = y + p["skip"][..., None, None] * products
    y = np.einsum("bthck,bthckv->bthcv", apart(q), y).reshape(B, T, D)
    return y @ p["out"]["kernel"] + p["out"]["bias"]


def short_layer(params, x):
    p = jax.tree.map(np.asarray, params)
    before, after, u = np.moveaxis(np.einsum("btd,dnhk->btnhk", x, p["in"]["kernel"]), 2, 0)
    flat = lambda a: a.reshape(*a.shape[:-2], -1)
    y = cases.conv(flat(before * u), flat(p["kernel"])) * flat(after)
    return y @ p["out"]["kernel"].reshape(D, D)


@pytest.mark.parametrize("spec,layer", [(HYENA, hyena_layer), (H3, h3_layer), (SHORT, short_layer),
                                        (MONARCH, monarch_layer)],
                         ids=lambda value: value["name"] if isinstance(value, dict) else "")
def test_gated_convolutions_are_the_published_layers(x64, spec, layer):
    mixer, seq = cases.build(spec), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    wanted = layer(found["params"], np.asarray(x))
    y = jax.jit(mixer.apply)(found, x, seq)[0]
    np.testing.assert_allclose(y, wanted, atol=1e-10 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("spec,position", [
    (HYENA, ["rope", "alibi"]), (HYENA, "kerple"), (H3, ["rope", "alibi"]), (SHORT, "no_pe"),
    (SHORT, ["rope", "kerple"]), (MONARCH, ["rope", "kerple"]),
    (dict(HYENA, transform="monarch"), "no_pe")], ids=str)
def test_gated_convolutions_run_every_way_alike(x64, spec, position):
    cases.agree(cases.ways(dict(spec, chunk=4), position, FORMS))


@pytest.mark.parametrize("spec", [HYENA, SHORT, MONARCH], ids=lambda spec: spec["name"])
def test_what_has_no_modes_still_streams_token_by_token(x64, spec):
    """Under a bias that no recurrence holds: of the kept inputs each weighs what it does whole."""
    mixer, seq, x = cases.build(spec, "kerple"), cases.packed(), cases.inputs()
    found = cases.variables(mixer, seq)
    whole = jax.jit(mixer.apply)(found, x, seq)[0]
    tokens = [(t, t + 1) for t in range(T)]
    np.testing.assert_allclose(cases.stream(mixer, found, x, seq, tokens), whole, atol=1e-11)


def test_a_short_convolution_remembers_its_window_alone():
    for position in ("no_pe", "kerple"):
        mixer = cases.build(SHORT, position)
        assert mixer.state_size(1000) == mixer.state_size(10) < 6 * D


def test_a_monarch_mixer_without_its_residual_is_hyena_of_order_two(x64):
    """The same operator: only the order of the projections differs."""
    x, seq = cases.inputs(), cases.packed()
    monarch = cases.build(dict(MONARCH, residual=False), "kerple")
    found = cases.variables(monarch, seq)
    p = dict(found["params"])
    order = np.array([1, 0, 2])
    columns = np.arange(3 * D).reshape(3, D)[order].ravel()
    skip = p.pop("filter_skip")
    hyena = dict(p, skip=skip[None],
                 conv=jax.tree.map(lambda a: a[..., columns], p["conv"]),
                 **{"in": jax.tree.map(lambda a: a[..., order, :], p["in"])})
    other = cases.build(dict(HYENA, order=2, frequency=10.0), "kerple")
    wanted = jax.jit(other.apply)(dict(found, params=hyena), x, seq)[0]
    y = jax.jit(monarch.apply)(found, x, seq)[0]
    np.testing.assert_allclose(y, wanted, atol=1e-11 * np.abs(wanted).max())


def test_a_transform_that_is_not_known_is_named():
    mixer = cases.build(dict(HYENA, transform="monarc"))
    with pytest.raises(ConfigError, match="did you mean 'monarch'"):
        mixer.init(jax.random.key(0), cases.inputs(), cases.packed())
