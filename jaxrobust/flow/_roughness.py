"""How rough a flow is: the neighbour operator M of paper 002, its inverse, and total variation.

`r'M'Mr` sums, over all pixels and their four neighbours, the squares of differences. As printed (a
missing neighbour gives no row) `M'M` is twice the Laplacian of the grid: moving the whole image
costs nothing, so that no budget bounds a displacement. Three rules mend that:

- "dirichlet": what lies outside the image does not move. A missing neighbour counts as zero.
- "zero_mean": flows whose mean is zero; the inverse becomes the pseudo-inverse.
- `(row, column)`: flows that leave this pixel where it is.

Each direction of the grid has eigenvectors of its own, so that all powers of `M'M` are two small
matrix products.
"""

from __future__ import annotations

import functools
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

NullSpace: TypeAlias = Literal["dirichlet", "zero_mean"] | tuple[int, int]

ROOT = 1e-8
"""Added below the roots of the total variation, as in its authors' code: no root is taken of 0."""


def quadratic_variation(
    flow: Float[Array, "height width *parts"], null_space: NullSpace = "dirichlet"
) -> Float[Array, ""]:
    """`|M r|^2`, summed over the parts of a flow: all squared differences, each pair twice.

    Args:
        flow: One flow, or one part of it.
        null_space: What lies outside: see this module. Only "dirichlet" changes the value.

    References:
        Paper 002, eq. 2 and proposition 1 (its root, with the factor that eq. 3 drops).

    >>> quadratic_variation(jnp.array([[0.0, 1.0]]), "zero_mean")
    Array(2., dtype=float32)
    """
    check_null_space(null_space, flow.shape)
    total = 2 * sum(jnp.sum(jnp.diff(flow, axis=axis) ** 2) for axis in (0, 1))
    if null_space == "dirichlet":
        edges = (flow[0], flow[-1], flow[:, 0], flow[:, -1])
        total += sum(jnp.sum(edge**2) for edge in edges)
    return jnp.asarray(total)


def total_variation(flow: Float[Array, "height width 2"]) -> Float[Array, ""]:
    """Sum over pixels and their neighbours of the length of the difference of displacements.

    Neighbours are those above, below and beside (as published; the authors' code takes diagonal
    ones). Roots are smoothed by 1e-8, so that the gradient exists at a flow of zero.

    References:
        Xiao et al. 2018, eq. 4.

    >>> total_variation(jnp.zeros((1, 2, 2)).at[0, 1].set(jnp.array([3.0, 4.0])))
    Array(10., dtype=float32)
    """
    squares = [jnp.sum(jnp.diff(flow, axis=axis) ** 2, axis=-1) for axis in (0, 1)]
    return 2 * jnp.asarray(sum(jnp.sum(jnp.sqrt(square + ROOT)) for square in squares))


def solved(
    flow: Float[Array, "height width *parts"], null_space: NullSpace = "dirichlet"
) -> Float[Array, "height width *parts"]:
    """`(M'M)^-1 flow`, part by part, among the flows that the rule allows.

    >>> solved(jnp.ones((1, 1)))  # four missing neighbours
    Array([[0.25]], dtype=float32)
    """
    check_null_space(null_space, flow.shape)
    if isinstance(null_space, tuple):
        rest = jnp.zeros_like(flow[0, 0]) - jnp.sum(flow, (0, 1)) + flow[null_space]
        return _pinned(_power(flow.at[null_space].set(rest), -1.0, False), null_space)
    return _power(flow, -1.0, null_space == "dirichlet")


def smoothed(
    white: Float[Array, "height width *parts"], null_space: NullSpace = "dirichlet"
) -> Float[Array, "height width *parts"]:
    """A flow of which `|M r|` is at most `|white|`; any flow that the rule allows is one of these.

    It is `(M'M)^-1/2 white`, moved so that the pinned pixel stays where the rule pins one.

    >>> smoothed(jnp.ones((1, 1)))
    Array([[0.5]], dtype=float32)
    """
    check_null_space(null_space, white.shape)
    if isinstance(null_space, tuple):
        return _pinned(_power(white, -0.5, False), null_space)
    return _power(white, -0.5, null_space == "dirichlet")


