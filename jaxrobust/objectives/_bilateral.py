"""Bilateral adversarial training: image and label are attacked, in one step each."""

from __future__ import annotations

from jaxtyping import Array

from jaxrobust.objectives._base import Forward
from jaxrobust.objectives._labels import adversarial_labels
from jaxrobust.objectives._madry import madry
from jaxrobust.threat import Threat
from jaxrobust.types import Attack, Objective


def bilateral(
    forward: Forward,
    attack: Attack,
    *,
    ball: Threat,
    beta: float | Array = 9.0,
    gamma: float | Array = 0.01,
    eval_forward: Forward | None = None,
) -> Objective:
    """Bilateral adversarial training (R-MC-LA): broken as a defence, for study.

    Smooth labels, and adversarial ones more, keep the logits of all classes close together, so that
    steps along the sign of a small gradient lead nowhere much: gradient masking. AutoAttack takes
    the published CIFAR-10 model (radius 4/255 in training) from its reported 58.6 % at 8/255 to
    29.35 %. Judge such a model by `attacks.autoattack`, never by PGD alone.

    It is `madry` with `labels=adversarial_labels(beta, gamma)`, and its siblings in paper 001 are
    `madry` of the same parts, with `one = functools.partial(pgd, num_steps=1, step_size=eps)`:

    - R-FGSM: `madry(forward, one)`; R-MC: `madry(forward, attacks.most_confusing(one))`;
    - -LS: the same with `labels=smoothed_labels(0.5)`; -LA: with `labels=adversarial_labels(9.0)`;
    - Madry-LA: `madry` against `pgd`, with `labels=adversarial_labels(9.0)`.

    What the "+" of some rows stands for is not published.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        attack: As published `attacks.most_confusing(one)`: one step of eps towards the wrong class
            that is likeliest at the clean image, from a uniform random start.
        ball: The threat: linf of 8/255 on CIFAR-10, 16/255 with `beta=100` on ImageNet.
        beta: See `adversarial_labels`.
        gamma: See `adversarial_labels`.
        eval_forward: The forward function that attack and labels see; see `madry`.

    Returns:
        An objective with the metric `adversarial_accuracy`, by the true class.

    Raises:
        ValueError: For a beta or gamma that cannot be meant; at the first step, for a model with a
            state but no `eval_forward`.

    References:
        Wang and Zhang 2019, "Bilateral adversarial training" (paper 001, tables 5, 6 and 9).
    """
    labels = adversarial_labels(beta, gamma)
    made = madry(forward, attack, ball=ball, labels=labels, eval_forward=eval_forward)
    made.value_and_grad.__qualname__ = "bilateral"
    return made
