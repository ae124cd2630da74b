"""Doubts that an evaluation itself can measure."""

from __future__ import annotations

import numpy as np

from jaxrobust.types import Finding

CHANCE = 0.002
"""Share of examples that a random search may break after others by chance (AutoAttack's)."""

ALIKE = 0.9
"""Share of outputs that may look like probabilities: logits do so by chance, and hardly ever."""


def first(rows: np.ndarray) -> list[int]:
    """The first ten rows that are meant, as a finding names them."""
    return [int(row) for row in np.flatnonzero(rows)[:10]]


def probabilities(alike: np.ndarray) -> list[Finding]:
    """The model seems to return probabilities on more than that share of the rows."""
    if not alike.mean() > ALIKE:
        return []
    return [
        Finding(
            "probabilities", float(alike.mean()), ALIKE, first(alike),
            "The outputs are non-negative and sum to one, so the model seems to return "
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
            "logits not finite", float(bad.sum()), 0.0, first(bad),
            "The model returns NaN or +inf logits on clean images; those rows count as wrong.",
            "Look for divisions by zero and overflow in the model.",
        )
    ]  # fmt: skip


def random_predictions(changed: np.ndarray, votes: int) -> list[Finding]:
    """Two keys give a randomised model's clean images different classes."""
    if not changed.any():
        return []
    return [
        Finding(
            "random predictions", float(changed.mean()), 0.0, first(changed),
            "The model draws at random, and this share of clean images changes class from one draw "
            "to the next. An attack that follows single draws looks weaker than it is, and a "
            "single vote calls right and broken what is chance. "
            f"({'One vote was' if votes == 1 else f'{votes} votes were'} taken.)",
            "Average gradients over draws (gradients.eot, or autoattack_members('rand')), and give "
            "more votes.",
            "warning" if votes == 1 else "note",
        )
    ]  # fmt: skip


def broken_logits(name: str, rows: np.ndarray) -> list[Finding]:
    """Images that count as broken because the model returned NaN or +inf for them."""
    if not rows.any():
        return []
    return [
        Finding(
            f"logits not finite: {name}", float(rows.sum()), 0.0, first(rows),
            f"Under {name} the model returned NaN or +inf logits for these images, which it "
            "classified correctly before. They count as broken: a classifier that returns no class "
            "is not right. Whether one would fail so in use is another question.",
            "Look for divisions by zero and overflow in the model.",
        )
    ]  # fmt: skip


def no_gradients(error: Exception, num: int) -> list[Finding]:
    """The model cannot be differentiated at all."""
    return [
        Finding(
            "no gradients", float(num), 0.0, [],
            "The gradient of the cross-entropy could not be computed: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            "Put gradients.bpda in place of the part that has no derivative; or attack with values "
            "alone (attacks.square, gradients.spsa), or by transfer.",
        )
    ]  # fmt: skip


def too_few(num: int, least: int) -> list[Finding]:
    """So few images are right without an attack that nothing can be learned by attacking them."""
    if num >= least:
        return []
    return [
        Finding(
            "too few images", float(num), float(least), [],
            f"Only {num} of the images are classified rightly (and accepted, where there is a "
            "detector) without any attack. Attacks are tried on those alone, so that none of them "
            "raised a doubt says nothing.",
            "Check labels, preprocessing and the box; then diagnose more images.",
        )
    ]  # fmt: skip


def zero_gradients(zero: np.ndarray, threshold: float = 0.0) -> list[Finding]:
    """The cross-entropy has no gradient on more clean images than that share."""
    if not zero.mean() > threshold:
        return []
    return [
        Finding(
            "zero gradients", float(zero.mean()), threshold, first(zero),
            "On this share of the clean images looked at the gradient of the cross-entropy is "
            "exactly zero. Attacks that follow it do not move there: that these examples stand "
            "says nothing about robustness. (The model itself is looked at: attacks that go "
            "through a stand-in, by attacks.through or transfer, are not meant.)",
            "If logits are some hundreds apart, the softmax is saturated: attack with "
            "losses.margin or losses.dlr, or divide the logits (transforms.rescaled_logits). Else "
            "a part of the model has no derivative: put gradients.bpda in its place, or attack "
            "with values alone.",
        )
    ]  # fmt: skip


