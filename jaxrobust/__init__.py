"""Attack, train, certify and detect: adversarial robustness as pure JAX functions.

>>> import jaxrobust as jr
>>> jr.Ball("linf", 0.3).box
Box(low=0.0, high=1.0)
"""

from jaxrobust import (
    attacks,
    data,
    gradients,
    layers,
    losses,
    models,
    objectives,
    train,
)
from jaxrobust.threat import Ball, Box
from jaxrobust.types import Finding, MarginBound, Objective, Randomized, per_example

__all__ = [
    "Ball",
    "Box",
    "Finding",
    "MarginBound",
    "Objective",
    "Randomized",
    "attacks",
    "data",
    "gradients",
    "layers",
    "losses",
    "models",
    "objectives",
    "per_example",
    "train",
]
