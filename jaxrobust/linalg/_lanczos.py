"""Lanczos' tridiagonal form of a symmetric operator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust.linalg._products import (
    Product,
    closed_over,
    inner,
    matmul,
    started,
    unit_of,
    where_needed,
)


class Lanczos(NamedTuple):
    """`B basis' = basis' T`, up to a remainder in the last column.

    Args:
        diagonal: Of the tridiagonal matrix T.
        off_diagonal: Of T, at least 0.
        basis: Orthonormal rows.
        remainder: Norm of the remainder: the Ritz pair that a unit eigenvector s of T stands for
            has the residual `remainder * abs(s[-1])`.
    """

    diagonal: Float[Array, " steps"]
    off_diagonal: Float[Array, " steps-1"]
    basis: Float[Array, "steps n"]
    remainder: Float[Array, ""]


def lanczos(matvec: Callable[[Array], Array], v0: Float[Array, " n"], num_steps: int) -> Lanczos:
    """Tridiagonal form of a symmetric operator on a Krylov space.

    Each new vector is orthogonalised twice against all earlier ones. Where the second pass halves
    it once more, it was rounding and the space is invariant: the off-diagonal entry is 0, and the
    next vector is what the basis leaves of the coordinate that it covers least, which is never
    nothing. So T is always a compression of the operator, and its eigenvalues exceed the
    operator's largest by rounding at most.

    Args:
        matvec: Symmetric linear map of vectors of shape `(n,)`. Its matrix products run in the
            highest precision unless they ask for another.
        v0: Start, float32 or float64, of any scale; zero stands for a fixed vector.
        num_steps: Products to make; at most n are.

    Returns:
        `min(num_steps, n)` steps. No reverse derivatives: for those see `top_eigenpair`.

    Raises:
        ValueError: If v0 or what the operator returns is misshapen or of a wrong type, or if
            `num_steps < 1`.

    References:
        Parlett, The Symmetric Eigenvalue Problem, 1998, section 6.9 ("twice is enough") and
        chapter 13.

    >>> form = lanczos(lambda v: jnp.array([3.0, 1.0]) * v, jnp.ones(2), 2)
    >>> print(form.diagonal.round(3), form.off_diagonal.round(3))
    [2. 2.] [1.]
    """
    product, consts, start = symmetric(matvec, v0, num_steps)
    return tridiagonalised(functools.partial(product, consts), start, num_steps)


def symmetric(
    matvec: Callable[[Array], Array], v0: Array, num_steps: int
) -> tuple[Product, tuple[Array, ...], Array]:
    if jnp.ndim(v0) != 1 or jnp.size(v0) == 0:
        raise ValueError(f"v0 must be a vector of shape (n,), n >= 1; got shape {jnp.shape(v0)}")
    product, consts, start = closed_over(matvec, v0, num_steps)
    result = jax.eval_shape(product, consts, start)
    if result.shape != start.shape or result.dtype != start.dtype:
        raise ValueError(
            f"matvec must return what it is given, {start.dtype} of shape {start.shape}; "
            f"got {result.dtype} of shape {result.shape}"
        )
    return product, consts, start


def tridiagonalised(product: Callable[[Array], Array], start: Array, num_steps: int) -> Lanczos:
    steps = min(num_steps, start.size)

    def rest(vector: Array, basis: Array) -> Array:
        return vector - matmul(matmul(basis, vector), basis)

    def step(carry: tuple[Array, Array], index: Array) -> tuple[Any, tuple[Array, Array]]:
        basis, vector = carry
        basis = basis.at[index].set(vector)
        image = product(vector)
        once = rest(image, basis)
        twice, size = unit_of(rest(once, basis))
        invariant = ~(size > 0.5 * unit_of(once)[1])

        def fresh(invariant: Array, _: Array) -> Array:
            known = jnp.where(invariant, basis, 0)
            least = jnp.argmin(jnp.sum(jnp.square(known), axis=0))
            unit = (jnp.arange(start.size) == least).astype(start.dtype)
            return unit_of(rest(rest(unit, known), known))[0]

        after = where_needed(invariant, fresh, twice)
        return (basis, after), (inner(vector, image), jnp.where(invariant, 0, size))

    empty = jnp.zeros_like(start, shape=(steps, start.size))
    (basis, _), (diagonal, sizes) = jax.lax.scan(
        step, (empty, started(start)), jnp.arange(steps)
    )  # fmt: skip
    return Lanczos(diagonal, sizes[:-1], basis, sizes[-1])
