"""The parity group: lcx beside code that others wrote. `pytest -m parity -s` prints the errors."""

import importlib.util
import os
import sys
import types
from pathlib import Path

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


@pytest.fixture
def source():
    """source(path, packages, inside, stand_ins): a module of a checkout, alone of its repository,
    whose packages lie `inside` a folder of it; what it imports for training only is replaced."""
    root = os.environ.get("LCX_PARITY_SOURCES")
    if root is None:
        pytest.skip("LCX_PARITY_SOURCES names no folder of checkouts")
    before = set(sys.modules)

    def load(path, packages=(), inside="", **stand_ins):
        path = Path(root, path)
        if not path.exists():
            pytest.skip(f"{path} is not there")
        repository = Path(root, *path.relative_to(root).parts[:2], inside)
        for name in packages:
            package = types.ModuleType(name)
            package.__path__ = [str(repository / name.replace(".", "/"))]
            sys.modules[name] = package
        for name, members in stand_ins.items():
            module = types.ModuleType(name.replace("__", "."))
            vars(module).update(members)
            sys.modules[module.__name__] = module
        spec = importlib.util.spec_from_file_location(f"parity_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in set(sys.modules) - before:
        if name.startswith(("src", "mamba_ssm", "xlstm", "parity_")):
            del sys.modules[name]
