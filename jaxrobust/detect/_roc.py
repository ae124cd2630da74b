"""The receiver operating characteristic of a detector, by scikit-learn."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Roc(NamedTuple):
    """A curve, from nothing rejected to everything.

    Attributes:
        false_positive: Share of clean images that are rejected.
        detected: Share of adversarial images that are rejected.
        threshold: Scores at most this are rejected.
    """

    false_positive: np.ndarray
    detected: np.ndarray
    threshold: np.ndarray


def roc(clean_scores: Any, adversarial_scores: Any) -> Roc:
    """The curve of rejecting low scores.

    Args:
        clean_scores: `(clean,)` scores, larger where more natural; a NaN counts as -inf, since it
            is rejected.
        adversarial_scores: `(adversarial,)` likewise.

    Raises:
        ValueError: If either is empty or no vector.

    References: `sklearn.metrics.roc_curve`.

    >>> curve = roc([2.0, 3.0], [1.0, 2.5])
    >>> curve.false_positive.tolist(), curve.detected.tolist()
    ([0.0, 0.0, 0.5, 0.5, 1.0], [0.0, 0.5, 0.5, 1.0, 1.0])
    """
    from sklearn.metrics import roc_curve

    is_adversarial, ranks, values = _ranked(clean_scores, adversarial_scores)
    false_positive, detected, at = roc_curve(is_adversarial, -ranks)
    threshold = np.append(-np.inf, values[-at[1:].astype(int)])
    return Roc(false_positive, detected, threshold)


def auc(clean_scores: Any, adversarial_scores: Any) -> float:
    """The area under `roc`: the chance that a clean image scores above an adversarial one.

    A tie counts half. See `roc` for arguments and errors.

    References: `sklearn.metrics.roc_auc_score`.

    >>> auc([2.0, 3.0], [1.0, 2.5])
    0.75
    """
    from sklearn.metrics import roc_auc_score

    is_adversarial, ranks, _ = _ranked(clean_scores, adversarial_scores)
    return float(roc_auc_score(is_adversarial, -ranks))


def _ranked(clean: Any, adversarial: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks instead of scores: the same curve, and infinite scores are no trouble."""
    found = {"clean_scores": np.asarray(clean), "adversarial_scores": np.asarray(adversarial)}
    for name, scores in found.items():
        if scores.ndim != 1 or scores.size == 0:
            raise ValueError(f"{name} must be a vector of scores; got shape {scores.shape}")
    joined = np.concatenate(list(found.values())).astype(np.float64)
    joined = np.where(np.isnan(joined), -np.inf, joined)
    values, ranks = np.unique(joined, return_inverse=True)
    return np.arange(len(joined)) >= len(found["clean_scores"]), ranks, values
