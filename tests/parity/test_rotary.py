"""Rotations, their scalings and relative biases, beside Hugging Face transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcx import lanes as L
from lcx.positions import alibi
from lcx.spans import Image, Text, Video, position_ids
from tests.test_positions import logits, make, speak, vectors

pytestmark = pytest.mark.parity


def tensor(array):
    import torch

    return torch.tensor(np.array(array))


def scores(query, key):
    """q . k / sqrt(d) [H,T,S] of torch arrays [1,H,T,K]."""
    return (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5)[0].detach().numpy()


def beside(spec, q, k, reference, seq=None):
    """Scores of lcx and of the reference where a causal mask leaves them."""
    length = q.shape[1]
    got, _ = logits(spec, q, k, L.sequence(1, length) if seq is None else seq)
    keep = np.tri(length, dtype=bool)
    return got[:, keep], reference[:, keep]


def heads_first(x):
    return tensor(jnp.swapaxes(x, 1, 2)).float()


# ---- RoPE in three layouts -----------------------------------------------------------------------


def test_llama(transformers, error):
    from transformers.models.llama import modeling_llama as llama

    q, k, _ = vectors(200, dim=64)
    config = transformers.LlamaConfig(hidden_size=256, num_attention_heads=4)
    cos, sin = llama.LlamaRotaryEmbedding(config)(tensor(q).float(), tensor(np.arange(200))[None])
    turned = llama.apply_rotary_pos_emb(heads_first(q), heads_first(k), cos, sin)
    error("rope", "Llama", "logits, half-split", *beside("rope", q, k, scores(*turned)), 2e-5)


def test_gpt_neox(transformers, error):
    from transformers.models.gpt_neox import modeling_gpt_neox as neox

    q, k, _ = vectors(200, dim=64)
    parameters = dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.25)
    config = transformers.GPTNeoXConfig(hidden_size=256, num_attention_heads=4,
                                        rope_parameters=parameters)
    cos, sin = neox.GPTNeoXRotaryEmbedding(config)(tensor(q).float(), tensor(np.arange(200))[None])
    assert cos.shape[-1] == 16
    turned = neox.apply_rotary_pos_emb(heads_first(q), heads_first(k), cos, sin)
    spec = dict(name="rope", fraction=0.25)
    error("rope(fraction=0.25)", "GPT-NeoX", "logits", *beside(spec, q, k, scores(*turned)), 2e-5)


def test_gpt_j(transformers, error):
    import torch
    from transformers.models.gptj import modeling_gptj as gptj

    q, k, _ = vectors(200, dim=256)
    sin, cos = torch.split(gptj.create_sinusoidal_positions(200, 64)[None], 32, dim=-1)
    turned = []
    for x in (tensor(q).float(), tensor(k).float()):
        pieces = [gptj.apply_rotary_pos_emb(x[..., :64], sin, cos), x[..., 64:]]
        turned.append(torch.cat(pieces, -1).transpose(1, 2))
    spec = dict(name="rope", fraction=0.25, interleaved=True)
    error("rope(interleaved, 64 of 256)", "GPT-J", "logits", *beside(spec, q, k, scores(*turned)),
          2e-5)


# ---- scalings ------------------------------------------------------------------------------------

TRAINED = 4096
SHORT = tuple(np.linspace(1.0, 1.3, 64).tolist())
LONG = tuple(np.linspace(1.0, 63.0, 64).tolist())
YARN = dict(rope_type="yarn", original_max_position_embeddings=TRAINED)
LONGROPE = dict(rope_type="longrope", original_max_position_embeddings=TRAINED, factor=32.0,
                short_factor=list(SHORT), long_factor=list(LONG))
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=8192, rope_theta=5e5)
SCALINGS = [  # lcx, transformers, length told
    (dict(name="pi", factor=8.0), dict(rope_type="linear", factor=8.0), 9),
    (dict(name="dynamic_ntk", factor=2.0), dict(rope_type="dynamic", factor=2.0), 16000),
    (dict(name="dynamic_ntk", factor=4.0), dict(rope_type="dynamic", factor=4.0), 8192),
    (dict(name="dynamic_ntk", factor=4.0), dict(rope_type="dynamic", factor=4.0), 4096),
    (dict(name="yarn", factor=4.0), dict(YARN, factor=4.0), 9),
    (dict(name="yarn", factor=40.0, mscale=1.0, mscale_all_dim=0.8),
     dict(YARN, factor=40.0, mscale=1.0, mscale_all_dim=0.8), 9),
    (dict(name="yarn", factor=40.0, mscale=0.707), dict(YARN, factor=40.0, mscale=0.707), 9),
    (dict(name="yarn", factor=16.0, attention_factor=1.2, beta_fast=24.0, beta_slow=2.0),
     dict(YARN, factor=16.0, attention_factor=1.2, beta_fast=24.0, beta_slow=2.0), 9),
    (dict(name="yarn", factor=32.0, truncate=False, base=150000.0),
     dict(YARN, factor=32.0, truncate=False, rope_theta=150000.0), 9),
    (dict(name="yarn", factor=8.0, fraction=0.5),
     dict(YARN, factor=8.0, partial_rotary_factor=0.5), 9),
    (dict(name="long_rope", factor=32.0, short=SHORT, long=LONG), LONGROPE, 4096),
    (dict(name="long_rope", factor=32.0, short=SHORT, long=LONG), LONGROPE, 4097),
    (dict(name="long_rope", factor=8.0, short=SHORT, long=LONG, attention_factor=1.3),
     dict(LONGROPE, factor=8.0, attention_factor=1.3), 9000),
    (dict(name="llama3", factor=8.0, original_length=8192, base=5e5), LLAMA3, 9),
    (dict(name="llama3", factor=32.0, original_length=8192, base=5e5, high_freq=8.0),
     dict(LLAMA3, factor=32.0, high_freq_factor=8.0), 9),
    (dict(name="p_rope", proportion=0.25, base=1e6),
     dict(rope_type="proportional", partial_rotary_factor=0.25, rope_theta=1e6), 9),
    (dict(name="p_rope", proportion=0.3, factor=8.0),
     dict(rope_type="proportional", partial_rotary_factor=0.3, factor=8.0), 9),
]


def short(spec):
    return ", ".join(f"{k}={v}" for k, v in spec.items()
                     if k != "name" and not isinstance(v, tuple))


@pytest.mark.parametrize("spec, parameters, length", SCALINGS, ids=lambda v: str(v)[:40])
def test_scalings(spec, parameters, length, transformers, error):
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = parameters["rope_type"]
    config = transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=4, max_position_embeddings=TRAINED,
        rope_parameters=dict(dict(rope_theta=1e4), **parameters))
    wanted, gain = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
    lanes, _ = speak(spec, L.sequence(1, 1, told_length=length), dim=128, train_length=TRAINED)
    got = 2 * np.pi * np.asarray(lanes.transport.frequency, np.float64).sum(0)
    name = f"{spec['name']}({short(spec)}), L={length}"
    error(name, f'"{kind}"', "frequencies", got, wanted.numpy(), 4e-6, relative=True)
    amplitude = 1.0 if lanes.transport.amplitude is None else float(lanes.transport.amplitude)
    error(name, f'"{kind}"', "attention factor", amplitude, gain, 2e-7)


def test_deepseek_scales_the_softmax(transformers, error):
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

    rope = dict(rope_type="yarn", rope_theta=1e4, factor=40.0, mscale=1.0, mscale_all_dim=1.0,
                original_max_position_embeddings=TRAINED)
    config = transformers.DeepseekV3Config(
        hidden_size=64, num_attention_heads=2, num_hidden_layers=1, q_lora_rank=None,
        kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=24, v_head_dim=16,
        max_position_embeddings=40 * TRAINED, rope_parameters=rope)
    scaling = deepseek.DeepseekV3Attention(config, 0).scaling * 32 ** 0.5
    spec = dict(name="yarn", factor=40.0, mscale=1.0, mscale_all_dim=1.0, softmax_mscale=1.0)
    lanes, _ = speak(spec, L.sequence(1, 1))
    error("yarn(softmax_mscale=1)", "DeepSeek-V3", "softmax scale",
          lanes.temperature.factor[0, 0, 0], scaling, 1e-6)


def test_llama4_temperature(transformers, error, x64):
    import torch
    from transformers.models.llama4 import modeling_llama4 as llama4

    config = transformers.Llama4TextConfig(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        num_hidden_layers=4, attn_temperature_tuning=True, floor_scale=16, attn_scale=0.1,
        no_rope_layers=[1, 1, 1, 0], attn_implementation="eager", attention_bias=False)
    torch.manual_seed(0)
    layer = llama4.Llama4TextAttention(config, 3).double()
    x = torch.randn(1, 100, 32, dtype=torch.float64)
    mask = torch.full((100, 100), -1e30, dtype=torch.float64).triu(1)[None, None]
    _, wanted = layer(x, None, mask)
    q, k = (jnp.asarray(linear(x).detach().numpy()).reshape(1, 100, -1, 8)
            for linear in (layer.q_proj, layer.k_proj))
    spec = dict(name="llama4_temperature", floor=16)
    got, _ = logits(spec, q, k, L.sequence(1, 100), heads=4, kv_heads=2)
    error("llama4_temperature", "Llama-4, layer without RoPE", "probabilities",
          jax.nn.softmax(got, -1), wanted[0].detach().numpy(), 1e-7)


# ---- biases --------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 20, 25, 32, 40])
def test_alibi_slopes(heads, transformers, error):
    import torch
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor
    from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

    slope = alibi.slopes(heads)
    bloom = build_alibi_tensor(torch.ones(1, 32), heads, torch.float32)[:, 0].numpy()
    error(f"alibi, {heads} heads", "BLOOM", "slope x key", slope[:, None] * np.arange(32), bloom,
          3e-6)
    mpt = build_mpt_alibi_tensor(heads, 32)[:, 0].numpy()
    error(f"alibi, {heads} heads", "MPT", "last row", -slope[:, None] * np.arange(31, -1, -1), mpt,
          3e-6)


def test_alibi_probabilities(transformers, error):
    import torch
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    q, k, _ = vectors(60, heads=12)
    row = build_alibi_tensor(torch.ones(1, 60), 12, torch.float32)
    mask = torch.full((60, 60), -torch.inf).triu(1)
    wanted = torch.softmax(tensor(scores(heads_first(q), heads_first(k))) + row + mask, -1)
    got, _ = logits("alibi", q, k, L.sequence(1, 60))
    error("alibi", "BLOOM (its rows add m j)", "probabilities", jax.nn.softmax(got, -1), wanted,
          2e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("buckets, furthest", [(32, 128), (32, 256), (16, 64), (64, 1000),
                                               (8, 20)])
def test_t5_buckets(buckets, furthest, causal, transformers, error):
    from transformers.models.t5.modeling_t5 import T5Attention

    reach = np.arange(-1000, 1001)  # i - j
    if causal:
        reach = reach[1000:]
    wanted = T5Attention._relative_position_bucket(tensor(-reach), not causal, buckets, furthest)
    numbered = lambda found: {"params": {"table": jnp.arange(buckets, dtype=float)[:, None]}}
    spec = dict(name="t5_bias", num_buckets=buckets, max_distance=furthest)
    lanes, _ = speak(spec, L.sequence(1, 1), change=numbered, heads=1, causal=causal)
    got = lanes.bias[0].kernel(lanes.bias[0].params, jnp.asarray(reach, jnp.float32))[:, 0]
    direction = "causal" if causal else "bidirectional"
    error(f"t5_bias({buckets}, {furthest}), {direction}", "T5", "buckets, distances to 1000", got,
          wanted.numpy(), 0)


# ---- M-RoPE --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model, arrangement, section", [
    ("qwen2_vl", "chunked", [16, 24, 24]), ("qwen3_vl", "interleaved", [24, 20, 20])])
def test_m_rope_sections(model, arrangement, section, transformers, error):
    if model == "qwen2_vl":
        from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen
        config, rotary = transformers.Qwen2VLTextConfig, qwen.Qwen2VLRotaryEmbedding
    else:
        from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen
        config, rotary = transformers.Qwen3VLTextConfig, qwen.Qwen3VLTextRotaryEmbedding
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k, _ = vectors(50, dim=128)
    ids = np.random.default_rng(0).integers(0, 500, (50, 3))
    made = rotary(config(hidden_size=512, num_attention_heads=4, head_dim=128, rope_parameters=dict(
        rope_type="default", rope_theta=1e4, mrope_section=section)))
    cos, sin = made(tensor(q).float(), tensor(ids.T)[:, None])
    turned = apply_rotary_pos_emb(heads_first(q), heads_first(k), cos, sin)
    spec = dict(name="m_rope", arrangement=arrangement)
    seq = L.sequence(1, 50, ids=ids[None].astype(float))
    error(f"m_rope({arrangement})", model, "logits, ids to 500",
          *beside(spec, q, k, scores(*turned), seq), 2e-4)
    assert make(spec, dim=128).axis().count(1) == section[1]


ROWS = [[Text(5), Image(2, 4), Text(3)], [Image(3, 3), Text(1), Image(1, 6), Text(4)],
        [Text(2), Video(2, 3, 4), Text(6)], [Text(4)]]


def qwen_ids(model, config, spans, **more):
    """transformers' ids [T,3] and offset; its grids count patches before a merge of 2 x 2."""
    import torch

    kind = {Text: 0, Image: 1, Video: 2}
    sizes = [(1, *span) if isinstance(span, Image) else tuple(span[:3]) for span in spans]
    types = [kind[type(span)] for span, size in zip(spans, sizes)
             for _ in range(span.tokens if isinstance(span, Text) else int(np.prod(size)))]
    grid = lambda of: [[t, 2 * h, 2 * w] for span, (t, h, w) in zip(spans, (
        (0, 0, 0) if isinstance(s, Text) else size for s, size in zip(spans, sizes)))
        if isinstance(span, of)]
    model = model.__new__(model)
    torch.nn.Module.__init__(model)  # its ids need no weights
    model.config = config
    ids, delta = model.get_rope_index(
        torch.zeros(1, len(types), dtype=torch.long), torch.tensor([types]),
        torch.tensor(grid(Image)), torch.tensor(grid(Video)), **more)
    return ids[:, 0].numpy().T, int(delta[0, 0])


