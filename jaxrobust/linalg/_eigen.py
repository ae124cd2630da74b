"""The top eigenpair of a symmetric operator, with derivatives."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float

from jaxrobust.linalg._lanczos import symmetric, tridiagonalised
from jaxrobust.linalg._products import Product, inner, matmul, unit_of, where_needed

Pair = tuple[Array, Array, Array, Array]


class Eigenpair(NamedTuple):
    """An eigenvalue, its unit vector, and `||B vector - value vector||_2`."""

    value: Float[Array, ""]
    vector: Float[Array, " n"]
    residual: Float[Array, ""]


def top_eigenpair(
    matvec: Callable[[Array], Array], v0: Float[Array, " n"], *, num_steps: int, tol: float
) -> Eigenpair:
    """The largest eigenvalue of a symmetric operator and its unit vector, to be differentiated.

    Lanczos, and a dense eigendecomposition where its residual is too large. The value is the
    vector's Rayleigh quotient, so **it comes from below**; `proved_upper` proves an upper side.

    Derivatives reach all that `matvec` closes over: `dvalue = v'(dB)v`, and `(value I - B) dv =
    (I - vv')(dB)v` by conjugate gradients, only where the vector's is asked for. They are
    differentiable in turn; v0 and the residual are constants. All this is for a simple eigenvalue.
    At a multiple one the value's first derivative is still that of a subgradient; the vector has no
    derivative there, and what comes in its place is finite, large, and means nothing.

    Args:
        matvec: As in `lanczos`. It may close over anything.
        v0: As in `lanczos`: the last vector, where the operator has moved little.
        num_steps: Products to make; at most n are, and one more for the residual.
        tol: Largest residual to accept, relative to the largest Ritz value in modulus. Above it, or
            where it is not finite, the operator is made dense by n products; in a `vmap` this is
            done when some row needs it, and costs the others little. With `inf` no such code is
            compiled.

    Returns:
        The pair; the vector's sign is arbitrary.

    Raises:
        ValueError: As `lanczos`, or if tol is negative or NaN.

    References:
        Magnus, On differentiating eigenvalues and eigenvectors, Econometric Theory 1 (1985),
        Theorem 1; Overton, Large-scale optimization of eigenvalues, SIAM J. Optim. 2 (1992).

    >>> top = lambda c: top_eigenpair(lambda v: c * v, jnp.ones(3), num_steps=3, tol=1e-3).value
    >>> print(jax.grad(top)(jnp.array([1.0, 5.0, 2.0])).round(4))
    [0. 1. 0.]
    """
    if not tol >= 0.0:
        raise ValueError(f"tol must be at least 0; got {tol}")
    product, consts, start = symmetric(matvec, v0, num_steps)
    start = jax.lax.stop_gradient(start)
    return Eigenpair(*_eigenpair(product, num_steps, float(tol), consts, start)[:3])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _eigenpair(
    product: Product, num_steps: int, tol: float, consts: tuple[Array, ...], start: Array
) -> Pair:
    """Value, vector, residual, and the largest Ritz value in modulus."""
    form = tridiagonalised(functools.partial(product, consts), start, num_steps)
    tridiagonal = jnp.diag(form.diagonal) + jnp.diag(form.off_diagonal, 1)
    ritz, vectors = jnp.linalg.eigh(tridiagonal + jnp.diag(form.off_diagonal, -1))

    def measured(vector: Array, values: Array) -> Pair:
        vector = unit_of(vector)[0]
        image = product(consts, vector)
        value = inner(vector, image)
        return value, vector, unit_of(image - value * vector)[1], jnp.max(jnp.abs(values))

    def dense(needed: Array, _: Pair) -> Pair:
        # A row that needs nothing decomposes zero.
        unit = jnp.where(needed, jnp.eye(start.size, dtype=start.dtype), 0)
        values, vectors = jnp.linalg.eigh(jax.vmap(functools.partial(product, consts))(unit))
        return measured(vectors[:, -1], values)

    pair = measured(matmul(vectors[:, -1], form.basis), ritz)
    if math.isinf(tol):
        return pair
    return where_needed(~(pair[2] <= tol * pair[3]), dense, pair)


@_eigenpair.defjvp
def _eigenpair_jvp(
    product: Product, num_steps: int, tol: float, primals: Any, tangents: Any
) -> tuple[Pair, Pair]:
    consts, start = primals
    # The rule's own output, so that differentiating the rule comes here again.
    pair = _eigenpair(product, num_steps, tol, consts, start)
    value, vector, residual, scale = pair
    change = jax.jvp(lambda *c: product(c, vector), consts, tangents[0])[1]
    value_change = inner(vector, change)

    precision = jnp.finfo(start.dtype).eps
    size = jax.lax.stop_gradient(jnp.where(scale > 0, scale, 1))
    # Positive definite although the value comes from below; and no division by 0 at a tie.
    lift = jax.lax.stop_gradient(residual) + 16 * precision * size

    def deflated(x: Array) -> Array:
        along = inner(vector, x) * vector
        return (value + lift) * x - product(consts, x) + size * along

    def solve(operator: Callable[[Array], Array], right: Array) -> Array:
        x, _ = cg(operator, right, tol=4 * float(precision), maxiter=2 * start.size)
        return jnp.where(jnp.isfinite(x), x, 0)

    vector_change = jax.lax.custom_linear_solve(
        deflated, change - value_change * vector, solve, symmetric=True
    )
    constant = jnp.zeros_like(residual)
    return pair, (value_change, vector_change, constant, constant)
