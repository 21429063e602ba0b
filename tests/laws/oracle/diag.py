"""Softmax over the visible keys of a token's own block."""

import numpy as np

from tests.laws.oracle import softmax
from tests.laws.oracle.common import row


def core(inner, lanes, seq):
    blocks = type("Seq", (), dict(ids=seq.ids, order=seq.order))()
    index = np.stack([row(inner["index"], b) for b in range(seq.segment.shape[0])])
    blocks.segment = seq.segment * 1000 + index // inner["block"]
    return softmax.core(inner, lanes, blocks)
