"""Ops beside flash-linear-attention on one GPU: outputs and gradients of its naive and chunk ops.

`LCX_TEST_PLATFORM=cuda pytest -m gpu -s tests/parity/test_fla_kernels.py`, with torch and
flash-linear-attention beside jax. The naive twins run in float32 beside ours in float32; the Triton
kernels in bfloat16 beside ours in bfloat16, both by their distance from ours in float32. Errors are
||a - b|| / ||b||, of each array that enters.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.mixers.retention import log_decay as retention_decay
from lcx.ops import pairs
from lcx.ops.attention import api
from lcx.ops.linear import linear_attention
from lcx.ops.linear.log_linear import log_linear_attention
from lcx.ops.linear.slots import slot_memory

pytestmark = [pytest.mark.gpu, pytest.mark.parity]
B, T, H, K = 2, 256, 4, 64
SCALE = K**-0.5
# the arrays that bfloat16 rounds; gates stay in float32, as the kernels want them
CONTENT = {"q", "k", "v", "a", "w", "b"}


def draw(names):
    """Inputs on the scale of a layer's: unit keys, gates that keep most of the memory."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    kappa, rate = unit(normal(B, T, H, K)), 1 / (1 + np.exp(-normal(B, T, H, K)))
    makers = {
        "q": lambda: normal(B, T, H, K), "k": lambda: unit(normal(B, T, H, K)),
        "v": lambda: normal(B, T, H, K),
        "g": lambda: -rng.exponential(0.1, (B, T, H)),
        "gates": lambda: -rng.exponential(0.1, (B, T, H, K)),
        "beta": lambda: 1 / (1 + np.exp(-normal(B, T, H))),
        "a": lambda: -kappa, "b": lambda: kappa * rate, "rate": lambda: rate,
        "w": lambda: unit(normal(B, T, H, K)),
        "u": lambda: normal(H, K), "levels": lambda: rng.uniform(0.1, 1, (B, T, H, 9)),
    }
    round_off = lambda a: np.asarray(jnp.asarray(a, jnp.bfloat16), np.float32)
    return {name: round_off(makers[name]()) for name in names}


# ---- ours: functions of the arrays, with the scale of the reference ------------------------------


def memory(gate=None):
    def run(q, k, v, **rest):
        gates = rest.get(gate)
        return linear_attention(q * SCALE, k, v, log_decay=gates)[0]

    return run


def retention(q, k, v):
    gate = jnp.broadcast_to(retention_decay(H), q.shape[:3])
    return linear_attention(q * SCALE, k, v, log_decay=gate)[0]


def delta(gate=None):
    def run(q, k, v, beta, **rest):
        return linear_attention(q * SCALE, None, v, erase=k, beta=beta,
                                log_decay=rest.get(gate))[0]

    return run


def delta2(q, k, v, gates, rate, beta):
    ones = jnp.ones(q.shape[:3], jnp.float32)
    return linear_attention(q * SCALE, k, v * beta[..., None].astype(v.dtype), write=k,
                            erase=k * rate.astype(k.dtype), beta=ones, log_decay=gates)[0]


def rwkv6(q, k, v, gates, u):
    before = lambda a: jnp.roll(a, 1, 1).at[:, 0].set(0)  # read first: a write meets the next token
    out = linear_attention(q * SCALE, before(k), before(v), log_decay=before(gates))[0]
    own = jnp.einsum("bthk,hk,bthk->bth", q * SCALE, u.astype(q.dtype), k)
    return out + own[..., None] * v


def rwkv7(q, k, v, gates, a, b):
    """S = (diag(w) + b a^T) S + k v^T: what a reads is the memory before its decay."""
    ones = jnp.ones(q.shape[:3], jnp.float32)
    before = (-a.astype(jnp.float32) * jnp.exp(-gates)).astype(a.dtype)
    return linear_attention(q, k, v, erase=before, write=b, beta=ones, log_decay=gates)[0]


