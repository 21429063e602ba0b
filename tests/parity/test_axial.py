"""The axial rotation of patches, beside the vision tower of Qwen2-VL."""

import numpy as np
import pytest

from lcx import lanes as L
from lcx.spans import grid
from tests.positions.speaking import softmax, vectors, weights

pytestmark = pytest.mark.parity


def test_rope_2d(transformers, error, x64):
    import torch
    from transformers.models.qwen2_vl import configuration_qwen2_vl as configuration
    from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen

    patches = grid(9, 14)
    q, k, _ = vectors(len(patches), dim=80)
    vision = configuration.Qwen2VLVisionConfig(embed_dim=320, num_heads=4)
    tables = qwen.Qwen2VLVisionRotaryEmbedding(vision)
    cos, sin = tables(torch.zeros(1), torch.tensor(patches).T[None])
    cos, sin = (a.reshape(len(patches), 80).float() for a in (cos, sin))
    single = lambda a: torch.tensor(np.array(a[0])).float()
    turned = qwen.apply_rotary_pos_emb_vision(single(q), single(k), cos, sin)
    wanted = torch.einsum("thk,shk->hts", *turned).numpy() / 80 ** 0.5
    got = weights("rope_2d", q, k, L.sequence(1, len(patches), ids=patches[None]))
    error("rope_2d", "Qwen2-VL vision", "probabilities, 9 x 14 patches", got, softmax(wanted), 2e-6)
