"""Rotations and translations, tried one after another: the simplest spatial attack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrobust import checks, losses
from jaxrobust.attacks._box_descent import pick
from jaxrobust.attacks._flow import check_grid, shown
from jaxrobust.attacks._lift import lift_free, reached
from jaxrobust.attacks._minimum_norm import aim, untargeted
from jaxrobust.losses import Loss
from jaxrobust.threat import UNIT_BOX, Box, check_box
from jaxrobust.types import Images, Keys, Labels, LogitsFn


def rotation_translation(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    box: Box = UNIT_BOX,
    target: Labels | None = None,
    loss: Loss = losses.cross_entropy,
    max_angle: float = 30.0,
    max_shift: float = 3.0,
    num_angles: int = 31,
    num_shifts: int = 5,
) -> Float[Array, "batch *dims"]:
    """Engstrom's grid attack: the worst of all rotations and translations on a grid.

    An image is rotated about its centre, then moved, by one bilinear interpolation. Of all images
    of the grid, the clean one among them, the one of highest loss comes back, those that reach the
    attack's aim before all others.

    Deviation from the publication, where black comes in from outside: beyond the border the image
    goes on as the border is, as in `flow.warp`. So each image is that of a flow, and no frame is
    added that no attack may draw. Where the border is black, as in MNIST, nothing differs.

    Memory: what the model takes for the batch; the grid is gone through one after another.

    Args:
        logits_fn: `(batch, height, width, ...) -> (batch, classes)`; see `per_example`.
        x: `(batch, height, width)` images inside the box, or with channels.
        y: `(batch,)` true labels.
        key: Typed key, used by randomised models only: a draw of their own for each image, of which
            the loss is; success takes 16 more, in each of which it must hold.
        box: Legal pixel values.
        target: `(batch,)` wanted classes; None where any wrong class will do.
        loss: Untargeted loss of one example, to be maximised.
        max_angle: Largest angle either way, in degrees.
        max_shift: Largest move up, down, left and right, in pixels.
        num_angles: Angles from `-max_angle` to `max_angle`, at equal distances; one alone is 0.
        num_shifts: Moves from `-max_shift` to `max_shift`, in each of the two directions.

    Returns:
        `(batch, height, width, ...)` images in the box, whether or not they succeed.

    Raises:
        ValueError: For images, labels, target, key, box or settings that cannot be meant; for a
            targeted loss.

    References:
        Engstrom et al. 2019, sec. 3 (its grid for MNIST and CIFAR-10: 30 degrees, 3 pixels).

    >>> logits_fn = lambda x: jnp.stack([x[:, 0, 0], x[:, 0, 1] + 0.1], -1)
    >>> rotation_translation(logits_fn, jnp.array([[[0.8, 0.2, 0.1]]]), jnp.array([0]),
    ...     key=jax.random.key(0), max_shift=1.0, num_angles=1, num_shifts=3)
    Array([[[0.8, 0.8, 0.2]]], dtype=float32)
    """
    check_box(box)
    checks.check_images(x, box)
    check_grid(x)
    untargeted(loss)
    checks.check_count(num_angles, "num_angles")
    checks.check_count(num_shifts, "num_shifts")
    checks.check_radius(max_angle, "max_angle")
    checks.check_radius(max_shift, "max_shift")
    return lift_free(
        _search, logits_fn, x, y, key=key, box=box, target=target, loss=loss,
        max_angle=float(max_angle), max_shift=float(max_shift), num_angles=num_angles,
        num_shifts=num_shifts,
    )  # fmt: skip


def motion(
    shape: tuple[int, ...], angle: Float[Array, ""], shift: Float[Array, "2"]
) -> Float[Array, "height width 2"]:
    """The flow that turns an image anticlockwise about its centre, then moves it down and right.

    Args:
        shape: Height and width.
        angle: In radians.
        shift: In pixels.
    """
    centre = (np.array(shape[:2]) - 1) / 2
    place = jnp.asarray(np.moveaxis(np.indices(shape[:2]), 0, -1) - centre, angle.dtype)
    down, right = jnp.moveaxis(place - shift, -1, 0)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([cosine * down + sine * right, cosine * right - sine * down], -1) - place


def _search(
    model: Callable[..., Any], x: Array, y: Array, key: Array, *, target: Any = None, box: Box,
    loss: Loss, max_angle: float, max_shift: float, num_angles: int, num_shifts: int,
) -> Array:  # fmt: skip
    aimed, label = aim(loss, target), y if target is None else target
    angles, shifts = _spread(np.deg2rad(max_angle), num_angles), _spread(max_shift, num_shifts)
    grid = np.stack(np.meshgrid(angles, shifts, shifts, indexing="ij"), -1).reshape(-1, 3)

    def judged(move: Array, key: Array) -> tuple[Array, Array, Array]:
        image = shown(x, motion(x.shape, move[0], move[1:]), box)
        outputs = model(image, key)
        return move, aimed(outputs, label), reached(model, aimed, label, image, key, outputs)

    def step(best: Any, turn: tuple[Array, Array]) -> tuple[Any, None]:
        new = judged(turn[0], jax.random.fold_in(key, turn[1]))
        more = (new[1] > best[1]) | (jnp.isnan(best[1]) & ~jnp.isnan(new[1]))
        better = jnp.where(new[2] == best[2], more, new[2])
        return pick(better, new, best), None

    moves = jnp.asarray(grid, x.dtype)
    clean = judged(jnp.zeros_like(x, shape=3), key)
    (move, _, _), _ = jax.lax.scan(step, clean, (moves, jnp.arange(len(grid))))
    return shown(x, motion(x.shape, move[0], move[1:]), box)


def _spread(most: float, count: int) -> np.ndarray:
    """Numbers from -most to most at equal distances, as many of either sign; one alone is 0."""
    return most * (2 * np.arange(count) - (count - 1)) / max(count - 1, 1)
