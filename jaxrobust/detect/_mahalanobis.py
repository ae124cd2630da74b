"""Mahalanobis distances to class means, the simple detector to compare with."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrobust.detect._common import ClassConditional, check_dims, check_embeddings


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mahalanobis(ClassConditional):
    """Minus the squared Mahalanobis distance to the predicted class's mean, less its threshold.

    Attributes:
        means: `(classes, dims)`.
        whitening: `(dims, rank)` W with `W W^T` the inverse of the shared covariance.
        thresholds: `(classes,)` scores below which an image is rejected.
    """

    means: Any
    whitening: Any
    thresholds: Any

    def raw(self, embedding: Float[Array, "batch dims"]) -> Float[Array, "batch classes"]:
        """Minus the squared distance to each class."""
        check_dims(embedding, self.means.shape[1])
        dtype = embedding.dtype
        apart = embedding[:, None] - self.means.astype(dtype)
        white = jnp.einsum(
            "qcd,dr->qcr", apart, self.whitening.astype(dtype), precision="highest"
        )  # fmt: skip
        return -jnp.sum(white**2, -1)


def mahalanobis(embeddings: Any, labels: Any, *, num_classes: int) -> Mahalanobis:
    """`-(z - mu_c)^T S^-1 (z - mu_c)`: class means, one covariance for all classes.

    As published, S is the plain covariance about the class means, and its inverse the
    pseudo-inverse: along a direction in which no reference point varies, nothing is measured.
    A class of one point is legal: it has a mean, and the covariance is everybody's. Published too,
    and not done here: features of several layers, noise before them, a score tuned on attacks.

    Memory: batch x classes x dims.

    Args:
        embeddings: `(points, dims)` embeddings of training images.
        labels: `(points,)` their classes.
        num_classes: Number of logits of the model.

    Returns:
        The detector, its thresholds 0, which rejects everything: see `calibrated`.

    Raises:
        ValueError: For embeddings that are not finite, a class without points, and points of which
            none differs from its class's mean.

    References: Lee et al. 2018, eq. 1 and 2.

    >>> z = np.array([[0.0], [2.0], [8.0], [10.0]], np.float32)
    >>> found = mahalanobis(z, np.array([0, 0, 1, 1]), num_classes=2)
    >>> found.scores((jnp.zeros((1, 2)), jnp.array([[3.0]]))).round(3)
    Array([[ -4., -36.]], dtype=float32)
    """
    embeddings, labels = check_embeddings(embeddings, labels, num_classes)
    exact = embeddings.astype(np.float64)
    means = np.stack([exact[labels == c].mean(0) for c in range(num_classes)])
    apart = exact - means[labels]
    values, vectors = np.linalg.eigh(apart.T @ apart / len(apart))
    tiny = np.finfo(embeddings.dtype).eps
    # What float embeddings round to is no variance.
    floor = max(tiny * values[-1], (tiny * np.abs(exact).max()) ** 2)
    varies = values > floor
    if not varies.any():
        raise ValueError(
            "embeddings must vary within some class: all points of each class are identical"
        )
    whitening = vectors[:, varies] / np.sqrt(values[varies])
    dtype = embeddings.dtype
    return Mahalanobis(
        jnp.asarray(means, dtype), jnp.asarray(whitening, dtype), jnp.zeros(num_classes, dtype)
    )
