"""Streaming, sparse, sigmoid and differential attention, each against a NumPy twin or a golden."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers
from lcx.errors import ConfigError
from lcx.ops.attention import patterns
from lcx.ops.pairs import Keys, Queries
from tests import mixer_cases as cases

HEADS = dict(num_heads=2, num_kv_heads=1)


def twin(params, x, weigh):
    """Two heads over one key head; weigh(h, i, js of the document, logits) -> weights."""
    p = jax.tree.map(np.asarray, params)
    query, key, value = (np.einsum("btd,dhk->bthk", x, p[n]["kernel"])
                         for n in ("query", "key", "value"))
    out, start = np.zeros_like(query), {a: a for a, b in cases.DOCUMENTS}
    for b in range(cases.B):
        for first, end in cases.DOCUMENTS:
            for i in range(first, end):
                seen = np.arange(start[first], i + 1)
                for h in range(2):
                    logits = key[b, seen, 0] @ query[b, i, h] / np.sqrt(query.shape[-1])
                    out[b, i, h] = weigh(h, i - first, seen - first, logits) @ value[b, seen, 0]
    return np.einsum("bthk,hkd->btd", out, p["out"]["kernel"])


def softmax(keep):
    """Weigh the keys that keep(h, i, j) allows."""
    def weigh(h, i, j, logits):
        raised = np.where(keep(h, i, j), np.exp(logits), 0.0)
        return raised / raised.sum()
    return weigh


CASES = [
    (dict(name="streaming_attention", sinks=1, window=2),
     softmax(lambda h, i, j: (j < 1) | (i - j < 2))),
    (dict(name="strided_sparse", stride=3),
     softmax(lambda h, i, j: i - j < 3 if h == 0 else (i - j) % 3 == 0)),
    (dict(name="fixed_sparse", stride=3),
     softmax(lambda h, i, j: (i // 3 == j // 3) | (j % 3 == 2))),
    (dict(name="fixed_sparse", stride=4, columns=2, groups=2),
     softmax(lambda h, i, j: (i // 4 == j // 4) | (j % 4 // 2 == 1 - h))),
    (dict(name="sigmoid_attention"), lambda h, i, j, z: 1 / (1 + np.exp(-(z - np.log(8))))),
    (dict(name="sigmoid_attention", offset=0.5), lambda h, i, j, z: 1 / (1 + np.exp(-z - 0.5))),
]


@pytest.mark.parametrize("spec, weigh", CASES, ids=[str(spec) for spec, _ in CASES])
def test_layer_is_the_published_one(spec, weigh, x64):
    mixer, seq = cases.build({**spec, **HEADS}), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    y, _, _ = cases.captured(mixer, found, x, seq)
    np.testing.assert_allclose(y, twin(found["params"], np.asarray(x), weigh), atol=1e-12)


@pytest.mark.parametrize("name, columns", [("strided", None), ("fixed", 1)])
def test_patterns_of_the_paper(name, columns):
    """Goldens drawn by hand for 6 tokens, stride 3: rows of head 1."""
    seq, pattern = L.sequence(1, 6), patterns.Strided(3, 2)
    wanted = ["1", "01", "001", "1001", "01001", "001001"]
    if name == "fixed":
        pattern = patterns.Fixed(3, columns, 1, 2)
        wanted = ["1", "11", "111", "0011", "00111", "001111"]
    nothing = jnp.zeros((1, 6, 2, 1))
    found = pattern(Queries(nothing, seq), Keys(nothing, nothing, seq), None, 1)[0, 1]
    for i, row in enumerate(wanted):
        assert "".join(str(int(a)) for a in found[i, :i + 1]) == row


# ---- streaming -----------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["no_pe", ["rope", "fox"], "wall", "path", "cope",
                                      dict(name="dape", hidden=8, kernel=3)], ids=str)
@pytest.mark.full  # the law suite runs every mixer so
def test_a_stream_with_sinks_in_every_form_and_in_pieces(position, x64):
    spec = dict(name="streaming_attention", sinks=2, window=2, **HEADS)
    cases.agree(cases.ways(spec, position, ("quadratic", "chunked")))


def test_a_stream_without_end_has_a_bounded_state(x64):
    """Three windows beyond the buffers: exact, at a constant size."""
    spec = dict(name="streaming_attention", sinks=2, window=3, **HEADS)
    mixer, length = cases.build(spec, "rope"), 30
    assert mixer.state_size(10) == mixer.state_size(10_000)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, length, cases.D)))
    seq = L.sequence(1, length)
    found = cases.variables(mixer, cases.packed())

    @jax.jit
    def run(x):
        state, outputs = mixer.init_state(1, 10, x.dtype), []
        for a, b in ((0, 1), (1, 9), (9, 10), (10, 25), (25, 30)):
            y, state = mixer.apply(found, x[:, a:b], seq[a:b], state)
            outputs.append(y)
        return jnp.concatenate(outputs, 1), mixer.apply(found, x, seq)[0]

    got, wanted = run(x)
    np.testing.assert_allclose(got, wanted, atol=1e-12)


def test_the_ids_of_cache_slots_come_from_the_scheme(x64):
    """streaming_sinks over this mixer is streaming_sinks over full attention, bounded."""
    scheme, seq, x = dict(name="streaming_sinks", sinks=2, recent=3), cases.packed(), cases.inputs()
    bounded = cases.build(dict(name="streaming_attention", sinks=2, window=3, **HEADS), scheme)
    full = cases.build(dict(name="attention", **HEADS), scheme)
    found = cases.variables(full, seq)
    run = jax.jit(lambda x: (full.apply(found, x, seq)[0], bounded.apply(found, x, seq)[0],
                             cases.stream(bounded, found, x, seq)))
    wanted, whole, pieces = run(x)
    np.testing.assert_allclose(whole, wanted, atol=1e-12)
    np.testing.assert_allclose(pieces, wanted, atol=1e-12)


def test_a_window_longer_than_its_buffer_is_nan_and_not_short():
    mixer = cases.build(dict(name="attention", window=8, **HEADS))
    seq = L.sequence(1, 6)
    found, x = cases.variables(mixer, cases.packed()), cases.inputs()[:1].astype(jnp.float32)
    state = mixer.init_state(1, 4)
    call = jax.jit(mixer.apply)
    y, state = call(found, x[:, :4], seq[:4], state)
    assert np.isfinite(y).all()
    y, state = call(found, x[:, 4:6], seq[4:6], state)
    assert np.isnan(y).all()


# ---- differential --------------------------------------------------------------------------------


def test_differential_layer_is_the_published_one(x64):
    spec = dict(name="differential_attention", num_heads=2, num_kv_heads=1, layer=2, window=4)
    mixer, seq = cases.build(spec), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    y, _, _ = cases.captured(mixer, found, x, seq)
    p, x = jax.tree.map(np.asarray, found["params"]), np.asarray(x)
    start = 0.8 - 0.6 * np.exp(-0.6)
    product = lambda n: np.exp(p[f"lambda_query_{n}"] @ p[f"lambda_key_{n}"])
    balance = product(1) - product(2) + start
    query = np.einsum("btd,dhmk->bthmk", x, p["query"]["kernel"])
    key = np.einsum("btd,dhk->bthk", x, p["key"]["kernel"])[:, :, 0].reshape(cases.B, cases.T, 2, 4)
    value = np.einsum("btd,dhk->bthk", x, p["value"]["kernel"])[:, :, 0]
    out = np.zeros((cases.B, cases.T, 2, 8))
    for b in range(cases.B):
        for i in range(cases.T):
            seen = [j for j in range(max(0, i - 3), i + 1)
                    if cases.SEGMENT[0, j] == cases.SEGMENT[0, i]]
            for h in range(2):
                maps = [np.exp(key[b, seen, m] @ query[b, i, h, m] / 2.0) for m in range(2)]
                maps = [m / m.sum() for m in maps]
                out[b, i, h] = (maps[0] - balance * maps[1]) @ value[b, seen]
    out = out / np.sqrt((out ** 2).mean(-1, keepdims=True) + 1e-5) * p["norm"]["scale"]
    wanted = np.einsum("bthk,hkd->btd", out * (1 - start), p["out"]["kernel"])
    np.testing.assert_allclose(y, wanted, atol=1e-11)


def test_differential_goldens_and_start():
    """lambda_init of layers 0, 1 and 11 (arXiv:2410.05258, where l counts from 1)."""
    build = lambda **options: mixers.make(dict(name="differential_attention", **options),
                                          position="no_pe", width=256, train_length=8)
    starts = [build(layer=n).start() for n in (0, 1, 11)]
    np.testing.assert_allclose(starts, [0.2, 0.355509, 0.777870], atol=1e-6)
    assert build(layer=5, lambda_init=0.5).start() == 0.5
    seq = L.sequence(1, 2)
    params = build().init(jax.random.key(0), jnp.zeros((1, 2, 256)), seq)["params"]
    vectors = np.concatenate([params[f"lambda_{side}_{n}"].value
                              for side in ("query", "key") for n in (1, 2)])
    assert vectors.shape == (4 * 64,) and 0.08 < vectors.std() < 0.12


@pytest.mark.parametrize("position", ["no_pe", ["rope", "fox"], "cope", "path", "wall"], ids=str)
@pytest.mark.full  # the law suite runs every mixer so
def test_differential_in_every_form_and_in_pieces(position, x64):
    spec = dict(name="differential_attention", num_heads=2, num_kv_heads=1)
    cases.agree(cases.ways(spec, position, ("quadratic", "chunked")))


@pytest.mark.parametrize("spec, words", [
    (dict(name="fixed_sparse", stride=4, columns=3, groups=2), "must fit a block of 4"),
    (dict(name="streaming_attention", sinks=8), "window >= 1"),
    (dict(name="differential_attention", num_heads=3), "must divide width"),
])
def test_bad_options_raise(spec, words):
    with pytest.raises(ConfigError, match=words):
        mixer = cases.build(spec)
        jax.eval_shape(lambda: mixer.init(jax.random.key(0), cases.inputs(), cases.packed()))