def slots(q, k, v, w, gates):
    gates = jnp.maximum(gates, -1.0)
    read = slot_memory(q * SCALE, k, w, gates)[0]
    weights = jax.nn.softmax(read, -1).astype(v.dtype)
    return linear_attention(weights, w, v, log_decay=gates)[0]


def log_linear(q, k, v, g, levels):
    return log_linear_attention(q, k, v, levels, jnp.arange(T)[None], log_decay=g)[0]


def softmax(lanes):
    """Attention under lanes(g, w, beta) that a scheme would have made."""

    def run(q, k, v, **rest):
        seq = L.sequence(1, T)
        made = lanes(**rest)
        total, path = pairs.integrals(made, None), pairs.path_of(made.transport)
        return api.attend(pairs.Queries(q, seq, total, path), pairs.Keys(k, v, seq, total, path),
                          made, rotary_dim=K, scale=SCALE)

    return run


forget = softmax(lambda g: L.Lanes(None, (L.Separable(g),)))
path = softmax(lambda w, beta: L.Lanes(L.Householder(w.astype(jnp.float32), beta)))

# name: ours, arrays, (module, naive op, its call), (module, chunk op, its call)
plain = lambda op, **x: op(*x.values())
heads_first = lambda op, **x: op(*(a.transpose(1, 2) if a.ndim > 2 else a
                                   for a in x.values())).transpose(1, 2)
first = lambda call: lambda op, **x: call(op, **x)[0]
CASES = {
    "simple GLA": (memory("g"), "q k v g", ("simple_gla.naive", "naive_recurrent_simple_gla",
                   first(plain)), ("simple_gla", "chunk_simple_gla", first(plain))),
    "GLA": (memory("gates"), "q k v gates", ("gla.naive", "naive_recurrent_gla", first(plain)),
            ("gla", "chunk_gla", first(plain))),
    "retention": (retention, "q k v", ("retention.naive", "naive_retention", heads_first),
                  ("retention", "chunk_retention", first(plain))),
    "linear attention": (memory(), "q k v", ("linear_attn.naive", "naive_recurrent_linear_attn",
                         first(lambda op, **x: op(**x, normalize=False))),
                         ("linear_attn", "chunk_linear_attn",
                          first(lambda op, **x: op(**x, normalize=False)))),
    "DeltaNet": (delta(), "q k v beta", None, ("delta_rule", "chunk_delta_rule", first(plain))),
    "gated DeltaNet": (delta("g"), "q k v g beta",
                       ("gated_delta_rule.naive", "naive_recurrent_gated_delta_rule",
                        first(lambda op, **x: op(**x))),
                       ("gated_delta_rule", "chunk_gated_delta_rule", first(plain))),
    "KDA": (delta("gates"), "q k v gates beta",
            ("kda.naive", "naive_recurrent_kda", first(plain)),
            ("kda", "chunk_kda", first(plain))),
    "gated DeltaNet-2": (delta2, "q k v gates rate beta",
                         ("gdn2.naive", "naive_recurrent_gdn2", first(
                             lambda op, q, k, v, gates, rate, beta: op(
                                 q, k, v, gates, rate, beta[..., None].expand(v.shape)))),
                         ("gdn2", "chunk_gdn2", first(
                             lambda op, q, k, v, gates, rate, beta: op(
                                 q, k, v, gates, rate.to(q.dtype),
                                 beta[..., None].expand(v.shape).to(q.dtype).contiguous())))),
    "RWKV-6": (rwkv6, "q k v gates u",
               ("rwkv6.recurrent_naive", "naive_recurrent_rwkv6",
                lambda op, **x: op(*(a.transpose(1, 2) if a.ndim > 2 else a
                                     for a in x.values()))[0].transpose(1, 2)),
               ("rwkv6", "chunk_rwkv6", first(plain))),
    "RWKV-7": (rwkv7, "q k v gates a b", None,
               ("rwkv7", "chunk_rwkv7", first(lambda op, q, k, v, gates, a, b: op(
                   q, gates.to(q.dtype), k, v, a, b)))),
    "GSA": (slots, "q k v w gates",
            ("gsa.naive", "naive_recurrent_gsa",
             first(lambda op, q, k, v, w, gates: op(q, k, v, w, gates.clamp(min=-1.0)))),
            ("gsa", "chunk_gsa",
             first(lambda op, q, k, v, w, gates: op(q, k, v, w, gates.clamp(min=-1.0))))),
    "log-linear attention": (log_linear, "q k v g levels",
                             ("log_linear_attn.naive", "naive_log_linear_attn", plain),
                             ("log_linear_attn", "chunk_log_linear_attn", first(
                                 lambda op, q, k, v, g, levels: op(q, k, v, g,
                                                                   levels.to(q.dtype))))),
    "FoX": (forget, "q k v g", ("forgetting_attn", "naive_forgetting_attn", plain),
            ("forgetting_attn", "parallel_forgetting_attn", plain)),
    "PaTH": (path, "q k v w beta", None, ("path_attn", "parallel_path_attn", first(
        lambda op, q, k, v, w, beta: op(q, k, v, w.float(), beta)))),
}


