"""Penetration distortion maximisation (paper 004): RCE, Siamese and reduce-variance training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxrobust import losses
from jaxrobust.objectives._base import Forward, from_batch_loss
from jaxrobust.objectives._reduce_variance import class_variance
from jaxrobust.objectives._reverse_cross_entropy import reversed_accuracy
from jaxrobust.objectives._siamese import check_same_class, draw_pairs, mean_over, pair_loss
from jaxrobust.types import Objective, embedding_of


def pdm(forward: Forward, *, same_class: float = 0.5) -> Objective:
    """PDM: `RCE(x_1) + RCE(x_2) + RVL + Siamese`, the weights 1, in one pass over the batch.

    `x_1` is the batch and `x_2` the partners that `siamese` draws from it, whose RCE is that of
    their own rows. The sum of `reverse_cross_entropy`, `reduce_variance` and `siamese` under `add`
    would be three passes, and lacks `RCE(x_2)`, which counts a row as often as it was drawn: more
    often in rare classes.

    The trained network predicts by `softmax(-z)`: see `reverse_cross_entropy`.

    Args:
        forward: `(params, model_state, x) -> ((logits, embedding), model_state)`.
        same_class: Probability Q of a partner of the same class; our choice, see `siamese`.

    Returns:
        An objective with the metrics `accuracy` (of the batch, by `softmax(-z)`),
        `reverse_cross_entropy`, `partner_reverse_cross_entropy`, `variance` and `siamese`: the four
        terms.

    Raises:
        ValueError: For a probability outside [0, 1]; at the first step, for a model that exposes no
            embedding.

    References:
        Paper 004, Algorithm 1. Departures: pairs within the batch, and the typo of
        line 13 (`siamese`); the variances of `x_1` are averaged over the classes present, as the
        text has it, where Algorithm 1 sums them (`reduce_variance`). Published: ResNet-56, SGD of
        rate 0.1, batches of 128, L2 of 0.002; 80 epochs (MNIST), 400 (CIFAR-10).

    >>> from jaxrobust.types import Batch
    >>> objective = pdm(lambda p, s, x: ((x * p, x), s))
    >>> batch = Batch(jnp.eye(2), jnp.array([0, 1]), jnp.arange(2))
    >>> out, _ = objective.value_and_grad(-1.0, {}, (), batch, key=jax.random.key(0))
    >>> float(out.loss)  # 2 log(1 + 1 / e), the embeddings being as they should
    0.626523...
    """
    check_same_class(same_class)

    def loss(outputs: PyTree, y: Array, key: Array) -> tuple[Array, dict[str, Array]]:
        embedding = embedding_of(outputs)
        pairs = draw_pairs(y, key, same_class)
        each = jax.vmap(losses.reverse_cross_entropy)(outputs, y)
        chosen = pairs.partner[:, None] == jnp.arange(y.shape[0])
        terms = {
            "reverse_cross_entropy": jnp.mean(each),
            "partner_reverse_cross_entropy": mean_over(
                jnp.sum(jnp.where(chosen, each, 0), axis=1), pairs.kept
            ),
            "variance": class_variance(embedding, y),
            "siamese": pair_loss(embedding, pairs),
        }
        total = sum(terms.values(), start=jnp.zeros((), each.dtype))
        return total, {"accuracy": reversed_accuracy(outputs, y), **terms}

    return from_batch_loss(forward, loss)
