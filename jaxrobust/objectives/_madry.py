"""Adversarial training (Madry): descend the loss at the images an attack finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from jaxrobust import losses
from jaxrobust.losses import Loss
from jaxrobust.objectives._base import Forward, from_loss, frozen_model
from jaxrobust.threat import Threat
from jaxrobust.types import Attack, Batch, Objective, Out


class MadryState(NamedTuple):
    """Number of steps taken, for the schedule of eps."""

    step: Array


def madry(
    forward: Forward,
    attack: Attack,
    *,
    ball: Threat,
    loss: Loss = losses.cross_entropy,
    eps_schedule: Callable[[Array], Any] | None = None,
    eval_forward: Forward | None = None,
) -> Objective:
    """The saddle-point objective: the loss at the attack's images, no clean term.

    The attack sees the current parameters as constants, and the model's state as it was before the
    step. A mix with the clean loss is `add(scale(w, cross_entropy(forward)), scale(1 - w, ...))`.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        attack: `attack(logits_fn, x, y, *, key, ball) -> x_adv`, e.g. `functools.partial(pgd,
            num_steps=40, step_size=0.01)` as published for MNIST.
        ball: The threat trained against.
        loss: Loss minimised at the attacked images.
        eps_schedule: An optax schedule, step -> eps, in place of `ball.eps`; leave the attack's
            `step_size` at None to let it follow. Warm-up is our choice; the paper has none.
        eval_forward: The forward function that the attack sees, in evaluation mode. Required where
            the model has a state: attacks look at one image at a time, and batch statistics of one
            image would take its gradient away.

    Raises:
        ValueError: At the first step, for a model with a state but no `eval_forward`.

    References:
        Madry et al. 2018, eq. 2.1 (paper 001); methods.md B.
    """
    at_attacked = from_loss(forward, loss, accuracy="adversarial_accuracy")

    def init(params: PyTree, key: Key[Array, ""]) -> MadryState:
        del params, key
        return MadryState(jnp.zeros((), jnp.int32))

    def value_and_grad(
        params: PyTree,
        model_state: PyTree,
        state: MadryState,
        batch: Batch,
        *,
        key: Key[Array, ""],
    ) -> tuple[Out, PyTree]:
        logits_fn = frozen_model(forward, eval_forward, params, model_state)
        eps = ball.eps if eps_schedule is None else eps_schedule(state.step)
        attacked = attack(
            logits_fn, batch.x, batch.y, key=key, ball=dataclasses.replace(ball, eps=eps)
        )
        out, grads = at_attacked.value_and_grad(
            params, model_state, (), batch._replace(x=attacked), key=key
        )
        metrics = {**out.metrics, "eps": jnp.asarray(eps, out.loss.dtype)}
        return out._replace(state=MadryState(state.step + 1), metrics=metrics), grads

    return Objective(init, value_and_grad)
