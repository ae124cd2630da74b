"""Gradient ascent on the loss within a ball: FGSM, BIM and PGD are one scan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrobust import checks, gradients, losses
from jaxrobust.attacks._lift import lift, loss_of, reached
from jaxrobust.gradients import Gradient
from jaxrobust.loops import at_most
from jaxrobust.losses import Loss
from jaxrobust.threat import Ball, norm
from jaxrobust.types import Images, Keys, Labels, LogitsFn


class Trace(NamedTuple):
    """What happened along the search, one entry for each step before it is taken.

    Attributes:
        loss: `(batch, steps)` the gradient estimator's value of the loss.
        gradient_norm: `(batch, steps)` l2 norm of the estimated gradient.
        success: `(batch, steps)` whether the image at that step had reached the attack's aim.
    """

    loss: Float[Array, "*batch steps"]
    gradient_norm: Float[Array, "*batch steps"]
    success: Bool[Array, "*batch steps"]


def fgsm(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    ball: Ball,
    loss: Loss = losses.cross_entropy,
    gradient: Gradient = gradients.exact,
) -> Float[Array, "batch *dims"]:
    """Fast gradient (sign) method: one steepest step of the whole radius.

    Memory: as `pgd`.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`; see `per_example`.
        x: `(batch, *dims)` images inside `ball.box`.
        y: `(batch,)` labels, or target classes where the loss is `losses.targeted`.
        key: Typed key; used by random gradients and models only.
        ball: The threat: linf takes the sign step, l2 and l1 their steepest steps.
        loss: Loss of one example, to be maximised.
        gradient: Gradient estimator.

    Returns:
        `(batch, *dims)` attacked images, inside the ball and the box.

    Raises:
        ValueError: For images, labels, key or ball that cannot be meant.

    References:
        Goodfellow et al. 2015; paper 001.

    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> fgsm(logits_fn, jnp.full((1, 2), 0.4), jnp.array([0]), key=jax.random.key(0),
    ...      ball=Ball("linf", 0.25))
    Array([[0.15, 0.15]], dtype=float32)
    """
    return pgd(
        logits_fn, x, y, key=key, ball=ball, num_steps=1, step_size=ball_eps(ball),
        random_start=False, loss=loss, gradient=gradient,
    )  # fmt: skip


def bim(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    ball: Ball,
    num_steps: int = 10,
    step_size: float | Array | None = None,
    loss: Loss = losses.cross_entropy,
    gradient: Gradient = gradients.exact,
) -> Float[Array, "batch *dims"]:
    """Basic iterative method: PGD from the clean image, in steps that add up to the radius.

    Memory: as `pgd`.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`; see `per_example`.
        x: `(batch, *dims)` images inside `ball.box`.
        y: `(batch,)` labels, or target classes where the loss is `losses.targeted`.
        key: Typed key; used by random gradients and models only.
        ball: The threat.
        num_steps: Number of steps.
        step_size: In the ball's norm and pixel units, a scalar or one a row; `eps / num_steps`
            where None (paper 004 takes ten such steps).
        loss: Loss of one example, to be maximised.
        gradient: Gradient estimator.

    Returns:
        `(batch, *dims)` attacked images, inside the ball and the box.

    Raises:
        ValueError: For images, labels, key, ball or step that cannot be meant.

    References:
        Kurakin et al. 2017; paper 001.

    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> bim(logits_fn, jnp.full((1, 2), 0.5), jnp.array([0]), key=jax.random.key(0),
    ...     ball=Ball("linf", 0.25)).round(4)
    Array([[0.25, 0.25]], dtype=float32)
    """
    checks.check_count(num_steps, "num_steps")
    step_size = ball_eps(ball) / num_steps if step_size is None else step_size
    return pgd(
        logits_fn, x, y, key=key, ball=ball, num_steps=num_steps, step_size=step_size,
        random_start=False, loss=loss, gradient=gradient,
    )  # fmt: skip


def pgd(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    ball: Ball,
    num_steps: int = 40,
    step_size: float | Array | None = None,
    num_restarts: int = 1,
    random_start: bool = True,
    start: Images | None = None,
    loss: Loss = losses.cross_entropy,
    gradient: Gradient = gradients.exact,
) -> Float[Array, "batch *dims"]:
    """Projected gradient descent (Madry): steepest steps and projections from a random start.

    Returns the last iterate, as published. With restarts, an example is restarted only while no
    run has succeeded on it, and the run of highest final loss is returned where none does.

    Memory: some five images a row beside what one gradient takes, for any number of steps and
    restarts.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`; see `per_example`. Randomised models get
            a fresh key at every step, and 16 more draws for a run that ends in success, in each of
            which it must hold to end the restarts.
        x: `(batch, *dims)` images inside `ball.box`.
        y: `(batch,)` labels, or target classes where the loss is `losses.targeted`.
        key: Typed key, one or one a row; row i of a single key draws from `fold_in(key, i)`.
        ball: The threat, "linf", "l2" or "l1"; `eps` a scalar or one a row.
        num_steps: Gradient steps of a run.
        step_size: In the ball's norm and pixel units, a scalar or one a row; `2.5 * eps /
            num_steps` where None (Madry et al. 2018, appendix).
        num_restarts: Most runs an example gets.
        random_start: Start uniformly in the ball instead of at x.
        start: `(batch, *dims)` images to start at instead, brought into ball and box; for one run.
        loss: Loss of one example, to be maximised.
        gradient: Gradient estimator; `gradients.smoothed` makes this the second-order attack.

    Returns:
        `(batch, *dims)` attacked images, inside the ball and the box.

    Raises:
        ValueError: For images, labels, key, ball, step or counts that cannot be meant.

    References:
        Madry et al. 2018 (paper 001).

    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> pgd(logits_fn, jnp.full((1, 2), 0.5), jnp.array([0]), key=jax.random.key(0),
    ...     ball=Ball("linf", 0.25))
    Array([[0.25, 0.25]], dtype=float32)
    """
    return _lifted(
        False, logits_fn, x, y, key, ball, num_steps, step_size, num_restarts, random_start,
        start, loss, gradient,
    )  # fmt: skip


def pgd_trace(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    ball: Ball,
    num_steps: int = 40,
    step_size: float | Array | None = None,
    num_restarts: int = 1,
    random_start: bool = True,
    start: Images | None = None,
    loss: Loss = losses.cross_entropy,
    gradient: Gradient = gradients.exact,
) -> tuple[Float[Array, "batch *dims"], Trace]:
    """`pgd`, and what happened at each step of the run that is returned.

    Takes the arguments of `pgd` and draws the same numbers.

    Returns:
        `(x_adv, trace)` with `trace` of shape `(batch, num_steps)` throughout.

    Raises:
        ValueError: As `pgd`.

    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> _, trace = pgd_trace(logits_fn, jnp.full((1, 2), 0.5), jnp.array([0]),
    ...     key=jax.random.key(0), ball=Ball("linf", 0.25), num_steps=3)
    >>> trace.loss.shape
    (1, 3)
    """
    return _lifted(
        True, logits_fn, x, y, key, ball, num_steps, step_size, num_restarts, random_start,
        start, loss, gradient,
    )  # fmt: skip


def ball_eps(ball: Ball) -> Any:
    """The ball's radius, after a word to whoever passed something else."""
    if not isinstance(ball, Ball):
        raise ValueError(f"ball must be a jaxrobust.Ball; got {type(ball).__name__}")
    return ball.eps


def _lifted(
    record: bool, logits_fn: LogitsFn, x: Any, y: Any, key: Any, ball: Ball,
    num_steps: int, step_size: Any, num_restarts: int, random_start: bool, start: Any,
    loss: Loss, gradient: Gradient,
) -> Any:  # fmt: skip
    checks.check_count(num_steps, "num_steps")
    checks.check_count(num_restarts, "num_restarts")
    step_size = 2.5 * ball_eps(ball) / num_steps if step_size is None else step_size
    if start is not None and (num_restarts > 1 or jnp.shape(start) != jnp.shape(x)):
        raise ValueError(
            f"start must hold an image for each of x, {jnp.shape(x)}, and serves one run; got "
            f"{jnp.shape(start)} and num_restarts {num_restarts}"
        )
    rows = {} if start is None else {"start": jnp.asarray(start, x.dtype)}
    x_adv, trace = lift(
        climb, logits_fn, x, y, key=key, ball=ball, scalars={"step_size": step_size}, rows=rows,
        num_steps=num_steps, num_restarts=num_restarts, random_start=random_start, loss=loss,
        gradient=gradient, record=record,
    )  # fmt: skip
    return (x_adv, trace) if record else x_adv


def climb(
    model: Callable[..., Any], x: Array, y: Any, key: Array, *, ball: Ball, step_size: Array,
    num_steps: int, num_restarts: int, random_start: bool, loss: Loss, gradient: Gradient,
    record: bool, start: Array | None = None,
) -> tuple[Array, Trace | None]:  # fmt: skip
    """PGD on one example; the trace costs a plain forward a step, so only where it is asked for."""
    estimate = gradient(loss_of(model, loss, y))

    def one_run(restart: Array) -> tuple[Array, Trace | None]:
        start_key, walk_key = jax.random.split(jax.random.fold_in(key, restart))
        if start is not None:
            first = ball.project(x, start)
        else:
            first = ball.sample(x, start_key) if random_start else x

        def step(x_adv: Array, t: Array) -> tuple[Array, Trace | None]:
            now = gradients.step_key(gradient, walk_key, t)
            value, pullback = gradients.vjp(estimate, x_adv, now)
            ascent = pullback(jnp.ones_like(value))
            moved = ball.project(x, ball.step(x_adv, ascent, step_size))
            if not record:
                return moved, None
            hit = losses.success(loss, model(x_adv, now), y)
            return moved, Trace(value, norm(ascent, "l2"), hit)

        return jax.lax.scan(step, first, jnp.arange(num_steps))

    if num_restarts == 1:
        return one_run(jnp.zeros((), jnp.int32))

    def judged(restart: Array) -> tuple[Array, Trace | None, Array, Array]:
        x_adv, trace = one_run(restart)
        # A key of its own: not one that the walk has already climbed with.
        now = jax.random.fold_in(jax.random.fold_in(key, restart), num_steps)
        outputs = model(x_adv, now)
        return x_adv, trace, loss(outputs, y), reached(model, loss, y, x_adv, now, outputs)

    def again(restart: Array, best: Any) -> Any:
        run = judged(restart)
        better = run[3] | (run[2] > best[2])
        return jax.tree.map(lambda new, old: jnp.where(better, new, old), run, best)

    best = at_most(
        num_restarts - 1, lambda best: ~best[3], lambda i, best: again(i + 1, best),
        judged(jnp.zeros((), jnp.int32)),
    )  # fmt: skip
    return best[0], best[1]
