"""Stability training: the same probabilities for an image and its noisy copy (paper 000)."""

from __future__ import annotations

from typing import Literal

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
    sigma: float,
    weight: float = 1.0,
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
        Paper 000, sec. 5 and app. H; Zheng et al. 2016 (stability training); methods.md A.

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

    def init(params: PyTree, key: Key[Array, ""]) -> tuple[()]:
        del params, key
        return ()

    def value_and_grad(
        params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, *, key: Key[Array, ""]
    ) -> tuple[Out, PyTree]:
        noisy_x = add_noise(batch.x, sigma, key)

        def total(params: PyTree) -> tuple[Array, Out]:
            outputs, new_state = forward(params, model_state, batch.x)
            noisy_outputs, new_state = forward(params, new_state, noisy_x)
            clean, noisy = logits_of(outputs), logits_of(noisy_outputs)
            distance = jnp.mean(jax.vmap(_distance, (0, 0, None))(clean, noisy, form))
            value = jnp.mean(jax.vmap(loss)(outputs, batch.y)) + weight * distance
            metrics = {
                "accuracy": jnp.mean(jnp.argmax(clean, axis=-1) == batch.y),
                "noisy_accuracy": jnp.mean(jnp.argmax(noisy, axis=-1) == batch.y),
                "stability": distance,
            }
            return value, Out(value, new_state, state, metrics)

        grads, out = jax.grad(total, has_aux=True)(params)
        return out, grads

    return Objective(init, value_and_grad)


def _distance(
    clean: Float[Array, " classes"], noisy: Float[Array, " classes"], form: str
) -> Float[Array, ""]:
    """Distance of one example's softmax at the noisy image from that at the clean one, in nats."""
    log_clean, log_noisy = jax.nn.log_softmax(clean), jax.nn.log_softmax(noisy)
    against = log_clean if form == "kl" else 0.0
    return jnp.sum(jnp.exp(log_clean) * (against - log_noisy))
