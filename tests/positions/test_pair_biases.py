"""Biases that read the pair: vectors per distance, global queries, gates, corrections of logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers
from lcx.errors import ConfigError
from lcx.positions import deberta, fire
from lcx.positions.alibi import slopes
from tests.positions.speaking import WIDTH, softmax, speak, vectors, weights

T, DIM, HEADS = 20, 8, 4
SEQ = L.sequence(1, T)


def gap(length=T):
    return np.subtract.outer(np.arange(length), np.arange(length)).astype(float)


def numpy_of(query, key):
    return np.asarray(query[0]), np.asarray(key[0])


def product(query, key):
    return np.einsum("thk,shk->hts", *numpy_of(query, key))


def draw(found, seed=0):
    """Parameters of a scheme, drawn so that nothing is zero."""
    random = np.random.default_rng(seed)
    return {**found, "params": jax.tree.map(lambda a: jnp.asarray(random.normal(size=a.shape)),
                                            found["params"])}


def params_of(spec, x=None):
    return jax.tree.map(np.asarray, draw(speak(spec, SEQ, x)[1])["params"])


def test_shaw_keys(x64):
    query, key, _ = vectors(T)
    spec = dict(name="shaw", clip=4)
    rows = params_of(spec)["keys"][np.clip(gap(), 0, 4).astype(int)]
    q, k = numpy_of(query, key)
    logits = (product(query, key) + np.einsum("thk,tsk->hts", q, rows)) * DIM**-0.5
    np.testing.assert_allclose(weights(spec, query, key, SEQ, change=draw), softmax(logits),
                               atol=1e-12)


def test_shaw_values(x64):
    mixer = mixers.make(dict(name="attention", num_heads=2), width=16, train_length=T,
                        position=dict(name="shaw", clip=4, values=True))
    x = jax.random.normal(jax.random.key(0), (1, T, 16), jnp.float64)
    found = jax.jit(mixer.init)(jax.random.key(1), x, SEQ)
    _, seen = mixer.apply(found, x, SEQ, mutable=["intermediates"])
    inner, outer = seen["intermediates"]["inner"][0], seen["intermediates"]["outer"][0]
    tables = jax.tree.map(np.asarray, found["params"]["position"])
    tables = {name: np.asarray(getattr(t, "value", t)) for name, t in tables.items()}
    near = np.clip(gap(), 0, 4).astype(int)
    q, k, v = (np.asarray(inner[name][0]) for name in ("query", "key", "value"))
    logits = np.einsum("thk,shk->hts", q, k) + np.einsum("thk,tsk->hts", q, tables["keys"][near])
    w = softmax(logits * 8**-0.5)
    wanted = np.einsum("hts,shv->thv", w, v) + np.einsum("hts,tsv->thv", w, tables["values"][near])
    np.testing.assert_allclose(outer[0], wanted, atol=1e-7)  # tables start in float32


def test_transformer_xl_with_an_explicit_sinusoid(x64):
    query, key, _ = vectors(T)
    params = params_of("transformer_xl")
    angle = gap()[..., None] * 10000.0 ** (-np.arange(0, WIDTH, 2) / WIDTH)
    sinusoid = np.concatenate([np.sin(angle), np.cos(angle)], -1)
    place = np.einsum("tsw,whk->tshk", sinusoid, params["project"])
    q, k = numpy_of(query, key)
    logits = np.einsum("thk,shk->hts", q + params["content"], k)
    logits += np.einsum("thk,tshk->hts", q + params["place"], place)
    got = weights("transformer_xl", query, key, SEQ, change=draw)
    np.testing.assert_allclose(got, softmax(logits * DIM**-0.5), atol=1e-9)


def test_transformer_xl_at_zero_is_no_position(x64):
    query, key, _ = vectors(T)
    zero = lambda found: {**found, "params": jax.tree.map(jnp.zeros_like, found["params"])}
    np.testing.assert_allclose(weights("transformer_xl", query, key, SEQ, change=zero),
                               weights("no_pe", query, key, SEQ), atol=1e-12)


def test_deberta_buckets():
    """Golden values of the v2 code at position_buckets=256, max_relative_positions=512."""
    distance = np.array([0, 1, 128, 130, 200, 256, 400, 511, 512])
    assert deberta.log_bucket(distance, 256, 512).tolist() == [
        0, 1, 128, 130, 169, 192, 233, 255, 256]


def test_deberta_buckets_need_a_far_part():
    assert deberta.log_bucket(np.arange(6), 8, 6).tolist() == [0, 1, 2, 3, 4, 7]
    with pytest.raises(ConfigError, match="max_distance > 5"):  # its logarithm would be 0 / 0
        deberta.log_bucket(np.arange(6), 8, 5)


@pytest.mark.parametrize("paper", [False, True])
def test_deberta_logits(paper, x64):
    query, key, _ = vectors(T)
    spec = dict(name="deberta", buckets=8, max_distance=16, paper_index=paper)
    params = params_of(spec)

    def bucket(distance):
        away = np.abs(distance)
        far = np.ceil(np.log(np.maximum(away, 4) / 4) / np.log(15 / 4) * 3 - 1e-9) + 4
        signed = np.sign(distance) * np.where(away <= 4, away, far)
        return np.clip(signed + 8, 0, 15).astype(int)

    q, k = numpy_of(query, key)
    first = np.einsum("thk,tshk->hts", q, params["keys"][bucket(gap())])
    back = bucket(-gap()) if paper else bucket(gap())
    second = np.einsum("shk,tshk->hts", k, params["queries"][back])
    logits = (product(query, key) + first + second) / np.sqrt(3 * DIM)
    np.testing.assert_allclose(weights(spec, query, key, SEQ, change=draw), softmax(logits),
                               atol=1e-6)  # the temperature is a float32 constant


def test_fire_argument():
    """Golden values at the authors' start: c = 0.1, threshold 512."""
    params = dict(c=jnp.float32(0.1), threshold=jnp.float32(512.0))
    got = [float(fire.argument(params, jnp.float32(d), jnp.float32(i)))
           for i, d in ((100, 100), (1000, 1000), (1000, 500))]
    np.testing.assert_allclose(got, [0.60628, 1.0, 0.85194], atol=2e-5)


