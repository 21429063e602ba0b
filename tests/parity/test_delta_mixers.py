"""Delta-rule layers beside the published ones: outputs and gradients, the same random weights.

The references' casts to float32 are lifted to float64. Where a reference runs its recurrence in a
GPU kernel, the kernel's own naive twin takes its place; short convolution and norm likewise are
plain torch, so that the layer's own code (projections, gates, order of operations) is compared.
"""

import importlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers
from lcx.mixers.rwkv7 import FirstValue

pytestmark = pytest.mark.parity
WIDTH, LENGTH, HEADS, K = 24, 19, 3, 8


@pytest.fixture
def torch64(transformers, monkeypatch):
    """lift(module name, ...) imports modules, makes their float32 casts float64 and, of functions
    with a GPU kernel in their place, takes the torch code."""
    import torch

    def lift(*names):
        found = [importlib.import_module(name) for name in names]
        for module in found:
            for name, plain in inspect.getmembers(module, inspect.isfunction):
                monkeypatch.setattr(module, name, inspect.unwrap(plain))
        for name in ("float32", "float"):
            monkeypatch.setattr(torch, name, torch.float64)
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
        return found

    return lift


def compare(error, name, reference, options, module, weights, call=None, width=WIDTH, relay=None):
    """The mixer beside a torch module; weights(params) -> {torch name: array}, linear in params.

    relay(x): what layers below hand to the mixer.
    """
    import torch

    mixer = mixers.make(dict(name=name, **options), position="no_pe", width=width,
                        train_length=LENGTH)
    seq, rng = L.sequence(1, LENGTH), np.random.default_rng(0)
    x = rng.normal(size=(2, LENGTH, width))
    told = dict(relay=relay and relay(x), method="relayed")
    shapes = jax.eval_shape(lambda: mixer.init(jax.random.key(0), jnp.asarray(x), seq, **told))
    shapes = shapes["params"]
    draw = lambda a: jnp.asarray(0.4 * rng.normal(size=a.value.shape))
    params = jax.tree.map(draw, shapes, is_leaf=lambda a: hasattr(a, "names"))
    functional = rng.normal(size=x.shape)

    def loss(params, x):
        y = mixer.apply({"params": params}, x, seq, **told)[0]
        return jnp.sum(y * functional), y

    (_, y), (by_params, by_x) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
        params, jnp.asarray(x))

    tensor = lambda a: torch.tensor(np.array(a))
    module = module.double()
    named = dict(module.named_parameters())
    given = weights(jax.tree.map(np.asarray, params))
    assert set(named) == set(given), set(named) ^ set(given)
    with torch.no_grad():
        for key, value in given.items():
            assert named[key].numel() == value.size, key
            named[key].copy_(tensor(value).reshape(named[key].shape))
    leaf = tensor(x).requires_grad_()
    out = module(leaf) if call is None else call(module, leaf)
    out = out[0] if isinstance(out, tuple) else out
    (out * tensor(functional)).sum().backward()
    row = dict(scheme=name, reference=reference)
    error(**row, quantity="output", got=y, wanted=out.detach(), limit=1e-11)
    ours = weights(jax.tree.map(np.asarray, by_params))
    pairs = [(by_x, leaf.grad)] + [(ours[key], named[key].grad) for key in named]
    scaled = [[np.ravel(a) / np.abs(theirs).max() for a in (mine, theirs)]
              for mine, theirs in ((m, np.asarray(t)) for m, t in pairs)]
    got, wanted = (np.concatenate(side) for side in zip(*scaled))
    error(**row, quantity=f"gradients of input and {len(named)} weights, by the largest of each",
          got=got, wanted=wanted, limit=1e-10)


def rows(kernel):
    """A kernel [D, *features] as torch's weight [features, D]."""
    return kernel.reshape(len(kernel), -1).T


def out_rows(params):
    kernel = params["out"]["kernel"]
    return kernel.reshape(-1, kernel.shape[-1]).T


def split(kernel, *sizes):
    """A fused [.., H, sum of sizes] (or [.., H x sum]) as one array [.., H x size] for each."""
    kernel = kernel.reshape(len(kernel), -1, sum(sizes))
    parts = np.split(kernel, np.cumsum(sizes)[:-1], -1)
    return [part.reshape(len(kernel), -1) for part in parts]


def separate(params, *sizes):
    """fla's projections and convolutions of q, k and v."""
    weights = {}
    for name, kernel, window in zip("qkv", split(params["qkv"]["kernel"], *sizes),
                                    split(params["conv"]["kernel"], *sizes)):
        weights[f"{name}_proj.weight"] = kernel.T
        weights[f"{name}_conv1d.weight"] = window.T
    return weights


# ---- the layers ---------------------------------------------------------------------------------


