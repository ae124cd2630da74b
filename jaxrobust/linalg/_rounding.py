"""The rounding model, and what it costs a sum: on the host, in float64.

Every operation is correctly rounded with unit roundoff `u = 2^-53` and gradual underflow; sums and
products may be taken in any order and fused.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

UNIT_ROUNDOFF = 2.0**-53
TINY = 2.0**-1000
"""Dwarfs what one operation can lose to underflow (2^-1074), and is dwarfed by anything else."""


def gamma(n: int) -> float:
    """`n u / (1 - n u)`, rounded upwards: the relative error of n roundings in a row.

    An inner product of n terms errs by at most `gamma(n)` times the inner product of the absolute
    values, in any order of summation.

    Args:
        n: Number of roundings, at least 0.

    Returns:
        The bound; `inf` where `n u >= 1` and nothing can be said.

    References:
        Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., Lemma 3.1, Eq. 3.5.

    >>> gamma(1000)
    1.110...e-13
    """
    relative = n * UNIT_ROUNDOFF
    # Both terms of the quotient are exact, so one rounding is left to make up for.
    return math.nextafter(relative / (1.0 - relative), math.inf) if relative < 1.0 else math.inf


def raised(value: Any, n: int) -> Any:
    """Upper side of a sum of products of nonnegative numbers that was computed in floating point.

    Without subtraction the computed value is at least `1 - gamma(n)` times the true one, and
    `1 / (1 - gamma(n)) <= 1 + gamma(2n)`; the extra 8 pays for the operations made here, and `TINY`
    for products that underflowed.

    Args:
        value: What was computed, at least 0: a number or an array.
        n: Most roundings that any term went through.

    >>> raised(1.0, 10) > 1.0
    True
    """
    return value * (1.0 + gamma(2 * n + 8)) + (n + 1) * TINY


def as_float64(value: Any, name: str) -> np.ndarray:
    """An array as float64 on the host, without loss.

    Args:
        value: NumPy or JAX array of a floating type of at most 8 bytes.
        name: What to call it in the error.

    Raises:
        ValueError: For a traced array, or any other type.

    >>> as_float64(jnp.ones(2), "x").dtype
    dtype('float64')
    """
    if isinstance(value, Tracer):
        raise ValueError(
            f"{name} is traced (jit, vmap, grad), but this runs on the host in float64: call it "
            "outside the transformation, with concrete arrays"
        )
    array = np.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize > 8:
        raise ValueError(
            f"{name} must be an array of float64 or a narrower floating type; got {array.dtype}"
        )
    return array.astype(np.float64)