def test_fire_stays_within_its_trained_range():
    params = dict(c=jnp.float32(0.1), threshold=jnp.float32(8.0))
    query = jnp.arange(0.0, 1e5, 997.0)[:, None]
    share = jnp.linspace(0.0, 1.0, 7)
    value = fire.argument(params, query * share, query)
    assert float(value.min()) >= 0 and float(value.max()) <= 1 + 1e-6


def test_grape_a_gates(x64):
    query, key, _ = vectors(T)
    params = params_of("grape_a")
    plus = lambda z: np.log1p(np.exp(z))
    unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
    q, k = numpy_of(query, key)
    asked = plus(np.einsum("thk,hk->ht", q, unit(params["query"])) * DIM**-0.5)
    told = plus(np.einsum("shk,hk->hs", k, unit(params["key"])) * DIM**-0.5)
    rate = slopes(HEADS) * plus(params["rate"])
    bias = -gap() * rate[:, None, None] * (asked[:, :, None] + told[:, None])
    got = weights("grape_a", query, key, SEQ, change=draw)
    np.testing.assert_allclose(got, softmax(product(query, key) * DIM**-0.5 + bias), atol=1e-8)


def stacked(spec):
    """A change of the second scheme of a stack only."""
    inner = spec[1]["name"]

    def change(found):
        params = dict(found["params"])
        params[f"1_{inner}"] = draw({"params": params[f"1_{inner}"]})["params"]
        return {**found, "params": params}

    return change


def test_dape_with_a_silent_last_layer_is_its_bias(x64):
    """Identity P11."""
    query, key, _ = vectors(T)
    spec = ["alibi", dict(name="dape", hidden=8)]

    def silent(found):
        params = dict(found["params"])
        params["1_dape"] = {**params["1_dape"], "outer": jnp.zeros_like(params["1_dape"]["outer"])}
        return {**found, "params": params}

    np.testing.assert_allclose(weights(spec, query, key, SEQ, change=silent),
                               weights("alibi", query, key, SEQ), atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 3])
