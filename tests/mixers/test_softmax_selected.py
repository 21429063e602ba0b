"""Mixers that choose blocks of keys: loops over queries and blocks in NumPy are the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.errors import ConfigError, Refusal
from lcx.ops.attention import blocks, selected
from lcx.ops.pairs import Keys
from tests import mixer_cases as cases

HEADS = dict(num_heads=4, num_kv_heads=2)


def soft(x):
    raised = np.exp(x - x.max())
    return raised / raised.sum()


def documents():
    """(row, tokens of a document)."""
    return [(b, slice(*d)) for b in range(cases.B) for d in cases.DOCUMENTS]


def projections(params, x):
    p = jax.tree.map(np.asarray, params)
    return p, *(np.einsum("btd,dhk->bthk", x, p[n]["kernel"]) for n in ("query", "key", "value"))


def test_moba_is_the_published_one(x64):
    size, top = 2, 2
    mixer, seq = cases.build(dict(name="moba", block=size, top=top, **HEADS)), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    y, _, _ = cases.captured(mixer, found, x, seq)
    p, query, key, value = projections(found["params"], np.asarray(x))
    out, skipped = np.zeros_like(query), 0
    for b, part in documents():
        k, v = key[b, part], value[b, part]
        for i, q in enumerate(query[b, part]):
            mine = i // size
            for h in range(4):
                gate = [q[h] @ k[n * size:(n + 1) * size, h // 2].mean(0) for n in range(mine)]
                order = sorted(range(mine), key=lambda n: -gate[n])[:top - 1] + [mine]
                skipped += mine + 1 - len(order)
                keep = [j for n in order for j in range(n * size, (n + 1) * size) if j <= i]
                weights = soft(k[keep, h // 2] @ q[h] / np.sqrt(q.shape[-1]))
                out[b, part.start + i, h] = weights @ v[keep, h // 2]
    assert skipped > 0
    np.testing.assert_allclose(y, np.einsum("bthk,hkd->btd", out, p["out"]["kernel"]), atol=1e-12)


def test_nsa_is_the_published_one(x64):
    size, top, window = 1, 3, 2
    spec = dict(name="nsa", block=size, top=top, window=window, num_heads=4, num_kv_heads=1)
    mixer, seq = cases.build(spec), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    y, _, _ = cases.captured(mixer, found, x, seq)
    p, query, key, value = projections(found["params"], np.asarray(x))
    gate = cases.sigmoid(np.einsum("btd,dhg->bthg", np.asarray(x), p["branch"]["kernel"]))
    out = np.zeros_like(query)
    for b, part in documents():
        k, v = key[b, part, 0], value[b, part, 0]
        for i, q in enumerate(query[b, part]):
            g, read = gate[b, part.start + i], np.zeros((3, 4, q.shape[-1]))
            scale = np.sqrt(q.shape[-1])
            whole = list(range((i + 1) // size))
            means = [k[n * size:(n + 1) * size].mean(0) for n in whole]
            chance = np.array([soft(np.array(means) @ q[h] / scale) for h in range(4)])
            if whole:
                read[0] = chance @ [v[n * size:(n + 1) * size].mean(0) for n in whole]
            mine = i // size
            rank = {n: chance[:, n].mean() for n in whole}
            rank |= {n: np.inf for n in (0, mine, mine - 1) if 0 <= n}
            best = sorted(rank, key=lambda n: -rank[n])[:top]
            keep = [j for n in best for j in range(n * size, (n + 1) * size) if j <= i]
            near = list(range(max(0, i - window + 1), i + 1))
            for h in range(4):
                for branch, js in ((1, keep), (2, near)):
                    read[branch, h] = soft(k[js] @ q[h] / scale) @ v[js]
            out[b, part.start + i] = np.einsum("hg,ghk->hk", g, read)
    np.testing.assert_allclose(y, np.einsum("bthk,hkd->btd", out, p["out"]["kernel"]), atol=1e-12)


SPECS = [dict(name="moba", block=2, top=2, **HEADS), dict(name="nsa", block=2, top=3, window=2)]


@pytest.mark.parametrize("position", ["no_pe", ["rope", "fox", "log_n"], "wall", "rerope",
                                      "vo_rope", "t5_bias"], ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s["name"])
@pytest.mark.full  # the law suite runs every mixer so
def test_every_form_and_pieces(spec, position, x64):
    cases.agree(cases.ways(spec, position, ("quadratic", "chunked")))


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s["name"])
@pytest.mark.parametrize("position", ["path", "cope", "dape"])
def test_what_needs_the_whole_row_is_refused(spec, position):
    with pytest.raises(Refusal, match="R11"):
        mixer = cases.build(spec, position)
        jax.eval_shape(lambda: mixer.init(jax.random.key(0), cases.inputs(), cases.packed()))


def test_blocks_start_with_each_document(x64):
    seq = L.sequence(1, 7, segment=[[1, 1, 1, 2, 2, 2, 2]])
    key = jnp.arange(7.0)[None, :, None, None]
    found = blocks.blocks_of(Keys(key, key, seq), 2)
    assert found.number.tolist() == [[0, 0, 1, 2, 2, 3, 3]]
    assert found.whole[0, :4].tolist() == [True, False, True, True] and not found.whole[0, 4:].any()
    assert found.place[0].tolist() == [0, 1, 0, 1, -1, -1, -1]
    assert found.mean(key)[0, :, 0, 0][jnp.array([0, 2, 3])].tolist() == [0.5, 3.5, 5.5]
    assert found.last[0, :4].tolist() == [1, 2, 4, 6]
    alone = blocks.blocks_of(Keys(key, key, L.sequence(1, 7)), 2)
    assert alone.place.shape[1] == 5 and alone.whole[0].tolist() == [True] * 3 + [False] * 2


def test_of_equals_the_earlier_is_chosen():
    score = jnp.array([[1.0, 2.0, 2.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0, 9.0]])
    allowed = jnp.array([[True] * 5, [True, False, True, True, False]])
    found = selected.best(score, allowed, 2)
    assert found.astype(int).tolist() == [[0, 1, 1, 0, 0], [1, 0, 1, 0, 0]]
    assert selected.best(score, allowed & False, 3).sum() == 0
    assert selected.best(score, allowed, 99).tolist() == allowed.tolist()


def test_a_choice_has_no_gradient_but_what_is_read_has(x64):
    mixer, seq = cases.build(SPECS[0]), cases.packed()
    found, x = cases.variables(mixer, seq), cases.inputs()
    loss = lambda p: jnp.sum(jnp.sin(mixer.apply({"params": p}, x, seq)[0]))
    grads = jax.jit(jax.grad(loss))(found["params"])
    kernel = found["params"]["query"]["kernel"]
    moved = lambda t: {**found["params"], "query": {"kernel": kernel + t}}
    step = 1e-6 * jnp.asarray(np.random.default_rng(0).normal(size=kernel.shape))
    slope = loss(moved(step)) - loss(moved(-step))
    np.testing.assert_allclose(slope, 2 * jnp.sum(step * grads["query"]["kernel"]), rtol=1e-5)


@pytest.mark.parametrize("spec, words", [
    (dict(name="moba", window=3), "leave out window"), (dict(name="moba", top=0), "1 or more"),
    (dict(name="nsa", top=2), "3 or more"), (dict(name="delta_former", window=2), "leave out")])
def test_bad_options_raise(spec, words):
    with pytest.raises(ConfigError, match=words):
        mixer = cases.build(spec)
        jax.eval_shape(lambda: mixer.init(jax.random.key(0), cases.inputs(), cases.packed()))
