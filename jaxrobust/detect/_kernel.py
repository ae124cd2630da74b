"""Gaussian kernel densities of embeddings, one a class."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrobust import checks
from jaxrobust.detect._common import (
    ClassConditional,
    check_dims,
    check_distinct,
    check_embeddings,
)
from jaxrobust.detect._distances import log_densities, pack
from jaxrobust.types import row_keys


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KernelDensity(ClassConditional):
    """Log-density of the embedding under the predicted class, less that class's threshold.

    Attributes:
        points: Reference points, packed.
        bandwidth: h of `exp(-d^2 / 2 h^2)`.
        thresholds: `(classes,)` log-densities, in nats, below which an image is rejected.
        dims: Numbers of an embedding.
        chunk: Embeddings looked at at once; it changes no bit of a result.
    """

    points: Any  # Points, but unflattening passes placeholders
    bandwidth: Any
    thresholds: Any
    dims: int = dataclasses.field(metadata={"static": True})
    chunk: int = dataclasses.field(metadata={"static": True}, default=128)

    def raw(self, embedding: Float[Array, "batch dims"]) -> Float[Array, "batch classes"]:
        """Log-density of each class."""
        check_dims(embedding, self.dims)
        return log_densities(self.points, self.bandwidth, embedding, chunk=self.chunk)


def kernel_density(
    embeddings: Any,
    labels: Any,
    *,
    num_classes: int,
    bandwidth: float,
    num_points: int | None = None,
    key: Any = None,
    thresholds: Any = 0.0,
    chunk: int = 128,
) -> KernelDensity:
    """A Gaussian kernel density for each class: `mean_i exp(-|z - z_i|^2 / 2 h^2)`, normalised.

    It is scikit-learn's `KernelDensity`. Others write the kernel otherwise: RCE's
    `exp(-d^2 / sigma^2)` is `h = sqrt(sigma^2 / 2)`, so its sigma^2 of 1/.26 (cross-entropy) is
    h = 1.387 and that of .1/.26 (RCE) h = 0.4385; Feinman's h is this h. Bandwidths belong to a
    model and are not shared between models: `choose_bandwidth`.

    K-density is `num_points=1000` (RCE; paper 004): that many random points of each class.

    Distances are sums of squared differences, not the expanded square, which loses all digits where
    clusters are tight. Derivatives recompute the distances. Memory: chunk x classes x 128 floats
    beside the points; a derivative takes batch x classes x dims more. Every query is compared with
    the points of all classes, a gradient twice.

    Args:
        embeddings: `(points, dims)` embeddings of training images.
        labels: `(points,)` their classes. RCE's model predicts by reversed logits: hand `evaluate`
            and the attacks `transforms.reversed_logits` of it.
        num_classes: Number of logits of the model.
        bandwidth: h, in units of the embedding, positive.
        num_points: Most points of a class that are kept, at random; None keeps all.
        key: Typed key of the choice; needed with `num_points`.
        thresholds: Log-density below which an image is rejected, one number or one a class. The
            default means nothing: see `calibrated` and `median_thresholds`.
        chunk: Embeddings looked at at once; it changes no bit of a result.

    Raises:
        ValueError: For embeddings that are not finite; for a class without two different points;
            for a bandwidth, a number of points, a key or thresholds that cannot be meant.

    References: Feinman et al. 2017; Pang et al. 2018, sec. 3; paper 004, sec. 4.

    >>> z = np.array([[0.0], [1.0], [5.0], [6.0]], np.float32)
    >>> density = kernel_density(z, np.array([0, 0, 1, 1]), num_classes=2, bandwidth=1.0)
    >>> logits = jnp.array([[1.0, 0.0]])
    >>> density.scores((logits, jnp.array([[0.5]]))).round(2)  # log of 0.352, and of 8e-6
    Array([[ -1.04, -11.73]], dtype=float32)
    """
    embeddings, labels = check_embeddings(embeddings, labels, num_classes)
    _check_bandwidth(bandwidth, "bandwidth")
    checks.check_count(chunk, "chunk")
    if num_points is not None:
        checks.check_count(num_points, "num_points", 2)
        if key is None:
            raise ValueError("key must be given with num_points, which draws; got None")
        keys = row_keys(key, num_classes)
        kept = []
        for c in range(num_classes):
            own = np.flatnonzero(labels == c)
            kept.append(own[np.asarray(jax.random.permutation(keys[c], len(own)))[:num_points]])
        chosen = np.concatenate(kept)
        embeddings, labels = embeddings[chosen], labels[chosen]
    check_distinct(embeddings, labels, num_classes)
    levels = np.asarray(thresholds, embeddings.dtype)
    if levels.shape not in ((), (num_classes,)) or not np.isfinite(levels).all():
        raise ValueError(
            f"thresholds must be one finite number or one for each of the {num_classes} classes; "
            f"got {thresholds}"
        )
    return KernelDensity(
        pack(embeddings, labels, num_classes), jnp.asarray(bandwidth, embeddings.dtype),
        jnp.asarray(np.broadcast_to(levels, (num_classes,))), embeddings.shape[1], int(chunk),
    )  # fmt: skip


def choose_bandwidth(
    embeddings: Any,
    labels: Any,
    validation_embeddings: Any,
    validation_labels: Any,
    *,
    num_classes: int,
    grid: Any = None,
    num_points: int | None = None,
    key: Any = None,
) -> float:
    """The bandwidth under which clean validation embeddings are likeliest for their true classes.

    Our choice: the papers give bandwidths and not how they were found. No adversarial image has a
    part in it. Leave out images that the model gets wrong: they lie with another class, and few of
    them rule the mean. An answer at the end of the grid, of which it warns, says that the grid
    ends too early; images that are among the reference points themselves would ask for a bandwidth
    of zero.

    Args:
        embeddings: `(points, dims)` reference points.
        labels: Their classes.
        validation_embeddings: `(images, dims)` embeddings of clean images held out.
        validation_labels: Their classes.
        num_classes: Number of logits of the model.
        grid: Bandwidths to try; None tries 25 in geometric steps from 0.03 to 3 times the
            within-class deviation a dim.
        num_points: As in `kernel_density`.
        key: As in `kernel_density`.

    Returns:
        One of the grid, that of the largest mean log-density; the smallest of equals.

    Raises:
        ValueError: As `kernel_density`, and for a grid of other than positive numbers.

    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(400) % 2
    >>> z = (rng.normal(size=(400, 2)) + 9 * y[:, None]).astype(np.float32)
    >>> choose_bandwidth(z[:200], y[:200], z[200:], y[200:], num_classes=2, grid=[0.01, 0.5, 9.0])
    0.5
    """
    held, held_labels = check_embeddings(
        validation_embeddings, validation_labels, num_classes, "validation_", every=False
    )
    density = kernel_density(
        embeddings, labels, num_classes=num_classes, bandwidth=1.0, num_points=num_points, key=key
    )
    if grid is None:
        grid = _spread_of(*check_embeddings(embeddings, labels, num_classes), num_classes)
        grid = grid * np.geomspace(0.03, 3, 25)
    bandwidths = np.sort(np.atleast_1d(np.asarray(grid, np.float64)))
    for bandwidth in bandwidths:
        _check_bandwidth(float(bandwidth), "grid")
    check_dims(held, density.dims, "validation_embeddings")
    rows = np.arange(len(held))

    def likelihood(bandwidth: float) -> float:
        each = dataclasses.replace(density, bandwidth=jnp.asarray(bandwidth, held.dtype))
        return float(
            np.mean(np.asarray(each.raw(jnp.asarray(held)))[rows, held_labels], dtype=float)
        )

    best = int(np.argmax([likelihood(float(h)) for h in bandwidths]))
    if len(bandwidths) > 1 and best in (0, len(bandwidths) - 1):
        warnings.warn(
            f"the likeliest bandwidth, {bandwidths[best]:g}, is an end of the grid: it may lie "
            "beyond",
            stacklevel=2,
        )
    return float(bandwidths[best])


def _spread_of(embeddings: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """Root of the mean squared difference of a number from its class's mean."""
    squares = [
        np.sum((own - own.mean(0)) ** 2, dtype=float)
        for own in (embeddings[labels == c] for c in range(num_classes))
    ]
    return float(np.sqrt(np.sum(squares) / embeddings.size))


def _check_bandwidth(value: Any, name: str) -> None:
    number = np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.number)
    if not (number and np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be finite and positive; got {value}")
