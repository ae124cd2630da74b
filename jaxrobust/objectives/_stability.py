"""Stability training: the same probabilities for an image and its noisy copy (paper 000)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxrobust import checks, losses
from jaxrobust.losses import Loss
from jaxrobust.objectives._base import Forward
from jaxrobust.objectives._noise import add_noise
from jaxrobust.types import Batch, Objective, Out, logits_of

FORMS = ("cross_entropy", "kl")


def stability(
    forward: Forward,
    *,
    sigma: float | Array,
    weight: float | Array = 1.0,
    form: Literal["cross_entropy", "kl"] = "cross_entropy",
    loss: Loss = losses.cross_entropy,
) -> Objective:
    """Clean loss plus the distance of the probabilities at the image from those at a noisy copy.

    `loss(x, y) + weight * D(f(x), f(x'))` with `x' = x + N(0, sigma^2 I)`: one draw an example and
    step, not clipped to the box. `D` is the cross-entropy `-sum_j P(j | x) log P(j | x')`, as
    published, or the Kullback-Leibler divergence, which is that less the entropy of `P(. | x)`:
    only the former also rewards confidence at the clean image.

    The paper does not say whether the clean probabilities are a constant in `D`; here gradients
    pass through both sides. The model runs on the clean batch first and then on the noisy one, each
    with batch statistics of its own, and its state goes through both.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        sigma: Standard deviation of the noise in pixel units (MNIST 0.2).
        weight: Weight of the stability term, the paper's gamma.
        form: "cross_entropy" or "kl".
        loss: Loss minimised at the clean images.

    Returns:
        An objective with the metrics `accuracy` (clean), `noisy_accuracy` and `stability`, the
        batch mean of `D`.

    Raises:
        ValueError: For a negative sigma or weight, or an unknown form.

    References:
        Paper 000, sec. 5 and app. H; Zheng et al. 2016 (stability training).

    >>> objective = stability(lambda p, s, x: (x * p, s), sigma=0.0)
    >>> batch = Batch(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([0]))
    >>> out, _ = objective.value_and_grad(1.0, {}, (), batch, key=jax.random.key(0))
    >>> float(out.loss)  # 2 log 2
    1.386294...
    """
    checks.check_radius(sigma, "sigma")
    checks.check_radius(weight, "weight")
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}; got {form!r}")

    distance = _cross_entropy if form == "cross_entropy" else losses.kl
    step = at_both(forward, loss, distance, weight, "noisy_accuracy", "stability")

    def init(params: PyTree, key: Key[Array, ""]) -> tuple[()]:
        del params, key
        return ()

    def value_and_grad(
        params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, *, key: Key[Array, ""]
    ) -> tuple[Out, PyTree]:
        return step(params, model_state, state, batch, add_noise(batch.x, sigma, key))

    return Objective(init, value_and_grad)


def at_both(
    forward: Forward,
    loss: Loss,
    distance: Loss,
    weight: float | Array,
    accuracy: str,
    name: str,
) -> Callable[..., tuple[Out, PyTree]]:
    """`(params, model_state, state, batch, other images) -> (Out, grads)`.

    Of the mean of `loss` at the batch plus `weight` times that of `distance((z', z), y)`, z' the
    logits at the other image and z those at the batch's own. The model runs on the batch first.

    Args:
        forward: The model.
        loss: Of one example at its own image.
        distance: Between its logits at both.
        weight: Of the distance.
        accuracy: What the accuracy at the other images is called.
        name: What the mean distance is called.
    """

    def step(
        params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, other: Array
    ) -> tuple[Out, PyTree]:
        def total(params: PyTree) -> tuple[Array, Out]:
            outputs, new_state = forward(params, model_state, batch.x)
            other_outputs, new_state = forward(params, new_state, other)
            here, there = logits_of(outputs), logits_of(other_outputs)
            apart = jnp.mean(jax.vmap(distance)((there, here), batch.y))
            value = jnp.mean(jax.vmap(loss)(outputs, batch.y)) + weight * apart
            metrics = {
                "accuracy": jnp.mean(jnp.argmax(here, axis=-1) == batch.y),
                accuracy: jnp.mean(jnp.argmax(there, axis=-1) == batch.y),
                name: apart,
            }
            return value, Out(value, new_state, state, metrics)

        grads, out = jax.grad(total, has_aux=True)(params)
        return out, grads

    return step


def _cross_entropy(outputs: PyTree, y: Any) -> Float[Array, ""]:
    """Of the softmax at the noisy image with that at the clean one for its target, in nats."""
    return losses.cross_entropy(outputs[0], jax.nn.softmax(outputs[1]))
