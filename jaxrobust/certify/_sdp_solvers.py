"""Solvers of a pair's program: block mixing, and an interior-point method on the dual."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrobust import linalg
from jaxrobust.certify._pairs import TwoLayers, pair_matmul
from jaxrobust.certify._sdp_proof import lower, pair_matrix, scaled_upper

AT_ONCE = 9
"""Pairs that one compiled program mixes together: a class's row of ten, whose factors stay in the
cache; all 45 at once were no faster, and pairs that are done drop out."""

SWEEPS, ROUNDS = 300, 64
"""Sweeps between two looks at the gap; and looks, after which a pair keeps the gap it has."""


class Solved(NamedTuple):
    """One pair.

    Attributes:
        left: Duals `(1 + hidden,)`.
        right: Duals `(inputs,)`.
        lower: `<M, P>` at a feasible P.
        upper: Proved, above every `<M, P>` but for the rounding of M.
    """

    left: np.ndarray
    right: np.ndarray
    lower: float
    upper: float

    def within(self, tol: float) -> bool:
        """Whether the bound exceeds the optimum by at most `tol`, relatively."""
        return self.upper < np.inf and self.upper - self.lower <= tol * self.upper


def by_mixing(network: TwoLayers, pairs: list[tuple[int, int]], tol: float) -> list[Solved]:
    """Block mixing in rounds, until each pair's proved gap is at most `tol` or rounds run out.

    Runs on the default device in JAX's default float, on weights scaled to at most 1. It starts at
    a fixed random draw: the bound holds wherever it starts.
    """
    columns = int(np.ceil(np.sqrt(2 * (1 + sum(network.kernel.shape)))))  # holds any optimum
    scale = _largest(network.kernel)
    kernel = jnp.asarray(network.kernel / scale)
    draw = jax.random.normal(jax.random.key(0), (len(kernel), columns), kernel.dtype)
    rights = [draw] * len(pairs)
    solved: list[Solved] = [Solved(np.empty(0), np.empty(0), -np.inf, np.inf)] * len(pairs)
    for turn in range(ROUNDS):
        wanted = [n for n, pair in enumerate(solved) if not pair.within(tol)]
        for first in range(0, len(wanted), AT_ONCE):
            chunk = wanted[first : first + AT_ONCE]
            rows = chunk + chunk[:1] * (AT_ONCE - len(chunk))
            i, j = np.array([pairs[n] for n in rows]).T
            v = (network.last[:, i] - network.last[:, j]).T
            sizes = np.array([_largest(row) for row in v])
            start = jnp.stack([rights[n] for n in rows])
            point = _mix(kernel, jnp.asarray(v / sizes[:, None]), start, network.slopes)
            left, right = np.asarray(point.left), np.asarray(point.right)
            duals = [np.asarray(side, np.float64) for side in (point.left_dual, point.right_dual)]
            for k, n in enumerate(chunk):
                rights[n] = point.right[k]
                matrix, _ = pair_matrix(network, *pairs[n])
                p, q = (side[k] * (scale * sizes[k]) for side in duals)
                found = Solved(p, q, lower(matrix, left[k], right[k]), scaled_upper(matrix, p, q))
                if not found.upper >= solved[n].upper:
                    solved[n] = found
        if turn == 0 and not any(np.isfinite(pair.upper) for pair in solved):
            break  # nothing to hope for: the matrices overflow
    return solved


def by_interior_point(matrix: Float[np.ndarray, "m n"], tol: float) -> Solved:
    """Minimise the sum of c subject to `diag(c) - M >= 0`: the dual, Eq. 14 of paper 003.

    Newton's method on `sum(c) - mu log det(diag(c) - M)` for falling mu, in float64 on the host:
    one inverse and one solve of size `D = m + n` a step. At the minimum of Eq. 14 its eigenvalue
    term is zero, so this is the same program; SeDuMi solved it by an interior-point method too.

    Args:
        matrix: A.
        tol: Relative gap to stop at.

    Returns:
        Duals, proved value and the primal value of the scaled inverse.

    References: Benson, Ye and Zhang, Solving large-scale sparse semidefinite programs, SIAM J.
        Optim. 10 (2000).
    """
    rows, columns = matrix.any(axis=1), matrix.any(axis=0)
    left, right = np.zeros(len(matrix)), np.zeros(matrix.shape[1])
    inner = matrix[rows][:, columns]
    if not np.isfinite(inner).all():  # weights so large that their products overflow
        return Solved(left, right, -np.inf, np.inf)
    if inner.size == 0:
        return Solved(left, right, 0.0, 0.0)
    scale = _largest(inner)
    duals, value = _central_path(inner / scale, tol)
    left[rows], right[columns] = scale * duals[: rows.sum()], scale * duals[rows.sum() :]
    return Solved(left, right, scale * value, scaled_upper(matrix, left, right))


def _central_path(a: np.ndarray, tol: float) -> tuple[np.ndarray, float]:
    """Duals near the end of the central path, and the objective of a feasible P."""
    m, n = a.shape
    total = m + n
    negative = np.zeros((total, total))
    negative[:m, m:], negative[m:, :m] = -a, -a.T
    c = np.full(total, 1.1 * np.linalg.norm(a, 2) + 1e-300)
    mu = c.sum() / total
    value = -np.inf
    for _ in range(200):
        try:
            inverse = np.linalg.inv(negative + np.diag(c))
        except np.linalg.LinAlgError:
            break
        if not (np.diag(inverse) > 0).all():  # at float64's end: what came before it stands
            break
        spread = np.sqrt(np.diag(inverse))
        value = max(value, -float(np.sum(negative * inverse / np.outer(spread, spread))))
        if c.sum() - value <= 0.5 * tol * c.sum():
            break
        gradient = 1.0 - mu * np.diag(inverse)
        try:
            step = -np.linalg.solve(mu * inverse * inverse, gradient)
        except np.linalg.LinAlgError:
            break
        decrement = np.sqrt(max(-gradient @ step / mu, 0.0))
        moved = c + step / (1.0 + decrement if decrement > 0.25 else 1.0)
        if not (np.isfinite(moved).all() and (moved > 0).all()):
            break
        c = moved
        if decrement < 0.5:
            mu *= 0.2
    return c, value


@functools.partial(jax.jit, static_argnames="slopes")
def _mix(kernel: Array, v: Array, start: Array, slopes: tuple[float, float]) -> linalg.Mixing:
    def one(v: Array, right: Array) -> linalg.Mixing:
        return linalg.mixing(pair_matmul(kernel, v, slopes), right, SWEEPS)

    return jax.vmap(one)(v, start)


def _largest(array: np.ndarray) -> float:
    """The largest absolute value, or 1 where that is no scale."""
    largest = float(np.max(np.abs(array), initial=0.0))
    return largest if 0.0 < largest < np.inf else 1.0
