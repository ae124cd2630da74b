"""Four CPU devices, and the library's annotations checked at every call.

The environment is set before JAX is imported, and the import hook before jaxrobust is.
"""

import gc
import os
from pathlib import Path

from quick import FLAGS

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # tests run beside each other; NumPy's threads would spin
# What the environment asks for comes last, and wins.
os.environ["XLA_FLAGS"] = " ".join(
    ["--xla_force_host_platform_device_count=4", FLAGS, os.environ.get("XLA_FLAGS", "")]
)

import jax
import jaxtyping
import pytest

# is_pep484_tower: an int passes for a float, as type checkers have it.
jaxtyping.install_import_hook(
    "jaxrobust", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
)


@pytest.fixture
def untyped(monkeypatch):
    """Annotations go unchecked: a wrong input meets the library's own `ValueError`."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(autouse=True, scope="module")
def few_mappings():
    """Every compiled program maps memory, and Linux lets a process map 65,530 times: then it dies.

    Half of that is left to the next module.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
        gc.collect()
