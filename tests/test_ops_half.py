"""Half precision: gradients that loops sum, float32 products on a card, and what cuDNN is given."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src import source_info_util

from lcx import lanes as L
from lcx import lookup, mixers, positions
from lcx.errors import ConfigError, Refusal
from lcx.model import build_model
from lcx.model.mlps.moe import Moe
from lcx.ops import pairs
from lcx.ops.attention import api, cudnn
from lcx.ops.loops import summed_wide
from lcx.ops.loss import cross_entropy

T, D = 64, 32
FULL = (jax.lax.Precision.HIGHEST,) * 2


def equations(jaxpr):
    """All equations of a jaxpr, those inside of others included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    yield from equations(part)


def narrow_sums(function, *arguments):
    """Half-precision carries of loops to which each step adds and which it reads for nothing else:
    gradients of what all steps read, summed step by step."""
    found = []
    for equation in equations(jax.make_jaxpr(function)(*arguments).jaxpr):
        if equation.primitive.name != "scan":
            continue
        body, first = equation.params["jaxpr"].jaxpr, equation.params["num_consts"]
        carries = range(equation.params["num_carry"])
        made = {out: eqn for eqn in body.eqns for out in eqn.outvars}
        for before, after in ((body.invars[first + n], body.outvars[n]) for n in carries):
            readers = [eqn for eqn in body.eqns if any(before is v for v in eqn.invars)]
            adds = len(readers) == 1 and readers[0].primitive.name in ("add_any", "add")
            if before.aval.dtype == jnp.bfloat16 and adds and made.get(after) is readers[0]:
                found.append((equation.params["length"], before.aval.shape))
    return found


def layer(name, form, position="no_pe"):
    """One mixer in bfloat16 with short chunks: its loss, and shapes of variables and input."""
    spec = dict(name=name, **lookup.find(mixers.PACKAGE, name).examples[-1], form=form, chunk=16)
    mixer = mixers.make(spec, position=position, width=D, train_length=T, parent=None)
    x, seq = jax.ShapeDtypeStruct((2, T, D), jnp.bfloat16), L.sequence(1, T)
    found = jax.eval_shape(lambda x: nn.unbox(mixer.init(jax.random.key(0), x, seq)), x)
    return lambda v, x: mixer.apply(v, x, seq)[0].astype(jnp.float32).sum(), found, x


# one of each loop: chunks of pairs and of states, slots, a corrected memory, cells, scans, solves
LOOPS = [("attention", "chunked"), ("linear_attention", "quadratic"), ("gla", "chunked"),
         ("gsa", "chunked"), ("gated_delta_net", "chunked"), ("gated_delta_net", "step"),
         ("lstm", "step"), ("gru", "step"), ("slstm", "step"), ("mamba1", "chunked"),
         ("delta_former", "chunked"), ("stick_breaking", "chunked"), ("s4d", "chunked"),
         ("log_linear_mamba2", "chunked")]


@pytest.mark.parametrize("name, form", LOOPS, ids=str)
def test_no_loop_sums_a_gradient_in_half_precision(name, form):
    loss, *shapes = layer(name, form)
    assert narrow_sums(jax.grad(loss, (0, 1), allow_int=True), *shapes) == []


@pytest.mark.parametrize("options", [
    dict(position="t5_bias", share_position=True), dict(position=["rope"], predict_ahead=1),
    dict(position=dict(name="shaw", values=True), share_position=True)], ids=str)
def test_nor_does_the_loop_over_depth(options):
    model = build_model(dict(vocab_size=11, width=D, depth=4, mixer=dict(
        name="attention", num_heads=2), mlp="gated", dtype="bfloat16", **options), T)
    tokens, seq = jax.ShapeDtypeStruct((2, T), jnp.int32), L.sequence(1, T)
    found = jax.eval_shape(lambda t: nn.unbox(model.init(jax.random.key(0), t, seq)), tokens)

    def loss(v, t):
        (nll, _), told = model.apply(v, t, t, seq, method="score", mutable=["further"])
        return nll.sum() + sum(map(jnp.sum, jax.tree.leaves(told)))
    assert narrow_sums(jax.grad(loss, allow_int=True), found, tokens) == []


