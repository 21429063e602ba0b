"""The rotation of patches beside the vision tower of Qwen2-VL, and the ids of Qwen3-VL."""

import numpy as np
import pytest

from lcx import lanes as L
from lcx.spans import Image, Text, grid, position_ids
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


@pytest.mark.parametrize("frames", [None, 3])
@pytest.mark.parametrize("height, width", [(3, 5), (1, 1), (7, 2)])
def test_qwen3_vl_ids(frames, height, width, transformers, error):
    """Images, or the frames of one video behind their timestamps; grids count before the merge."""
    import torch
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

    kind = 1 if frames is None else 2
    spans = [Text(4)] + [Image(height, width), Text(6)] * (frames or 2)
    types = [0 if isinstance(span, Text) else kind for span in spans
             for _ in range(span.tokens if isinstance(span, Text) else height * width)]
    model = Qwen3VLModel.__new__(Qwen3VLModel)
    torch.nn.Module.__init__(model)  # its ids need no weights
    model.config = transformers.Qwen3VLConfig()
    grids = torch.tensor([[1, 2 * height, 2 * width]] * 2 if frames is None
                         else [[frames, 2 * height, 2 * width]])
    wanted, delta = model.get_rope_index(
        torch.zeros(1, len(types), dtype=torch.long), torch.tensor([types]),
        **{"image_grid_thw" if frames is None else "video_grid_thw": grids})
    ids, offset = position_ids(spans, "qwen3_vl")
    name = f"ids qwen3_vl, {frames or 'no'} frames of {height} x {width}"
    error(name, "Qwen3-VL get_rope_index", "ids", ids, wanted[:, 0].numpy().T, 0)
    error(name, "Qwen3-VL get_rope_index", "offset", offset, int(delta[0, 0]), 0)
