"""Gradient estimators: transformations of functions of one example.

A gradient takes `f: (x, key) -> out` on one example (a scalar loss or a vector of logits) and
returns a function of the same signature whose value and derivative are the estimates. Every search
differentiates through `vjp`, so an estimator works with every attack.
"""

from jaxrobust.gradients._black_box import bpda, nes, spsa
from jaxrobust.gradients._canonical import canonical
from jaxrobust.gradients._estimators import eot, exact, smoothed, step_key
from jaxrobust.gradients._hessian import hessian_direction, perturbed
from jaxrobust.gradients._vjp import Gradient, OneExample, vjp

__all__ = [
    "Gradient",
    "OneExample",
    "bpda",
    "canonical",
    "eot",
    "exact",
    "hessian_direction",
    "nes",
    "perturbed",
    "smoothed",
    "spsa",
    "step_key",
    "vjp",
]