def test_the_walk_finds_a_weight_cast_outside_of_its_loop():
    def loss(w, x, inside):
        cast = lambda: w.astype(jnp.bfloat16)
        outside = None if inside else cast()
        step = lambda h, x: (jnp.tanh(h + x @ (cast() if inside else outside)), None)
        return jax.lax.scan(step, x[0] * 0, x)[0].astype(jnp.float32).sum()

    shapes = jnp.zeros((8, 8)), jnp.zeros((4, 3, 8), jnp.bfloat16)
    assert narrow_sums(lambda *a: jax.grad(loss)(*a, False), *shapes) == [(4, (8, 8))]
    assert narrow_sums(lambda *a: jax.grad(loss)(*a, True), *shapes) == []


def off(got, wanted):
    got, wanted = np.float64(got), np.float64(wanted)
    return np.linalg.norm(got - wanted) / np.linalg.norm(wanted)


@pytest.mark.parametrize("count", [64, 512])
def test_what_a_loop_reads_has_its_gradient_summed_wide(count):
    """Cast outside, cast outside but summed wide (one rounding is left), and cast inside."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(1 + rng.normal(size=(count, 4, 8)), jnp.bfloat16)
    wanted = np.repeat(np.float64(x).sum((0, 1))[:, None], 8, 1)

    def error(way):
        def loss(w):
            low = w.astype(jnp.bfloat16)
            body = lambda x: (x @ (w.astype(x.dtype) if way == "inside" else low)).astype(
                jnp.float32).sum(0)
            body = summed_wide(body, x[0]) if way == "wide" else body
            return jax.lax.map(body, x).sum()

        return off(jax.jit(jax.grad(loss))(jnp.ones((8, 8))), wanted)

    assert error("outside") > 5e-3 and error("wide") < 2e-3 and error("inside") < 5e-4


def test_keys_of_chunked_attention_have_the_gradient_of_the_square():
    """Many chunks: what each adds to the gradients of keys and values is summed in float32."""
    length, rng = 256, np.random.default_rng(1)
    query, key, value, weight = (jnp.asarray(rng.normal(size=(1, length, 1, 8)), jnp.bfloat16)
                                 for _ in range(4))
    weight, seq = jnp.abs(weight.astype(jnp.float32)), L.sequence(1, length)

    def loss(key, value, backend, chunk, dtype):
        with api.backend(backend):
            out = api.attend(pairs.Queries(query.astype(dtype), seq), pairs.Keys(
                key.astype(dtype), value.astype(dtype), seq), L.Lanes(), rotary_dim=8, scale=0.1,
                chunk=chunk)
        return (out.astype(jnp.float32) * weight).sum()

    run = lambda *o: jax.jit(jax.grad(lambda k, v: loss(k, v, *o), (0, 1)))(key, value)
    wanted = jax.jit(jax.grad(lambda k, v: loss(k, v, "reference", None, jnp.float32), (0, 1)))(
        key.astype(jnp.float32), value.astype(jnp.float32))
    several, square = (run("chunked", chunk, jnp.bfloat16) for chunk in (2, length))
    for got, once, want in zip(several, square, wanted):
        assert off(got, want) < 1.2 * off(once, want)


def test_the_table_of_the_loss_sums_its_gradient_wide():
    rng = np.random.default_rng(2)
    hidden = jnp.asarray(1 + rng.normal(size=(1, 512, 8)), jnp.bfloat16)
    table, targets = jnp.asarray(rng.normal(size=(7, 8)), jnp.float32), jnp.asarray(
        rng.integers(0, 7, (1, 512)))
    run = lambda hidden, chunk: jax.jit(jax.grad(lambda t: cross_entropy(
        hidden, t, targets, chunk=chunk).sum()))(table)
    once = run(hidden, None)
    assert off(run(hidden, 1), once) < 5e-4


def products(function, *shapes):
    """Files and lines of float32 and complex64 matrix products that a card would take as TF32."""
    found = set()
    for equation in equations(jax.make_jaxpr(function)(*shapes).jaxpr):
        name, kinds = equation.primitive.name, {v.aval.dtype.name for v in equation.invars[:2]}
        if name == "dot_general" and kinds <= {"float32", "complex64"}:
            if equation.params["precision"] != FULL:
                frame = source_info_util.user_frame(equation.source_info.traceback)
                found.add(frame.file_name.split("lcx/")[-1])
    return found


# Content alone: queries, keys and values, faded by gates that were summed before, or reflected by
# vectors read from the tokens, as everywhere else in a model. The rule for these is the model's.
CONTENT = {"ops/decayed.py", "ops/householder.py"}


@pytest.mark.parametrize("name", lookup.names(positions.__name__))
def test_no_scheme_makes_positions_with_rounded_products(name):
    """In a bfloat16 model what is float32 was asked for: all that a scheme says, and what becomes
    of it in the logits (angles, gates, biases, counts)."""
    for example in getattr(lookup.find(positions.__name__, name), "examples", ({},)):
        try:
            loss, *shapes = layer("attention", "quadratic", [dict(name=name, **example)])
        except (Refusal, ConfigError):  # it needs another one to act on
            continue
        assert products(loss, *shapes) <= CONTENT, example


def lanes_of(position):
    """What a scheme says in a float32 layer, a function of its variables and x; their shapes."""
    mixer = mixers.make("attention", position="no_pe", width=D, train_length=T, parent=None)
    scheme = positions.make(position, mixer.site(), parent=None)
    carry, x, seq = scheme.init_carry(2), jax.ShapeDtypeStruct((2, T, D), jnp.float32), L.sequence(
        1, T)
    found = jax.eval_shape(lambda x: nn.unbox(scheme.init(jax.random.key(0), x, seq, carry,
                                                          method="lanes")), x)
    return lambda v, x: scheme.apply(v, x, seq, carry, method="lanes"), found, x


@pytest.mark.parametrize("name", lookup.names(positions.__name__))
def test_nor_do_its_lanes_in_float32(name):
    """Where the whole model is float32, gates and steps are still exact; vectors of PaTH are maps
    of the tokens like queries and keys."""
    for example in getattr(lookup.find(positions.__name__, name), "examples", ({},)):
        try:
            run, *shapes = lanes_of([dict(name=name, **example)])
        except (Refusal, ConfigError):
            continue
        assert products(run, *shapes) <= ({"layers.py"} if name == "path" else set()), example


GATES = [("hyena", "quadratic"), ("s4d", "chunked"), ("s4", "step"), ("h3", "chunked"),
         ("mamba1", "chunked"), ("gated_delta_net", "step"), ("rglru", "chunked")]


@pytest.mark.parametrize("name, form", GATES, ids=str)
def test_nor_do_kernels_and_states(name, form):
    assert products(*layer(name, form)) == set()


def test_nor_does_the_router_of_experts():
    moe = Moe(D)
    x = jax.ShapeDtypeStruct((2, T, D), jnp.bfloat16)
    found = jax.eval_shape(lambda x: nn.unbox(moe.init(jax.random.key(0), x)), x)
    assert products(moe.apply, found, x) == set()


@pytest.mark.parametrize("way", ["float32 bias", "no key in a row", "window of no key"])
def test_cudnn_is_not_given_what_it_gets_wrong(way, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda query, *_, **__: query)
    seq, x = L.sequence(1, 8), jnp.zeros((2, 8, 2, 16), jnp.bfloat16)

    def run(keys=seq, lanes=None, window=None):
        return cudnn.attend(pairs.Queries(x, seq), pairs.Keys(x, x, keys), lanes or L.Lanes(),
                            rotary_dim=16, scale=1.0, causal=True, window=window)

    assert run().shape == run(window=3).shape == x.shape  # all else reaches the kernel
    empty = seq.replace(order=seq.order.at[0, 0].set(-1))
    slope = L.Lanes(bias=(L.Separable(jnp.full((1, 8, 2), -0.1)),))
    options = {"float32 bias": dict(lanes=slope), "no key in a row": dict(keys=empty),
               "window of no key": dict(window=0)}[way]
    with pytest.raises(NotImplementedError, match="cuDNN"):
        run(**options)
