"""Free adversarial training: one gradient moves the weights and the perturbation."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxrobust import checks, losses
from jaxrobust.losses import Loss
from jaxrobust.objectives._base import Forward, mean_loss
from jaxrobust.threat import Ball, check_ball
from jaxrobust.types import Batch, Objective, Out


class FreeState(NamedTuple):
    """The perturbation of each place in the batch, as the last step left it."""

    delta: Float[Array, "batch *dims"]


def free(
    forward: Forward,
    *,
    ball: Ball,
    shape: tuple[int, ...],
    step_size: float | Array | None = None,
    loss: Loss = losses.cross_entropy,
) -> Objective:
    """Adversarial training at the price of natural training: to be run by `fit(repeats=m)`.

    Each step takes one gradient, at `x + delta`, of the batch's loss in the weights and in the
    image; the weights descend it, and delta climbs it for the next step. `fit(repeats=m)` shows
    each batch m times, so that delta becomes an attack of m steps on weights that move meanwhile;
    as published, delta is also where the next batch starts. (Without repeats it is another batch's
    for good, and hardly an attack.) Of m-fold repeats, a run takes 1 / m of the epochs (m = 8 on
    CIFAR-10, 4 on ImageNet).

    The image's gradient is a by-product of training, so, unlike an attack in a step, it sees the
    model in training mode. Delta is kept such that the image it was made for stays in the box; the
    published code clips images only.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        ball: The threat trained against; one eps for all.
        shape: `(batch_size, *dims)`, of a batch.
        step_size: In the ball's norm and pixel units; eps where None, as published.
        loss: Loss minimised at the perturbed images.

    Returns:
        An objective with the metric `adversarial_accuracy` and the state `FreeState`, which takes
        as much memory as a batch.

    Raises:
        ValueError: For a ball, a shape or a step that cannot be meant; at the first step, for a
            batch of another shape.

    References:
        Shafahi et al. 2019, "Adversarial training for free!", arXiv:1904.12843, algorithm 1.
    """
    check_ball(ball)
    if not isinstance(shape, tuple) or len(shape) < 2:
        raise ValueError(f"shape must be that of a batch, (batch_size, *dims); got {shape!r}")
    for size in shape:
        checks.check_count(size, "shape")
    if step_size is not None:
        checks.check_radius(step_size, "step_size")
    size = ball.eps if step_size is None else step_size

    def init(params: PyTree, key: Key[Array, ""]) -> FreeState:
        del params, key
        return FreeState(jnp.zeros(shape))

    def value_and_grad(
        params: PyTree, model_state: PyTree, state: FreeState, batch: Batch, *, key: Key[Array, ""]
    ) -> tuple[Out, PyTree]:
        del key
        if batch.x.shape != shape:
            raise ValueError(f"shape must be that of a batch, {batch.x.shape}; got {shape}")
        mean = mean_loss(forward, loss, batch.y, "adversarial_accuracy")

        def at(params: PyTree, x: Array) -> tuple[Array, Out]:
            return mean(params, model_state, state, batch._replace(x=x))

        def climb(x: Array, x_adv: Array, ascent: Array) -> Array:
            return ball.project(x, ball.step(x_adv, ascent, size)) - x

        start = jax.vmap(ball.project)(batch.x, batch.x + state.delta.astype(batch.x.dtype))
        (grads, ascent), out = jax.grad(at, (0, 1), has_aux=True)(params, start)
        delta = jax.vmap(climb)(batch.x, start, ascent).astype(state.delta.dtype)
        return out._replace(state=FreeState(delta)), grads

    return Objective(init, value_and_grad)
