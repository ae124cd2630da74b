"""Doubts that an evaluation itself can measure."""

from __future__ import annotations

import numpy as np

from jaxrobust.types import Finding


def _first(rows: np.ndarray) -> list[int]:
    return [int(row) for row in np.flatnonzero(rows)[:10]]


def probabilities(alike: np.ndarray) -> list[Finding]:
    """The model seems to return probabilities."""
    if not alike.all():
        return []
    return [
        Finding(
            "probabilities", 1.0, 1.0, _first(alike),
            "Every output row is non-negative and sums to one, so the model seems to return "
            "probabilities instead of logits: losses apply a second softmax, gradients shrink, "
            "and attacks look weaker than they are.",
            "Return the logits, before the softmax.",
        )
    ]  # fmt: skip


def not_finite(prediction: np.ndarray) -> list[Finding]:
    """The model returned NaN or +inf among its logits on clean images."""
    bad = prediction < 0
    if not bad.any():
        return []
    return [
        Finding(
            "logits not finite", float(bad.sum()), 0.0, _first(bad),
            "The model returns NaN or +inf logits on clean images; those rows count as wrong.",
            "Look for divisions by zero and overflow in the model.",
        )
    ]  # fmt: skip


def outside(name: str, rows: np.ndarray) -> list[Finding]:
    """An attack returned images that are not in the ball and box."""
    if not rows.any():
        return []
    return [
        Finding(
            f"outside the ball: {name}", float(rows.sum()), 0.0, _first(rows),
            f"{name} returned images outside the ball or the box. They were projected before they "
            "were judged, so no accuracy rests on an illegal image.",
            "Nothing where the attack minimises distance; otherwise mend its projection.",
        )
    ]  # fmt: skip


def failed(name: str, rows: np.ndarray) -> list[Finding]:
    """An attack returned images that are not finite: most likely its gradient was not."""
    if not rows.any():
        return []
    return [
        Finding(
            f"attack failed: {name}",
            float(rows.sum()),
            0.0,
            _first(rows),
            f"{name} returned NaN or infinite images, most likely because the gradient of the loss "
            "is not finite there. These examples were in effect not attacked: that they count as "
            "right says nothing about robustness.",
            "Mend the model's gradient (norms and roots at zero, logarithms, divisions), or use an "
            "attack without gradients.",
        )
    ]


def smoothed_contradiction(
    name: str, certified: np.ndarray, broken: np.ndarray, alpha: float
) -> list[Finding]:
    """An example is certified with high probability, and broken."""
    both = certified & broken
    if not both.any():
        return []
    return [
        Finding(
            f"smoothed certificate and broken: {name}", float(both.sum()), alpha * len(both),
            _first(both),
            f"{name} certifies, with high probability, examples that an attack broke. This can be "
            f"chance, and is no proof of a mistake: each certificate may fail with probability "
            f"{alpha:g}, so up to {alpha * len(both):.3g} of {len(both)} are expected to; and the "
            "attack was judged on a few noisy votes (or on a model without noise), while the "
            "certificate speaks of the majority over all noise.",
            "Evaluate transforms.gaussian_noise of the model with more votes and a new key. What "
            "stays broken, in larger numbers than the threshold, is a mistake in one of the two.",
        )
    ]  # fmt: skip


def contradiction(name: str, certified: np.ndarray, broken: np.ndarray) -> list[Finding]:
    """An example is certified, and broken or wrong without any attack."""
    both = certified & broken
    if not both.any():
        return []
    return [
        Finding(
            f"certified and broken: {name}", float(both.sum()), 0.0, _first(both),
            f"{name} certifies examples that an attack broke, or that the model gets wrong without "
            "any attack. One of the two is wrong: the certificate is unsound, or it speaks of "
            "another network than the one evaluated.",
            "Do not use either number before this is explained.",
        )
    ]  # fmt: skip
