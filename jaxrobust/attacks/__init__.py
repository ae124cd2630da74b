"""Attacks: `attack(logits_fn, x, y, *, key, ball, ...) -> x_adv`, pure, compiled and batched."""

from jaxrobust.attacks._apgd import apgd, apgd_targeted
from jaxrobust.attacks._autoattack import autoattack, autoattack_members
from jaxrobust.attacks._compose import at_eps, first_success, on_alive, salted, transfer
from jaxrobust.attacks._deepfool import deepfool
from jaxrobust.attacks._gradient import Trace, bim, fgsm, pgd, pgd_trace
from jaxrobust.attacks._minimum_norm import EveryTarget, against, every_target
from jaxrobust.attacks._second_order import second_order
from jaxrobust.attacks._square import square

__all__ = [
    "EveryTarget",
    "Trace",
    "against",
    "apgd",
    "apgd_targeted",
    "at_eps",
    "autoattack",
    "autoattack_members",
    "bim",
    "deepfool",
    "every_target",
    "fgsm",
    "first_success",
    "on_alive",
    "pgd",
    "pgd_trace",
    "salted",
    "second_order",
    "square",
    "transfer",
]
