"""Linear attention and kernel mixers beside flash-linear-attention's naive ops and transformers."""

import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers
from tests.linear_cases import Core

pytestmark = pytest.mark.parity
BATCH, LENGTH, WIDTH = 2, 21, 32


def tensor(array):
    import torch

    return torch.tensor(np.array(array), requires_grad=True)


def naive(op):
    """A module of flash-linear-attention's plain torch ops."""
    pytest.importorskip("fla.ops")
    return importlib.import_module(f"fla.ops.{op}.naive")


def same(error, name, reference, ours, theirs, arrays, limit):
    """Output of both functions, and the gradients of sum(sin(out)) for every array."""
    import torch

    arrays = [np.asarray(a, np.float32) for a in arrays]
    out, pull = jax.vjp(ours, *map(jnp.asarray, arrays))
    slopes = pull(jnp.cos(out))
    tensors = [tensor(a) for a in arrays]
    wanted = theirs(*tensors)
    torch.sin(wanted).sum().backward()
    error(name, reference, "output", out, wanted.detach().numpy(), limit)
    off = max(np.abs(np.asarray(s) - t.grad.numpy()).max() / np.abs(t.grad.numpy()).max()
              for s, t in zip(slopes, tensors))
    error(name, reference, "gradients, relative to the largest", off, 0.0, 10 * limit)


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(BATCH, LENGTH, *shape)) for shape in shapes]


def linear(log_decay=None, **options):
    """The core of the linear mixers as a function of q, k, v and what else it takes."""
    core = Core(position="no_pe", width=WIDTH, train_length=LENGTH, form="chunked", chunk=8)

    def run(q, k, v, log_decay=log_decay):
        return core.apply({}, q, k, v, L.sequence(BATCH, LENGTH), L.Lanes(), (), None,
                          log_decay=log_decay, method="mix", **options)[0]

    return jax.jit(run)


def heads_first(function):
    """A torch op on [B,H,T,K] as one on [B,T,H,K]."""
    return lambda *xs: function(*(x.transpose(1, 2) for x in xs)).transpose(1, 2)


def test_simple_gla(transformers, error):
    op = naive("simple_gla").naive_recurrent_simple_gla
    q, k, v, gate = draw((4, 6), (4, 6), (4, 3), (4,))
    same(error, "linear core, gate per token", "fla simple_gla", linear(),
         lambda q, k, v, g: op(q, k, v, g, scale=1.0)[0], (q, k, v, -np.abs(gate)), 2e-5)


def test_linear_attention(transformers, error):
    op = naive("linear_attn").naive_recurrent_linear_attn
    q, k, v = draw((4, 6), (4, 6), (4, 3))
    positive = np.abs(q), np.abs(k), v
    for normalise in (False, True):
        same(error, f"linear core, normaliser {normalise}", "fla linear_attn",
             linear(normaliser="sum" if normalise else None),
             lambda q, k, v, n=normalise: op(q, k, v, scale=1.0, normalize=n)[0], positive, 2e-5)


def test_retention(transformers, error):
    from lcx.mixers.retention import log_decay

    op = naive("retention").naive_retention
    q, k, v = draw((4, 6), (4, 6), (4, 3))
    same(error, "linear core at retention's rates", "fla retention",
         linear(jnp.asarray(log_decay(4), jnp.float32)),
         heads_first(lambda q, k, v: op(q * 6**0.5, k, v)), (q, k, v), 2e-5)


@pytest.mark.parametrize("name", ["based", "rebased"])
def test_taylor_kernels(name, transformers, error):
    op = getattr(naive(name), f"naive_parallel_{name}")
    mixer = mixers.make(dict(name=name, feature_dim=6, form="chunked", chunk=8), position="no_pe",
                        width=WIDTH, train_length=LENGTH)

    def run(q, k, v):
        return mixer.apply({}, q, k, v, L.sequence(BATCH, LENGTH), L.Lanes(), (), None,
                           scale=6**-0.5, method="weigh")[0]

    arrays = draw((4, 6), (4, 6), (4, 3))
    if name == "rebased":  # a sum of squares far from 0, where float32 could not tell
        arrays[0], arrays[1] = np.abs(arrays[0]), np.abs(arrays[1])
    same(error, f"{name} core", f"fla {name}", jax.jit(run), heads_first(op), arrays, 5e-5)


