"""Numerical linear algebra: eigenpairs that differentiate, block mixing, proved upper sides."""

from jaxrobust.linalg._proved import (
    as_float64,
    frobenius_upper,
    gamma,
    raised,
    sigma_max_upper,
)

__all__ = ["as_float64", "frobenius_upper", "gamma", "raised", "sigma_max_upper"]
