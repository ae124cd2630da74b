"""Thresholds: at a false-positive rate, or at the median of each class."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from jaxrobust.detect._common import (
    ClassConditional,
    check_embeddings,
    check_validation,
)
from jaxrobust.types import predicted_class

D = TypeVar("D", bound=ClassConditional)


def calibrated(detector: D, outputs: Any, *, rate: float = 0.05, per_class: bool = False) -> D:
    """The detector with thresholds that reject at most a share of clean validation images.

    The threshold is an order statistic of their scores: of n images, floor(rate n) at most lie
    below it, ties included. So the rate on these images is never above the one asked for; on
    others of their kind it is near it.

    Args:
        detector: A detector of this package; its present thresholds are forgotten.
        outputs: `(logits, embedding)` of clean images that neither trained the model nor are among
            the reference points.
        rate: Share that may be rejected, in [0, 1).
        per_class: A threshold for each predicted class, each at this rate, instead of one for all.

    Raises:
        ValueError: For outputs that are not finite, a rate out of range, and, with `per_class`, a
            class that is never predicted.

    >>> from jaxrobust.detect import mahalanobis
    >>> z = np.array([[0.0], [2.0], [8.0], [10.0]], np.float32)
    >>> found = mahalanobis(z, np.array([0, 0, 1, 1]), num_classes=2)
    >>> outputs = jnp.array([[1.0, 0.0]] * 4), jnp.array([[0.0], [1.0], [2.0], [4.0]])
    >>> calibrated(found, outputs, rate=0.25)(outputs)
    Array([ 0.,  1.,  0., -8.], dtype=float32)
    """
    if isinstance(rate, bool) or not 0 <= rate < 1:
        raise ValueError(f"rate must lie in [0, 1); got {rate}")
    logits, embedding = check_validation(outputs)
    bare = _without(detector)
    scores = np.asarray(bare((logits, embedding)))
    num_classes = len(np.asarray(detector.thresholds))
    if not per_class:
        return _with(bare, np.full(num_classes, _order(scores, rate)))
    predicted = np.asarray(predicted_class(jnp.asarray(logits)))
    never = np.flatnonzero(np.bincount(predicted, minlength=num_classes) == 0)
    if never.size:
        raise ValueError(
            f"outputs must predict every one of the {num_classes} classes where per_class is True; "
            f"class {never[0]} is never predicted"
        )
    return _with(bare, np.array([_order(scores[predicted == c], rate) for c in range(num_classes)]))


def median_thresholds(detector: D, embeddings: Any, labels: Any) -> D:
    """The detector with the median score of each class's clean images as its threshold.

    What C&W-wb goes for: an image is undetected where it is more natural than half of the clean
    ones of its class. RCE's code takes the median over the reference points themselves. Each of
    those counts itself, and in many dims with a narrow bandwidth that lifts their median above
    every other clean image; so hand it images that are not among the reference points.

    Args:
        detector: A detector of this package; its present thresholds are forgotten.
        embeddings: `(images, dims)` embeddings of clean images held out.
        labels: Their classes.

    Raises:
        ValueError: For embeddings that are not finite, and a class without images.

    References: Pang et al. 2018 (their code).

    >>> from jaxrobust.detect import mahalanobis
    >>> z = np.array([[0.0], [1.0], [2.0], [8.0], [9.0], [10.0]], np.float32)
    >>> y = np.array([0, 0, 0, 1, 1, 1])
    >>> held = np.array([[0.0], [1.0], [2.0], [9.0], [9.0], [9.0]], np.float32)
    >>> median_thresholds(mahalanobis(z, y, num_classes=2), held, y).thresholds.round(2)
    Array([-1.5,  0. ], dtype=float32)
    """
    bare = _without(detector)
    num_classes = len(np.asarray(detector.thresholds))
    embeddings, labels = check_embeddings(embeddings, labels, num_classes)
    scores = np.asarray(bare.raw(jnp.asarray(embeddings)))
    return _with(
        bare, np.array([np.median(scores[labels == c, c]) for c in range(num_classes)])
    )  # fmt: skip


def _order(scores: np.ndarray, rate: float) -> float:
    # A share such as 0.07 of 100 is 7 though the product is not.
    most = math.floor(rate * len(scores) * (1 + 1e-12))
    return float(np.sort(scores)[most])


def _without(detector: D) -> D:
    if not isinstance(detector, ClassConditional) or not dataclasses.is_dataclass(detector):
        raise ValueError(
            "detector must be one of jaxrobust.detect, as kernel_density makes them; got "
            f"{type(detector).__name__}"
        )
    return dataclasses.replace(detector, thresholds=jnp.zeros_like(detector.thresholds))


def _with(detector: Any, thresholds: np.ndarray) -> Any:
    levels = jnp.asarray(thresholds, detector.thresholds.dtype)
    return dataclasses.replace(detector, thresholds=levels)
