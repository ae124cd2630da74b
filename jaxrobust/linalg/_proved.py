"""Proved upper sides of norms and eigenvalues, on the host in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from jaxtyping import Array, Float

from jaxrobust.linalg._rounding import UNIT_ROUNDOFF, as_float64, gamma, raised

_ATTEMPTS = 8


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
    return _times_power(_root(_squares_upper(scaled)), exponent)


def proved_upper(
    matrix: Float[Array, "m n"] | Float[np.ndarray, "m n"],
    value: Literal["sigma_max", "lambda_max"] = "sigma_max",
    *,
    method: Literal["cholesky", "eigh"] = "cholesky",
) -> float:
    """Proved upper side of a largest singular value or a largest eigenvalue.

    Both methods bound `lambda_max(A)` of a symmetric A of side k, and neither believes in how
    LAPACK came by its result. An `eigvalsh` with a margin would: what LAPACK documents about its
    error has a constant that is nowhere proved.

    "cholesky". Let S be the computed `mu I - A`, for any mu. If its float64 Cholesky factorisation
    runs to its end, then

        lambda_max(A) <= mu + u max_i s_ii + c trace(S),  c = gamma_j / (1 - gamma_j), j = k + 1.

    Proof. The computed factor satisfies `R'R = S + dS` with `|dS_ij| <= c sqrt(s_ii s_jj)`, so
    `||dS||_2 <= c trace(S)` and `S >= -c trace(S) I`, since `R'R >= 0`. S differs from `mu I - A`
    on its diagonal only, by at most `u s_ii`. QED. The code takes j = 2k + 16: LAPACK kernels that
    multiply by a reciprocal round once more.

    "eigh". For any V of k columns and any numbers l let `F = V'V - I`, `H = V'AV - diag(l)`. If
    `f >= ||F||_2` is below 1 and `t >= max l + ||H||_2`, then

        lambda_max(A) <= t / (1 - f) where t >= 0, and t / (1 + f) where t < 0.

    Proof. V'V > 0, so every x is V y, `x'Ax = y'(diag(l) + H)y <= t y'y`, and
    `(1 - f) y'y <= x'x <= (1 + f) y'y`. QED. Both norms are taken as Frobenius norms of what is
    computed, P of V'V and V'C of C = AV, plus the rounding, at most `gamma_k ||V||_F^2` and
    `gamma_k ||V||_F (||C||_F + ||V||_2 ||A||_F)`.

    For `sigma_max(W)` A is the computed Gram matrix `W W'` (k the smaller side, m the larger one).
    Forming it errs by at most `gamma_m ||w_i|| ||w_j||` in entry ij, by a norm of `gamma_m
    ||W||_F^2` in all, which is added to the bound of the square.

    The matrix is scaled by a power of two first, so that nothing overflows and underflow is below
    `TINY`.

    Args:
        matrix: Of any scale; for "lambda_max" square and exactly symmetric.
        value: "sigma_max" or "lambda_max".
        method: "cholesky", or "eigh", which takes a few times as long.

    Returns:
        A number that is not below the value. It exceeds it by about `k (k + m) u ||matrix||_2`
        (7e-11 of the norm at 784 x 500). The Frobenius norm, rounded upwards, where that is smaller
        or nothing is proved; `inf` for non-finite input.

    Raises:
        ValueError: If the matrix is traced, not floating point, not of two dimensions, or for
            "lambda_max" empty, not square or not symmetric; for another value or method.

    References:
        Rump, Verification of positive definiteness, BIT 46 (2006), Theorem 2.3; Demmel, On
        floating point errors in Cholesky, LAPACK Working Note 14 (1989); Higham, Theorem 10.3.

    >>> proved_upper(np.diag([3.0, -4.0]))
    4.00000000000...
    >>> proved_upper(np.diag([-3.0, -4.0]), "lambda_max", method="eigh")
    -2.99999999999...
    """
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}; got {method!r}")
    if value not in ("sigma_max", "lambda_max"):
        raise ValueError(f"value must be one of sigma_max, lambda_max; got {value!r}")
    a = as_float64(matrix, "matrix")
    if a.ndim != 2:
        raise ValueError(f"matrix must have two dimensions; got shape {a.shape}")
    if value == "lambda_max" and (a.shape[0] != a.shape[1] or a.size == 0):
        raise ValueError(f"matrix must be square for lambda_max, and not empty; got {a.shape}")
    finite = bool(np.isfinite(a).all())
    if value == "lambda_max" and finite and not np.array_equal(a, a.T):
        raise ValueError("matrix must be exactly symmetric for lambda_max; pass (A + A.T) / 2")
    a, exponent = _scaled(a)
    squares = _squares_upper(a)
    if not 0.0 < squares < math.inf:
        return squares
    upper_of = _METHODS[method]
    if value == "lambda_max":
        return _times_power(min(upper_of(a), _root(squares)), exponent)
    if a.shape[0] > a.shape[1]:
        a = a.T
    side, length = a.shape
    gram = np.tril(a @ a.T)
    gram += np.tril(gram, -1).T
    square = max(upper_of(gram), 0.0) + gamma(length) * squares
    return _times_power(_root(min(squares, float(raised(square, side + 2)))), exponent)


def _by_cholesky(a: np.ndarray) -> float:
    """Largest eigenvalue of a symmetric matrix from above; `inf` on failure."""
    side = a.shape[0]
    diagonal = np.diag(a)
    factor_error = gamma(2 * side + 16) / (1.0 - gamma(2 * side + 16))
    try:
        values = np.linalg.eigvalsh(a)
    except np.linalg.LinAlgError:
        return math.inf
    candidate = float(np.maximum(values[-1], diagonal.max()))
    slack = 16.0 * side * UNIT_ROUNDOFF * float(np.abs(values).max())
    for _ in range(_ATTEMPTS):
        mu = candidate + slack
        shifted = -a
        np.fill_diagonal(shifted, mu - diagonal)
        if _cholesky_runs(shifted):
            kept = np.diag(shifted)
            error = UNIT_ROUNDOFF * kept.max() + factor_error * raised(kept.sum(), side)
            return math.nextafter(mu + float(raised(error, 4)), math.inf)
        slack *= 8.0
    return math.inf


def _by_eigh(a: np.ndarray) -> float:
    """Likewise, from eigenvectors, however good; `inf` where they prove nothing."""
    side = a.shape[0]
    try:
        values, v = np.linalg.eigh(a)
    except np.linalg.LinAlgError:
        return math.inf
    # Vectors that are none may overflow; then what follows is not finite and nothing is proved.
    with np.errstate(over="ignore", invalid="ignore"):
        image = a @ v
        norm_a, norm_v, norm_image = (_frobenius(x) for x in (a, v, image))
        f = _frobenius(v.T @ v - np.eye(side)) + gamma(side) * norm_v * norm_v
        f = float(raised(f, 8))  # its differences are off by u times themselves, as are h's
        if not f < 1.0:
            return math.inf
        h = _frobenius(v.T @ image - np.diag(values))
        h += gamma(side) * norm_v * (norm_image + (1.0 + f) * norm_a)
        t = math.nextafter(float(values.max()) + float(raised(h, 8)), math.inf)
    stretch = math.nextafter(1.0 - f, 0.0) if t >= 0.0 else math.nextafter(1.0 + f, 2.0)
    upper = math.nextafter(t / stretch, math.inf)
    return math.inf if math.isnan(upper) else upper


_METHODS: dict[str, Callable[[np.ndarray], float]] = {"cholesky": _by_cholesky, "eigh": _by_eigh}


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


def _frobenius(matrix: np.ndarray) -> float:
    return _root(_squares_upper(matrix))


def _root(square: float) -> float:
    """Rounded upwards; 0 of 0."""
    return math.nextafter(math.sqrt(square), math.inf) if square > 0.0 else square


def _times_power(number: float, exponent: int) -> float:
    """A number times a power of two, rounded upwards; 0 and `inf` stay as they are."""
    if number == 0.0 or not math.isfinite(number):
        return number
    try:
        return math.nextafter(math.ldexp(number, exponent), math.inf)
    except OverflowError:
        return math.inf
