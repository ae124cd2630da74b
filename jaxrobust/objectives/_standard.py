"""Training on clean images."""

from __future__ import annotations

from jaxtyping import Array, PyTree

from jaxrobust import losses
from jaxrobust.checks import check_temperature
from jaxrobust.objectives._base import Forward, from_loss
from jaxrobust.types import Objective, logits_of


def cross_entropy(forward: Forward, *, temperature: float | Array = 1.0) -> Objective:
    """Softmax cross-entropy on the clean batch.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        temperature: What logits are divided by, for the teacher of `distillation`.

    Raises:
        ValueError: For a temperature that is not positive and finite.
    """
    check_temperature(temperature)

    def loss(outputs: PyTree, y: Array) -> Array:
        return losses.cross_entropy(logits_of(outputs) / temperature, y)

    return from_loss(forward, loss)


def hinge(forward: Forward) -> Objective:
    """Multiclass hinge loss on the clean batch (paper 003, sec. 6.3).

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
    """
    return from_loss(forward, losses.hinge)
