"""Cells of the softmax family that coincide with another model, layer against layer.

Shown elsewhere at the level of a scheme: E6, constant FoX gates are ALiBi, and constant Wall gates
xPos without its rotation (E7): tests/positions/test_transports.py; Sandwich as appended sinusoids
(E27): tests/positions/test_static_biases.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.positions.alibi import slopes
from tests import mixer_cases as cases


def output(spec, found, position="no_pe", lanes=None):
    seq = cases.packed()
    mixer = cases.build(spec, position)
    return jax.jit(lambda found, x: mixer.apply(found, x, seq, None, lanes)[0])(
        found, cases.inputs())


def drawn(spec, position="no_pe"):
    return cases.variables(cases.build(spec, position), cases.packed())


def same(got, wanted, atol=1e-12):
    cases.close(got, wanted, atol)
    assert np.abs(wanted).max() > 0.01


def test_e6_constant_fox_gates_are_alibi(x64):
    spec = dict(name="attention", num_heads=4)
    found = drawn(spec, "fox")
    gate = found["params"]["position"]["gate"]
    bias = -jnp.log(jnp.expm1(slopes(4)))  # log sigmoid(b) = -slope
    params = {**found["params"], "position": {"gate": {"kernel": 0 * gate["kernel"], "bias": bias}}}
    alibi = drawn(spec, "alibi")
    own = {k: v for k, v in found["params"].items() if k != "position"}
    same(output(spec, {**found, "params": params}, "fox"),
         output(spec, {**alibi, "params": own}, "alibi"))


def test_e7_constant_wall_gates_are_xpos_without_its_rotation(x64):
    """xPos's decays as lanes of an un-rotated layer, against Wall with gates of that size."""
    spec = dict(name="attention", num_heads=2)
    found = drawn(spec, "wall")
    rate = jnp.log(jnp.linspace(0.6, 0.99, 8))
    gate = found["params"]["position"]["gate"]
    wall = {"kernel": 0 * gate["kernel"],
            "bias": jnp.broadcast_to(rate - jnp.log1p(-jnp.exp(rate)), gate["bias"].shape)}
    step = jnp.where(cases.starts()[:, None], 0.0, rate)[None, :, None]
    xpos = L.Lanes(L.Diagonal(jnp.broadcast_to(step, (1, cases.T, 2, 8))))
    same(output(spec, {"params": {**found["params"], "position": {"gate": wall}}}, "wall"),
         output(spec, found, lanes=xpos))


def test_e18_latent_attention_without_angles_is_the_un_rotated_one(x64):
    """Kimi's NoPE-MLA keeps the shared channels and their part of the scale."""
    spec = dict(name="mla", num_heads=2, nope_dim=6, rope_dim=4, kv_rank=8)
    found = drawn(spec, "rope")
    still = {**found, "numbers": jax.tree.map(jnp.zeros_like, found["numbers"])}
    own = {"params": {k: v for k, v in found["params"].items() if k != "position"}}
    same(output(spec, still, "rope"), output(spec, own))
    assert np.abs(output(spec, found, "rope") - output(spec, own)).max() > 1e-3


ALL = [dict(name="attention", window=cases.T), dict(name="moba", block=2, top=99),
       dict(name="streaming_attention", sinks=0, window=cases.T),
       dict(name="streaming_attention", sinks=cases.T, window=1),
       dict(name="fixed_sparse", stride=cases.T), dict(name="fixed_sparse", stride=3, columns=3)]


@pytest.mark.parametrize("spec", ALL, ids=str)
def test_e19_a_selection_of_everything_is_full_attention(spec, x64):
    """Window, blocks, sinks and patterns that leave nothing out."""
    heads = dict(num_heads=4, num_kv_heads=2)
    found = drawn(dict(name="attention", **heads), "rope")
    same(output({**spec, **heads}, found, "rope"),
         output(dict(name="attention", **heads), found, "rope"))


