"""The largest singular value of a linear map."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from jaxrobust.linalg._products import closed_over, inner, started, unit_of


class Singular(NamedTuple):
    """A singular value with its unit vectors: `A right = value left`."""

    value: Float[Array, ""]
    left: Float[Array, "*outputs"]
    right: Float[Array, "*inputs"]


def power_iteration(
    matvec: Callable[[Array], Array], v0: Float[Array, "*inputs"], num_steps: int
) -> Singular:
    """The largest singular value of a linear map, from below, by products with it in turn.

    Args:
        matvec: Linear map A of arrays of v0's shape to arrays of one shape; its transpose is
            derived. Precision as in `lanczos`.
        v0: Start: the last `right`, where the map has moved little; zero stands for a fixed array.
        num_steps: Products with `A'A`.

    Returns:
        The triple. Its vectors are constants to differentiation: the value's derivative is
        `left'(dA)right`, right once they have converged, and **first derivatives only** are right.
        The zero map has the value 0 and the derivative 0.

    Raises:
        ValueError: If v0 is neither float32 nor float64, or `num_steps < 1`.

    References:
        Miyato et al., Spectral Normalization for Generative Adversarial Networks, ICLR 2018,
        Algorithm 1.

    >>> import jax.numpy as jnp
    >>> largest = power_iteration(lambda x: jnp.array([3.0, 1.0]) * x, jnp.ones(2), 20)
    >>> print(largest.right.round(3), f"{largest.value:.3f}")
    [1. 0.] 3.000
    """
    product, consts, start = closed_over(matvec, v0, num_steps)
    forward = functools.partial(product, jax.lax.stop_gradient(consts))
    start = jax.lax.stop_gradient(start)
    transpose = jax.linear_transpose(forward, start)

    def step(_: Any, right: Array) -> Array:
        return unit_of(*transpose(unit_of(forward(right))[0]))[0]

    right = jax.lax.fori_loop(0, num_steps, step, started(start))
    left = unit_of(forward(right))[0]
    return Singular(inner(left, product(consts, right)), left, right)