def qwen2_vl_ids(transformers, spans):
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

    return qwen_ids(Qwen2VLModel, transformers.Qwen2VLConfig(), spans)


@pytest.mark.parametrize("spans", [
    [Text(3), Video(2, 3, 4, 0.7), Text(2), Image(2, 2)], [Text(2), Video(9, 2, 3, 0.7)],
    [Video(6, 2, 2, 1.3)], [Image(2, 4), Text(1), Video(3, 8, 8, 1.0), Text(2)]], ids=str)
def test_m_rope_ids_in_seconds(spans, transformers, error):
    import torch
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

    config = transformers.Qwen2_5_VLConfig()
    config.vision_config.tokens_per_second = 2  # of the released models; the default is 4
    seconds = torch.tensor([span.seconds for span in spans if isinstance(span, Video)])
    wanted, _ = qwen_ids(Qwen2_5_VLModel, config, spans, second_per_grid_ts=seconds)
    ids, _ = position_ids(spans, "qwen2_5_vl")
    error("ids qwen2_5_vl", "Qwen2.5-VL get_rope_index", "ids", ids, wanted, 0)


@pytest.mark.parametrize("number", range(len(ROWS)))
def test_m_rope_ids(number, transformers, error):
    ids, offset = position_ids(ROWS[number], "qwen2_vl")
    wanted, delta = qwen2_vl_ids(transformers, ROWS[number])
    error(f"ids qwen2_vl, row {number}", "Qwen2-VL get_rope_index", "ids", ids, wanted, 0)
    error(f"ids qwen2_vl, row {number}", "Qwen2-VL get_rope_index", "offset", offset, delta, 0)


