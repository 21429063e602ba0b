"""Layers of the softmax family beside published ones: outputs, and gradients of their inputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx import mixers

pytestmark = pytest.mark.parity

T, D = 40, 32


@pytest.fixture
def beside(error, x64):
    """beside(spec, position, params, layer, call): a mixer and a torch layer with the same weights
    at the same input; call(layer, x) -> y."""
    import torch

    def check(spec, position, params, layer, call, reference, limit=1e-6, length=T, shift=0.0):
        layer = layer.double()
        x = torch.tensor(np.random.default_rng(5).normal(size=(2, length, D)), requires_grad=True)
        wanted = call(layer, x)
        torch.sin(wanted).sum().backward()

        mixer = mixers.make(spec, position=position, width=D, train_length=64)
        seq, own = L.sequence(1, length), jnp.asarray(x.detach().numpy())
        found = jax.eval_shape(lambda: mixer.init(jax.random.key(0), own, seq))
        numbers = jax.jit(lambda: mixer.init(jax.random.key(0), own, seq).get("numbers", {}))()
        shapes = lambda tree: jax.tree.map(jnp.shape, tree)
        given = params(layer.state_dict())
        given = jax.tree.map(lambda a: jnp.asarray(a.numpy()), given)
        own_params = dict(found["params"])
        own_params.pop("position", None)
        assert shapes(nn.unbox(own_params)) == shapes(given)
        run = lambda x: mixer.apply({"params": given, "numbers": numbers}, x, seq)[0]
        got, pull = jax.vjp(run, own)
        name = spec["name"] + str({k: v for k, v in spec.items() if k != "name"})
        error(name, reference, "output", got, wanted.detach().numpy(), limit)
        error(name, reference, "gradient of the input", pull(jnp.cos(got))[0], x.grad.numpy(),
              10 * limit)

    return check


def randomised(layer, seed=0):
    """Every parameter drawn anew, gains near 1."""
    import torch

    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in layer.named_parameters():
            p.normal_(0, 0.2)
            if "norm" in name:
                p.add_(1.0)
    return layer


def linear(state, name, *shape):
    """A torch Linear as a Dense: kernel [D, *shape], bias if there is one."""
    found = {"kernel": state[f"{name}.weight"].T.reshape(-1, *shape)}
    if f"{name}.bias" in state:
        found["bias"] = state[f"{name}.bias"].reshape(shape)
    return found


def merged(state, name, heads, dim, width=D):
    """The output projection: [H,K] -> D."""
    found = {"kernel": state[f"{name}.weight"].T.reshape(heads, dim, width)}
    if f"{name}.bias" in state:
        found["bias"] = state[f"{name}.bias"]
    return found


def projections(state, heads, kv_heads, dim):
    return dict(query=linear(state, "q_proj", heads, dim),
                key=linear(state, "k_proj", kv_heads, dim),
                value=linear(state, "v_proj", kv_heads, dim),
                out=merged(state, "o_proj", heads, dim))


def mask(window=None, length=T):
    import torch

    i, j = torch.arange(length)[:, None], torch.arange(length)[None]
    hidden = (j > i) if window is None else (j > i) | (j <= i - window)
    return torch.zeros(length, length, dtype=torch.float64).masked_fill(hidden, -1e30)[None, None]


def rotary(module, config, length=T):
    import torch

    return module(config)(torch.zeros(1, dtype=torch.float64), torch.arange(length)[None])


ROPE = dict(rope_type="default", rope_theta=1e4)
SHAPE = dict(hidden_size=D, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
             attn_implementation="eager", num_hidden_layers=2)


def test_llama(transformers, beside):
    from transformers.models.llama import modeling_llama as llama

    config = transformers.LlamaConfig(**SHAPE, rope_parameters=ROPE)
    tables = rotary(llama.LlamaRotaryEmbedding, config)
    beside(dict(name="attention", num_kv_heads=2), "rope", lambda s: projections(s, 4, 2, 8),
           randomised(llama.LlamaAttention(config, 0)),
           lambda layer, x: layer(x, tables, mask())[0], "Llama attention")


@pytest.mark.parametrize("window", [None, 7])
def test_gpt_oss(window, transformers, beside):
    from transformers.models.gpt_oss import modeling_gpt_oss as oss

    kind = "full_attention" if window is None else "sliding_attention"
    config = transformers.GptOssConfig(**SHAPE, rope_parameters=ROPE, attention_bias=True,
                                       sliding_window=7, layer_types=[kind] * 2)
    tables = rotary(oss.GptOssRotaryEmbedding, config)
    params = lambda s: {**projections(s, 4, 2, 8), "sink": s["sinks"]}
    beside(dict(name="sink_attention", num_kv_heads=2, use_bias=True, window=window), "rope",
           params, randomised(oss.GptOssAttention(config, 0)),
           lambda layer, x: layer(x, tables, mask(window))[0], "gpt-oss attention")


def test_qwen3_next(transformers, beside):
    from transformers.models.qwen3_next import modeling_qwen3_next as qwen

    config = transformers.Qwen3NextConfig(
        **SHAPE, rope_parameters=dict(ROPE, partial_rotary_factor=0.5), layer_types=None)
    tables = rotary(qwen.Qwen3NextRotaryEmbedding, config)

    def params(s):
        both = s["q_proj.weight"].T.reshape(D, 4, 2, 8)
        found = projections({**s, "q_proj.weight": both[:, :, 0].reshape(D, 32).T}, 4, 2, 8)
        return {**found, "gate": {"kernel": both[:, :, 1]},
                "query_norm": {"scale": 1 + s["q_norm.weight"]},  # gains are stored minus 1
                "key_norm": {"scale": 1 + s["k_norm.weight"]}}

    beside(dict(name="attention", num_kv_heads=2, qk_norm=True, gate=True),
           dict(name="rope", fraction=0.5), params,
           randomised(qwen.Qwen3NextAttention(config, 1)),
           lambda layer, x: layer(x, tables, mask())[0], "Qwen3-Next gated attention", 5e-6)


def fused(state, heads, dim):
    """query_key_value of GPT-NeoX and BLOOM: rows by head, then by q, k, v."""
    kernel = state["query_key_value.weight"].T.reshape(D, heads, 3, dim)
    bias = state["query_key_value.bias"].reshape(heads, 3, dim)
    found = {name: dict(kernel=kernel[:, :, n], bias=bias[:, n])
             for n, name in enumerate(("query", "key", "value"))}
    return {**found, "out": merged(state, "dense", heads, dim)}


def test_gpt_neox(transformers, beside):
    from transformers.models.gpt_neox import modeling_gpt_neox as neox

    config = transformers.GPTNeoXConfig(
        hidden_size=D, num_attention_heads=4, attn_implementation="eager",
        rope_parameters=dict(ROPE, partial_rotary_factor=0.5))
    tables = rotary(neox.GPTNeoXRotaryEmbedding, config)
    beside(dict(name="attention", use_bias=True), dict(name="rope", fraction=0.5),
           lambda s: fused(s, 4, 8), randomised(neox.GPTNeoXAttention(config, 0)),
           lambda layer, x: layer(x, mask(), position_embeddings=tables)[0], "GPT-NeoX attention")


def test_bloom(transformers, beside):
    import torch
    from transformers.models.bloom import modeling_bloom as bloom

    config = transformers.BloomConfig(hidden_size=D, n_head=4, hidden_dropout=0.0,
                                      attention_dropout=0.0)
    alibi = bloom.build_alibi_tensor(torch.ones(2, T), 4, torch.float64)
    beside(dict(name="attention", use_bias=True), "alibi", lambda s: fused(s, 4, 8),
           randomised(bloom.BloomAttention(config, 0)),
           lambda layer, x: layer(x, torch.zeros_like(x), alibi, mask())[0],
           "BLOOM attention (ALiBi)")


def deepseek(s):
    """Weights of DeepSeek's latent attention: lcx puts rotary channels first, everywhere."""
    front = lambda kernel, rope: np.concatenate([kernel[..., -rope:], kernel[..., :-rope]], -1)
    import torch

    to = torch.tensor
    up = s["kv_b_proj.weight"].T.reshape(12, 4, 8 + 6)
    return {"query_down": linear(s, "q_a_proj", 10),
            "query_norm": {"scale": s["q_a_layernorm.weight"]},
            "query": {"kernel": to(front(linear(s, "q_b_proj", 4, 12)["kernel"].numpy(), 4))},
            "latent": {"kernel": to(front(s["kv_a_proj_with_mqa.weight"].T.numpy(), 4))},
            "latent_norm": {"scale": s["kv_a_layernorm.weight"]},
            "key_up": up[..., :8], "value_up": up[..., 8:], "out": merged(s, "o_proj", 4, 6)}


