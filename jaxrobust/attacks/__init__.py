"""Attacks: `attack(logits_fn, x, y, *, key, ball, ...) -> x_adv`, pure, compiled and batched."""

from jaxrobust.attacks._adaptive_norm_pgd import adaptive_norm_pgd
from jaxrobust.attacks._apgd import apgd, apgd_targeted
from jaxrobust.attacks._autoattack import autoattack, autoattack_members
from jaxrobust.attacks._boundary import boundary
from jaxrobust.attacks._carlini_wagner import carlini_wagner_l2
from jaxrobust.attacks._carlini_wagner_l0 import carlini_wagner_l0
from jaxrobust.attacks._carlini_wagner_linf import carlini_wagner_linf
from jaxrobust.attacks._compose import first_success, on_alive, salted
from jaxrobust.attacks._deepfool import deepfool
from jaxrobust.attacks._fab import fab, fab_targeted
from jaxrobust.attacks._flow import flow, flow_field
from jaxrobust.attacks._flow_pgd import flow_pgd, flow_pgd_field
from jaxrobust.attacks._fmn import fmn
from jaxrobust.attacks._gradient import Trace, bim, fgsm, pgd, pgd_trace
from jaxrobust.attacks._jsma import jsma
from jaxrobust.attacks._minimum_norm import (
    EveryTarget,
    against,
    every_target,
    faces_all,
    is_minimum_norm,
    minimised_norm,
)
from jaxrobust.attacks._reparametrize import reparametrize
from jaxrobust.attacks._rotation_translation import rotation_translation
from jaxrobust.attacks._second_order import second_order
from jaxrobust.attacks._spatial_lower_bound import SpatialLowerBound, spatial_lower_bound
from jaxrobust.attacks._square import square
from jaxrobust.attacks._variants import at_eps, is_transfer, most_confusing, through, transfer

__all__ = [
    "EveryTarget",
    "SpatialLowerBound",
    "Trace",
    "adaptive_norm_pgd",
    "against",
    "apgd",
    "apgd_targeted",
    "at_eps",
    "autoattack",
    "autoattack_members",
    "bim",
    "boundary",
    "carlini_wagner_l0",
    "carlini_wagner_l2",
    "carlini_wagner_linf",
    "deepfool",
    "every_target",
    "fab",
    "fab_targeted",
    "faces_all",
    "fgsm",
    "first_success",
    "flow",
    "flow_field",
    "flow_pgd",
    "flow_pgd_field",
    "fmn",
    "is_minimum_norm",
    "is_transfer",
    "jsma",
    "minimised_norm",
    "most_confusing",
    "on_alive",
    "pgd",
    "pgd_trace",
    "reparametrize",
    "rotation_translation",
    "salted",
    "second_order",
    "spatial_lower_bound",
    "square",
    "through",
    "transfer",
]
