"""Numerical linear algebra: eigenpairs that differentiate, block mixing, proved upper sides."""

from jaxrobust.linalg._eigen import Eigenpair, top_eigenpair
from jaxrobust.linalg._lanczos import Lanczos, lanczos
from jaxrobust.linalg._mixing import Mixing, mixing
from jaxrobust.linalg._proved import frobenius_upper, proved_upper
from jaxrobust.linalg._rounding import as_float64, gamma, raised
from jaxrobust.linalg._singular import Singular, power_iteration

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
