"""8192 tokens of extreme gates in float32, beside float64 on the same bfloat16-rounded inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.ops.linear.mlstm import mlstm
from lcx.ops.scan import diagonal_scan

T = 8192
KINDS = ("open", "shut", "mixed", "learned")


def rounded(x):
    return np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)


def gates(kind, shape, rng):
    """Log forget gates: nearly 1 for the whole row, nearly 0, both by turns, and a usual spread."""
    near, far = -np.exp(rng.uniform(-14, -9, shape)), -rng.uniform(5, 60, shape)
    if kind == "mixed":
        return rounded(np.where(rng.random(shape) < 0.02, far, near))
    usual = -np.logaddexp(0, -rng.normal(3, 3, shape))
    return rounded({"open": near, "shut": far, "learned": usual}[kind])


def relative(got, wanted):
    """The largest error on the scale of the array."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    assert np.isfinite(got).all()
    return np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-300)


def value_and_slopes(function, x, weight, dtype):
    x = {k: jnp.asarray(v, dtype) for k, v in x.items()}
    run = jax.jit(jax.value_and_grad(
        lambda x: (lambda y: (jnp.sum(y * jnp.asarray(weight, dtype)), y))(function(x)),
        has_aux=True))
    (_, out), slopes = run(x)
    return np.asarray(out), jax.tree.map(np.asarray, slopes)


def compare(function, reference, x, weight, allowed=1e-3):
    got = value_and_slopes(function, x, weight, jnp.float32)
    with jax.enable_x64(True):
        wanted = value_and_slopes(reference, x, weight, jnp.float64)
    found = {"value": relative(got[0], wanted[0])}
    found |= {name: relative(got[1][name], wanted[1][name]) for name in x}
    print({name: f"{error:.1e}" for name, error in found.items()})
    assert max(found.values()) < allowed, found


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["scan", "chunked", "associative"])
def test_the_diagonal_scan(form, kind):
    rng = np.random.default_rng(0)
    x = dict(log_decay=gates(kind, (1, T, 1, 4), rng), value=rounded(rng.normal(size=(1, T, 1, 4))))
    run = lambda form: lambda x: diagonal_scan(x["log_decay"], x["value"], form=form)[0]
    compare(run(form), run("scan"), x, rng.normal(size=(1, T, 1, 4)))


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("read", ["quotient", "sum"])
def test_mlstm(read, kind):
    """The quotient of sums of one sign; and sums of both signs, small enough for the floor of 1.

    (A quotient of sums that cancel has no digits to compare in any order of operations.)
    """
    rng = np.random.default_rng(0)
    normal = lambda *shape: rounded(rng.normal(size=(1, T, 1, *shape)))
    x = dict(query=normal(4) / 2, key=normal(4), value=normal(4),
             log_forget=gates(kind, (1, T, 1), rng), log_input=rounded(6 * normal()))
    if read == "quotient":
        x |= dict(query=np.abs(x["query"]), key=np.abs(x["key"]))
    else:
        x |= dict(query=2.0**-50 * x["query"])
    run = lambda form: lambda x: mlstm(**x, form=form, eps=0.0)[0]
    compare(run("chunked"), run("recurrent"), x, rng.normal(size=(1, T, 1, 4)))
