"""Gradient ascent on the loss over all flows of a ball: the budget form of spatial attacks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrobust import checks, gradients, losses
from jaxrobust.attacks._box_descent import look, pick
from jaxrobust.attacks._flow import check_grid, pulled, shown
from jaxrobust.attacks._lift import lift_free, reached
from jaxrobust.flow import FlowBall
from jaxrobust.flow._ball import check_flow_ball
from jaxrobust.gradients import Gradient
from jaxrobust.losses import Loss
from jaxrobust.threat import Box
from jaxrobust.types import Images, Keys, Labels, LogitsFn


class _Best(NamedTuple):
    flow: Float[Array, "height width 2"]
    loss: Float[Array, ""]
    reached: Bool[Array, ""]


def flow_pgd(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    ball: FlowBall,
    num_steps: int = 100,
    step_size: float | Array | None = None,
    num_restarts: int = 1,
    random_start: bool = True,
    loss: Loss = losses.margin,
    gradient: Gradient = gradients.exact,
) -> Float[Array, "batch *dims"]:
    """The images that the flows of `flow_pgd_field`, whose arguments these are, make of x.

    Returns:
        `(batch, height, width, ...)` images in the box.

    Raises:
        ValueError: As `flow_pgd_field`.

    >>> logits_fn = lambda x: jnp.stack([x[:, 0, 0], x[:, 0, 1] + 0.1], -1)
    >>> x = jnp.array([[[0.8, 0.2, 0.1]]])
    >>> image = flow_pgd(logits_fn, x, jnp.array([0]), key=jax.random.key(0), ball=FlowBall(2.0))
    >>> jnp.argmax(logits_fn(image), -1)
    Array([1], dtype=int32)
    """
    return _lifted(
        logits_fn, x, y, key, ball, num_steps, step_size, num_restarts, random_start, loss, gradient
    )[0]


def flow_pgd_field(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    ball: FlowBall,
    num_steps: int = 100,
    step_size: float | Array | None = None,
    num_restarts: int = 1,
    random_start: bool = True,
    loss: Loss = losses.margin,
    gradient: Gradient = gradients.exact,
) -> Float[Array, "batch height width 2"]:
    """Projected gradient ascent over the flows of a ball, in the ball's own norm.

    Steps are the steepest in the norm `|M r|` (`FlowBall.step`) and shrink linearly to nothing. Of
    all flows seen, no flow among them, the one of highest loss comes back, those that reach the
    attack's aim before all others. A flow of zero lies on kinks of the interpolation, where the
    derivative is that of one side: hence the random start.

    Memory: some ten flows a row beside what one gradient of the model takes.

    Args:
        logits_fn: `(batch, height, width, ...) -> (batch, classes)`; see `per_example`. Randomised
            models get a fresh key at every step, whose draw the loss is of; success takes 16 more
            draws, in each of which it must hold.
        x: `(batch, height, width)` images inside `ball.box`, or with channels.
        y: `(batch,)` labels, or target classes where the loss is `losses.targeted`.
        key: Typed key, one or one a row; row i of a single key draws from `fold_in(key, i)`.
        ball: The threat; `eps` a scalar or one a row.
        num_steps: Gradient steps of a run.
        step_size: First step, in the ball's norm, a scalar or one a row; `eps` where None.
        num_restarts: Runs of each example; none is left out.
        random_start: Start runs in the ball at random instead of at no flow.
        loss: Loss of one example, to be maximised: by default the margin, which certificates bound.
        gradient: Gradient estimator, in the image.

    Returns:
        `(batch, height, width, 2)` displacements in pixels, down and to the right, in the ball.

    Raises:
        ValueError: For images, labels, key, ball, step or counts that cannot be meant.

    References:
        Paper 002, eq. 3: the attack that its bounds are about; Madry et al. 2018.

    >>> logits_fn = lambda x: jnp.stack([x[:, 0, 0], x[:, 0, 1] + 0.1], -1)
    >>> x = jnp.array([[[0.8, 0.2, 0.1]]])
    >>> r = flow_pgd_field(logits_fn, x, jnp.array([0]), key=jax.random.key(0), ball=FlowBall(2.0))
    >>> FlowBall(2.0).distance(r[0]).round(3)
    Array(2., dtype=float32)
    """
    return _lifted(
        logits_fn, x, y, key, ball, num_steps, step_size, num_restarts, random_start, loss, gradient
    )[1]


def _lifted(
    logits_fn: LogitsFn, x: Any, y: Any, key: Any, ball: FlowBall, num_steps: int, step_size: Any,
    num_restarts: int, random_start: bool, loss: Loss, gradient: Gradient,
) -> tuple[Array, Array]:  # fmt: skip
    checks.check_count(num_steps, "num_steps")
    checks.check_count(num_restarts, "num_restarts")
    check_flow_ball(ball)
    checks.check_images(x, ball.box)
    check_grid(x)
    check_flow_ball(ball, x.shape[1:3])
    checks.check_radius(ball.eps, "eps", len(x))
    step_size = ball.eps if step_size is None else step_size
    checks.check_radius(step_size, "step_size", len(x))
    rows = {
        "ball": dataclasses.replace(ball, eps=jnp.asarray(ball.eps, x.dtype)),
        "step_size": jnp.asarray(step_size, x.dtype),
    }
    return lift_free(
        _search, logits_fn, x, y, key=key, box=ball.box, rows=rows, num_steps=num_steps,
        num_restarts=num_restarts, random_start=bool(random_start), loss=loss, gradient=gradient,
    )  # fmt: skip


def _search(
    model: Callable[..., Any], x: Array, y: Array, key: Array, *, ball: FlowBall, step_size: Array,
    box: Box, num_steps: int, num_restarts: int, random_start: bool, loss: Loss,
    gradient: Gradient,
) -> tuple[Array, Array]:  # fmt: skip
    none = jnp.zeros_like(x, shape=(*x.shape[:2], 2))

    def success(x: Array, key: Array, outputs: Any) -> Array:
        return reached(model, loss, y, x, key, outputs)

    def judged(flow: Array, key: Array) -> _Best:
        image = shown(x, flow, box)
        outputs = model(image, key)
        return _Best(flow, loss(outputs, y), success(image, key, outputs))

    def kept(best: _Best, new: _Best) -> _Best:
        more = (new.loss > best.loss) | (jnp.isnan(best.loss) & ~jnp.isnan(new.loss))
        better = jnp.where(new.reached == best.reached, more, new.reached)
        return pick(better, new, best)

    def one_run(best: _Best, restart: Array) -> tuple[_Best, None]:
        start_key, walk_key = jax.random.split(jax.random.fold_in(key, restart))
        start = (
            ball.project(ball.sample((x.shape[0], x.shape[1]), start_key, x.dtype))
            if random_start
            else none
        )

        def step(state: tuple[Array, _Best], t: Array) -> tuple[tuple[Array, _Best], None]:
            flow, best = state
            now = gradients.step_key(gradient, walk_key, t)
            seen = look(
                model, lambda out, _: loss(out, y), success, gradient, shown(x, flow, box), now
            )
            best = kept(best, _Best(flow, seen.loss, seen.success))
            uphill = pulled(x, flow, seen.slope)
            uphill = jnp.where(jnp.isfinite(uphill), uphill, 0)
            size = step_size * (1 - t / num_steps).astype(x.dtype)
            return (ball.project(ball.step(flow, uphill, size)), best), None

        (last, best), _ = jax.lax.scan(step, (start, best), jnp.arange(num_steps))
        # A key of its own: not one that the walk has already climbed with.
        return kept(best, judged(last, jax.random.fold_in(walk_key, num_steps))), None

    best = jax.lax.scan(one_run, judged(none, key), jnp.arange(num_restarts))[0]
    return shown(x, best.flow, box), best.flow