def broken_gradients(broken: np.ndarray) -> list[Finding]:
    """The gradient of the cross-entropy is not finite on clean images."""
    if not broken.any():
        return []
    return [
        Finding(
            "gradients not finite", float(broken.mean()), 0.0, first(broken),
            "On this share of the clean images looked at the gradient of the cross-entropy is "
            "NaN or infinite. Attacks that follow it fail or do not move there: that these "
            "examples stand says nothing about robustness.",
            "Mend the model's gradient (norms and roots at zero, logarithms, divisions), or use an "
            "attack without gradients.",
        )
    ]  # fmt: skip


def masking(name: str, newly: np.ndarray) -> list[Finding]:
    """An attack without gradients broke what attacks with gradients had left."""
    if newly.mean() <= CHANCE:
        return []
    return [
        Finding(
            f"gradient masking suspected: {name}", float(newly.mean()), CHANCE, first(newly),
            f"{name} uses no gradients of this model, and broke this share of the examples after "
            "attacks with gradients had left them standing. Either those attacks are weak, or the "
            "model hides its gradients from them, and its true accuracy is lower still.",
            "Run stronger attacks with gradients (autoattack_members), more queries, and an attack "
            "made for this model: gradients.bpda, gradients.eot, another loss.",
        )
    ]  # fmt: skip


def outside(name: str, rows: np.ndarray) -> list[Finding]:
    """An attack returned images that are not in the ball and box."""
    if not rows.any():
        return []
    return [
        Finding(
            f"outside the ball: {name}", float(rows.sum()), 0.0, first(rows),
            f"{name} returned images outside the ball or the box. They were projected before they "
            "were judged, so no accuracy rests on an illegal image.",
            "Mend the attack's projection, or wrap it in attacks.against if it minimises distance.",
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
            first(rows),
            f"{name} returned NaN or infinite images, most likely because the gradient of the loss "
            "is not finite there. These examples were in effect not attacked: that they count as "
            "right says nothing about robustness.",
            "Mend the model's gradient (norms and roots at zero, logarithms, divisions), or use an "
            "attack without gradients.",
        )
    ]


def not_measured(threat: str, broken: np.ndarray) -> list[Finding]:
    """The threat is one that images do not show, so the attacks' budget was not re-checked."""
    return [
        Finding(
            "budget not re-checked", float(broken.sum()), 0.0, first(broken),
            f"An image does not show what made it, so whether the attacks kept to {threat} was not "
            "re-checked: only that their images are finite, in the box, and misread. That these "
            "examples count as broken within it rests on the attacks' word. At which distances "
            "they broke is not known.",
            "Have the attacks return their flows, and measure those (FlowBall.distance).",
        )
    ]  # fmt: skip


def no_budget(name: str, newly: np.ndarray) -> list[Finding]:
    """An attack that keeps to no radius broke examples at distances that nobody measured."""
    if not newly.any():
        return []
    return [
        Finding(
            f"no budget kept: {name}", float(newly.sum()), 0.0, first(newly),
            f"{name} seeks a small change but keeps to no radius, and its images cannot be brought "
            "into this threat. The examples it broke count as broken at whatever distance they "
            "were; no certificate is doubted for them.",
            "Run an attack that keeps to the budget, beside it or in its place.",
        )
    ]  # fmt: skip


def other_norm(name: str, minimised: str, norm: str, left: float) -> list[Finding]:
    """An attack keeps one norm small and was judged in another."""
    return [
        Finding(
            f"other norm: {name}", left, 0.0, [],
            f"{name} seeks the least change in {minimised}, and was judged in {norm}. Where it "
            f"failed, changes may exist that are larger in {minimised} and within the ball: its "
            "accuracy, and its curve over eps, are no more than upper bounds.",
            f"Run attacks made for {norm} beside it (autoattack_members).",
            "note",
        )
    ]  # fmt: skip


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
            first(both),
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
            f"certified and broken: {name}", float(both.sum()), 0.0, first(both),
            f"{name} certifies examples that an attack broke, or that the model gets wrong without "
            "any attack. One of the two is wrong: the certificate is unsound, or it speaks of "
            "another network than the one evaluated.",
            "Do not use either number before this is explained.",
        )
    ]  # fmt: skip