def test_gated_delta_net(error, torch64, x64):
    qwen, = torch64("transformers.models.qwen3_next.modeling_qwen3_next")
    value_dim = 2 * K
    config = qwen.Qwen3NextConfig(
        hidden_size=WIDTH, linear_num_value_heads=HEADS, linear_num_key_heads=HEADS,
        linear_key_head_dim=K, linear_value_head_dim=value_dim, num_hidden_layers=1,
        rms_norm_eps=1e-6)

    def weights(p):
        both = np.concatenate([p["qkv"]["kernel"], p["gate"]["kernel"]], -1)
        gates = np.stack([p["beta"]["kernel"], p["rate"]["kernel"]], -1)
        window = np.concatenate(split(p["conv"]["kernel"], K, K, value_dim), -1)
        return {"in_proj_qkvz.weight": rows(both), "in_proj_ba.weight": rows(gates),
                "conv1d.weight": window.T, "A_log": p["a_log"], "dt_bias": p["dt_bias"],
                "norm.weight": p["norm"]["scale"], "out_proj.weight": out_rows(p)}

    compare(error, "gated_delta_net", "Qwen3-Next", dict(num_heads=HEADS, head_dim=K),
            qwen.Qwen3NextGatedDeltaNet(config, 0), weights)


@pytest.fixture
def fla(transformers, torch64, monkeypatch):
    """fla(layer file, class, {kernel: its naive twin}) -> the class, runnable on a CPU."""
    import torch
    from torch.nn import functional as F

    class Conv(torch.nn.Module):
        def __init__(self, hidden_size, kernel_size, bias, activation):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(hidden_size, 1, kernel_size))

        def forward(self, x, **_):
            window = self.weight.shape[-1]
            y = F.conv1d(x.mT, self.weight, padding=window - 1, groups=x.shape[-1])
            return F.silu(y[..., : x.shape[1]].mT), None

    class Norm(torch.nn.Module):
        def __init__(self, size, eps, activation="swish", **_):
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(size)), eps
            self.activation = dict(swish=F.silu, sigmoid=torch.sigmoid)[activation]

        def forward(self, x, gate=None):
            y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight
            return y if gate is None else y * self.activation(gate)

    def build(layer, name, kernels, *naive):
        module, *found = torch64(f"fla.layers.{layer}", *(f"fla.ops.{n}" for n in naive))
        for stub, by in (("ShortConvolution", Conv), ("FusedRMSNormGated", Norm),
                         ("RMSNorm", Norm)):
            monkeypatch.setattr(module, stub, by, raising=False)
        for kernel, twin in kernels(*found).items():
            monkeypatch.setattr(module, kernel, twin)
        return getattr(module, name)

    return build


