"""The published experiments, each a command: `python -m experiments.NAME --help`."""

import os
import sys
from importlib.metadata import version

if "jax" not in sys.modules and version("jaxlib") == "0.10.2":
    # This release gives convolutions to YNNPACK, which can be several times slower than Eigen;
    # others may refuse a flag that they do not know.
    flag = "--xla_cpu_experimental_ynn_fusion_type=-LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
    os.environ["XLA_FLAGS"] = f"{flag} {os.environ.get('XLA_FLAGS', '')}".strip()