def test_m_rope_ids_after_a_long_video(transformers):
    """transformers 5 goes on from max(h, w), Qwen's own code (and lcx) from the largest id."""
    spans = [Text(2), Video(9, 2, 3), Text(4)]
    ids, _ = position_ids(spans, "qwen2_vl")
    wanted, _ = qwen2_vl_ids(transformers, spans)
    np.testing.assert_array_equal(ids[:-4], wanted[:-4])
    np.testing.assert_array_equal(ids[-4:] - wanted[-4:], 6)


# ---- DeBERTa -------------------------------------------------------------------------------------


@pytest.mark.parametrize("buckets, furthest", [(256, 512), (32, 128), (8, 20)])
def test_deberta_buckets(buckets, furthest, transformers, error):
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    reach = np.arange(-1000, 1001)
    bucket = make_log_bucket_position(tensor(reach), buckets, furthest).numpy()
    wanted = np.clip(bucket + buckets, 0, 2 * buckets - 1)
    # one query, whose position-to-key rows are numbered, reads the row of each distance
    rows = jnp.arange(2.0 * buckets)[:, None, None]
    numbered = lambda found: {"params": {"keys": rows, "queries": 0 * rows}}
    spec = dict(name="deberta", buckets=buckets, max_distance=furthest)
    lanes, _ = speak(spec, L.sequence(1, 1), change=numbered, heads=1, dim=1)
    ids = lambda values: jnp.asarray(values, jnp.float32)[None, :, None]
    one = jnp.ones((1, 1, 1, 1))
    tile = L.Tile(query=one, key=jnp.ones((1, len(reach), 1, 1)),
                  mask=jnp.ones((1, 1, len(reach)), bool), query_ids=ids([0.0]),
                  key_ids=ids(-reach), scale=3 ** 0.5)
    got = lanes.bias[0].kernel(lanes.bias[0].params, tile)[0, 0, 0]
    error(f"deberta({buckets}, {furthest})", "DeBERTa-v2", "rows, distances to 1000",
          np.rint(got), wanted, 0)


