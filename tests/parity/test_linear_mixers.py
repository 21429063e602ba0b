"""Linear mixers beside the published layers and ops: outputs and gradients, the same weights."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx.mixers.retention import log_decay as retention_decay
from lcx.ops.linear import linear_attention
from tests.parity.test_delta_mixers import (  # noqa: F401
    HEADS,
    WIDTH,
    K,
    compare,
    out_rows,
    rows,
    torch64,
)

pytestmark = pytest.mark.parity


# ---- ops -----------------------------------------------------------------------------------------


def simple_gla(naive, q, k, v, g):
    return naive.naive_chunk_simple_gla(q, k, v, g, chunk_size=16)[0]


def gla(naive, q, k, v, g):
    return naive.naive_recurrent_gla(q, k, v, g)[0]


def rwkv6(naive, q, k, v, g):
    import torch

    first = lambda a: a.transpose(1, 2)
    none = torch.zeros(q.shape[2:], dtype=q.dtype)
    out, _ = naive.naive_recurrent_rwkv6(*map(first, (q, k, v, g)), none)
    return first(out)


def retention(naive, q, k, v):
    first = lambda a: a.transpose(1, 2)
    return first(naive.naive_retention(*map(first, (q, k, v))))


@pytest.mark.parametrize("name,run,channels", [
    ("simple_gla", simple_gla, False), ("gla", gla, True), ("rwkv6", rwkv6, True),
    ("retention", retention, None)])
def test_ops(name, run, channels, error, torch64, x64):  # noqa: F811
    import torch

    naive = f"fla.ops.{name}." + ("recurrent_naive" if name == "rwkv6" else "naive")
    naive, = torch64(naive)
    rng, length = np.random.default_rng(0), 48
    shape = (2, length, HEADS, K)
    given = [rng.normal(size=shape) for _ in range(3)]
    if channels is not None:
        given.append(-rng.exponential(0.5, size=shape if channels else shape[:3]))
    weight = rng.normal(size=shape)

    def ours(q, k, v, gate=None):
        if gate is None:
            gate = jnp.broadcast_to(retention_decay(HEADS), shape[:3])
        if name == "rwkv6":  # read first: what a token wrote meets the next one
            k, v, gate = (jnp.roll(a, 1, 1).at[:, 0].set(0) for a in (k, v, gate))
        out = linear_attention(q * K**-0.5, k, v, log_decay=gate, chunk=16)[0]
        return jnp.sum(out * weight), out

    (_, out), slopes = jax.jit(jax.value_and_grad(ours, range(len(given)), has_aux=True))(
        *map(jnp.asarray, given))
    leaves = [torch.tensor(a, requires_grad=True) for a in given]
    wanted = run(naive, *leaves)
    (wanted * torch.tensor(weight)).sum().backward()
    error(f"ops.linear as {name}", "fla, naive op", "output", out, wanted.detach(), 1e-11)
    error(f"ops.linear as {name}", "fla, naive op", "gradients", np.concatenate(
        [np.ravel(a) for a in slopes]), np.concatenate([np.ravel(a.grad) for a in leaves]), 1e-10)


# ---- flash-linear-attention's layers -------------------------------------------------------------


@pytest.fixture
def layer(transformers, torch64, monkeypatch):  # noqa: F811
    """layer(file, class, naive op, kernels) -> fla's class with plain torch for its kernels."""
    import torch
    from torch.nn import functional as F

    class Norm(torch.nn.Module):
        def __init__(self, hidden_size, eps, **_):
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(hidden_size)), eps
            self.bias = None

        def forward(self, x, gate=None):
            y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight
            return y if gate is None else y * F.silu(gate)

    class Groups(torch.nn.Module):
        def __init__(self, groups, size, eps, **_):
            super().__init__()
            self.weight, self.bias = (torch.nn.Parameter(torch.ones(size)) for _ in range(2))
            self.groups, self.eps = groups, eps

        def forward(self, x):
            flat = F.group_norm(x.flatten(0, -2), self.groups, self.weight, self.bias, self.eps)
            return flat.view_as(x)

    def build(file, name, naive, kernels):
        module, naive, shift = torch64(f"fla.layers.{file}", f"fla.ops.{naive}",
                                       "fla.modules.token_shift")
        stubs = dict(FusedRMSNormGated=Norm, RMSNorm=Norm, GroupNorm=Groups,
                     token_shift=shift.token_shift_ref, swish=F.silu,
                     rms_norm_linear=lambda x, w, b, weight, bias: F.linear(
                         x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * w, weight))
        for stub, by in {**stubs, **kernels(naive)}.items():
            monkeypatch.setattr(module, stub, by, raising=False)
        return getattr(module, name)

    return build


