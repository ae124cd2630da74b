"""An image whose pixels are moved, by bilinear interpolation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def warp(
    x: Float[Array, "height width *channels"], flow: Float[Array, "height width 2"]
) -> Float[Array, "height width *channels"]:
    """The image that shows at pixel p what x shows at `p + flow[p]`.

    Between pixels x is interpolated bilinearly, and beyond the border it goes on as the border is
    (SciPy's `mode="nearest"`), so that values stay between those of x and their slopes along rows
    or columns are at most its range: 1 for images in [0, 1]. The derivative in the flow is exact
    where the flow is no whole number. At whole numbers, where the interpolation has a kink, it is
    that of the cell below and to the right, or of the last one at the border; beyond the border it
    is 0.

    Args:
        x: One image, `(height, width)` or with channels.
        flow: Displacements in pixels: `[..., 0]` down, `[..., 1]` to the right.

    Raises:
        ValueError: For a flow that does not fit the image.

    References:
        Xiao et al. 2018, eq. 1; paper 002, eq. 1.

    >>> warp(jnp.array([[0.0, 1.0]]), jnp.array([[[0.0, 0.25], [0.0, 0.25]]]))
    Array([[0.25, 1.  ]], dtype=float32)
    """
    if x.ndim < 2 or flow.shape != (*x.shape[:2], 2):
        raise ValueError(
            f"flow must be of shape (height, width, 2) for x of shape (height, width, ...); got "
            f"{flow.shape} for x of {x.shape}"
        )
    height, width = x.shape[:2]
    top, below = _cell(jnp.arange(height, dtype=flow.dtype)[:, None] + flow[..., 0], height)
    left, beside = _cell(jnp.arange(width, dtype=flow.dtype)[None] + flow[..., 1], width)
    bottom, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    channels = tuple(range(2, x.ndim))
    below, beside = jnp.expand_dims(below, channels), jnp.expand_dims(beside, channels)

    upper = _between(x[top, left], x[top, right], beside)
    lower = _between(x[bottom, left], x[bottom, right], beside)
    return _between(upper, lower, below)


def _between(start: Array, end: Array, share: Array) -> Array:
    """Linear interpolation that is exact at either end: a flow of zero changes no bit."""
    rise = end - start
    return jnp.where(share < 0.5, start + share * rise, end - (1 - share) * rise)


def _cell(place: Array, size: int) -> tuple[Int[Array, "..."], Array]:
    """Index of the cell that holds a coordinate, and where in it: 0 to 1."""
    inside = (place >= 0) & (place <= size - 1)
    held = jax.lax.stop_gradient(jnp.clip(place, 0, size - 1))
    place = jnp.where(inside, place, held)
    low = jnp.clip(jnp.floor(held), 0, max(size - 2, 0))
    return low.astype(jnp.int32), place - low
