"""Auto-PGD: gradient ascent within a ball that chooses its own step sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust import checks, gradients, losses
from jaxrobust.attacks._apgd_run import Run, ascend
from jaxrobust.attacks._lift import clear_success, lift
from jaxrobust.gradients import Gradient
from jaxrobust.loops import at_most
from jaxrobust.losses import Loss
from jaxrobust.threat import Ball
from jaxrobust.types import Images, Keys, Labels, LogitsFn, Randomized, logits_of


def apgd(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    ball: Ball,
    num_steps: int = 100,
    num_restarts: int = 1,
    loss: Loss = losses.cross_entropy,
    gradient: Gradient = gradients.exact,
    larger_eps: bool = False,
) -> Float[Array, "batch *dims"]:
    """Auto-PGD: PGD with momentum that halves its step where the loss no longer rises.

    Steps of 2 eps at first. At checkpoints that grow closer, where too few steps raised the loss,
    the step is halved and the search goes on from the best image so far. In l1, steps move the
    largest entries of the gradient only, about as many as the best image has changed.

    Returns the first image found that succeeds (misclassified, or what else the loss asks for) and
    stops there; the image of highest loss where none does. One draw of a `Randomized` model proves
    nothing, so there it never stops, and the image of highest (estimated) loss comes back.

    Deviations from the authors' code, which does not stop: the first step is compared with the
    start (there with 0), and the noise that l1 starts from is projected as such.
    Memory: some twelve images a row beside the model's gradient.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`; see `per_example`.
        x: `(batch, *dims)` images inside `ball.box`.
        y: `(batch,)` labels, or target classes where the loss is `losses.targeted`.
        key: Typed key, one or one a row.
        ball: The threat, "linf", "l2" or "l1"; `eps` a scalar or one a row.
        num_steps: Steps of a run, which takes one gradient more.
        num_restarts: Most runs an example gets.
        loss: Loss of one example, to be maximised; `losses.dlr` is the authors' other choice.
        gradient: Gradient estimator; `gradients.eot` for randomised models.
        larger_eps: Spend three tenths of the steps in a ball of 3 eps, as many in one of 2 eps and
            the rest in the ball itself, each from the best image of the last. Published for l1.

    Returns:
        `(batch, *dims)` attacked images, inside the ball and the box.

    Raises:
        ValueError: For images, labels, key, ball or counts that cannot be meant.

    References:
        Croce and Hein 2020 (AutoAttack), algorithm 1; l1: Croce and Hein 2021 ("Mind the box"),
        algorithm 1 and sec. 4.

    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> apgd(logits_fn, jnp.full((1, 2), 0.7), jnp.array([0]), key=jax.random.key(0),
    ...      ball=Ball("linf", 0.125), num_steps=5)
    Array([[0.575, 0.575]], dtype=float32)
    """
    checks.check_count(num_steps, "num_steps", 3 if larger_eps else 1)
    checks.check_count(num_restarts, "num_restarts")
    return lift(
        _search, logits_fn, x, y, key=key, ball=ball, num_steps=num_steps,
        num_restarts=num_restarts, loss=loss, gradient=gradient, larger_eps=larger_eps,
        stops=not isinstance(logits_fn, Randomized),
    )  # fmt: skip


def apgd_targeted(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    ball: Ball,
    num_steps: int = 100,
    num_targets: int = 9,
    gradient: Gradient = gradients.exact,
    larger_eps: bool = False,
) -> Float[Array, "batch *dims"]:
    """Auto-PGD towards the likeliest wrong classes, one after another while the example stands.

    Each run climbs `losses.targeted_dlr` from a start of its own; whatever wrong class is met ends
    the search. Otherwise as `apgd`.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`; see `per_example`.
        x: `(batch, *dims)` images inside `ball.box`.
        y: `(batch,)` true labels.
        key: Typed key, one or one a row.
        ball: The threat, "linf", "l2" or "l1"; `eps` a scalar or one a row.
        num_steps: Steps towards each class.
        num_targets: Most classes tried: the largest logits of x but y's; all where there are fewer.
        gradient: Gradient estimator.
        larger_eps: As in `apgd`.

    Returns:
        `(batch, *dims)` attacked images, inside the ball and the box.

    Raises:
        ValueError: For images, labels, key, ball or counts that cannot be meant.

    References:
        Croce and Hein 2020 (AutoAttack), sec. 4 and 6.2.

    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> apgd_targeted(logits_fn, jnp.full((1, 2), 0.7), jnp.array([0]), key=jax.random.key(0),
    ...      ball=Ball("linf", 0.125), num_steps=5)
    Array([[0.575, 0.575]], dtype=float32)
    """
    checks.check_count(num_steps, "num_steps", 3 if larger_eps else 1)
    checks.check_count(num_targets, "num_targets")
    return lift(
        _targeted_search, logits_fn, x, y, key=key, ball=ball, num_steps=num_steps,
        num_targets=num_targets, gradient=gradient, larger_eps=larger_eps,
        stops=not isinstance(logits_fn, Randomized),
    )  # fmt: skip


def _search(
    model: Callable[..., Any], x: Array, y: Any, key: Array, *, num_restarts: int, loss: Loss,
    **settings: Any,
) -> Array:  # fmt: skip
    def climbed(run: Array, outputs: Any) -> Array:
        return loss(outputs, y)

    def aim(outputs: Any) -> Array:
        return clear_success(loss, outputs, y)

    return _best_run(model, climbed, aim, x, key, num_restarts, **settings)


def _targeted_search(
    model: Callable[..., Any], x: Array, y: Any, key: Array, *, num_targets: int, **settings: Any
) -> Array:
    logits = logits_of(model(x, jax.random.fold_in(key, num_targets)))  # a key that no run has
    num_targets = min(num_targets, logits.size - 1)
    others = jnp.where(jnp.arange(logits.size) == y, -jnp.inf, logits)
    targets = jax.lax.top_k(others, num_targets)[1]

    def climbed(run: Array, outputs: Any) -> Array:
        return losses.targeted_dlr(outputs, y, targets[run])

    def aim(outputs: Any) -> Array:
        return clear_success(losses.margin, outputs, y)

    return _best_run(model, climbed, aim, x, key, num_targets, **settings)


def _best_run(
    model: Callable[..., Any], climbed: Callable[[Array, Any], Array],
    aim: Callable[[Any], Array], x: Array, key: Array, num_runs: int, *, ball: Ball,
    num_steps: int, gradient: Gradient, larger_eps: bool, stops: bool,
) -> Array:  # fmt: skip
    """Runs, each with a loss of its own, until one reaches the aim; otherwise the highest loss."""
    nowhere = jnp.zeros_like(x, bool, shape=())

    def again(run: Array, best: Run) -> Run:
        start_key, walk_key = jax.random.split(jax.random.fold_in(key, run))
        estimate = gradient(lambda x, key: climbed(run, model(x, key)))

        def evaluate(image: Array, t: Array) -> tuple[Array, Array, Array]:
            now = gradients.step_key(gradient, walk_key, t)
            value, pullback = gradients.vjp(estimate, image, now)
            slope = pullback(jnp.ones_like(value))
            slope = jnp.where(jnp.isfinite(slope), slope, 0)
            reached = aim(model(image, now)) if stops else nowhere
            return value.astype(x.dtype), slope, reached

        needed = ~best.reached
        found = ascend(evaluate, x, ball, start_key, num_steps, larger_eps, needed)
        better = found.reached | (found.loss > best.loss)
        return jax.tree.map(lambda new, old: jnp.where(better, new, old), found, best)

    start = Run(x, jnp.full_like(x, -jnp.inf, shape=()), nowhere)
    return at_most(num_runs, lambda best: ~best.reached, again, start).image
