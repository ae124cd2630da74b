"""Attack, train, certify and detect: adversarial robustness as pure JAX functions.

>>> import jaxrobust as jr
>>> jr.Ball("linf", 0.3).box
Box(low=0.0, high=1.0)
"""

from jaxrobust import (
    attacks,
    certify,
    data,
    detect,
    diagnosis,
    evaluation,
    files,
    flow,
    gradients,
    layers,
    linalg,
    losses,
    models,
    objectives,
    report,
    threat,
    train,
    transforms,
)
from jaxrobust._version import __version__
from jaxrobust.diagnosis import Findings, diagnose
from jaxrobust.evaluation import Report, evaluate
from jaxrobust.threat import Ball, Box
from jaxrobust.types import (
    Finding,
    MarginBound,
    Objective,
    Randomized,
    SmoothedRadius,
    per_example,
)

__all__ = [
    "Ball",
    "Box",
    "Finding",
    "Findings",
    "MarginBound",
    "Objective",
    "Randomized",
    "Report",
    "SmoothedRadius",
    "__version__",
    "attacks",
    "certify",
    "data",
    "detect",
    "diagnose",
    "diagnosis",
    "evaluate",
    "evaluation",
    "files",
    "flow",
    "gradients",
    "layers",
    "linalg",
    "losses",
    "models",
    "objectives",
    "per_example",
    "report",
    "threat",
    "train",
    "transforms",
]
