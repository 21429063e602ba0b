"""The parity group: lcx beside code that others wrote. `pytest -m parity -s` prints the errors."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def transformers():
    """Hugging Face transformers on CPU torch: an independent implementation of many schemes."""
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


@pytest.fixture
def error(transformers):
    """error(scheme, reference, quantity, got, wanted, limit): asserts and prints a table row."""

    def check(scheme, reference, quantity, got, wanted, limit, relative=False):
        got, wanted = (np.asarray(a, np.float64) for a in (got, wanted))
        assert got.shape == wanted.shape, (got.shape, wanted.shape)
        off = np.abs(got - wanted)
        if relative:
            off = off / np.where(wanted == 0, 1, np.abs(wanted))
        worst = off.max()
        kind = "relative" if relative else "absolute"
        print(f"\n| {scheme} | {reference} | {quantity} | {worst:.1e} {kind} |", end="")
        assert worst <= limit, f"{scheme} and {reference} differ in {quantity} by {worst:.2e}"

    return check