def test_dape_corrects_each_logit(kernel, x64):
    """Z + B + MLP([Z; B]) with zeros where nothing is visible, as the authors' inner rows."""
    query, key, _ = vectors(T)
    spec = ["alibi", dict(name="dape", hidden=8, kernel=kernel)]
    found = stacked(spec)(speak(spec, SEQ)[1])["params"]["1_dape"]
    inner, offset, outer = (np.asarray(found[name]) for name in ("inner", "offset", "outer"))
    z, b = product(query, key) * DIM**-0.5, -gap() * slopes(HEADS)[:, None, None]
    past, reach = np.tri(T, dtype=bool), kernel // 2

    def convolve(weight, x):  # [C,T,S]
        x = np.pad(x, [(0, 0), (0, 0), (reach, reach)])
        size = x.shape[-1] - 2 * reach
        return sum(np.einsum("cts,cd->dts", x[..., n:n + size], weight[n]) for n in range(kernel))

    both = np.pad(np.where(past, np.concatenate([z, b]), 0.0), [(0, 0), (0, 0), (0, reach)])
    hidden = convolve(inner, both) + offset[:, None, None]
    hidden = np.where(hidden > 0, hidden, 0.01 * hidden)
    beside = np.arange(T + reach)[None] <= np.arange(T)[:, None] + reach  # one column past the key
    correction = convolve(outer, np.where(beside, hidden, 0.0))[..., :T]
    got = weights(spec, query, key, SEQ, change=stacked(spec))
    np.testing.assert_allclose(got, softmax(z + b + correction), atol=1e-9)


def test_xlnet_adds_the_segment_term(x64):
    query, key, _ = vectors(T)
    params = params_of("xlnet")
    sentence = (np.arange(T) >= 7).astype(float)  # the second axis of the ids
    seq = L.sequence(1, T, ids=np.stack([np.arange(T), sentence], -1)[None])
    angle = gap()[..., None] * 10000.0 ** (-np.arange(0, WIDTH, 2) / WIDTH)
    place = np.einsum("tsw,whk->tshk", np.concatenate([np.sin(angle), np.cos(angle)], -1),
                      params["project"])
    q, k = numpy_of(query, key)
    across = (sentence[:, None] != sentence[None]).astype(int)
    logits = np.einsum("thk,shk->hts", q + params["content"], k)
    logits += np.einsum("thk,tshk->hts", q + params["place"], place)
    logits += np.einsum("thk,tshk->hts", q + params["segment"], params["kinds"][across])
    got = weights("xlnet", query, key, seq, change=draw)
    np.testing.assert_allclose(got, softmax(logits * DIM**-0.5), atol=1e-9)


def test_grape_ap_sums_along_the_path(x64):
    query, key, x = vectors(T)
    params = params_of("grape_ap", x)
    p = np.einsum("td,dhk->thk", np.asarray(x[0]), params["path"]["kernel"])
    unit = p / np.sqrt((p**2).mean(-1, keepdims=True) + np.finfo(np.float32).eps)
    unit = unit[..., :4] + 1j * unit[..., 4:]
    turned = unit * np.exp(-1j * np.arange(T))[:, None, None]
    inner = np.einsum("thk,shk->hts", p, np.concatenate([turned.real, turned.imag], -1)) / 8
    step = -np.log1p(np.exp(-inner)) * slopes(HEADS)[:, None, None]
    bias = np.zeros((HEADS, T, T))
    for i in range(T):
        for j in range(i):
            bias[:, i, j] = step[:, i, j + 1:i + 1].sum(-1)
    got = weights("grape_ap", query, key, SEQ, x, change=draw)
    np.testing.assert_allclose(got, softmax(product(query, key) * DIM**-0.5 + bias), atol=1e-8)
