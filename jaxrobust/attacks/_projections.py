"""Projections onto what a half space, or an l2 ball, and the box share, from sorted breakpoints."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust.threat import Box


def shortest_step(
    z: Float[Array, "*d"], w: Float[Array, "*d"], rise: Float[Array, ""], box: Box, norm: str
) -> Float[Array, "*d"]:
    """Shortest step within the box by which `w . z` rises by at least `rise`.

    So `z + step` is the projection of z onto `{w . v >= b}` in the box, for `rise = b - w . z`.
    Entries whose weight is 0 stay.

    Args:
        z: A point of the box.
        w: Weights of its entries.
        rise: What is asked for; none is needed where it is negative.
        box: Legal values.
        norm: "linf", "l2" or "l1".

    Returns:
        The step, to the corner that is best for w where the box does not allow such a rise.

    References:
        Croce and Hein 2020, eq. 4 and its solutions in the appendix. In l2, with steps
        `min(t |w|, room)`, the rise is `sum w^2 min(t, room / |w|)`; in linf, with
        `min(t, room)`, it is `sum |w| min(t, room)`: the same piecewise linear function of t. In l1
        it is a fractional knapsack.

    >>> z, w = jnp.array([0.5, 0.9]), jnp.array([1.0, 2.0])
    >>> shortest_step(z, w, jnp.array(0.5), Box(), "linf").round(3)
    Array([0.3, 0.1], dtype=float32)
    """
    low, high = box
    largest = jnp.max(jnp.abs(w))
    scale = jnp.where(largest > 0, largest, 1.0)  # so that no square underflows that matters
    weight = jnp.abs(w).ravel() / scale
    rise = jnp.maximum(rise, 0.0) / scale
    room = jnp.maximum(jnp.where(w > 0, high - z, z - low).ravel(), 0.0)
    room = jnp.where(weight > 0, room, 0.0)
    if norm == "l1":
        size = _knapsack(weight, room, rise)
    elif norm == "linf":
        size = jnp.minimum(_level(weight, room, rise), room)
    else:
        square = weight * weight
        limit = jnp.where(square > 0, room / jnp.where(square > 0, weight, 1.0), 0.0)
        size = jnp.minimum(_level(square, limit, rise) * weight, room)
    return jnp.sign(w) * size.reshape(w.shape)


def within_l2(
    x: Float[Array, "*d"], z: Float[Array, "*d"], eps: Float[Array, ""], box: Box
) -> Float[Array, "*d"]:
    """Nearest point to z of the box and of the l2 ball around x, a point of the box.

    It is `clip(x + s (z - x))` for the largest s of at most 1 that stays in the ball, and the
    squared distance is `sum (z - x)^2 min(s^2, (room / |z - x|)^2)`.

    Args:
        x: Centre.
        z: What is projected.
        eps: Radius.
        box: Legal values.

    >>> within_l2(jnp.array([0.5, 0.9]), jnp.array([0.9, 1.2]), jnp.array(0.26), Box()).round(2)
    Array([0.74, 1.  ], dtype=float32)
    """
    away = (z - x).ravel()
    largest = jnp.max(jnp.abs(away))
    scale = jnp.where(largest > 0, largest, 1.0)
    square = (away / scale) ** 2
    room = jnp.maximum(jnp.where(z > x, box.high - x, x - box.low).ravel(), 0.0) / scale
    limit = jnp.where(square > 0, room**2 / jnp.where(square > 0, square, 1.0), 0.0)
    shrunk = jnp.sqrt(jnp.clip(_level(square, limit, (eps / scale) ** 2), 0.0, 1.0))
    return jnp.clip(x + shrunk * (z - x), *box)


def _level(weight: Array, limit: Array, rise: Array) -> Array:
    """Least t with `sum weight * min(t, limit) >= rise`; above all limits where there is none.

    Newton's method: the sum is concave and piecewise linear in t, so that steps from 0 never pass
    the root, and each but the last leaves a limit behind. It takes a handful of passes over the
    entries, where sorting them is far slower.
    """

    def step(t: Array) -> tuple[Array, Array]:
        """The root of the line at t, and how many entries still grow there."""
        growing = limit > t
        slope = jnp.sum(jnp.where(growing, weight, 0.0))
        full = jnp.sum(jnp.where(growing, 0.0, weight * limit))
        new = jnp.maximum(t, (rise - full) / jnp.where(slope > 0, slope, 1.0))
        return new, jnp.sum(limit > new)

    def go(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        t, left, _ = carry
        return (*step(t), left)

    start = step(jnp.zeros_like(rise))
    everything = jnp.full_like(start[1], limit.size + 1)
    return jax.lax.while_loop(lambda c: c[1] < c[2], go, (*start, everything))[0]


def _knapsack(weight: Array, room: Array, rise: Array) -> Array:
    """Least sum of sizes with `sum weight * size >= rise`: the heaviest entries first."""
    order = jnp.argsort(-weight, stable=True)
    weight, room = weight[order], room[order]
    full = weight * room
    before = jnp.cumsum(full) - full
    size = jnp.clip((rise - before) / jnp.where(weight > 0, weight, 1.0), 0.0, room)
    return jnp.zeros_like(size).at[order].set(size)
