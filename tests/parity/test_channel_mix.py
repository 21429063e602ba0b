"""The channel mixing of RWKV-4, -6 and -7 beside published modules: outputs and gradients."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import lookup

pytestmark = pytest.mark.parity
B, T, D, HIDDEN = 2, 19, 24, 40


def beside(error, reference, module, gated, blends, key, value, gate=None):
    """blends: (torch parameter, its sign and offset against our mu) for each row of mu."""
    import torch

    torch.manual_seed(0)
    module = module.double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    mlp = lookup.build("lcx.model.mlps", dict(name="channel_mix", gated=gated, hidden=HIDDEN),
                       width=D)
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, B, T, D))
    told = torch.tensor(x, requires_grad=True)
    y = module(told)[0]
    (y * torch.tensor(weight)).sum().backward()

    def ours(read, offset):
        found = {"blend_scale": np.stack([
            offset * plus + sign * read(p).reshape(D) for p, sign, plus in blends])}
        for name, parameter in dict(key=key, out=value, gate=gate).items():
            if parameter is not None:
                found[name] = {"kernel": read(parameter).T}
        return found

    def run(params, x):
        out = mlp.apply({"params": params}, x, L.sequence(1, T))[0]
        return jnp.sum(out * weight), out

    params = ours(lambda p: p.detach().numpy(), 1)
    (_, out), slopes = jax.jit(jax.value_and_grad(run, (0, 1), has_aux=True))(
        params, jnp.asarray(x))
    error("channel_mix", reference, "output", out, y.detach(), 1e-12)
    wanted = ours(lambda p: p.grad.numpy(), 0), told.grad.numpy()
    scaled = [[np.ravel(a) / np.abs(theirs).max() for a in (mine, theirs)]
              for mine, theirs in zip(*map(jax.tree.leaves, (slopes, wanted)), strict=True)]
    got, wanted = (np.concatenate(side) for side in zip(*scaled))
    error("channel_mix", reference, "gradients of x and all weights, by the largest of each",
          got, wanted, 1e-12)


def test_rwkv4(transformers, error, x64):
    from transformers.models.rwkv import modeling_rwkv as rwkv

    module = rwkv.RwkvFeedForward(transformers.RwkvConfig(
        hidden_size=D, intermediate_size=HIDDEN, num_hidden_layers=1))
    blends = [(p, -1, 1) for p in (module.time_mix_key, module.time_mix_receptance)]
    beside(error, "RwkvFeedForward", module, True, blends, module.key.weight,
           module.value.weight, module.receptance.weight)


def test_rwkv6(transformers, error, x64, monkeypatch):
    pytest.importorskip("fla")
    rwkv = importlib.import_module("fla.models.rwkv6.modeling_rwkv6")
    shift = importlib.import_module("fla.modules.token_shift")
    monkeypatch.setattr(rwkv, "token_shift", lambda x, *_, **__: shift.token_shift_ref(x))
    module = rwkv.RWKV6FeedForward(D, intermediate_size=HIDDEN, layer_idx=0)
    module.act_fn = lambda x: x.relu() ** 2  # theirs is a GPU kernel
    blends = [(p.mu, 1, 0) for p in (module.key, module.receptance)]
    beside(error, "fla RWKV6FeedForward", module, True, blends, module.key.linear.weight,
           module.value.weight, module.receptance.linear.weight)


def test_rwkv7(transformers, error, x64, monkeypatch):
    pytest.importorskip("fla")
    rwkv = importlib.import_module("fla.models.rwkv7.modeling_rwkv7")
    shift = importlib.import_module("fla.modules.token_shift")
    monkeypatch.setattr(rwkv, "token_shift", lambda x, *_, **__: (shift.token_shift_ref(x), None))
    module = rwkv.RWKV7FeedForward(D, intermediate_size=HIDDEN, layer_idx=0, num_hidden_layers=2)
    module.act_fn = lambda x: x.relu() ** 2  # theirs is a GPU kernel
    beside(error, "fla RWKV7FeedForward", module, False, [(module.x_k, 1, 0)],
           module.key.weight, module.value.weight)
