"""Certificates: `X(layers, x, y, *, eps, ...) -> MarginBound`, proved, on the host in float64."""

from jaxrobust.certify._common import on_layers
from jaxrobust.certify._interval import interval
from jaxrobust.certify._lipschitz import frobenius, spectral
from jaxrobust.certify._lp import lp
from jaxrobust.certify._lp_margins import lp_margins
from jaxrobust.certify._pairs import (
    TwoLayers,
    class_pairs,
    pair_matmul,
    pair_matvec,
    pair_numbers,
    two_layers,
)
from jaxrobust.certify._sdp import SdpConstants, load_sdp_constants, sdp, sdp_constants
from jaxrobust.certify._sdp_cvxpy import sdp_cvxpy

__all__ = [
    "SdpConstants",
    "TwoLayers",
    "class_pairs",
    "frobenius",
    "interval",
    "load_sdp_constants",
    "lp",
    "lp_margins",
    "on_layers",
    "pair_matmul",
    "pair_matvec",
    "pair_numbers",
    "sdp",
    "sdp_constants",
    "sdp_cvxpy",
    "spectral",
    "two_layers",
]
