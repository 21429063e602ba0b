"""The composition grid, frozen: which lane type each algebra must refuse, and with which code.

The table is the mathematics (docs/design.md explains each code). What it does not refuse is native,
partial or unimplemented, never refused; what it refuses can be nothing else.
"""

import pytest

from lcx import lanes as L
from lcx import lookup, mixers

LANES = (L.Rotation, L.ContentRotation, L.Diagonal, L.FeatureMap, L.Householder,
         L.Piecewise, L.Separable, L.EventuallyConstant, L.Toeplitz, L.Rowwise, L.Pairwise,
         L.Temperature, L.ValueRotation, L.ValueTable, L.LogitMap)

# family -> lane -> code of the refusal. A lane that is not named has a meaning.
REFUSED = {
    "softmax": {},
    "stick": {},
    "selected": dict.fromkeys(("Householder", "Pairwise", "LogitMap"), "R11"),
    "linear": {"LogitMap": "R11"},
    "vector": {"LogitMap": "R11", "FeatureMap": "R10"},
    "kernel": {"LogitMap": "R11"},
    "slots": {"LogitMap": "R11"},
    "gau": {},
    "flash": {"LogitMap": "R11"},
    "len": {**dict.fromkeys(("Householder", "Piecewise", "Separable", "EventuallyConstant",
                             "Toeplitz", "Rowwise", "Pairwise", "ValueTable"), "R1"),
            "LogitMap": "R11"},
    "delta": {"Piecewise": "R3", "EventuallyConstant": "R3", "Toeplitz": "R3", "Rowwise": "R3",
              "Pairwise": "R3", "FeatureMap": "R3", "ValueTable": "R3", "LogitMap": "R11"},
    "diagonal": {"Householder": "R1", "Pairwise": "R1", "Temperature": "R1", "FeatureMap": "R1",
                 "ValueTable": "R1", "LogitMap": "R11"},
    "lti": {**dict.fromkeys(("ContentRotation", "FeatureMap", "Householder", "Rowwise", "Pairwise",
                             "Temperature", "ValueTable"), "R1"), "LogitMap": "R11"},
    "nonlinear": {**{lane.__name__: "R1" for lane in LANES if lane is not L.Separable},
                  "LogitMap": "R11"},
    "wkv": {**dict.fromkeys(("Rotation", "ContentRotation", "ValueRotation", "Piecewise"), "R9"),
            **dict.fromkeys(("Householder", "FeatureMap", "Pairwise"), "R1"), "LogitMap": "R11"},
    "gru": {**{lane.__name__: "R1" for lane in LANES}, "LogitMap": "R11"},
}
# family -> lane -> code of the note with which a lane binds although it changes nothing.
NOTED = {"linear": {"Temperature": "R4"},
         "wkv": {"Temperature": "R4"},
         "vector": {"Temperature": "R4", "Rotation": "R10", "ContentRotation": "R10"},
         "delta": {"Temperature": "R4"},
         "lti": dict.fromkeys(("Rotation", "ValueRotation", "Diagonal", "Separable",
                               "EventuallyConstant"), "R6")}


@pytest.mark.parametrize("name", lookup.names(mixers.PACKAGE))
def test_a_mixer_refuses_what_its_algebra_refuses_and_nothing_else(name):
    mixer = lookup.find(mixers.PACKAGE, name)
    refused, noted = REFUSED[mixer.family], NOTED.get(mixer.family, {})
    for lane in LANES:
        support = mixer.support(lane)
        if lane.__name__ in refused:
            assert support.status == "refused", lane
            assert support.code == refused[lane.__name__], lane
            assert support.reason, lane
        else:
            assert support.status != "refused", lane
            assert support.code == noted.get(lane.__name__), lane
        unknown = set(support.forms) - set(mixer.forms)
        assert not unknown, f"{lane}: forms {unknown} that the mixer does not have"
        if support.forms:
            whole = set(support.forms) | set(support.missing)
            assert whole >= set(mixer.forms), f"{lane}: a form is neither there nor said missing"
