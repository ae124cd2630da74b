"""Training on clean images."""

from __future__ import annotations

from jaxrobust import losses
from jaxrobust.objectives._base import Forward, from_loss
from jaxrobust.types import Objective


def cross_entropy(forward: Forward) -> Objective:
    """Softmax cross-entropy on the clean batch.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
    """
    return from_loss(forward, losses.cross_entropy)


def hinge(forward: Forward) -> Objective:
    """Multiclass hinge loss on the clean batch (paper 003, sec. 6.3).

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
    """
    return from_loss(forward, losses.hinge)