@pytest.mark.parametrize("paper_index", [False, True])
def test_deberta_probabilities(paper_index, transformers, error, x64):
    import torch
    from transformers.models.deberta_v2 import modeling_deberta_v2 as deberta

    length, heads, dim, buckets = 100, 2, 8, 16
    config = transformers.DebertaV2Config(
        hidden_size=heads * dim, num_attention_heads=heads, relative_attention=True,
        pos_att_type=["c2p", "p2c"], position_buckets=buckets, max_relative_positions=64,
        share_att_key=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    torch.manual_seed(0)
    layer = deberta.DisentangledSelfAttention(config).double()
    x = torch.randn(1, length, heads * dim, dtype=torch.float64)
    table = torch.randn(2 * buckets, heads * dim, dtype=torch.float64)
    _, wanted = layer(x, torch.ones(1, 1, length, length), output_attentions=True,
                      rel_embeddings=table)
    of = lambda linear, x: jnp.asarray(linear(x).detach().numpy()).reshape(-1, heads, dim)
    q, k = of(layer.query_proj, x)[None], of(layer.key_proj, x)[None]
    change = lambda found: {"params": {"keys": of(layer.key_proj, table),
                                       "queries": of(layer.query_proj, table)}}
    spec = dict(name="deberta", buckets=buckets, max_distance=64, paper_index=paper_index)
    got, _ = logits(spec, q, k, L.sequence(1, length), change=change, causal=False)
    probabilities = np.asarray(jax.nn.softmax(got, -1))
    if paper_index:  # the paper's index is another model than the published code
        assert np.abs(probabilities - wanted[0].detach().numpy()).max() > 1e-3
    else:
        error("deberta", "DeBERTa-v2, shared projections", "probabilities", probabilities,
              wanted[0].detach().numpy(), 2e-7)