def recurrent_gla(naive):
    run = lambda q, k, v, gk=None, g=None, **_: naive.naive_recurrent_gla(
        q, k, v, g if gk is None else gk)
    return dict(chunk_gla=run, fused_recurrent_gla=run)


def test_gla(error, layer, torch64, x64):  # noqa: F811
    module = layer("gla", "GatedLinearAttention", "gla.naive", recurrent_gla)(
        hidden_size=WIDTH, num_heads=HEADS, gate_low_rank_dim=5)

    def weights(p):
        return {**{f"{n[0]}_proj.weight": rows(p[n]["kernel"])
                   for n in ("query", "key", "value", "gate")},
                "gk_proj.0.weight": rows(p["rate_down"]["kernel"]),
                "gk_proj.1.weight": rows(p["rate_up"]["kernel"]),
                "gk_proj.1.bias": p["rate_up"]["bias"],
                "g_norm_swish_gate.weight": p["norm"]["scale"], "o_proj.weight": out_rows(p)}

    compare(error, "gla", "fla GatedLinearAttention", dict(num_heads=HEADS, low_rank=5), module,
            weights)


@pytest.mark.parametrize("bound", [0.0, 0.3])
def test_hgrn2(bound, error, layer, torch64, x64):  # noqa: F811
    import torch

    module = layer("hgrn2", "HGRN2Attention", "gla.naive", recurrent_gla)(
        hidden_size=WIDTH, num_heads=HEADS, expand_ratio=K, layer_idx=1, norm_eps=1e-5)

    def weights(p):
        return {"q_proj.weight": rows(p["query"]["kernel"]),
                "f_proj.weight": rows(p["forget"]["kernel"]),
                "i_proj.weight": rows(p["value"]["kernel"]),
                "g_norm.weight": p["norm_scale"], "o_proj.weight": out_rows(p)}

    low = torch.tensor(bound, dtype=torch.float64) if bound else None
    compare(error, "hgrn2", f"fla HGRN2Attention, lower bound {bound}",
            dict(num_heads=HEADS, head_dim=K, lower_bound=bound), module, weights,
            call=lambda module, x: module(x, lower_bound=low))


def test_rwkv6(error, layer, torch64, x64):  # noqa: F811
    def kernels(naive):
        first = lambda a: a.transpose(1, 2)

        def run(r, k, v, w, u, scale, **_):
            out, state = naive.naive_recurrent_rwkv6(*map(first, (r, k, v, w)), u, scale)
            return first(out), state

        return dict(chunk_rwkv6=run, fused_recurrent_rwkv6=run)

    module = layer("rwkv6", "RWKV6Attention", "rwkv6.recurrent_naive", kernels)(
        hidden_size=WIDTH, num_heads=HEADS, expand_k=1.0, proj_low_rank_dim=4,
        gate_low_rank_dim=5, norm_eps=64e-5)
    module.gate_fn = lambda x: x * x.sigmoid()  # its own needs a GPU
    order = [3, 0, 1, 2, 4]  # r, w, k, v, g of w, k, v, r, g

    def weights(p):
        down, up = p["blend_down"]["kernel"][:, order], p["blend_up"][order]
        return {"x_proj.0.mu": p["blend"][0], "x_bias": p["blend"][1:][order],
                "x_proj.0.linear.weight": rows(down),
                "x_proj.2.weight": np.moveaxis(up, -1, 0).reshape(WIDTH, -1),
                **{f"{mine}_proj.linear.weight": rows(p[name]["kernel"]) for mine, name in zip(
                    "rkvg", ("query", "key", "value", "gate"))},
                "w_proj.linear.lora.0.weight": rows(p["decay_down"]["kernel"]),
                "w_proj.linear.lora.2.weight": rows(p["decay_up"]["kernel"]),
                "w_proj.linear.lora.2.bias": p["decay"], "bonus": p["bonus"],
                "g_norm.weight": p["norm_scale"], "g_norm.bias": p["norm_bias"],
                "o_proj.weight": out_rows(p)}

    compare(error, "rwkv6", "fla RWKV6Attention",
            dict(num_heads=HEADS, blend_rank=4, decay_rank=5), module, weights)


