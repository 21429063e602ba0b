"""What a mixer that selects blocks of keys does with each lane.

A choice is made by the mean transported product of a block's tokens, which takes every transport of
single keys and every decay between them; no bias and no temperature enter it. Chosen tokens are
read with all lanes. What is defined by the whole row of keys has no meaning on a selection.
"""

from __future__ import annotations

from lcx import lanes as L
from lcx.mixers import refuses
from lcx.mixers.softmax_family import SUPPORTS as SOFTMAX

_ROW = "it is defined by the whole row of keys, of which a query reads a selection"
SUPPORTS = {
    **SOFTMAX,
    L.Householder: refuses("R11", "products of all tokens between key and query are skipped by a "
                                  "selection"),
    L.Pairwise: refuses("R11", _ROW),
    L.LogitMap: refuses("R11", _ROW),
}
