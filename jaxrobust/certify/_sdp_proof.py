"""From duals, however bad, to a proved upper side of a pair's program, in float64 on the host."""

from __future__ import annotations

import math

import numpy as np

from jaxrobust.certify._pairs import TwoLayers
from jaxrobust.linalg import frobenius_upper, gamma, proved_upper, raised

_FLOOR = 2.0**-40
"""Least dual of a side relative to about its largest: any positive dual is valid, zero is not."""


def pair_matrix(network: TwoLayers, i: int, j: int) -> tuple[np.ndarray, float]:
    """The matrix A of a pair as computed, and how much more its true optimum can be.

    Every entry of A carries an error of at most `gamma_n` times the sum of the absolute values of
    what it adds up, and entry kl meets a number in [-1, 1] in each half of `<M, P>`: the optimum
    errs by at most twice the sum of all entries' errors.

    Args:
        network: In float64.
        i: A class.
        j: Another.

    Returns:
        `(1 + hidden, inputs)` and the error of `max <M, P>` from forming it.
    """
    low, high = network.slopes
    v = network.last[:, i] - network.last[:, j]
    products = v[:, None] * network.kernel.T
    matrix = np.vstack([(low + high) * products.sum(0), (high - low) * products])
    # In the first row: a difference, a product, `hidden` sums, a sum of slopes and its product.
    size = (low + high + (high - low)) * np.abs(products).sum()
    error = 2.0 * raised(gamma(len(v) + 6) * size, products.size + 8)
    return matrix, float(error)


def scaled_upper(matrix: np.ndarray, left: np.ndarray, right: np.ndarray) -> float:
    """Upper side of `max <M, P>` over `P >= 0, diag P <= 1` from duals of both sides.

    For any p, q > 0 let `s = sigma_max(p^-1/2 A q^-1/2)`. Then `2 x'Ay <= 2 s |p^1/2 x| |q^1/2 y|`,
    so `M <= s diag(a p, q / a)` for every a > 0, and `<M, P> <= s (a sum p + sum q / a)`, which is
    `2 s sqrt(sum p sum q)` at the best a.

    The code chooses `r = 1 / sqrt(p)` in float64 and means the p that r stands for, so the square
    root's rounding costs nothing; the scaled matrix is off by two roundings an entry.

    Args:
        matrix: A. Rows and columns of zeros have no part in it, nor have their duals.
        left: p, `(rows,)`. Numbers below `2^-40` of the largest are raised to that.
        right: q, `(columns,)`, likewise.

    Returns:
        The bound; `inf` where the duals are not finite or nothing can be proved.
    """
    rows, columns = matrix.any(axis=1), matrix.any(axis=0)
    matrix = matrix[rows][:, columns]
    if matrix.size == 0:
        return 0.0
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return math.inf
    r, sum_p = _scaling(left[rows])
    s, sum_q = _scaling(right[columns])
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = matrix * r[:, None] * s
        error = gamma(4) * frobenius_upper(scaled)
        sigma = raised(proved_upper(scaled) + error, 4)
        bound = 2.0 * sigma * math.sqrt(sum_p) * math.sqrt(sum_q)
    return float(raised(bound, 8)) if math.isfinite(bound) else math.inf


def shifted_upper(matrix: np.ndarray, left: np.ndarray, right: np.ndarray) -> float:
    """The paper's: `D lambda_max^+(M - diag c) + sum max(c, 0)` at `c = (left, right)`.

    Args:
        matrix: A.
        left: First part of c, any real numbers.
        right: Second part.

    Returns:
        The bound; `inf` where the duals are not finite or nothing can be proved.

    References: paper 003, Eq. 14 and 16.
    """
    c = np.concatenate([left, right])
    if not np.isfinite(c).all():
        return math.inf
    rows, total = len(left), len(c)
    shifted = np.zeros((total, total))
    shifted[:rows, rows:] = matrix
    shifted[rows:, :rows] = matrix.T
    shifted[np.arange(total), np.arange(total)] = -c
    top = max(proved_upper(shifted, "lambda_max"), 0.0)
    bound = total * top + np.maximum(c, 0.0).sum()
    return float(raised(bound, total + 4)) if math.isfinite(bound) else math.inf


def lower(matrix: np.ndarray, left: np.ndarray, right: np.ndarray) -> float:
    """`2 <A, left right'>` for rows scaled to norm 1: a value that the optimum is not below.

    Float64, but for rounding: it only says how far the bound can be from the optimum.
    """
    left, right = (
        side / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 2.0**-500)
        for side in (np.float64(left), np.float64(right))
    )
    return 2.0 * float(np.vdot(left, matrix @ right))


def _scaling(duals: np.ndarray) -> tuple[np.ndarray, float]:
    """`r = 1 / sqrt(p)` with p raised to the floor, and the sum of `1 / r^2` from above."""
    largest = duals.max()
    if largest <= 0:
        duals, largest = np.ones_like(duals), 1.0
    # Only proportions matter: the largest comes to lie in [1/2, 1).
    p = np.maximum(np.ldexp(duals, -math.frexp(largest)[1]), _FLOOR)
    r = 1.0 / np.sqrt(p)
    return r, float(raised(np.sum(1.0 / (r * r)), len(r) + 4))