def largest_displacement(
    shape: tuple[int, int], null_space: NullSpace = "dirichlet"
) -> Float[np.ndarray, "height width"]:
    """How far `|M r| <= 1` lets each pixel move in a direction: lambda of paper 002.

    It scales with the radius, which the proposition leaves out. With two parts whose squares add up
    to the budget, the pair of displacements lies in a disc of this radius.

    Args:
        shape: Height and width.
        null_space: The rule; see this module.

    Returns:
        `(height, width)` pixels, in float64, not rounded to the safe side.

    References:
        Paper 002, proposition 2: roots of the diagonal of `(M'M)^-1`.

    >>> float(largest_displacement((28, 28)).max().round(3))
    0.594
    """
    check_null_space(null_space, shape)
    (down, rows), (along, columns) = (_basis(n, null_space == "dirichlet") for n in shape)
    weight = _inverse(down[:, None] + along, -1.0)
    diagonal = np.square(rows) @ weight @ np.square(columns).T
    if isinstance(null_space, tuple):
        at = null_space
        column = rows @ (weight * np.outer(rows[at[0]], columns[at[1]])) @ columns.T
        diagonal = diagonal - 2 * column + diagonal[at]
        diagonal[at] = 0.0  # but for rounding
    return np.sqrt(np.maximum(diagonal, 0.0))


def check_null_space(null_space: Any, shape: tuple[int, ...]) -> None:
    """Refuse a rule that is none, or a pinned pixel that the image does not have."""
    if null_space in ("dirichlet", "zero_mean"):
        return
    pixel = null_space if isinstance(null_space, tuple) and len(null_space) == 2 else None
    if pixel is None or not all(isinstance(i, int) for i in pixel):
        raise ValueError(
            'null_space must be "dirichlet", "zero_mean" or a pixel (row, column); got '
            f"{null_space!r}"
        )
    if not all(0 <= i < n for i, n in zip(pixel, shape, strict=False)):
        raise ValueError(f"null_space must be a pixel of an image of {shape[:2]}; got {pixel}")


def allowed(flow: Float[Array, "height width *parts"], null_space: NullSpace) -> Array:
    """The flow moved as a whole, so that it keeps the rule."""
    if null_space == "zero_mean":
        return flow - jnp.mean(flow, (0, 1))
    return flow if null_space == "dirichlet" else _pinned(flow, null_space)


def _pinned(flow: Array, pixel: Any) -> Array:
    return flow - flow[pixel]


@functools.cache
def _basis(size: int, framed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and eigenvectors (columns) of `M'M` along one direction."""
    if size == 1:
        return np.array([2.0 * framed]), np.ones((1, 1))
    matrix = np.zeros((size, size))
    for i in range(size - 1):
        matrix[i : i + 2, i : i + 2] += 2 * np.array([[1, -1], [-1, 1]])
    if framed:
        matrix[0, 0] += 1
        matrix[-1, -1] += 1
    values, vectors = np.linalg.eigh(matrix)
    return values, vectors


def _inverse(values: np.ndarray, power: float) -> np.ndarray:
    """A negative power of eigenvalues, 0 where they are 0."""
    zero = values < 1e-9
    return np.where(zero, 0.0, np.where(zero, 1.0, values) ** power)


def _power(flow: Array, power: float, framed: bool) -> Array:
    (down, rows), (along, columns) = (_basis(n, framed) for n in flow.shape[:2])
    weight = jnp.asarray(_inverse(down[:, None] + along, power), flow.dtype)
    rows, columns = jnp.asarray(rows, flow.dtype), jnp.asarray(columns, flow.dtype)
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    turned = product("ia,ij...,jb->ab...", rows, flow, columns)
    weight = weight.reshape(*weight.shape, *[1] * (flow.ndim - 2))
    return product("ia,ab...,jb->ij...", rows, weight * turned, columns)