def test_deepseek_v3(transformers, beside):
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as v3

    config = transformers.DeepseekV3Config(
        hidden_size=D, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=2,
        q_lora_rank=10, kv_lora_rank=12, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=6,
        attn_implementation="eager", rope_parameters=ROPE, rope_interleave=True)
    tables = rotary(v3.DeepseekV3RotaryEmbedding, config)
    beside(dict(name="mla", num_heads=4, nope_dim=8, rope_dim=4, value_dim=6, kv_rank=12,
                query_rank=10), dict(name="rope", interleaved=True), deepseek,
           randomised(v3.DeepseekV3Attention(config, 0)),
           lambda layer, x: layer(x, tables, mask())[0], "DeepSeek-V3 latent attention", 5e-6)


def test_diff_llama(transformers, beside):
    """Its heads are lcx's pairs: query h and h + H/2, key n and n + N/2, values side by side."""
    from transformers.models.diffllama import modeling_diffllama as diff

    config = transformers.DiffLlamaConfig(
        hidden_size=D, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=4,
        attn_implementation="eager", rope_parameters=ROPE)
    tables = rotary(diff.DiffLlamaRotaryEmbedding, config)
    halves = lambda kernel: kernel.reshape(D, 2, 2, 8).swapaxes(1, 2)  # [D, pair, which, K]

    def params(s):
        query, key, value = (halves(s[f"{n}_proj.weight"].T) for n in "qkv")
        found = {f"lambda_{side}_{n}": s[f"lambda_{short}{n}"]
                 for side, short in (("query", "q"), ("key", "k")) for n in (1, 2)}
        return {**found, "query": {"kernel": query},
                "key": {"kernel": key.reshape(D, 2, 16)},
                "value": {"kernel": value.reshape(D, 2, 16)}, "out": merged(s, "o_proj", 2, 16)}

    def call(layer, x):
        layer.groupnorm.eps = 1e-5
        return layer(x, tables, mask())[0]

    beside(dict(name="differential_attention", layer=3, affine=False), "rope", params,
           randomised(diff.DiffLlamaAttention(config, 3)), call, "DiffLlama attention", 5e-6)


