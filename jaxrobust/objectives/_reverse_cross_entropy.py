"""Reverse cross-entropy: training whose decision is the least logit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxrobust import losses
from jaxrobust.objectives._base import Forward, from_batch_loss
from jaxrobust.transforms import reversed_outputs
from jaxrobust.types import Objective, logits_of


def reverse_cross_entropy(forward: Forward) -> Objective:
    """RCE on the clean batch: all classes but the true one shall be equally likely.

    The trained network predicts by `softmax(-z)`: give attacks, detectors and `evaluate` the model
    through `transforms.reversed_logits`. The accuracy here is counted so too.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`, the logits not reversed.

    Returns:
        An objective with the metrics `accuracy`, by that rule, and `reverse_cross_entropy`, which
        is no smaller than the logarithm of the number of wrong classes.

    References:
        Pang et al. 2018 (RCE); paper 004, sec. 3.3.

    >>> from jaxrobust.types import Batch
    >>> objective = reverse_cross_entropy(lambda p, s, x: (x * p, s))
    >>> batch = Batch(jnp.array([[-9.0, 0.0, 0.0]]), jnp.array([0]), jnp.array([0]))
    >>> out, _ = objective.value_and_grad(1.0, {}, (), batch, key=jax.random.key(0))
    >>> float(out.metrics["accuracy"])
    1.0
    """

    def loss(outputs: PyTree, y: Array, key: Array) -> tuple[Array, dict[str, Array]]:
        del key
        value = jnp.mean(jax.vmap(losses.reverse_cross_entropy)(outputs, y))
        return value, {"accuracy": reversed_accuracy(outputs, y), "reverse_cross_entropy": value}

    return from_batch_loss(forward, loss)


def reversed_accuracy(outputs: PyTree, y: Int[Array, " batch"]) -> Float[Array, ""]:
    """Share of a batch that is right under the decision of reverse cross-entropy.

    >>> reversed_accuracy(jnp.array([[-1.0, 0.0], [-1.0, 0.0]]), jnp.array([0, 1]))
    Array(0.5, dtype=float32)
    """
    return jnp.mean(jnp.argmax(logits_of(reversed_outputs(outputs)), axis=-1) == y)
