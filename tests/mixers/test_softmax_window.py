"""Windows of attention: whole rows meet the keys of their windows alone, with the same result."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers
from lcx.ops.attention import api, local, reference
from lcx.study import flops

B, T, D = 2, 43, 16
# Documents shorter than the sinks, than the window, than a chunk, and longer than all of them.
SEGMENT = np.stack([np.repeat([1, 2, 3, 4, 5], [19, 2, 1, 5, 16]), np.repeat([1, 2], [11, 32])])
HEADS = dict(num_heads=2, num_kv_heads=1)
WINDOW = dict(name="attention", window=5, **HEADS)
SINKS = dict(name="streaming_attention", window=5, sinks=3, **HEADS)
CASES = [(WINDOW, ["path", "t5_bias"]), (SINKS, ["wall", "t5_bias"])]
MORE = [(WINDOW, ["rope", "fox"]), (SINKS, ["rope", "fox"]), (SINKS, "cope"),
        (dict(WINDOW, window=1), "no_pe"), (dict(WINDOW, window=12), "cope"),
        (WINDOW, dict(name="dape", hidden=8, kernel=3)), (WINDOW, "vo_rope"), (WINDOW, "shaw"),
        (dict(SINKS, sinks=7), "rerope"), (SINKS, "ss_max"), (SINKS, "path"),
        (dict(SINKS, window=1), "selective_rope"),
        (dict(WINDOW, name="stick_breaking", remainder=True), ["rope", "fox"])]


def build(spec, position="no_pe", **options):
    return mixers.make({**spec, **options}, position=position, width=D, train_length=16,
                       parent=None)


def drawn(mixer, seq, x):
    init = lambda: nn.unbox(mixer.init(jax.random.key(0), x, seq))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: jnp.asarray(0.4 * rng.normal(size=a.shape)),
                          jax.eval_shape(init)["params"])
    return {"params": params, "numbers": jax.jit(lambda: init().get("numbers", {}))()}


@pytest.mark.parametrize("spec, position", [*CASES, *(
    pytest.param(*case, marks=pytest.mark.full) for case in MORE)], ids=str)
def test_windows_are_the_square_and_learn_the_same(spec, position, x64, monkeypatch):
    rows, sizes = [], []
    cut = local.over_windows
    monkeypatch.setattr(local, "over_windows", lambda *a, **k: rows.append(k) or cut(*a, **k))
    attend = reference.attend

    def seen(queries, keys, *a, **k):
        sizes.append((queries.query.shape[1], keys.key.shape[1]))
        return attend(queries, keys, *a, **k)

    monkeypatch.setattr(reference, "attend", seen)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, D)))
    seq = L.sequence(B, T, segment=SEGMENT)
    found = drawn(build(spec, position), seq, x)

    def run(params, x, form):
        y, _ = build(spec, position, form=form, chunk=4).apply({**found, "params": params}, x, seq)
        return jnp.sum(jnp.sin(3 * y)), y

    run = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True), static_argnums=2)
    (_, got), slopes = run(found["params"], x, "chunked")
    if position == "path" and spec["name"] == "streaming_attention":
        assert not rows  # its transport reads what lies between a sink and the window
    else:
        assert rows and max([keys for _, keys in sizes], default=0) <= 16 + spec.get("sinks", 0)
    (_, want), wanted = run(found["params"], x, "quadratic")
    np.testing.assert_allclose(got, want, atol=1e-12)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(slopes), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, atol=1e-10, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("name, options", [
    pytest.param("attention", {}, marks=pytest.mark.full),
    pytest.param("sink_attention", {}, marks=pytest.mark.full),
    ("streaming_attention", dict(sinks=4))])
def test_the_cost_of_a_window_is_linear(name, options):
    """Matrix products a token, and temporary memory with its gradient, as the text grows."""
    found = {}
    for length in (1024, 4096):
        mixer = build(dict(name=name, window=64, form="chunked", **HEADS, **options))
        x = jax.ShapeDtypeStruct((1, length, D), jnp.float32)
        seq = L.sequence(1, length)
        params = nn.unbox(jax.eval_shape(lambda key, x, m=mixer, s=seq: m.init(key, x, s),
                                         jax.random.key(0), x))["params"]

        def total(params, x, m=mixer, s=seq):
            return jnp.sum(m.apply({"params": params}, x, s)[0] ** 2)

        slope = jax.grad(total)
        plan = jax.jit(slope).lower(params, x).compile().memory_analysis()
        found[length] = flops.count(slope, params, x) / length, plan.temp_size_in_bytes
    assert found[4096][0] == pytest.approx(found[1024][0], rel=1e-3), found
    assert found[4096][1] < 4.2 * found[1024][1], found


def test_the_first_tokens_of_a_row_that_starts_inside_a_text_are_no_sinks(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, T, D)))
    seq = L.sequence(1, T, start=1)
    found = drawn(build(SINKS), seq, x)
    run = functools.partial(build(SINKS).apply, found, x, seq)
    with api.backend("reference"):
        want = run()[0]
    with api.backend("chunked"):
        np.testing.assert_allclose(build(SINKS, chunk=4).apply(found, x, seq)[0], want, atol=1e-12)
