"""The symptoms of masked gradients: thresholds, and what each says to who never read the papers.

What is measured of a model's gradients is a share of all images, what attacks do one of those that
are right without an attack, unless a symptom says otherwise; it is flagged above its threshold. How
the values of masked and of honest networks are distributed, and so why the thresholds are where
they are, is recorded in `experiments/gradient_masking`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from jaxrobust.evaluation import _findings as doubts

AT_LEAST = 3
"""Fewest images that what attacks found is believed for: one or two are chance."""


class Symptom(NamedTuple):
    """What a probe may find.

    Attributes:
        threshold: Largest value that raises no doubt.
        what: What is measured, in a few words.
        meaning: What it says of the numbers.
        cure: What to try.
        severity: See `Finding`.
        compares: Whether it rests on what attacks happened to find, so that `AT_LEAST` holds.
    """

    threshold: float
    what: str
    meaning: str
    cure: str
    severity: Literal["note", "warning"] = "warning"
    compares: bool = False


SYMPTOMS = {
    "constant outputs": Symptom(
        0.9,
        "images whose outputs stay the same when every pixel is drawn anew",
        "What the image shows makes no difference to what the model returns. It neither withstands "
        "attacks nor hides from them: it does not look, and nothing else was asked of it.",
        "Look for a wrapper that drops its argument, weights that are all zero, or inputs that are "
        "clipped or rounded to one value.",
    ),
    "probabilities": Symptom(
        doubts.ALIKE, "clean images whose outputs are positive and add up to one", "", ""
    ),  # these are worded by `evaluation`
    "zero gradients": Symptom(0.01, "clean images where the loss has no gradient at all", "", ""),
    "gradients not finite": Symptom(
        0.0, "clean images where the loss's gradient is NaN or infinite", "", ""
    ),
    "saturated logits": Symptom(
        0.05,
        "images classified with a margin at which float32 rounds all other probabilities to 0",
        "The logits of these images are so far apart that every other class's probability rounds "
        "to zero, and with it the gradient of the cross-entropy. An attack that climbs the "
        "cross-entropy stands still there, whatever the model would do a little further on.",
        "Attack with losses.margin or losses.dlr, or the rescaled model "
        "(transforms.rescaled_logits).",
    ),
    "vanishing gradients": Symptom(
        0.1,
        "images whose gradient is too short to change the class anywhere in the box",
        "At these images the model's own gradient says that no change of the pixels, however "
        "large, moves its decision. Such a gradient has been lost on its way (in a part that "
        "rounds, in saturated units or in a long chain of iterations) and does not describe the "
        "model.",
        "Leave that part out of the gradient: gradients.bpda in its place. Or search what it makes "
        "images of, on the model without it: attacks.transfer(without, attacks.reparametrize(...)"
        ").",
    ),
    "shattered gradients": Symptom(
        0.5,
        "disagreement of gradients with small measured changes, 0 to 1, of the median image",
        "When the image changes by a few grey levels, the model's output changes otherwise than "
        "its gradient says. The gradient is missing or wrong, because part of the model rounds, "
        "jumps or sorts; attacks that follow it are led astray. (Of a model with gradients.bpda "
        "this is no news: its gradient is a stand-in by intention. There it is the findings about "
        "attacks that count.)",
        "Put gradients.bpda in place of that part, average the gradient over a neighbourhood "
        "(gradients.smoothed), or attack with values alone (attacks.square, gradients.nes).",
    ),
    "stochastic gradients": Symptom(
        0.02,
        "pixels for which two calls disagree whether to make them brighter or darker",
        "The model is random: asked twice how to change an image, it gives two answers. An attack "
        "that follows single answers looks weaker than it is. That is no fault of the model, but "
        "only attacks that average over its randomness say anything about it.",
        "Average over draws: gradient=gradients.eot(n), and evaluate(..., votes=n).",
        "note",
    ),
    "loss does not rise": Symptom(
        0.1,
        "images that withstood an attack which had not raised their loss in the end",
        "The attack went many steps along the gradient, and at the end the model was no less sure "
        "than before. It was not attacked in effect: that it is still right says nothing.",
        "If a finding above is about the gradient, begin there; else try shorter steps and another "
        "loss.",
    ),
    "one step beats many": Symptom(
        0.02,
        "images broken by one long step, less those broken by many short ones",
        "Many small steps can do all that one large step does, and should do more. Where they do "
        "less, the gradient changes from step to step so wildly that following it is of no use.",
        "Average the gradient over a neighbourhood (gradients.smoothed), or take steps without "
        "gradients (attacks.square).",
        compares=True,
    ),
    "unbounded attack fails": Symptom(
        0.02,
        "images that stay right under an attack which may change them into anything",
        "An attack that may turn a picture into any other picture must always succeed, for one of "
        "another class exists. Here it does not, so it is the attack that fails, and its failure "
        "at the small radius says nothing.",
        "Mend the attack before any number is read: begin with what is said above of the gradient.",
        compares=True,
    ),
    "larger radius, less success": Symptom(
        0.02,
        "share of images lost by attacks when they are given more room",
        "Whoever may change a picture more can do all that was possible before. An attack that "
        "breaks fewer images at a larger radius did not find what is there.",
        "More steps, other step sizes, restarts; what is said above of the gradient comes first.",
        compares=True,
    ),
    "larger radius, no more success": Symptom(
        0.5,
        "share of the images that stand at eps / 2 and still stand under any change at all",
        "However much room an attack is given, it breaks hardly more images than it did with very "
        "little. Success that does not grow with the radius is not stopped by the radius.",
        "The attack goes nowhere, whatever it may do: begin with what is said above of the "
        "gradient.",
        compares=True,
    ),
    "another loss finds more": Symptom(
        0.1,
        "images broken by climbing the margin that climbing the cross-entropy left standing",
        "The same attack on another measure of success breaks many more images, so the usual one "
        "is flat or misleading here, and accuracies under it alone are too high.",
        "Attack with losses.margin or losses.dlr, or the rescaled model "
        "(transforms.rescaled_logits); AutoAttack tries several.",
        "note",
        compares=True,
    ),
    "averaging finds more": Symptom(
        0.15,
        "images broken by averaged gradients, less those broken by the gradient of one draw",
        "An attack that freezes the model's randomness breaks far fewer images than one that "
        "averages over it: each draw has a gradient of its own, and none shows what the model "
        "does. Its randomness hides its gradient rather than making it robust.",
        "Average over more draws: gradient=gradients.eot(n), and evaluate(..., votes=n); where a "
        "draw jumps, put its mean in its place (gradients.bpda).",
        compares=True,
    ),
    "random search finds more": Symptom(
        0.01,
        "images broken by random changes that attacks with gradients left standing",
        "Blind guessing breaks images that directed attacks could not. There are adversarial "
        "images all around, and the gradient does not show them.",
        "Begin with what is said above of the gradient; attack with values alone (attacks.square).",
        compares=True,
    ),
    "black box finds more": Symptom(
        0.05,
        "images broken without gradients that attacks with gradients left standing",
        "An attack that sees nothing but the model's outputs breaks images that attacks which see "
        "all of it could not. The gradient is hidden, not absent: the true accuracy is lower "
        "still.",
        "gradients.bpda in place of what has no derivative, gradients.eot for what is random, "
        "another loss; at least evaluate with attacks.autoattack_members().",
        compares=True,
    ),
    "rejected, not withstood": Symptom(
        0.05,
        "images whose class attacks changed, and that count as right for being rejected",
        "These images were broken, and only a detector stands between them and success. The "
        "attacks did not know of it, so they say nothing about whether it can be passed.",
        "Attack model and detector together: detect.hinge as a penalty (losses.penalized, "
        "losses.selective) on detect.exposed.",
        compares=True,
    ),
    "transfer finds more": Symptom(
        0.05,
        "images broken by attacks on another model that attacks on this one left standing",
        "Images made to fool another model fool this one, too, though attacks on itself did not "
        "find them: the weakness is shared, and its own gradient does not show it.",
        "Attack with the other model's gradient in place of its own (attacks.through).",
        compares=True,
    ),
}
"""By name, in the order in which they are told; transfers have their source's name behind it."""
