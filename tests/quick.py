"""Compiler flags of the tests: most of a test is compilation.

Half of it goes without LLVM's optimisations, and half of the rest without XLA's newer code for
fusions. Doctests compile as users do.
"""

from importlib.metadata import version

FLAGS = " ".join(
    [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        # A flag of this release; later ones refuse what they do not know.
        "--xla_cpu_use_fusion_emitters=false" * version("jaxlib").startswith("0.10."),
    ]
)