def off(a, b):
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.fixture
def untuned(monkeypatch):
    """Triton kernels in their first configuration: to try them all takes minutes for each op."""
    tuner = pytest.importorskip("triton.runtime.autotuner").Autotuner
    start = tuner.__init__

    def first_only(self, fn, arg_names, configs, *args, **kwargs):
        start(self, fn, arg_names, configs[:1], *args, **kwargs)

    monkeypatch.setattr(tuner, "__init__", first_only)


@pytest.mark.parametrize("name", CASES)
def test_op(name, untuned):
    torch = pytest.importorskip("torch")
    pytest.importorskip("fla")
    ours, names, naive, chunk = CASES[name]
    given = draw(names.split())
    weight = np.asarray(np.random.default_rng(1).normal(size=(B, T, H, K)), np.float32)

    def run(dtype):
        cast = {n: jnp.asarray(a, dtype if n in CONTENT else jnp.float32)
                for n, a in given.items()}

        def loss(arrays):
            out = ours(**arrays)
            return jnp.sum(out.astype(jnp.float32) * weight), out

        (_, out), slopes = jax.jit(jax.value_and_grad(loss, has_aux=True))(cast)
        return {"out": out, **slopes}

    def theirs(spec, dtype):
        module, op, call = spec
        op = getattr(importlib.import_module(f"fla.ops.{module}"), op)
        leaves = {n: torch.tensor(a, device="cuda", dtype=dtype if n in CONTENT else torch.float32,
                                  requires_grad=True) for n, a in given.items()}
        out = call(op, **leaves)
        (out.float() * torch.tensor(weight, device="cuda")).sum().backward()
        host = lambda a: a.detach().float().cpu().numpy()
        return {"out": host(out), **{n: host(a.grad) for n, a in leaves.items()}}

    with jax.default_matmul_precision("highest"):
        exact = run(jnp.float32)
    if naive:
        found = theirs(naive, torch.float32)
        errors = {n: off(exact[n], found[n]) for n in found}
        print(f"\n| {name} | {naive[1]}, float32 | " + " | ".join(
            f"{n} {e:.1e}" for n, e in errors.items()), "|")
        assert max(errors.values()) < 1e-4, errors
    half = run(jnp.bfloat16)
    mine = {n: off(half[n], exact[n]) for n in half}
    print(f"\n| {name} | lcx, bfloat16 | " + " | ".join(f"{n} {e:.1e}" for n, e in mine.items()),
          "|")
    assert max(mine.values()) < 2e-2, mine
    try:
        found = theirs(chunk, torch.bfloat16)
    except RuntimeError as refused:  # what the library itself knows to be wrong here
        if "produces incorrect results" not in str(refused):
            raise
        pytest.skip(f"{chunk[1]} alone was not compared: {refused}")
    errors = {n: off(found[n], exact[n]) for n in found}
    print(f"\n| {name} | {chunk[1]}, bfloat16 | " + " | ".join(
        f"{n} {e:.1e}" for n, e in errors.items()), "|")
    assert max(errors.values()) < 2e-2, errors
