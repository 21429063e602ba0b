"""Mixture of experts beside the blocks of Mixtral and DeepSeek-V2: outputs and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.model.mlps.moe import Moe

pytestmark = pytest.mark.parity

B, T, D, F, E = 2, 24, 16, 12, 6


def blocks(transformers):
    """Reference, its block, its router's weight, our options: top 2 normalised; top 3 as they are
    beside two shared experts."""
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    mixtral = transformers.MixtralConfig(
        hidden_size=D, num_attention_heads=4, intermediate_size=F, num_local_experts=E,
        num_experts_per_tok=2, num_key_value_heads=4)
    deepseek = transformers.DeepseekV2Config(
        hidden_size=D, num_attention_heads=4, num_key_value_heads=4, moe_intermediate_size=F,
        n_routed_experts=E, num_experts_per_tok=3, n_shared_experts=2, topk_method="greedy",
        routed_scaling_factor=1.0, norm_topk_prob=False)
    return {"Mixtral": (MixtralSparseMoeBlock(mixtral), dict(top_k=2)),
            "DeepSeek-V2": (DeepseekV2Moe(deepseek), dict(top_k=3, num_shared=2, normalise=False))}


def ours(block, read=lambda parameter: parameter):
    """A block's numbers, or another reading of them, as parameters of `moe`."""
    get = lambda parameter: read(parameter).detach().double().numpy()
    into = get(block.experts.gate_up_proj).reshape(E, 2, F, D)
    params = {"router": {"kernel": get(block.gate.weight).T},
              "experts_in": into.transpose(0, 3, 1, 2),
              "experts_out": get(block.experts.down_proj).transpose(0, 2, 1)}
    shared = getattr(block, "shared_experts", None)
    if shared is not None:
        both = np.stack([get(shared.gate_proj.weight).T, get(shared.up_proj.weight).T], 1)
        params["shared"] = {"gate_in": {"kernel": both},
                            "out": {"kernel": get(shared.down_proj.weight).T}}
    return jax.tree.map(jnp.asarray, params)


@pytest.mark.parametrize("name", ["Mixtral", "DeepSeek-V2"])
def test_a_block(name, transformers, error, monkeypatch, x64):
    import torch

    # the routers' casts to float32, lifted
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch, "float32", torch.float64)
    torch.manual_seed(0)
    block, options = blocks(transformers)[name]
    block = block.double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    x, weight = np.random.default_rng(0).normal(size=(2, B, T, D))
    told = torch.tensor(x, requires_grad=True)
    y = block(told)
    (y * torch.tensor(weight)).sum().backward()

    moe = Moe(D, num_experts=E, hidden=F, **options)

    def total(params, x):
        y = moe.apply({"params": params}, x)
        return jnp.sum(y * weight), y

    slope = jax.jit(jax.grad(total, (0, 1), has_aux=True))
    (params, inputs), out = slope(ours(block), jnp.asarray(x))
    label = f"`moe({', '.join(f'{k}={v}' for k, v in options.items())})`"
    error(label, name, "output", out, y.detach().numpy(), 1e-12)
    error(label, name, "gradient of the input", inputs, told.grad.numpy(), 1e-12)
    wanted = ours(block, lambda parameter: parameter.grad)
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(wanted)):
        scale = np.abs(b).max()
        error(label, name, f"gradient of {jax.tree_util.keystr(path)}", a / scale, b / scale, 1e-12)


def test_the_balance_loss(transformers, error, x64):
    """transformers counts each of top_k picks as a whole load: top_k times ours."""
    import torch
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    rng = np.random.default_rng(1)
    x, router = rng.normal(size=(B, T, D)), rng.normal(size=(D, E))
    logits = torch.tensor(x.reshape(-1, D) @ router, requires_grad=True)
    wanted = load_balancing_loss_func((logits,), E, 2)
    wanted.backward()
    moe = Moe(D, num_experts=E, top_k=2, hidden=F, balance=1.0)
    shapes = jax.eval_shape(lambda: moe.init(jax.random.key(0), jnp.asarray(x)))["params"]
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape), nn.unbox(shapes))

    def loss(router):
        params = {**zeros, "router": {"kernel": router}}
        return moe.apply({"params": params}, jnp.asarray(x), mutable=["losses"])[1]["losses"][
            "balance"][0]

    got, slope = jax.value_and_grad(loss)(jnp.asarray(router))
    error("`moe`, balance", "Mixtral", "loss / top_k", got, wanted.item() / 2, 1e-6)
    error("`moe`, balance", "Mixtral", "gradient of the router", slope,
          x.reshape(-1, D).T @ logits.grad.numpy() / 2, 1e-6)