def test_e19_nsa_of_its_selection_alone_is_full_attention(x64):
    """All blocks, gates (0, 1, 0); then gates (0, 0, 1) and a window over everything."""
    heads = dict(num_heads=4, num_kv_heads=1)
    spec = dict(name="nsa", block=2, top=99, window=cases.T, **heads)
    found = drawn(spec, "rope")
    full = {k: v for k, v in found["params"].items() if k != "branch"}
    wanted = output(dict(name="attention", **heads), {**found, "params": full}, "rope")
    mixer, seq = cases.build(spec, "rope"), cases.packed()
    call = jax.jit(lambda found, x: mixer.apply(found, x, seq, mutable=["intermediates"]))
    (_, _), seen = call(found, cases.inputs())
    out = found["params"]["out"]["kernel"]
    for branch in (1, 2):
        heads_out = seen["intermediates"]["outer"][branch]
        same(jnp.einsum("bthk,hkd->btd", heads_out, out), wanted)
    assert np.abs(seen["intermediates"]["outer"][0][:, 0]).max() == 0  # no block is whole yet


def test_e20_grouped_queries(x64):
    """As many key heads as query heads is multi-head attention; one is multi-query: its key head
    repeated gives the same."""
    many = drawn(dict(name="attention", num_heads=4))
    same(output(dict(name="attention", num_heads=4, num_kv_heads=4), many),
         output(dict(name="attention", num_heads=4), many))
    for shared in (1, 2):
        one = drawn(dict(name="attention", num_heads=4, num_kv_heads=shared))
        repeated = {name: {"kernel": jnp.repeat(one["params"][name]["kernel"], 4 // shared, axis=1)}
                    for name in ("key", "value")}
        same(output(dict(name="attention", num_heads=4, num_kv_heads=shared), one),
             output(dict(name="attention", num_heads=4), {"params": {**one["params"], **repeated}}))


def test_e26_stick_breaking_with_its_remainder_has_rows_of_sum_one(x64):
    """Equal values come out as they went in; without the remainder less does."""
    spec = dict(name="stick_breaking", num_heads=2, use_bias=True)
    found, seq, x = drawn(spec), cases.packed(), cases.inputs()
    found["params"]["value"] = {"kernel": jnp.zeros((cases.D, 2, 8)), "bias": jnp.ones((2, 8))}
    shown = lambda spec: cases.captured(cases.build(spec), found, x, seq)[2]
    cases.close(shown({**spec, "remainder": True}), 1.0, 1e-12)
    less = shown(spec)
    assert (less < 1).all() and (less[:, cases.starts()] == 0).all()


def test_e29_fox_and_path_turned_off_are_no_position(x64):
    """Open gates and beta = 0: the layer without a scheme."""
    spec, scheme = dict(name="attention", num_heads=2), ["path", "fox"]
    found = drawn(spec, scheme)
    off = jax.tree_util.tree_map_with_path(
        lambda path, a: {"beta": -200.0, "gate": 200.0}.get(path[1].key, 0.0) + 0 * a
        if path[-1].key == "bias" else 0 * a if path[1].key in ("beta", "gate") else a,
        found["params"]["position"])
    own = {k: v for k, v in found["params"].items() if k != "position"}
    same(output(spec, {"params": {**own, "position": off}}, scheme), output(spec, {"params": own}))


def test_a_sink_that_nothing_reaches_and_two_equal_maps(x64):
    """sink -> -inf is attention; lambda 0 with unit heads is attention with a norm; beta = 0 of
    DeltaFormer is attention."""
    spec = dict(num_heads=2, num_kv_heads=1)
    found = drawn(dict(name="sink_attention", **spec))
    own = {k: v for k, v in found["params"].items() if k != "sink"}
    wanted = output(dict(name="attention", **spec), {"params": own})
    closed = {"params": {**own, "sink": jnp.full(2, -900.0)}}
    same(output(dict(name="sink_attention", **spec), closed), wanted)
    beta = {"kernel": jnp.zeros((cases.D, 2)), "bias": jnp.zeros(2)}
    none = {"params": {**own, "beta": beta}}
    same(output(dict(name="delta_former", bounded=False, **spec), none), wanted)
