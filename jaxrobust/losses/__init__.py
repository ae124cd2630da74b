"""Losses of one example, `loss(outputs, y) -> scalar`, which attacks maximise.

Where a model returns more than logits, they come first and the rest is ignored but by `penalized`
and `selective`.
"""

from jaxrobust.losses._aims import confident, penalized, selective, success, targeted
from jaxrobust.losses._carlini_wagner import CarliniWagner, f1, f2, f3, f4, f5, f6, f7
from jaxrobust.losses._common import (
    Loss,
    cross_entropy,
    generalized_cross_entropy,
    hinge,
    kl,
    margin,
    reverse_cross_entropy,
    soft_margin,
)
from jaxrobust.losses._dlr import dlr, targeted_dlr

__all__ = [
    "CarliniWagner",
    "Loss",
    "confident",
    "cross_entropy",
    "dlr",
    "f1",
    "f2",
    "f3",
    "f4",
    "f5",
    "f6",
    "f7",
    "generalized_cross_entropy",
    "hinge",
    "kl",
    "margin",
    "penalized",
    "reverse_cross_entropy",
    "selective",
    "soft_margin",
    "success",
    "targeted",
    "targeted_dlr",
]
