"""Certificates: `X(layers, x, y, *, eps, ...) -> MarginBound`, proved, on the host in float64."""

from jaxrobust.certify._common import on_layers
from jaxrobust.certify._interval import interval
from jaxrobust.certify._lipschitz import frobenius, spectral

__all__ = ["frobenius", "interval", "on_layers", "spectral"]
