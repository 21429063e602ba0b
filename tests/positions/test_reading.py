"""Schemes that read the tokens: BiPE, Abacus, complex word order; whole, in pieces and packed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import positions
from lcx.errors import ConfigError
from lcx.model import build_model
from lcx.positions.listing import record
from tests.positions.speaking import WIDTH, embed, site, theta, vectors

TEXT = "a=12+345.\nSo. 7\n\n89.no 1234\nends"
TOKENS = np.frombuffer(TEXT.encode(), np.uint8).astype(np.int32)[None]


def read(spec, tokens=TOKENS, seq=None):
    """Ids [B,T,A] after reading."""
    scheme = positions.make(spec, site())
    seq = L.sequence(1, tokens.shape[1]) if seq is None else seq
    return scheme.read(jnp.asarray(tokens), seq, scheme.init_read(len(tokens)))[0]


def bilevel(tokens, separators=(10, 46)):
    """Twin: the number of separators before each token, and of tokens since the last of them."""
    numbers, places, number, place = [], [], 0, 0
    for token in tokens:
        numbers.append(number)
        places.append(place)
        ends = token in separators
        number, place = number + ends, 0 if ends else place + 1
    return np.stack([numbers, places], -1)


def test_bipe_numbers_segments_and_their_tokens():
    np.testing.assert_array_equal(read("bipe").ids[0], bilevel(TOKENS[0]))
    first = read("bipe").ids[0, :12]  # "a=12+345." "\n" "So"
    assert first[:, 0].tolist() == [0] * 9 + [1] + [2] * 2
    assert first[:, 1].tolist() == [*range(9), 0, 0, 1]
    spaced = read(dict(name="bipe", separators=(32,)))
    np.testing.assert_array_equal(spaced.ids[0], bilevel(TOKENS[0], (32,)))
    run, found, x = embed(dict(name="bipe", rows=4), read("bipe"))
    places = np.minimum(bilevel(TOKENS[0])[:, 1], 3)  # the authors' code: the last row goes on
    np.testing.assert_array_equal(run(found, x, read("bipe"))[0],
                                  found["params"]["table"][places])
    with pytest.raises(ConfigError, match="bipe needs the tokens"):
        embed("bipe", L.sequence(1, 3))
    assert record("bipe")["lanes"] == ["read", "embed"]


def test_bipe_alibi_counts_segments():
    lanes = positions.make(["bipe", dict(name="alibi", factor=96.0)], site())
    seq = read(["bipe", "alibi"])
    seen = lanes.init_with_output(jax.random.key(0), jnp.zeros((1, len(TEXT), WIDTH)), seq,
                                  lanes.init_carry(1), method="lanes")[0][0].bias[0].increment
    wanted = -96 * np.array([0.25, 0.0625, 0.015625, 0.00390625])
    steps = np.diff(bilevel(TOKENS[0])[:, 0], prepend=0)
    np.testing.assert_allclose(seen[0], steps[:, None] * wanted, rtol=1e-6)


def test_abacus_counts_the_digits_of_each_number():
    wanted, place = [], 0
    for token in TEXT:
        place = place + 1 if token.isdigit() else 0
        wanted.append(place)
    ids = read("abacus").ids[0]
    assert ids[:9, 1].tolist() == [0, 0, 1, 2, 0, 1, 2, 3, 0]
    np.testing.assert_array_equal(ids[:, 1], wanted)
    np.testing.assert_array_equal(ids[:, 0], np.arange(len(TEXT)))
    letters = read(dict(name="abacus", digits=(83, 111)))
    assert np.flatnonzero(letters.ids[0, :, 1]).tolist() == [10, 11, 21]  # S, o, and o of "no"
    given = L.sequence(1, 3, ids=np.array([[0, 7], [1, 8], [2, 9.0]])[None])
    assert read("abacus", TOKENS[:, :3], given) is given  # places of the data stay
    both = read(["bipe", dict(name="abacus", axis=2)]).ids[0]
    np.testing.assert_array_equal(both, np.c_[bilevel(TOKENS[0]), wanted])
    with pytest.raises(ConfigError, match="in their order, from 1"):
        read(dict(name="abacus", axis=2))


@pytest.mark.parametrize("shared", ["nothing", "channels", "words"])
def test_complex_order_turns_each_word_at_its_own_frequency(shared, x64):
    x, tokens, seq = vectors(6)[2], np.array([[3, 1, 4, 1, 5, 2]]), L.sequence(1, 6, start=2)
    (module,) = positions.make_embed(dict(name="complex_order", shared=shared), WIDTH, 16,
                                     vocab_size=7)
    found = nn.unbox(module.init(jax.random.key(0), x, seq, tokens))
    table = np.asarray(found["params"]["frequency"])
    if shared != "channels":
        np.testing.assert_allclose(table, np.broadcast_to(theta(WIDTH), table.shape), rtol=1e-6)
    table = np.random.default_rng(0).normal(size=table.shape)
    rows = np.broadcast_to(table, (7, WIDTH // 2))[tokens[0]]
    words = np.asarray(x)[0, :, :8] + 1j * np.asarray(x)[0, :, 8:]
    turned = words * np.exp(1j * rows * np.arange(2, 8)[:, None])
    run = lambda table: module.apply({"params": {"frequency": table}}, x, seq, tokens)
    np.testing.assert_allclose(run(table)[0], np.c_[turned.real, turned.imag], atol=1e-9)
    np.testing.assert_array_equal(run(0 * table), x)
    slope = np.abs(jax.grad(lambda t: jnp.sin(run(t)).sum())(jnp.asarray(table)))
    used = np.isin(np.arange(7), tokens) if shared != "words" else np.ones(1, bool)
    np.testing.assert_array_equal(slope.max(1) > 0, used)


def test_complex_order_says_what_it_needs():
    with pytest.raises(ConfigError, match="none here: run it in a model"):
        embed("complex_order", L.sequence(1, 3))
    with pytest.raises(ConfigError, match="did you mean 'words'"):
        embed(dict(name="complex_order", shared="wodrs"), L.sequence(1, 3))


def test_a_model_reads_alike_whole_in_pieces_and_packed():
    spec = ["bipe", dict(name="abacus", axis=2), "complex_order", "rope"]
    model = build_model(dict(vocab_size=128, width=WIDTH, depth=2, mlp=None, position=spec,
                             mixer=dict(name="attention", num_heads=2),
                             pattern=[{}, dict(position="no_pe")]), 16)
    tokens = np.concatenate([[[97]], TOKENS[:, :31]], 1)  # 8 is inside 345, 24 before 1234
    seq, eighths = L.sequence(1, 32), [slice(n, n + 8) for n in range(0, 32, 8)]
    found = nn.unbox(jax.jit(model.init)(jax.random.key(0), tokens, seq))
    apply = jax.jit(model.apply)
    whole = apply(found, tokens, seq)[0]
    state, pieces = model.init_state(1, 32), []
    for part in eighths:
        y, state = apply(found, tokens[:, part], seq[part], state)
        pieces.append(y)
    np.testing.assert_allclose(np.concatenate(pieces, 1), whole, atol=2e-5)
    packed = apply(found, tokens, L.sequence(1, 32, segment=np.repeat([1, 2, 3, 4], 8)[None]))[0]
    alone = [apply(found, tokens[:, part], L.sequence(1, 8))[0] for part in eighths]
    np.testing.assert_allclose(np.concatenate(alone, 1), packed, atol=2e-5)
    assert np.abs(packed - whole)[0, 8:].min(0).max() > 1e-2
