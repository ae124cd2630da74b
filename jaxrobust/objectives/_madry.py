"""Adversarial training (Madry): descend the loss at the images an attack finds."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from jaxrobust import losses
from jaxrobust.checks import check_takes
from jaxrobust.losses import Loss
from jaxrobust.objectives._base import Forward, frozen_model, mean_loss
from jaxrobust.objectives._labels import Labels
from jaxrobust.threat import Threat
from jaxrobust.types import Attack, Batch, Objective, Out, logits_of


def madry(
    forward: Forward,
    attack: Attack,
    *,
    ball: Threat,
    loss: Loss = losses.cross_entropy,
    labels: Labels | None = None,
    eval_forward: Forward | None = None,
) -> Objective:
    """The saddle-point objective: the loss at the attack's images, no clean term.

    The attack sees the current parameters as constants, and the model's state as it was before the
    step. Its relatives are made of it:

    - with the clean loss mixed in (AT-NN of paper 003 has w = 0.5): `add(scale(w,
      cross_entropy(forward)), scale(1 - w, madry(...)))`;
    - "fast" (Wong et al. 2020): the attack is `functools.partial(pgd, num_steps=1, step_size=1.25 *
      eps)`, FGSM from a random start; R-FGSM is the same with a step of eps;
    - with an eps that rises (warm-up, PGDLS): `scheduled`. An attack whose `step_size` is None
      follows;
    - "free" reuses gradients: see `free`.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        attack: `attack(logits_fn, x, y, *, key, ball) -> x_adv`, e.g. `functools.partial(pgd,
            num_steps=40, step_size=0.01)` as published for MNIST.
        ball: The threat trained against.
        loss: Loss minimised at the attacked images.
        labels: What the loss is handed in place of the class: `labels(logits, y)` of the clean
            image's logits, such as `smoothed_labels(0.5)`. The attack gets the class.
        eval_forward: The forward function that the attack and `labels` see, in evaluation mode.
            Required where the model has a state: attacks look at one image at a time, and batch
            statistics of one image would take its gradient away.

    Returns:
        An objective with the metric `adversarial_accuracy`; no state.

    Raises:
        ValueError: For an attack that takes no `ball`, and labels that are no function; at the
            first step, for a model with a state but no `eval_forward`.

    References:
        Madry et al. 2018, eq. 2.1 (paper 001).
    """
    check_takes(attack, ("ball",), "which stays within it: attacks.pgd, say")
    if labels is not None and not callable(labels):
        raise ValueError(
            f"labels must be a function, such as objectives.smoothed_labels(0.5); got {labels!r}"
        )

    def init(params: PyTree, key: Key[Array, ""]) -> tuple[()]:
        del params, key
        return ()

    def value_and_grad(
        params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, *, key: Key[Array, ""]
    ) -> tuple[Out, PyTree]:
        logits_fn = frozen_model(forward, eval_forward, params, model_state)
        attacked = attack(logits_fn, batch.x, batch.y, key=key, ball=ball)
        targets = batch.y
        if labels is not None:
            targets = jax.vmap(labels)(logits_of(logits_fn(batch.x)), batch.y)
        mean = mean_loss(forward, loss, targets, "adversarial_accuracy")
        at_attacked = batch._replace(x=jax.lax.stop_gradient(jnp.asarray(attacked)))
        grads, out = jax.grad(mean, has_aux=True)(params, model_state, state, at_attacked)
        return out, grads

    return Objective(init, value_and_grad)
