"""8192 tokens and extreme gates, core by core: values and gradients beside float64.

Operands are numbers of bfloat16, gates lie between 1 - 1e-7 and 0. Errors are relative, by norm:
1e-3 in float32, 2e-2 where the matmuls take bfloat16. `ops.linear` and the plain scans have files
of their own (test_ops_linear_long.py, mixers/test_recurrent_numerics.py). `pytest -s` prints.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.mixers.delta_family import DeltaMixer
from lcx.ops import pairs
from lcx.ops.attention import chunked, stick_breaking
from lcx.ops.conv import long_conv
from lcx.ops.conv.modes import Modes, mode_conv
from lcx.ops.linear.log_linear import log_linear_attention
from lcx.ops.linear.slots import slot_memory
from lcx.ops.scan.selective import selective_scan
from lcx.ops.scan.turned import turned_scan
from lcx.ops.scan.wkv import wkv
from lcx.ops.untied import untied_scores

pytestmark = pytest.mark.full
T, H, K, V, READERS = 8192, 2, 8, 4, 48
LAST = slice(T - READERS, T)  # quadratic cores: the last queries, over all keys


def rounded(a):
    return np.asarray(jnp.asarray(a, jnp.bfloat16).astype(jnp.float32), np.float64)


def normal(seed, *shape):
    return rounded(np.random.default_rng(seed).normal(size=(1, T, *shape)))


def gates(seed, *shape, least=60.0):
    """Log gates: most tokens forget next to nothing, some nearly or wholly everything."""
    size = [1e-7, 1e-4, 1e-2, 1.0, least / 2, least]
    return -rounded(np.random.default_rng(seed).choice(
        size, size=(1, T, *shape), p=[0.6, 0.3, 0.09, 0.0085, 0.001, 0.0005]))


def unit(a):
    return rounded(a / np.linalg.norm(a, axis=-1, keepdims=True))


def qkv(*names):
    return {name: normal(seed, H, V if name == "value" else K) for seed, name in enumerate(names)}


# ---- the cores: operands, what is run, its twin, which operands stay wide ------------------------


def log_linear():
    x = dict(qkv("query", "key", "value"), levels=np.abs(normal(5, H, 15)), log_decay=gates(6, H))
    run = lambda form: lambda x: log_linear_attention(**x, index=jnp.arange(T)[None], form=form)[0]
    return x, run("chunked"), run("recurrent"), ("levels", "log_decay")


def slots():
    x = dict(qkv("query", "key", "write"), gate=gates(6, H, K))
    run = lambda form: lambda x: slot_memory(**x, form=form)[0]
    return x, run("chunked"), run("recurrent"), ("gate",)


class Delta(DeltaMixer):
    def site(self):
        return L.Site(H, H, K, K, K, T, value_dim=V)


def undecayed(channels):
    """Comba and RWKV-7: the erase reads the memory before the gate."""
    x = qkv("query", "key", "value")
    x |= dict(key=unit(x["key"]) / 2, erase=unit(normal(8, H, K)),
              beta=rounded(np.random.default_rng(9).uniform(size=(1, T, H))),
              log_decay=gates(6, H, *[K] * channels))

    def run(form):
        core = Delta(position="no_pe", width=K, train_length=T, form=form)

        def call(x):
            x = dict(x, write=x["erase"])
            rest = {n: x[n] for n in ("beta", "log_decay", "erase", "write")}
            return core.apply({}, x["query"], x["key"], x["value"], jnp.zeros((1, T, K),
                              x["query"].dtype), L.sequence(1, T), None, L.Lanes(), None,
                              undecayed=True, method="mix", **rest)[0]

        return call

    return x, run("chunked"), run("step"), ("beta", "log_decay")


def rwkv4():
    rate = rounded(np.exp(np.linspace(-16, 4, H * K)).reshape(H, K))
    x = dict(key=4 * normal(0, H, K), value=normal(1, H, K), rate=rate,
             bonus=rounded(np.linspace(-2, 2, H * K).reshape(H, K)))
    run = lambda form: lambda x: wkv(**x, form=form)[0]
    return x, run("chunked"), run("scan"), tuple(x)


def mamba1():
    x = dict(query=normal(0, V), key=normal(1, V), value=normal(2, K), step=-gates(3, K),
             rate=-rounded(np.tile(np.arange(1.0, V + 1), (K, 1))))
    run = lambda x: selective_scan(**x)[0]
    return x, run, run, tuple(x)


def turned(form):
    x = dict(log_decay=gates(0, 1, K), value=normal(1, 1, K),
             rotation=rounded(np.random.default_rng(2).choice([3.0, 0.1, 1e-4], (1, T, 1, K // 2))))
    run = lambda form: lambda x: turned_scan(**x, form=form)[0]
    return x, run(form), run("scan"), tuple(x)


def poles():
    """State spaces: modes that keep everything and modes that keep nothing, slow and fast."""
    x = dict(x=normal(0, V), fall=rounded(np.geomspace(1e-7, 30, V * K).reshape(V, K)),
             turn=rounded(np.random.default_rng(1).choice([3.0, 0.1, 1e-4], (V, K))),
             real=normal(2, V, K)[0, 0], imaginary=normal(3, V, K)[0, 0])

    def run(form):
        def call(x):
            modes = Modes(jax.lax.complex(-x["fall"], x["turn"]),
                          jax.lax.complex(x["real"], x["imaginary"]))
            return mode_conv(modes, x["x"], form=form)[0]

        return call

    return x, run("chunked"), run("recurrent"), tuple(x)


def fourier():
    fall = np.exp(-np.outer(np.arange(T), np.geomspace(1e-6, 3, V)))
    x = dict(x=normal(0, V), kernel=rounded(normal(1, V)[0] * fall))
    run = lambda x: long_conv(**x)
    return x, run, run, tuple(x)


def parts(x, lanes, own=lambda a: a):
    """The last queries and all keys, as a layer makes them."""
    seq, total = L.sequence(1, T), pairs.integrals(lanes)
    path = pairs.path_of(lanes.transport)
    cut = lambda tree: jax.tree.map(lambda a: a[:, LAST], tree)
    queries = pairs.Queries(x["query"][:, LAST], seq[LAST], cut(total), path, slot=T - READERS)
    return queries, pairs.Keys(x["key"], x["value"], seq.replace(length=None), total, path)


def causal():
    return jnp.arange(T) <= jnp.arange(T)[LAST, None]


def fade(log):
    """Sums of log gates over (j, i] of the last rows: [1,T,H,...] -> [1,H,...,READERS,T]."""
    total = jnp.moveaxis(jnp.cumsum(log, 1), 1, -1)
    return jnp.where(causal(), total[..., LAST, None] - total[..., None, :], 0.0)


def products(x):
    return jnp.einsum("bthk,bshk->bhts", x["query"][:, LAST], x["key"]) * K**-0.5


def mixed(x, logits):
    weights = jax.nn.softmax(jnp.where(causal(), logits, -jnp.inf), -1)
    return jnp.einsum("bhts,bshv->bthv", weights, x["value"])


def fox():
    x = dict(qkv("query", "key", "value"), gate=gates(6, H))

    def run(x):
        lanes = L.Lanes(bias=(L.Separable(x["gate"]),))
        return chunked.attend(*parts(x, lanes), lanes, rotary_dim=K, scale=K**-0.5, causal=True,
                              window=None, chunk=16)

    return x, run, lambda x: mixed(x, products(x) + fade(x["gate"])), ("gate",)


def wall():
    x = dict(qkv("query", "key", "value"), gate=gates(6, H, K))

    def run(x):
        lanes = L.Lanes(L.Diagonal(x["gate"]))
        return chunked.attend(*parts(x, lanes), lanes, rotary_dim=K, scale=K**-0.5, causal=True,
                              window=None, chunk=16)

    def twin(x):
        faded = jnp.exp(fade(x["gate"]))  # [1,H,K,READERS,T]
        logits = jnp.einsum("bthk,bshk,bhkts->bhts", x["query"][:, LAST], x["key"], faded)
        return mixed(x, logits * K**-0.5)

    return x, run, twin, ("gate",)


def stick():
    x = dict(qkv("query", "key", "value"))
    x["query"] *= 8  # sticks that break at once, and sticks that hardly do

    def run(x):
        return stick_breaking.attend(*parts(x, L.Lanes()), x["value"][:, LAST], L.Lanes(),
                                     rotary_dim=K, scale=K**-0.5, remainder=True, chunk=16)

    def twin(x):
        past = jnp.arange(T) < jnp.arange(T)[LAST, None]
        kept = jnp.where(past, jax.nn.softplus(products(x)), 0.0)
        later = jnp.flip(jnp.cumsum(jnp.flip(kept, -1), -1), -1)
        weights = jnp.where(past, jnp.exp(products(x) - later), 0.0)
        out = jnp.einsum("bhts,bshv->bthv", weights, x["value"])
        rest = jnp.exp(-later[..., 0])
        return out + jnp.swapaxes(rest, 1, 2)[..., None] * x["value"][:, LAST]

    return x, run, twin, ()


def untied(form="blocked"):
    x = dict(qkv("query", "key"), log_decay=gates(6, H, K),
             angle=rounded(np.random.default_rng(2).choice([3.0, 0.1, 1e-4], (1, T, H, K // 2))))

    def run(form):
        def call(x):
            rest = (x[n] for n in ("key", "log_decay", "angle"))
            z = untied_scores(x["query"][:, LAST], *rest, offset=T - READERS, form=form)
            return jnp.where(causal(), z, 0.0)

        return call

    return x, run("blocked"), run("recurrent"), ("log_decay", "angle")


CORES = {"log-linear": log_linear, "slots": slots, "undecayed delta": lambda: undecayed(0),
         "undecayed vector delta": lambda: undecayed(1), "wkv": rwkv4, "selective": mamba1,
         "turned, chunked": lambda: turned("chunked"), "modes": poles, "Fourier": fourier,
         "turned, associative": lambda: turned("associative"), "gated softmax": fox,
         "decayed softmax": wall, "stick-breaking": stick, "untied": untied}


def slopes(run, x, exact, wide, narrow):
    x = {n: jnp.asarray(a, wide if n in exact else narrow) for n, a in x.items()}
    shape = jax.eval_shape(run, x).shape
    weight = np.random.default_rng(40).normal(size=shape)

    @jax.jit
    def both(x):
        def total(x):
            out = run(x)
            return jnp.sum(out.astype(wide) * weight), out

        (_, out), grads = jax.value_and_grad(total, has_aux=True)(x)
        return {"out": out, **grads}

    return {n: np.asarray(a.astype(wide), np.float64) for n, a in both(x).items()}


@pytest.mark.parametrize("name", CORES)
def test_long_texts_and_extreme_gates(name):
    x, run, twin, exact = CORES[name]()
    with jax.enable_x64(True):
        wanted = slopes(twin, x, exact, jnp.float64, jnp.float64)
    found = {}
    for narrow, limit in ((jnp.float32, 1e-3), (jnp.bfloat16, 2e-2)):
        if narrow == jnp.bfloat16 and set(exact) == set(x):
            continue  # no matmul of narrow operands
        got = slopes(run, x, exact, jnp.float32, narrow)
        for leaf in wanted:
            error = np.linalg.norm(got[leaf] - wanted[leaf]) / np.linalg.norm(wanted[leaf])
            print(f"{name:22} {narrow.__name__:9} {leaf:10} {error:.1e}")
            if not error < limit:  # nor not a number
                found[leaf, narrow.__name__] = error
    assert not found, found
