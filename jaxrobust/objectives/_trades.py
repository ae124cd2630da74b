"""TRADES: the clean loss, and how far an attack can move the probabilities."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jaxtyping import Array, Key, PyTree

from jaxrobust import checks, losses
from jaxrobust.losses import Loss
from jaxrobust.objectives._base import Forward, frozen_model
from jaxrobust.objectives._noise import add_noise
from jaxrobust.objectives._stability import at_both
from jaxrobust.threat import Threat
from jaxrobust.transforms import beside
from jaxrobust.types import Batch, Objective, Out, logits_of, row_keys


def trades(
    forward: Forward,
    attack: Callable[..., Array],
    *,
    ball: Threat,
    beta: float | Array = 6.0,
    sigma: float | Array = 0.001,
    loss: Loss = losses.cross_entropy,
    eval_forward: Forward | None = None,
) -> Objective:
    """TRADES: `loss(x, y) + beta KL(f(x) || f(x'))`, x' from an attack on that divergence.

    The attack starts at `x + N(0, sigma^2 I)`, for the divergence has no gradient at x, and sees
    the model in evaluation mode and the clean probabilities as constants. In the loss, as in the
    released code, gradients pass through both sides; the model runs on the clean batch first and
    then on the attacked one, each with batch statistics of its own, and its state goes through both
    (the code runs the clean batch twice).

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        attack: `attack(logits_fn, x, y, *, key, ball, loss, start) -> x_adv`, called on one image
            at a time under `jax.vmap`, with `loss=losses.kl`: `pgd` or what takes both arguments.
            Published: `functools.partial(pgd, num_steps=10, step_size=0.007)` on CIFAR-10 (linf,
            0.031), `num_steps=40, step_size=0.01` on MNIST (0.3).
        ball: The threat trained against; one eps for all.
        beta: Weight of the divergence, 1 / lambda in the paper's theory; 6 on CIFAR-10, 1 on MNIST.
        sigma: Standard deviation of the start's noise, in pixel units.
        loss: Loss minimised at the clean images.
        eval_forward: The forward function that the attack sees; see `madry`.

    Returns:
        An objective with the metrics `accuracy` (clean), `adversarial_accuracy` and `divergence`,
        the batch mean of KL; no state.

    Raises:
        ValueError: For a negative beta or sigma, and an attack without these arguments; at the
            first step, for a model with a state but no `eval_forward`.

    References:
        Zhang et al. 2019, "Theoretically principled trade-off between robustness and accuracy"
        (TRADES), eq. 5.
    """
    checks.check_takes(attack, ("ball", "loss", "start"), "as attacks.pgd does")
    checks.check_radius(beta, "beta")
    checks.check_radius(sigma, "sigma")
    step = at_both(forward, loss, losses.kl, beta, "adversarial_accuracy", "divergence")

    def init(params: PyTree, key: Key[Array, ""]) -> tuple[()]:
        del params, key
        return ()

    def value_and_grad(
        params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, *, key: Key[Array, ""]
    ) -> tuple[Out, PyTree]:
        model = frozen_model(forward, eval_forward, params, model_state)
        reference = logits_of(model(batch.x))

        def attacked(x: Array, y: Array, reference: Array, key: Array) -> Array:
            start_key, key = jax.random.split(key)
            return attack(
                beside(model, reference), x[None], y[None], key=key[None], ball=ball,
                loss=losses.kl, start=add_noise(x, sigma, start_key)[None],
            )[0]  # fmt: skip

        x_adv = jax.vmap(attacked)(batch.x, batch.y, reference, row_keys(key, len(batch.x)))
        return step(params, model_state, state, batch, jax.lax.stop_gradient(x_adv))

    return Objective(init, value_and_grad)
