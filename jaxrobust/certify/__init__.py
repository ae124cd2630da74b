"""Certificates: `X(layers, x, y, *, eps, ...) -> MarginBound`, proved, on the host in float64."""

from jaxrobust.certify._common import on_layers
from jaxrobust.certify._interval import interval
from jaxrobust.certify._lipschitz import frobenius, spectral
from jaxrobust.certify._lp import lp
from jaxrobust.certify._lp_margins import lp_margins

__all__ = ["frobenius", "interval", "lp", "lp_margins", "on_layers", "spectral"]