# ---- ops of flash-linear-attention and MoonshotAI, between plain projections ---------------------


def plain(heads, kv_heads, dim, **more):
    """A torch module with the projections of a layer, and `more` linear maps to so many numbers."""
    import torch

    sizes = dict(q_proj=heads * dim, k_proj=kv_heads * dim, v_proj=kv_heads * dim)
    linears = {name: torch.nn.Linear(D, size, bias=False) for name, size in sizes.items()}
    linears["o_proj"] = torch.nn.Linear(heads * dim, D, bias=False)
    linears |= {name: torch.nn.Linear(D, size, bias=bias) for name, (size, bias) in more.items()}
    return randomised(torch.nn.ModuleDict(linears))


def turned(layer, x, dim):
    """Query, key, value [B,T,.,K] of the layer, the first two rotated as in Llama."""
    from transformers import LlamaConfig
    from transformers.models.llama import modeling_llama as llama

    config = LlamaConfig(hidden_size=4 * dim, num_attention_heads=4, rope_parameters=ROPE)
    cos, sin = rotary(llama.LlamaRotaryEmbedding, config, x.shape[1])
    q, k, v = (layer[f"{n}_proj"](x).unflatten(-1, (-1, dim)) for n in "qkv")
    return *llama.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2), v


@pytest.mark.parametrize("block, top", [(8, 2), (5, 3)])
def test_moba(block, top, transformers, beside):
    """moba/moba_naive.py of github.com/MoonshotAI/MoBA, with its folder on the path."""
    import torch

    naive = pytest.importorskip("moba_naive", reason="put moba/ of MoonshotAI/MoBA on the path")

    def call(layer, x):
        q, k, v = turned(layer, x, 8)
        k, v = (a.repeat_interleave(2, 2) for a in (k, v))
        ends = torch.tensor([0, T, 2 * T])
        flat = (a.reshape(2 * T, 4, 8) for a in (q, k, v))
        out = naive.moba_attn_varlen_naive(*flat, ends, T, block, top)
        return layer["o_proj"](out.to(x.dtype).reshape(2, T, -1))

    beside(dict(name="moba", num_kv_heads=2, block=block, top=top), "rope",
           lambda s: projections(s, 4, 2, 8), plain(4, 2, 8), call, "MoonshotAI MoBA naive", 5e-6)


