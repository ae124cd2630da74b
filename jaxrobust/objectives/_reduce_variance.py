"""Reduce variance: the embeddings of a class shall lie close together."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxrobust.objectives._base import Forward, from_batch_loss
from jaxrobust.types import Objective, embedding_of


def reduce_variance(forward: Forward) -> Objective:
    """RVL: the variance of each class's embeddings within the mini-batch, averaged over classes.

    That of class c is `1 / N_c sum_i ||z_i - mu_c||^2`, over its `N_c` rows in the batch and around
    their own mean `mu_c`; the average is over the classes that the batch has. A class of one row
    has variance 0 and no gradient, and pulls the average down.

    The paper says three things. Eq. 5 writes the norm without its square, and a normaliser that
    reads as `N_c`, the size of a class, before the sum over classes; its text averages the
    variances; Algorithm 1 sums them. Here squares, for a variance, and as a norm has no gradient
    at 0; and the average, as in the text, so that the weight does not grow with the number of
    classes. `scale(num_classes, reduce_variance(forward))` is the sum of Algorithm 1, for batches
    that have all classes.

    Args:
        forward: `(params, model_state, x) -> ((logits, embedding), model_state)`.

    Returns:
        An objective with the metric `variance`.

    Raises:
        ValueError: At the first step, for a model that exposes no embedding.

    References:
        Paper 004, sec. 3.2, Eq. 5 and Algorithm 1.

    >>> from jaxrobust.types import Batch
    >>> objective = reduce_variance(lambda p, s, x: ((x, x * p), s))
    >>> batch = Batch(jnp.array([[0.0], [2.0], [5.0]]), jnp.array([0, 0, 1]), jnp.arange(3))
    >>> float(objective.value_and_grad(1.0, {}, (), batch, key=jax.random.key(0))[0].loss)
    0.5
    """

    def loss(outputs: PyTree, y: Array, key: Array) -> tuple[Array, dict[str, Array]]:
        del key
        value = class_variance(embedding_of(outputs), y)
        return value, {"variance": value}

    return from_batch_loss(forward, loss)


def class_variance(
    embedding: Float[Array, "batch features"], y: Int[Array, " batch"]
) -> Float[Array, ""]:
    """Mean over the classes present of the mean squared distance from the class's mean.

    Peak memory: batch x (batch + features).

    >>> float(class_variance(jnp.array([[0.0], [2.0], [5.0]]), jnp.array([0, 0, 1])))
    0.5
    """
    alike = y[:, None] == y[None, :]
    ones = alike.astype(embedding.dtype)
    share = ones / jnp.sum(ones, axis=1, keepdims=True)
    # From each class's first row, which leaves the variance as it is, and nothing of equal rows.
    centred = embedding - jax.lax.stop_gradient(embedding[jnp.argmax(alike, axis=1)])
    means = jnp.matmul(share, centred, precision=jax.lax.Precision.HIGHEST)
    spread = jnp.sum(jnp.square(centred - means), axis=1)
    weight = jnp.diagonal(share)  # 1 / N_c: sums to the number of classes
    return jnp.sum(weight * spread) / jnp.sum(weight)
