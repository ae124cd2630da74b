"""Certificates: `X(layers, x, y, *, eps, ...) -> MarginBound`, proved, on the host in float64.

`smoothing(logits_fn, x, *, key, sigma, ...) -> SmoothedRadius` certifies any model, with high
probability: another kind of claim, and another type.
"""

from jaxrobust.certify._adapters import on_layers, on_model
from jaxrobust.certify._interval import interval
from jaxrobust.certify._lipschitz import frobenius, spectral
from jaxrobust.certify._lp import lp
from jaxrobust.certify._lp_margins import lp_margins
from jaxrobust.certify._pairs import (
    TwoLayers,
    class_pairs,
    pair_halves,
    pair_matmul,
    pair_matvec,
    pair_numbers,
    two_layers,
)
from jaxrobust.certify._radii import cohen_radius, pixeldp_radius, renyi_radius
from jaxrobust.certify._sdp import sdp
from jaxrobust.certify._sdp_constants import SdpConstants, load_sdp_constants, sdp_constants
from jaxrobust.certify._sdp_cvxpy import sdp_cvxpy
from jaxrobust.certify._smoothing import smoothed_predict, smoothing
from jaxrobust.certify._spatial import spatial
from jaxrobust.certify._spatial_constants import spatial_constants, spatial_layers
from jaxrobust.certify._votes import smoothed_radius

__all__ = [
    "SdpConstants",
    "TwoLayers",
    "class_pairs",
    "cohen_radius",
    "frobenius",
    "interval",
    "load_sdp_constants",
    "lp",
    "lp_margins",
    "on_layers",
    "on_model",
    "pair_halves",
    "pair_matmul",
    "pair_matvec",
    "pair_numbers",
    "pixeldp_radius",
    "renyi_radius",
    "sdp",
    "sdp_constants",
    "sdp_cvxpy",
    "smoothed_predict",
    "smoothed_radius",
    "smoothing",
    "spatial",
    "spatial_constants",
    "spatial_layers",
    "spectral",
    "two_layers",
]
