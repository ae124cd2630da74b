"""Compiler flags of the tests: most of a test is compilation.

Half of it goes without LLVM's optimisations, and half of the rest without XLA's newer code for
fusions. Doctests are compiled so too.
"""

import tempfile
from importlib.metadata import version

FLAGS = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # A flag of this release; later ones refuse what they do not know.
        "--xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
    ]
)

FOLDER = tempfile.TemporaryDirectory(prefix="jaxrobust-programs-")

CACHE = {
    "JAX_COMPILATION_CACHE_DIR": FOLDER.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
"""What one command has compiled is there for the next; gone with this process."""

COMMAND = CACHE | {
    "XLA_FLAGS": FLAGS.replace("optimization_level=0", "optimization_level=1"),
    "COLUMNS": "120",
}
"""Environment of commands that tests start: they compute more than they compile."""
