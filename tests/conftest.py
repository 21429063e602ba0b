"""Eight fake CPU devices, quick compiles, and float64 on request, before jax is imported."""

import os
from importlib.metadata import version

os.environ["JAX_PLATFORMS"] = os.environ.get("LCX_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
if version("jaxlib").startswith("0.10."):  # half the compile time of tiny programs; gone later
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", ".cache/jax")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture
def x64():
    """Runs the test in float64, the precision of the oracle."""
    with jax.enable_x64(True):
        yield
