"""Numerical linear algebra: eigenpairs that differentiate, block mixing, proved upper sides."""

from jaxrobust.linalg._eigen import (
    Eigenpair,
    Lanczos,
    Singular,
    lanczos,
    power_iteration,
    top_eigenpair,
)
from jaxrobust.linalg._mixing import Mixing, mixing
from jaxrobust.linalg._proved import as_float64, frobenius_upper, gamma, proved_upper, raised

__all__ = [
    "Eigenpair",
    "Lanczos",
    "Mixing",
    "Singular",
    "as_float64",
    "frobenius_upper",
    "gamma",
    "lanczos",
    "mixing",
    "power_iteration",
    "proved_upper",
    "raised",
    "top_eigenpair",
]
