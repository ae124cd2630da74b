"""Input-gradient regularisation (double back-propagation)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxrobust import losses
from jaxrobust.losses import Loss
from jaxrobust.objectives._base import Forward
from jaxrobust.objectives._input_products import regulariser, squared_product
from jaxrobust.types import Batch, Objective


def input_gradient(
    forward: Forward, *, weight: float | Array = 110.0, loss: Loss = losses.cross_entropy
) -> Objective:
    """`weight` times the batch mean of the squared l2 norm of each loss's derivative in its image.

    A regulariser alone, to be added to a loss. The released code takes `lambda / 2` times the
    squared derivative of the mean loss of a batch of 256, where this weight is `lambda / (2 *
    256)`: its 56 234 are 110 here, and another batch size needs no other weight. That may be far
    too much: small networks become constant under 110; on MNIST 5 did best of 1, 5 and 25
    (`experiments/adversarial_training`). Choose it on held-out images. With the natural step it is
    added to, it costs some 2.6 natural steps (`madry_cnn`, CPU). On what it is made of, batch
    statistics and the model's state see `jacobian`.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        weight: At least 0.
        loss: Loss of one example, with second derivatives.

    Returns:
        An objective with the metric `input_gradient`, the mean without its weight.

    Raises:
        ValueError: For a negative weight.

    References:
        Ross and Doshi-Velez 2018, "Improving the Adversarial Robustness and Interpretability of
        Deep Neural Networks by Regularizing their Input Gradients"; Drucker and Le Cun 1992; paper
        001 (which swaps its footnotes).

    >>> objective = input_gradient(lambda w, s, x: (x @ w, s), weight=1.0)
    >>> batch = Batch(jnp.zeros((1, 1)), jnp.array([0]), jnp.array([0]))
    >>> weights = jnp.array([[3.0, 7.0]])
    >>> out, _ = objective.value_and_grad(weights, {}, (), batch, key=jax.random.key(0))
    >>> float(out.loss)  # ((7 - 3) / 2)^2
    4.0
    """

    def value_and_grad(
        params: PyTree, model_state: PyTree, batch: Batch, key: Array
    ) -> tuple[Array, PyTree]:
        del key

        def total(params: PyTree, x: Array) -> Array:
            outputs, _ = forward(params, model_state, x)
            return jnp.sum(jax.vmap(loss)(outputs, batch.y))

        of_all, square, grads = squared_product(total, params, batch.x, jnp.ones(()))
        # the loss of a class that is not there is NaN, though its derivative is a number
        return jnp.where(jnp.isnan(of_all), jnp.nan, square), grads

    return regulariser(value_and_grad, weight=weight, metric="input_gradient")