# ---- Mamba, beside transformers ------------------------------------------------------------------


def mamba_weights(p, norms=False):
    bare = lambda name: p[name]["kernel"]
    found = {"in_proj.weight": np.concatenate([rows(bare("value")), rows(bare("gate"))]),
             "conv1d.weight": bare("conv").T, "conv1d.bias": p["conv"]["bias"],
             "x_proj.weight": np.concatenate([rows(bare(n)) for n in (
                 "step_down", "key", "query")]),
             "dt_proj.weight": bare("step_up").T, "dt_proj.bias": p["step_bias"],
             "A_log": p["log_rate"], "D": p["skip"], "out_proj.weight": rows(bare("out"))}
    if norms:
        found |= {f"{theirs}_layernorm.weight": p[f"{mine}_norm"]["scale"] for theirs, mine in (
            ("dt", "step_down"), ("b", "key"), ("c", "query"))}
    return found


@pytest.mark.parametrize("family,config,mixer,norms", [
    ("mamba", "MambaConfig", "MambaMixer", None),
    ("falcon_mamba", "FalconMambaConfig", "FalconMambaMixer", "plain"),
    ("jamba", "JambaConfig", "JambaMambaMixer", "gain")])
def test_mamba1(family, config, mixer, norms, error, transformers, torch64, x64):  # noqa: F811
    module, = torch64(f"transformers.models.{family}.modeling_{family}")
    sizes = dict(state_size=6, time_step_rank=5, conv_kernel=4, expand=2)
    if norms == "gain":
        sizes = dict(mamba_d_state=6, mamba_dt_rank=5, mamba_d_conv=4, mamba_expand=2,
                     rms_norm_eps=1e-6, num_attention_heads=HEADS, num_key_value_heads=HEADS)
    config = getattr(transformers, config)(hidden_size=WIDTH, num_hidden_layers=1, **sizes)
    options = dict(state_dim=6, step_rank=5, **({} if norms is None else dict(norms=norms)))
    empty = {} if norms == "gain" else dict(initialize_mixer_weights=False)
    module = getattr(module, mixer)(config, 0, **empty)
    if norms == "plain":  # ones that only a kernel reads
        for name in ("dt", "b", "c"):
            getattr(module, f"{name}_layernorm").weight = None
    compare(error, "mamba1", mixer, options, module,
            lambda p: mamba_weights(p, norms == "gain"))


@pytest.mark.parametrize("groups", [1, 2])
def test_mamba2(groups, error, transformers, torch64, x64):  # noqa: F811
    module = importlib.import_module("transformers.models.mamba2.modeling_mamba2")
    module, = torch64(module.__name__)
    config = transformers.Mamba2Config(hidden_size=WIDTH, num_heads=4, head_dim=12, state_size=6,
                                       n_groups=groups, expand=2, chunk_size=8,
                                       num_hidden_layers=1, layer_norm_epsilon=1e-5)

    def weights(p):
        names = ("value", "key", "query")
        return {"in_proj.weight": np.concatenate([rows(p[n]["kernel"]) for n in (
                    "gate", *names, "step")]),
                "conv1d.weight": np.concatenate([p[f"{n}_conv"]["kernel"].T for n in names]),
                "conv1d.bias": np.concatenate([p[f"{n}_conv"]["bias"] for n in names]),
                "dt_bias": p["step_bias"], "A_log": p["log_rate"], "D": p["skip"],
                "norm.weight": p["norm_scale"], "out_proj.weight": out_rows(p)}

    compare(error, "mamba2", f"Mamba2Mixer, {groups} groups",
            dict(num_heads=4, head_dim=12, state_dim=6, num_groups=groups),
            module.Mamba2Mixer(config, 0), weights)