def test_slots(transformers, error):
    op = naive("gsa").naive_recurrent_gsa
    mixer = mixers.make(dict(name="gsa", head_dim=6, num_slots=5, form="chunked", chunk=8),
                        position="no_pe", width=WIDTH, train_length=LENGTH)

    def run(q, k, v, f):
        return mixer.apply({}, q, k, v, f, L.sequence(BATCH, LENGTH), L.Lanes(), (), None,
                           method="_over_memory")[0]

    q, k, v, f = draw((4, 6), (4, 6), (4, 6), (4, 5))
    same(error, "gsa core", "fla gsa", jax.jit(run),
         lambda q, k, v, f: op(q, k, v, 1 - f.exp(), f, scale=1.0)[0], (q, k, v, -np.abs(f)), 2e-5)


def test_log_linear_attention(transformers, error):
    op = naive("log_linear_attn").naive_log_linear_attn
    mixer = mixers.make(dict(name="log_linear_mamba2", num_groups=2, state_dim=6, head_dim=3,
                             levels=6, form="chunked", chunk=8), position="no_pe", width=WIDTH,
                        train_length=LENGTH)

    def run(q, k, v, gate, level):
        q = jnp.repeat(q, 2, 2)
        return mixer.apply({}, q, k, v, level, L.sequence(BATCH, LENGTH), L.Lanes(), (), None,
                           gate, method="weighed")[0]

    q, k, v, gate, level = draw((2, 6), (2, 6), (4, 3), (4,), (4, 6))
    same(error, "log_linear_mamba2 core, 2 groups", "fla log_linear_attn", jax.jit(run), op,
         (q, k, v, -np.abs(gate), np.abs(level)), 2e-5)


# ---- whole layers --------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [0, 3])
def test_lightning_layer(layer, transformers, error):
    import torch
    from transformers.models.minimax import modeling_minimax as minimax

    config = transformers.MiniMaxConfig(
        hidden_size=WIDTH, num_attention_heads=4, head_dim=8, num_hidden_layers=4, block_size=8,
        layer_types=["linear_attention"] * 4)
    theirs = minimax.MiniMaxLightningAttention(config, layer).float()
    spec = dict(name="lightning", layer=layer, depth=4)
    mixer = mixers.make(spec, position="no_pe", width=WIDTH, train_length=LENGTH)
    x, = draw((WIDTH,))
    seq = L.sequence(1, LENGTH)
    found = nn.unbox(mixer.init(jax.random.key(0), jnp.zeros((1, 4, WIDTH)), L.sequence(1, 4)))
    params = jax.tree.map(lambda a: 2 * np.asarray(a), found["params"])
    with torch.no_grad():
        packed = np.concatenate([params[n]["kernel"] for n in ("query", "key", "value")], -1)
        load(theirs.qkv_proj.weight, packed.reshape(WIDTH, -1).T)
        load(theirs.output_gate.weight, params["gate"]["kernel"].reshape(WIDTH, -1).T)
        load(theirs.out_proj.weight, params["out"]["kernel"].reshape(-1, WIDTH).T)
        load(theirs.norm.weight, params["norm"]["scale"])
    same(error, f"lightning(layer={layer}, depth=4)", "MiniMax lightning layer",
         jax.jit(lambda x: mixer.apply({"params": params}, x, seq)[0]),
         lambda x: theirs(x, None, None)[0], (x,), 2e-5)


def load(parameter, array):
    parameter.copy_(tensor(array).detach())
