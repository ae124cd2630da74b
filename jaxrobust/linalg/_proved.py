"""Numerical linear algebra: proved upper sides, on the host in float64.

The rounding model is the usual one: every operation is correctly rounded with unit roundoff
`u = 2^-53` and gradual underflow; sums and products may be taken in any order and fused.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

UNIT_ROUNDOFF = 2.0**-53
TINY = 2.0**-1000
"""Dwarfs what one operation can lose to underflow (2^-1074), and is dwarfed by anything else."""

_ATTEMPTS = 8


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


def frobenius_upper(matrix: Float[Array, "*dims"] | Float[np.ndarray, "*dims"]) -> float:
    """Proved upper side of the root of the sum of squares; `inf` for non-finite input.

    Args:
        matrix: Any shape.

    Returns:
        The norm, rounded upwards (relative excess about `2^-53 * size`).

    >>> frobenius_upper(np.array([[3.0, 4.0]]))
    5.00000000000000...
    """
    scaled, exponent = _scaled(as_float64(matrix, "matrix"))
    return _unscaled(_squares_upper(scaled), exponent)


def sigma_max_upper(matrix: Float[Array, "m n"] | Float[np.ndarray, "m n"]) -> float:
    """Proved upper side of the largest singular value.

    Theorem. Let G be the k x k Gram matrix `W W'` (k the smaller side, m the larger one) as
    computed, and A the computed `mu I - G`, of which only one triangle is read. If the float64
    Cholesky factorisation of A runs to its end, then

        sigma_max(W)^2 <= mu + u max_i a_ii + c trace(A) + gamma_m ||W||_F^2,
        c = gamma_j / (1 - gamma_j), j = k + 1.

    Proof. The computed factor satisfies `R'R = A + dA` with `|dA_ij| <= c sqrt(a_ii a_jj)`, so
    `||dA||_2 <= c trace(A)` and `A >= -c trace(A) I`, since `R'R >= 0`. A differs from `mu I - G`
    on its diagonal only, by at most `u a_ii`. Forming G errs by at most `gamma_m ||w_i|| ||w_j||`
    in entry ij, a rank-one matrix of norm `gamma_m ||W||_F^2`. Add the three. QED.

    The code takes j = 2k + 16: LAPACK kernels that multiply by a reciprocal round once more. W is
    scaled by a power of two first, so that nothing overflows and underflow is below `TINY`.

    Args:
        matrix: W, of any shape and scale.

    Returns:
        A number that is not below the largest singular value; its relative excess is at most about
        `k (k + m) u` (7e-11 at 784 x 500). The Frobenius norm, rounded upwards, where that is
        smaller or no factorisation succeeds; `inf` for non-finite input.

    Raises:
        ValueError: If the matrix is traced, not floating point, or not of two dimensions.

    References:
        Rump, Verification of positive definiteness, BIT 46 (2006), Theorem 2.3; Demmel, On
        floating point errors in Cholesky, LAPACK Working Note 14 (1989); Higham, Theorem 10.3.

    >>> sigma_max_upper(np.diag([3.0, -4.0]))
    4.00000000000...
    """
    w, exponent = _scaled(as_float64(matrix, "matrix"))
    if w.ndim != 2:
        raise ValueError(f"matrix must have two dimensions; got shape {w.shape}")
    squares = _squares_upper(w)
    if not 0.0 < squares < math.inf:
        return _unscaled(squares, exponent)
    if w.shape[0] > w.shape[1]:
        w = w.T
    side, length = w.shape
    gram = w @ w.T
    lost = gamma(length) * squares
    return _unscaled(min(squares, raised(_lambda_max_upper(gram) + lost, side + 2)), exponent)


def _lambda_max_upper(gram: np.ndarray) -> float:
    """Largest eigenvalue of a symmetric matrix (lower triangle) from above; `inf` on failure."""
    side = gram.shape[0]
    diagonal = np.diag(gram)
    factor_error = gamma(2 * side + 16) / (1.0 - gamma(2 * side + 16))
    try:
        top = np.linalg.eigvalsh(gram)[-1]
    except np.linalg.LinAlgError:
        return math.inf
    candidate = float(np.maximum(top, diagonal.max()))
    slack = 16.0 * side * UNIT_ROUNDOFF * candidate
    for _ in range(_ATTEMPTS):
        mu = candidate + slack
        shifted = -gram
        np.fill_diagonal(shifted, mu - diagonal)
        if _cholesky_runs(shifted):
            kept = np.diag(shifted)
            error = UNIT_ROUNDOFF * kept.max() + factor_error * raised(kept.sum(), side)
            return float(raised(mu + error, 4))
        slack *= 8.0
    return math.inf


def _cholesky_runs(matrix: np.ndarray) -> bool:
    """Whether the factorisation ends with finite entries and positive pivots."""
    try:
        factor = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return False
    # Not every LAPACK stops at a NaN pivot.
    return bool(np.isfinite(factor).all() and (np.diag(factor) > 0).all())


def _scaled(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    """The matrix over a power of two, so that its largest entry lies in [1/2, 1)."""
    largest = float(np.max(np.abs(matrix), initial=0.0))  # NaN if any entry is
    if not math.isfinite(largest):
        return matrix, 0
    exponent = math.frexp(largest)[1]
    return np.ldexp(matrix, -exponent), exponent


def _squares_upper(matrix: np.ndarray) -> float:
    """Sum of squares from above: 0 for a matrix of zeros, `inf` for a non-finite one."""
    if not np.isfinite(matrix).all():
        return math.inf
    if not matrix.any():
        return 0.0
    return float(raised(np.vdot(matrix, matrix), matrix.size))


def _unscaled(square: float, exponent: int) -> float:
    """Root of a square, times the power of two, rounded upwards."""
    if square == 0.0 or not math.isfinite(square):
        return square
    root = math.nextafter(math.sqrt(square), math.inf)
    try:
        return math.nextafter(math.ldexp(root, exponent), math.inf)
    except OverflowError:
        return math.inf
