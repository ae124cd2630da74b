"""Four CPU devices, and the library's annotations checked at every call.

The environment is set before JAX is imported, and the import hook before jaxrobust is.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
).strip()

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
