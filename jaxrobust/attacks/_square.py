"""Square: random search over squares of the image, from the model's answers alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import checks, losses
from jaxrobust.attacks._gradient import ball_eps
from jaxrobust.attacks._lift import clear_success, lift
from jaxrobust.attacks._square_patterns import bank, tiles
from jaxrobust.loops import at_most
from jaxrobust.losses import Loss
from jaxrobust.threat import Ball, norm
from jaxrobust.types import Images, Keys, Labels, LogitsFn, Randomized

HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Iterations of 10,000 after which p is halved."""

TINY = 1e-12
"""Keeps quotients of norms finite (the reference's constant)."""

Propose = Callable[[Array, Array, Array], Array]


class _State(NamedTuple):
    best: Float[Array, "h w c"]
    proposal: Float[Array, "h w c"]  # to be asked about next
    loss: Float[Array, ""]
    reached: Bool[Array, ""]


def square(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    ball: Ball,
    num_queries: int = 5000,
    p_init: float = 0.8,
    rescale: bool = True,
    loss: Loss = losses.margin,
) -> Float[Array, "batch *dims"]:
    """Square attack: changes one square at a time and keeps what raises the loss; no gradients.

    Each query moves a square of the image at random to the ball's boundary (linf), or shifts
    another square's share of the radius into it in a pattern of two opposite bumps (l2). Squares
    cover the share p of the image, halved as the search goes on.

    Returns the first misclassified image found, and stops there; the image of highest loss where
    none is, as always for a `Randomized` model, of which one draw proves nothing.

    Images are `(height, width, channels)`; `(height, width)` has one channel, and `(n,)` is one row
    of n pixels. Squares that do not fit become rectangles, in linf of equal area.

    Deviations from the authors' code: each image has squares of its own (there all of a batch share
    them), which may touch the last row and column; the start counts as a query. In l2 a square's
    channels keep the shares of the radius that they had, as in the publication's code; AutoAttack's
    gives each channel the length of all, and scales the whole back.
    Memory: some seven images a row beside the model's forward pass.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`; see `per_example`.
        x: `(batch, *dims)` images inside `ball.box`.
        y: `(batch,)` labels, or target classes where the loss is `losses.targeted`.
        key: Typed key, one or one a row.
        ball: The threat, "linf" or "l2"; `eps` a scalar or one a row.
        num_queries: Most model evaluations an image.
        p_init: Share of the image that the first squares cover, in (0, 1].
        rescale: Stretch the schedule of p, which is for 10,000 queries, to `num_queries`; False
            cuts it off, as AutoAttack does with its 5000.
        loss: Loss of one example, to be maximised.

    Returns:
        `(batch, *dims)` attacked images, inside the ball and the box.

    Raises:
        ValueError: For images, labels, key, ball or counts that cannot be meant; for an l1 ball, or
            images of more than three axes.

    References:
        Andriushchenko et al. 2020, algorithms 1 to 3.

    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> square(logits_fn, jnp.full((1, 2), 0.6), jnp.array([0]), key=jax.random.key(0),
    ...     ball=Ball("linf", 0.25), num_queries=20).round(4)
    Array([[0.35, 0.35]], dtype=float32)
    """
    checks.check_count(num_queries, "num_queries")
    ball_eps(ball)
    if ball.norm == "l1":
        raise ValueError("norm must be linf or l2 for square, which is not here for l1; got l1")
    if not 0 < p_init <= 1:
        raise ValueError(f"p_init must lie in (0, 1]; got {p_init}")
    return lift(
        _search, logits_fn, x, y, key=key, ball=ball, num_queries=num_queries,
        p_init=float(p_init), rescale=rescale, loss=loss,
        stops=not isinstance(logits_fn, Randomized),
    )  # fmt: skip


