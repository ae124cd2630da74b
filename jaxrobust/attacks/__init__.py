"""Attacks: `attack(logits_fn, x, y, *, key, ball, ...) -> x_adv`, pure, compiled and batched."""

from jaxrobust.attacks._boundary import boundary
from jaxrobust.attacks._compose import at_eps, first_success, on_alive, salted, transfer
from jaxrobust.attacks._deepfool import deepfool
from jaxrobust.attacks._gradient import Trace, bim, fgsm, pgd, pgd_trace
from jaxrobust.attacks._jsma import jsma
from jaxrobust.attacks._minimum_norm import EveryTarget, against, every_target
from jaxrobust.attacks._second_order import second_order

__all__ = [
    "EveryTarget",
    "Trace",
    "against",
    "at_eps",
    "bim",
    "boundary",
    "deepfool",
    "every_target",
    "fgsm",
    "first_success",
    "jsma",
    "on_alive",
    "pgd",
    "pgd_trace",
    "salted",
    "second_order",
    "transfer",
]
