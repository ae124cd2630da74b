"""Training methods as `Objective`s: pairs of pure functions that add up."""

from jaxrobust.objectives._base import (
    Forward,
    add,
    from_loss,
    from_module,
    from_stateful_module,
    scale,
)
from jaxrobust.objectives._bilateral import bilateral
from jaxrobust.objectives._cross_lipschitz import cross_lipschitz
from jaxrobust.objectives._distillation import distillation
from jaxrobust.objectives._free import free
from jaxrobust.objectives._input_gradient import input_gradient
from jaxrobust.objectives._jacobian import jacobian
from jaxrobust.objectives._labels import adversarial_labels, smoothed_labels
from jaxrobust.objectives._lp import lp_robust
from jaxrobust.objectives._madry import madry
from jaxrobust.objectives._mma import mma
from jaxrobust.objectives._noise import gaussian_augmentation
from jaxrobust.objectives._norms import frobenius_norm, spectral_norm
from jaxrobust.objectives._pair_solvers import PairSolver, lanczos_dual, warm_mixing
from jaxrobust.objectives._pdm import pdm
from jaxrobust.objectives._reduce_variance import reduce_variance
from jaxrobust.objectives._reverse_cross_entropy import reverse_cross_entropy
from jaxrobust.objectives._scheduled import scheduled
from jaxrobust.objectives._sdp import sdp_regularized, sdp_robust
from jaxrobust.objectives._siamese import siamese
from jaxrobust.objectives._smooth_adv import smooth_adv
from jaxrobust.objectives._spatial import flow_adversarial, spatial_sdp
from jaxrobust.objectives._split import Stem, from_split_module
from jaxrobust.objectives._stability import stability
from jaxrobust.objectives._standard import cross_entropy, hinge
from jaxrobust.objectives._steady_state import steady_state
from jaxrobust.objectives._trades import trades
from jaxrobust.objectives._yopo import yopo

__all__ = [
    "Forward",
    "PairSolver",
    "Stem",
    "add",
    "adversarial_labels",
    "bilateral",
    "cross_entropy",
    "cross_lipschitz",
    "distillation",
    "flow_adversarial",
    "free",
    "frobenius_norm",
    "from_loss",
    "from_module",
    "from_split_module",
    "from_stateful_module",
    "gaussian_augmentation",
    "hinge",
    "input_gradient",
    "jacobian",
    "lanczos_dual",
    "lp_robust",
    "madry",
    "mma",
    "pdm",
    "reduce_variance",
    "reverse_cross_entropy",
    "scale",
    "scheduled",
    "sdp_regularized",
    "sdp_robust",
    "siamese",
    "smooth_adv",
    "smoothed_labels",
    "spatial_sdp",
    "spectral_norm",
    "stability",
    "steady_state",
    "trades",
    "warm_mixing",
    "yopo",
]