def unit(*arrays):
    return [a * (a.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for a in arrays]


@pytest.mark.parametrize("options", [{}, dict(max_beta=2.0, expand_v=2.0)], ids=str)
def test_delta_net(error, fla, x64, options):
    def kernels(naive):
        def run(q, k, v, beta, **_):
            q, k = unit(q, k)
            heads_first = [a.transpose(1, 2) for a in (q, k, v, beta)]
            out, _ = naive.delta_rule_recurrence(*heads_first)
            return out.transpose(1, 2), None

        return dict(chunk_delta_rule=run, fused_recurrent_delta_rule=run)

    layer = fla("delta_net", "DeltaNet", kernels, "delta_rule.naive")
    expand = options.get("expand_v", 1.0)
    module = layer(hidden_size=WIDTH, num_heads=HEADS, expand_v=expand,
                   allow_neg_eigval="max_beta" in options)

    def weights(p):
        return {**separate(p, K, K, int(K * expand)), "b_proj.weight": rows(p["beta"]["kernel"]),
                "o_norm.weight": p["norm"]["scale"], "o_proj.weight": out_rows(p)}

    compare(error, "delta_net", "fla DeltaNet", dict(num_heads=HEADS, **options), module, weights)


def kda_weights(p):
    weights = {"A_log": p["a_log"], "dt_bias": p["dt_bias"].ravel(),
               "b_proj.weight": rows(p["beta"]["kernel"]), "o_norm.weight": p["norm"]["scale"],
               "o_proj.weight": out_rows(p)}
    low = {"f": ("rate_in", "rate"), "g": ("gate_in", "gate")}
    return weights, {f"{name}_{n}": rows(p[part]["kernel"])
                     for name, parts in low.items() for n, part in zip("ab", parts)}


def test_kda_is_kimi_linear(error, torch64, x64):
    kimi, = torch64("transformers.models.kimi_linear.modeling_kimi_linear")
    config = kimi.KimiLinearConfig(
        hidden_size=WIDTH, linear_num_heads=HEADS, linear_head_dim=K, num_hidden_layers=1,
        rms_norm_eps=1e-5)

    def weights(p):
        whole, low = kda_weights(p)
        for part in ("A_log", "dt_bias"):
            whole[f"forget_gate.{part}"] = whole.pop(part)
        window = np.concatenate(split(p["conv"]["kernel"], K, K, K), -1)
        projections = {f"{name}_proj.weight": kernel.T
                       for name, kernel in zip("qkv", split(p["qkv"]["kernel"], K, K, K))}
        forget = {f"forget_gate.f_{n}_proj.weight": low[f"f_{n}"] for n in "ab"}
        return {**whole, **projections, **forget, "conv1d.weight": window.T,
                **{f"g_{n}_proj.weight": low[f"g_{n}"] for n in "ab"}}

    compare(error, "kda", "Kimi Linear", dict(num_heads=HEADS),
            kimi.KimiLinearDeltaAttention(config, 0), weights)


@pytest.mark.parametrize("bound", [None, -5.0])
def test_kda(error, fla, x64, bound):
    def kernels(naive, gate):
        def run(q, k, v, g, beta, A_log, dt_bias, lower_bound, **_):
            q, k = unit(q, k)
            double = dict(output_dtype=g.dtype)
            log = (gate.naive_kda_gate(g, A_log, dt_bias, **double) if bound is None else
                   gate.naive_kda_lowerbound_gate(g, A_log, dt_bias, lower_bound, **double))
            return naive.naive_recurrent_kda(q, k, v, log, beta.sigmoid())

        return dict(chunk_kda=run)

    layer = fla("kda", "KimiDeltaAttention", kernels, "kda.naive", "kda.gate")
    module = layer(hidden_size=WIDTH, num_heads=HEADS, head_dim=K, expand_v=2.0,
                   safe_gate=bound is not None, lower_bound=bound)
    module.g_proj[1].bias = None  # Kimi's own code has none

    def weights(p):
        whole, low = kda_weights(p)
        sequential = {f"{name}_proj.{number}.weight": low[f"{name}_{n}"]
                      for name in "fg" for number, n in enumerate("ab")}
        return {**separate(p, K, K, 2 * K), **whole, **sequential}

    compare(error, "kda", f"fla KimiDeltaAttention, lower bound {bound}",
            dict(num_heads=HEADS, expand_v=2.0, lower_bound=bound), module, weights)


@pytest.mark.parametrize("writes,gated", [(2, True), (3, False)])
def test_delta_product(error, fla, x64, writes, gated):
    def kernels(naive):
        def run(q, k, v, g, beta, num_householder, **_):
            q, k = unit(q, k)
            return naive.naive_recurrent_gated_delta_product(
                q, k, v, g, beta, K**-0.5, num_householder=num_householder)

        return dict(chunk_gated_delta_product=run)

    layer = fla("gated_deltaproduct", "GatedDeltaProduct", kernels, "gated_delta_product.naive")
    module = layer(hidden_size=WIDTH, num_heads=HEADS, head_dim=K, num_householder=writes,
                   use_forget_gate=gated)
    sizes = (K,) * (1 + writes) + (2 * K,) * writes

    def weights(p):
        found = {"b_proj.weight": rows(p["beta"]["kernel"]),
                 "g_proj.weight": rows(p["gate"]["kernel"]),
                 "o_norm.weight": p["norm"]["scale"], "o_proj.weight": out_rows(p)}
        if gated:
            found |= {"a_proj.weight": rows(p["rate"]["kernel"]), "A_log": p["a_log"],
                      "dt_bias": p["dt_bias"]}
        for part, suffix in (("qkv", "proj"), ("conv", "conv1d")):
            kernels = split(p[part]["kernel"], *sizes)
            groups = kernels[:1], kernels[1 : 1 + writes], kernels[1 + writes :]
            for name, group in zip("qkv", groups):
                found[f"{name}_{suffix}.weight"] = np.concatenate(group, -1).T
        return found

    compare(error, "delta_product", f"fla GatedDeltaProduct, {writes} writes, gate {gated}",
            dict(num_heads=HEADS, head_dim=K, writes=writes, gated=gated), module, weights)


def test_gated_delta_net2(error, fla, x64):
    def kernels(naive):
        def run(q, k, v, g, b, w, **_):
            return naive.naive_recurrent_gdn2(*unit(q, k), v, g, b, w)

        return dict(chunk_gdn2=run)

    layer = fla("gdn2", "GatedDeltaNet2", kernels, "gdn2.naive")
    module = layer(hidden_size=WIDTH, num_heads=HEADS, head_dim=K, expand_v=2.0,
                   allow_neg_eigval=True)

    def weights(p):
        found = {**separate(p, K, K, 2 * K), "A_log": p["a_log"], "dt_bias": p["dt_bias"].ravel(),
                 "b_proj.weight": rows(p["erase"]["kernel"]),
                 "w_proj.weight": rows(p["write"]["kernel"]),
                 "g_proj.1.bias": p["gate"]["bias"].ravel(),
                 "o_norm.weight": p["norm"]["scale"], "o_proj.weight": out_rows(p)}
        for name, parts in {"f": ("rate_in", "rate"), "g": ("gate_in", "gate")}.items():
            for number, part in enumerate(parts):
                found[f"{name}_proj.{number}.weight"] = rows(p[part]["kernel"])
        return found

    compare(error, "gated_delta_net2", "fla GatedDeltaNet2",
            dict(num_heads=HEADS, expand_v=2.0, max_erase=2.0), module, weights)


def test_comba(error, fla, x64):
    """Beside fla's chunk form, which reads the undecayed memory. Its kernel gives p unit length,
    and so loses sigmoid(d); the twin gives p the length that its factor of a unit key has."""

    def kernels(naive):
        def run(q, k, v, p, g, beta, **_):
            length = k.norm(dim=-1, keepdim=True)
            q, unit_k = unit(q, k)
            return naive.naive_chunk_comba(q, unit_k, v, p * (length**2 + 1e-6).rsqrt(), g, beta,
                                           chunk_size=8)

        return dict(chunk_comba=run)

    layer = fla("comba", "Comba", kernels, "comba.naive")
    module = layer(hidden_size=WIDTH, num_heads=HEADS, head_dim=K)

    def weights(p):
        return {**separate(p, K, K, 2 * K), "a_proj.weight": rows(p["rate"]["kernel"]),
                "b_proj.weight": rows(p["beta"]["kernel"]), "decay": p["damping"],
                "D": p["correction"], "A_log": p["a_log"], "dt_bias": p["dt_bias"],
                "g_proj.weight": rows(p["gate"]["kernel"]), "o_norm.weight": p["norm"]["scale"],
                "o_proj.weight": out_rows(p)}

    compare(error, "comba", "fla Comba", dict(num_heads=HEADS), module, weights)


@pytest.mark.parametrize("number", [0, 1])
def test_rwkv7(error, torch64, x64, monkeypatch, number):
    """Layer 1 is given the values of layer 0."""
    names = [f"fla.{name}" for name in (
        "layers.rwkv7", "modules.token_shift", "ops.rwkv7.fused_addcmul",
        "ops.rwkv7.fused_k_update", "ops.rwkv7.gate_output_correction",
        "ops.generalized_delta_rule.dplr.naive")]
    module, shift, blend, update, correction, naive = torch64(*names)

    def run(r, w, k, v, a, b, scale, **_):
        first = [x.transpose(1, 2) for x in (r * K**0.5, k, v, a, b, w)]
        out, _ = naive.dplr_recurrence(*first)
        return out.transpose(1, 2), None

    twins = dict(token_shift=lambda x, *_, **__: (shift.token_shift_ref(x), None),
                 fused_addcmul_rwkv7=blend.torch_addcmul_rwkv7, fused_k_rwkv7=update.k_update_ref,
                 gate_output_correction=correction.gate_output_correction_ref, chunk_rwkv7=run)
    for name, twin in twins.items():
        monkeypatch.setattr(module, name, twin)
    layer = module.RWKV7Attention(
        hidden_size=WIDTH, head_dim=K, layer_idx=number, num_hidden_layers=2,
        decay_low_rank_dim=4, a_low_rank_dim=6, gate_low_rank_dim=5, v_low_rank_dim=3,
        norm_eps=64e-5 / K)

    def weights(p):
        found = {f"x_{name}": row for name, row in zip("rwkvag", p["blend_scale"])}
        found |= {"k_k": p["removal_scale"].ravel(), "k_a": p["key_scale"].ravel()}
        for name, part in zip("rkv", ("query", "key", "value")):
            found[f"{name}_proj.weight"] = rows(p[part]["kernel"])
        low = [("w", "decay"), ("a", "rate"), ("g", "gate"), ("v", "share")]
        for name, part in low[: 3 + number]:
            found[f"{name}_lora.lora.0.weight"] = rows(p[f"{part}_in"]["kernel"])
            found[f"{name}_lora.lora.2.weight"] = rows(p[part]["kernel"])
            if name != "g":
                found[f"{name}_lora.lora.2.bias"] = p[f"{part}_bias"].ravel()
        return {**found, "r_k": p["bonus_scale"], "o_proj.weight": out_rows(p),
                "g_norm.weight": p["norm_scale"].ravel(), "g_norm.bias": p["norm_bias"].ravel()}

    import torch

    first = np.random.default_rng(4).normal(size=(2, LENGTH, WIDTH))
    compare(error, "rwkv7", f"fla RWKV7Attention, layer {number}",
            dict(num_heads=HEADS, ranks=(4, 6, 5, 3)), layer, weights,
            call=lambda module, x: module(x, v_first=torch.tensor(first)),
            relay=(lambda x: FirstValue(first, True)) if number else None)