@pytest.mark.parametrize("block, top", [(4, 3), (4, 5), (8, 4)])
def test_nsa(block, top, transformers, beside):
    """Sixteen query heads to a key head, as the reference asks for; pooling in torch (its own is a
    GPU kernel), the window as masked attention."""
    import torch

    naive = pytest.importorskip("fla.ops.nsa.naive")
    window, scale = 6, 2.0 ** -0.5

    def call(layer, x):
        q, k, v = turned(layer, x, 2)
        gate = layer["g_proj"](x).unflatten(-1, (-1, 3)).sigmoid()
        pooled = [a.unflatten(1, (-1, block)).mean(2) for a in (k, v)]
        compressed, _ = naive.naive_nsa_compression(q, *pooled, block, scale)
        chosen = naive.naive_nsa_topk(q, pooled[0], top, block, scale)
        selected = naive.naive_nsa_selection(q, k, v, chosen, block, scale)
        logits = torch.einsum("bthk,bsnk->bhts", q, k) * scale + mask(window)[0]
        near = torch.einsum("bhts,bsnv->bthv", logits.softmax(-1), v)
        out = gate[..., :1] * compressed + gate[..., 1:2] * selected + gate[..., 2:] * near
        return layer["o_proj"](out.to(x.dtype).flatten(2))

    params = lambda s: {**projections(s, 16, 1, 2), "branch": linear(s, "g_proj", 16, 3)}
    beside(dict(name="nsa", num_heads=16, num_kv_heads=1, block=block, top=top, window=window),
           "rope", params, plain(16, 1, 2, g_proj=(48, False)), call,
           "flash-linear-attention NSA naive", 5e-6)


def test_delta_former(transformers, beside):
    naive = pytest.importorskip("fla.ops.deltaformer.naive")

    def call(layer, x):
        out = naive.naive_deltaformer_attn(*turned(layer, x, 8), layer["b_proj"](x))
        return layer["o_proj"](out.to(x.dtype).flatten(2))

    params = lambda s: {**projections(s, 4, 4, 8), "beta": linear(s, "b_proj", 4)}
    beside(dict(name="delta_former", bounded=False, chunk=16), "rope", params,
           plain(4, 4, 8, b_proj=(4, True)), call, "flash-linear-attention DeltaFormer naive", 5e-6)