def halvings(num_queries: int, rescale: bool) -> list[int]:
    """The iterations, from 0, at which p is halved.

    >>> halvings(10_000, True)
    [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    """
    turns = num_queries if rescale else 10_000
    return [-(-(after + 1) * turns // 10_000) for after in HALVED_AFTER]


def sizes(p_init: float, height: int, width: int, which: str) -> list[tuple[int, int]]:
    """Rows and columns of the square at p_init and after each halving.

    >>> sizes(0.8, 28, 28, "linf")[:6]
    [(25, 25), (18, 18), (13, 13), (9, 9), (6, 6), (4, 4)]
    """
    found = []
    for halved in range(len(HALVED_AFTER) + 1):
        area = p_init / 2**halved * height * width
        side = max(round(math.sqrt(area)), 1)
        rows = columns = side
        if which == "l2":
            rows = columns = max(side, 3) + 1 - max(side, 3) % 2  # odd
        elif side > min(height, width):
            rows, columns = round(area / min(side, width)), round(area / min(side, height))
        found.append((min(rows, height), min(columns, width)))
    return found


def _search(
    model: Callable[..., Any], x: Array, y: Any, key: Array, *, ball: Ball, num_queries: int,
    p_init: float, rescale: bool, loss: Loss, stops: bool,
) -> Array:  # fmt: skip
    shape = image_shape(x.shape)
    image = x.reshape(shape)
    start_key, draw_key, model_key = jax.random.split(key, 3)
    turns = jnp.asarray(halvings(num_queries, rescale))
    windows = sizes(p_init, *shape[:2], ball.norm)
    make = _squares if ball.norm == "linf" else _bumps
    start, propose = make(image, ball, windows, start_key)

    def query(t: Array, state: _State) -> _State:
        outputs = model(state.proposal.reshape(x.shape), jax.random.fold_in(model_key, t))
        value = loss(outputs, y).astype(x.dtype)
        reached = clear_success(loss, outputs, y) if stops else state.reached
        better = reached | (value > state.loss)
        best = jnp.where(better, state.proposal, state.best)
        proposal = propose(best, jnp.sum(t >= turns), jax.random.fold_in(draw_key, t))
        return _State(best, proposal, jnp.where(better, value, state.loss), reached)

    nowhere = jnp.zeros_like(x, bool, shape=())
    state = _State(start, start, jnp.full_like(x, -jnp.inf, shape=()), nowhere)
    found = at_most(num_queries, lambda state: ~state.reached, query, state)
    return found.best.reshape(x.shape)


def image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels of one example."""
    if len(shape) > 3:
        raise ValueError(
            "x must hold images of one to three axes, (n,), (height, width) or (height, width, "
            f"channels), for square; got {shape}"
        )
    height, width, channels = {1: (1, *shape, 1), 2: (*shape, 1), 3: shape}[len(shape)]
    return height, width, channels


def _squares(
    x: Float[Array, "h w c"], ball: Ball, windows: list[tuple[int, int]], key: Array
) -> tuple[Array, Propose]:
    """linf: vertical stripes to start with, then squares of one sign a channel."""
    extents = jnp.asarray(windows)

    def propose(best: Array, stage: Array, key: Array) -> Array:
        corner_key, sign_key = jax.random.split(key)
        inside = _inside(x, _corner(x, extents[stage], corner_key), extents[stage])
        signs = jax.random.rademacher(sign_key, x.shape[2:], x.dtype)
        return ball.project(x, best + 2 * ball.eps * signs * inside)

    stripes = jax.random.rademacher(key, (1, *x.shape[1:]), x.dtype)
    return ball.project(x, x + ball.eps * stripes), propose


def _bumps(
    x: Float[Array, "h w c"], ball: Ball, windows: list[tuple[int, int]], key: Array
) -> tuple[Array, Propose]:
    """l2: a grid of patterns to start with, then patterns that take over a square's radius."""
    height, width, channels = x.shape
    extents, patterns = jnp.asarray(windows), jnp.asarray(bank(windows), x.dtype)

    def on_sphere(delta: Array) -> Array:
        return jnp.clip(x + ball.eps * delta / (norm(delta, "l2") + TINY), *ball.box)

    def length(part: Array) -> Array:  # of each channel
        return jnp.sqrt(jnp.sum(part**2, (0, 1)))

    def propose(best: Array, stage: Array, key: Array) -> Array:
        to_key, from_key, sign_key, turn_key = jax.random.split(key, 4)
        corner = _corner(x, extents[stage], to_key)
        to = _inside(x, corner, extents[stage])
        emptied = _inside(x, _corner(x, extents[stage], from_key), extents[stage])
        pattern = patterns[stage, jax.random.bernoulli(turn_key).astype(jnp.int32)]
        rows = jnp.clip(jnp.arange(height) - corner[0], 0, pattern.shape[0] - 1)
        columns = jnp.clip(jnp.arange(width) - corner[1], 0, pattern.shape[1] - 1)
        signs = jax.random.rademacher(sign_key, (channels,), x.dtype)
        delta = best - x
        bump = pattern[rows[:, None], columns][..., None] * signs
        bump = to * (bump + delta / (length(to * delta) + TINY))
        unused = jnp.maximum(ball.eps**2 - jnp.sum(delta**2), 0) / channels
        room = jnp.sqrt(unused + length((to | emptied) * delta) ** 2)
        moved = bump / (length(bump) + TINY) * room
        return on_sphere(jnp.where(to, moved, jnp.where(emptied, 0, delta)))

    # The tile that each pixel is in, and the pattern there, upright and on its side.
    tile, upright, lying = tiles(height, width)
    sign_key, turn_key = jax.random.split(key)
    signs = jax.random.rademacher(sign_key, (tile.max() + 1, channels), x.dtype)
    turned = jax.random.bernoulli(turn_key, shape=(tile.max() + 1,))
    grid = jnp.where(turned[tile], lying, upright).astype(x.dtype)[..., None] * signs[tile]
    return on_sphere(grid), propose


def _corner(x: Array, extent: Array, key: Array) -> Int[Array, "2"]:
    """Upper left corner of a window of this extent, anywhere in the image."""
    return jax.random.randint(key, (2,), 0, jnp.asarray(x.shape[:2]) - extent + 1)


def _inside(x: Array, corner: Array, extent: Array) -> Bool[Array, "h w 1"]:
    """Whether each pixel lies in the window."""
    along = [
        (jnp.arange(size) >= corner[axis]) & (jnp.arange(size) < corner[axis] + extent[axis])
        for axis, size in enumerate(x.shape[:2])
    ]
    return (along[0][:, None] & along[1])[..., None]
