"""Block mixing: a semidefinite program with unit diagonal, by alternating two products."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust.checks import check_count


class Mixing(NamedTuple):
    """A low-rank point of the program and the dual read off it.

    Attributes:
        left: `(m, k)` rows of norm 1, or 0 where A has a row of zeros.
        right: `(n, k)` likewise for the columns of A.
        value: `2 <A, left right'>`, the objective there: not above the optimum but for rounding.
        left_dual: `(m,)` row norms of `A right`.
        right_dual: `(n,)` row norms of `A' left`.
    """

    left: Float[Array, "m k"]
    right: Float[Array, "n k"]
    value: Float[Array, ""]
    left_dual: Float[Array, " m"]
    right_dual: Float[Array, " n"]


def mixing(matmul: Callable[[Array], Array], right: Float[Array, "n k"], num_steps: int) -> Mixing:
    """Maximise `<M, P>` over `P >= 0, diag(P) <= 1` for `M = [[0, A], [A', 0]]`.

    P is the Gram matrix of unit rows (Burer and Monteiro). As M is bipartite, all rows of one side
    are optimal given the other side: `left <- rows(A right)`, `right <- rows(A' left)`. Each sweep
    raises the objective; there is no step size. With `k >= sqrt(2 (m + n))` columns almost every
    instance has no spurious local maximum. At the optimum `diag(left_dual, right_dual) - M >= 0`
    and the duals sum to the value; before, `linalg.proved_upper` turns them into a bound.

    Args:
        matmul: The linear map `(n, k) -> (m, k)`, `right -> A right`; its transpose is derived.
        right: Where to start: random rows, or those of a nearby problem.
        num_steps: Sweeps, at least 1.

    Returns:
        The point after the sweeps. Differentiating it differentiates the sweeps; training
        differentiates `<M, P>` with P constant instead (the envelope theorem).

    References:
        Wang, Chang and Kolter, The mixing method, arXiv:1706.00476; Boumal, Voroninski and
        Bandeira, arXiv:1606.04970 (rank). The program is Eq. 10 of paper 003.

    >>> a = jnp.array([[1.0, -2.0], [0.0, 3.0]])
    >>> value = mixing(lambda v: a @ v, jnp.eye(2), 20).value
    >>> round(float(value), 4)  # twice the sum of the entries: signs can match them all
    12.0
    """
    check_count(num_steps, "num_steps")
    with jax.default_matmul_precision("highest"):
        return _mixed(matmul, right, num_steps)


def _mixed(matmul: Callable[[Array], Array], right: Array, num_steps: int) -> Mixing:
    transposed = jax.linear_transpose(matmul, right)

    def sweep(right: Array, _: None) -> tuple[Array, None]:
        left, _norms = _unit_rows(matmul(right))
        (product,) = transposed(left)
        return _unit_rows(product)[0], None

    right, _ = jax.lax.scan(sweep, _unit_rows(right)[0], None, length=num_steps)
    left, left_dual = _unit_rows(matmul(right))
    (product,) = transposed(left)
    right_dual = _unit_rows(product)[1]
    return Mixing(left, right, 2.0 * jnp.sum(left_dual), left_dual, right_dual)


def _unit_rows(matrix: Array) -> tuple[Array, Array]:
    """Rows over their norms, and the norms; rows of zeros stay."""
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(matrix), axis=1, initial=0.0))
    scale = jnp.where(largest > 0, largest, 1.0)[:, None]  # squares neither over- nor underflow
    scaled = matrix / scale
    squares = jnp.sum(scaled * scaled, axis=1)
    norms = jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)
    return scaled / jnp.where(norms > 0, norms, 1.0)[:, None], norms * scale[:, 0]
