"""Siamese training: embeddings parallel within a class, and at right angles between classes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from jaxrobust.objectives._base import Forward, from_batch_loss
from jaxrobust.types import Objective, embedding_of


class Pairs(NamedTuple):
    """A partner for each row of a batch.

    Attributes:
        partner: Its row.
        same: Whether it was to be of the same class (S in the paper).
        kept: False where there was none of another class: such a pair is left out.
    """

    partner: Int[Array, " batch"]
    same: Bool[Array, " batch"]
    kept: Bool[Array, " batch"]


def siamese(forward: Forward, *, same_class: float = 0.5) -> Objective:
    """The mean over pairs of `|cos(z_1, z_2) - S|`, S = 1 within a class and 0 between classes.

    Partners are drawn at each step from the mini-batch itself, in the compiled program: with
    probability `same_class` another row of the same class, else a row of a class drawn uniformly
    among the other classes present. The rows of a shuffled batch are a uniform sample of the
    training set, and those of one class in it of that class, so that a pair has the distribution of
    Algorithm 1, which draws from the whole training set; but the embeddings of the partners are
    there already, and a step is one pass over the batch in place of two. What differs:

    - only classes that the batch has are drawn, and a row is not its own partner;
    - pairs of a batch share rows: more noise in the gradient, the same mean;
    - batch statistics are those of one batch.

    Algorithm 1 draws the partner "from class Y[b]" even where S = 0, which cannot be meant: here it
    is of the class drawn in the line before.

    A row that is alone in its class is its own partner where the classes shall be the same: cosine
    1, no gradient. Where all rows are of one class, pairs of different classes are left out of the
    mean. An embedding of zeros has cosine 0 with all others, and no gradient.

    Args:
        forward: `(params, model_state, x) -> ((logits, embedding), model_state)`.
        same_class: Probability Q of a partner of the same class. The paper gives none; 0.5 is our
            choice.

    Returns:
        An objective with the metric `siamese`, from 0 to 2.

    Raises:
        ValueError: For a probability outside [0, 1]; at the first step, for a model that exposes no
            embedding.

    References:
        Paper 004, sec. 3.1 and Algorithm 1.

    >>> from jaxrobust.types import Batch
    >>> objective = siamese(lambda p, s, x: ((x, x * p), s))
    >>> batch = Batch(jnp.array([[1.0, 0.0], [3.0, 4.0]]), jnp.array([0, 1]), jnp.arange(2))
    >>> out, _ = objective.value_and_grad(1.0, {}, (), batch, key=jax.random.key(1))
    >>> out.loss  # cosine 0.6 in one of two pairs; the other row is its own partner
    Array(0.3, dtype=float32)
    """
    check_same_class(same_class)

    def loss(outputs: PyTree, y: Array, key: Array) -> tuple[Array, dict[str, Array]]:
        value = pair_loss(embedding_of(outputs), draw_pairs(y, key, same_class))
        return value, {"siamese": value}

    return from_batch_loss(forward, loss)


def check_same_class(value: float) -> None:
    """Refuse a probability outside [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"same_class must be a probability in [0, 1]; got {value}")


def draw_pairs(y: Int[Array, " batch"], key: Key[Array, ""], same_class: float) -> Pairs:
    """A random partner for each row; see `siamese`.

    Peak memory: batch x batch.

    >>> draw_pairs(jnp.array([0, 0, 1]), jax.random.key(0), 1.0).partner
    Array([1, 0, 2], dtype=int32)
    """
    class_key, row_key = jax.random.split(key)
    same = jax.random.bernoulli(class_key, same_class, y.shape)
    rows = jnp.arange(y.shape[0])
    alike = y[:, None] == y[None, :]
    allowed = jnp.where(same[:, None], alike & (rows[:, None] != rows), ~alike)
    # One over the size of its class makes every class as likely, and rows within a class too.
    size = jnp.sum(alike, axis=0, dtype=jnp.float32)
    found = jax.random.categorical(row_key, jnp.where(allowed, -jnp.log(size), -jnp.inf), axis=-1)
    exists = jnp.any(allowed, axis=1)
    return Pairs(jnp.where(exists, found, rows).astype(rows.dtype), same, same | exists)


def pair_loss(embedding: Float[Array, "batch features"], pairs: Pairs) -> Float[Array, ""]:
    """Mean over the pairs kept of `|cos - S|`.

    All cosines of the batch by one product, as gathering partners would add up their gradients in
    no fixed order on GPUs.

    >>> one = Pairs(jnp.array([1, 1]), jnp.array([False, True]), jnp.array([True, True]))
    >>> pair_loss(jnp.array([[1.0, 0.0], [3.0, 4.0]]), one)
    Array(0.3, dtype=float32)
    """
    units = _unit(embedding)
    cosines = jnp.matmul(units, units.T, precision=jax.lax.Precision.HIGHEST)
    rows = jnp.arange(embedding.shape[0])
    chosen = pairs.partner[:, None] == rows
    cosine = jnp.sum(jnp.where(chosen, cosines, 0), axis=1)
    off = jnp.abs(cosine - pairs.same.astype(cosine.dtype))
    return mean_over(jnp.where(pairs.partner == rows, 0, off), pairs.kept)


def mean_over(values: Float[Array, " batch"], kept: Bool[Array, " batch"]) -> Float[Array, ""]:
    """Mean of the values kept; 0 of none.

    >>> mean_over(jnp.array([2.0, 8.0]), jnp.array([True, False]))
    Array(2., dtype=float32)
    """
    return jnp.sum(jnp.where(kept, values, 0)) / jnp.maximum(jnp.sum(kept, dtype=values.dtype), 1)


def _unit(z: Float[Array, "batch features"]) -> Float[Array, "batch features"]:
    """Rows of length 1; zeros stay, with a gradient of zero.

    The largest entry is taken out first, as a constant, which directions do not feel: so no square
    leaves the range of floats.
    """
    largest = jnp.max(jnp.abs(z), axis=1, keepdims=True)
    scaled = z / jax.lax.stop_gradient(jnp.maximum(largest, jnp.finfo(z.dtype).tiny))
    squared = jnp.sum(jnp.square(scaled), axis=1, keepdims=True)
    return scaled / jnp.sqrt(jnp.where(squared == 0, 1, squared))
