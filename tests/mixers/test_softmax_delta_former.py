"""DeltaFormer: blocks of tokens against a token loop, and the gradient of the linear system."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.ops.attention import delta_former
from lcx.ops.pairs import Keys, Queries
from tests import mixer_cases as cases


def soft(x):
    raised = np.exp(x - x.max())
    return raised / raised.sum()


@pytest.mark.parametrize("options", [dict(num_kv_heads=1), dict(bounded=False)], ids=str)
def test_layer_is_the_published_one(options, x64):
    mixer = cases.build(dict(name="delta_former", num_heads=2, **options))
    seq, x = cases.packed(), cases.inputs()
    found = cases.variables(mixer, seq)
    y, inner, _ = cases.captured(mixer, found, x, seq)
    p, x = jax.tree.map(np.asarray, found["params"]), np.asarray(x)
    query, key, value = (np.einsum("btd,dhk->bthk", x, p[n]["kernel"])
                         for n in ("query", "key", "value"))
    beta = x @ p["beta"]["kernel"] + p["beta"]["bias"]
    beta = beta if "bounded" in options else cases.sigmoid(beta)
    out = np.zeros_like(query)
    for b in range(cases.B):
        for first, end in cases.DOCUMENTS:
            for h in range(2):
                n, u = h * key.shape[2] // 2, np.zeros((end - first, 8))
                for i in range(end - first):
                    z = key[b, first:first + i + 1, n] @ query[b, first + i, h] / np.sqrt(8)
                    u[i] = value[b, first + i, n]
                    if i:
                        u[i] -= beta[b, first + i, h] * soft(z[:-1]) @ u[:i]
                    out[b, first + i, h] = soft(z) @ u[:i + 1]
    np.testing.assert_allclose(y, np.einsum("bthk,hkd->btd", out, p["out"]["kernel"]), atol=1e-12)


@pytest.mark.parametrize("position", ["no_pe", ["rope", "fox", "log_n"], "cope", "path", "rerope",
                                      "vo_rope", "shaw", dict(name="dape", hidden=8)], ids=str)
@pytest.mark.full  # the law suite runs every mixer so
def test_every_form_and_pieces(position, x64):
    spec = dict(name="delta_former", num_heads=2, num_kv_heads=1)
    cases.agree(cases.ways(spec, position, ("quadratic", "chunked")))


@pytest.mark.parametrize("chunk", [1, 3, 4, 11, 64])
def test_blocks_and_their_gradients_are_those_of_one_dense_solve(chunk, x64):
    """Chunks that divide the length and that do not, two documents, large beta."""
    rng, seq = np.random.default_rng(1), cases.packed()
    draw = lambda *shape: jnp.asarray(rng.normal(size=(cases.B, cases.T, *shape)))
    given = dict(query=draw(2, 4), key=draw(2, 4), value=draw(2, 3), beta=1.5 * draw(2))
    step = jnp.where(cases.starts()[:, None], 0.0, -0.3 * jnp.ones((cases.T, 2)))[None]

    def run(given, form):
        from lcx.ops.pairs import integrals
        lanes = L.Lanes(bias=(L.Separable(step),))
        total = integrals(lanes)
        keys = Keys(given["key"], given["value"], seq, total)
        out = delta_former.corrected(Queries(given["query"], seq, total), keys, given["value"],
                                     given["beta"], lanes, rotary_dim=4, scale=0.5, form=form,
                                     chunk=chunk)
        return jnp.sum(jnp.sin(out)), out

    (_, wanted), slopes = jax.value_and_grad(run, has_aux=True)(given, "dense")
    (_, got), found = jax.jit(jax.value_and_grad(run, has_aux=True), static_argnums=1)(
        given, "blocked")
    np.testing.assert_allclose(got, wanted, atol=1e-12)
    for name in given:
        np.testing.assert_allclose(found[name], slopes[name], atol=1e-11, err_msg=name)


def test_memory_is_linear_in_length():
    """Eight times the tokens need about eight times the bytes, gradient included."""
    def bytes_of(length):
        seq = L.sequence(1, length)
        def loss(x):
            keys = Keys(x, x, seq)
            return jnp.sum(delta_former.corrected(
                Queries(x, seq), keys, x, x[..., 0], L.Lanes(), rotary_dim=8, scale=0.3, chunk=32))
        shape = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
        return jax.jit(jax.grad(loss)).lower(shape).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of(2048) < 12 * bytes_of(256)
