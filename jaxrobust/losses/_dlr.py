"""The difference of logits ratio: a loss that no scaling of the logits changes."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxrobust.losses._common import margin, of_class
from jaxrobust.types import logits_of

TINY = 1e-12
"""Keeps the ratio finite where logits tie (the reference's constant)."""


def dlr(outputs: PyTree, y: Any) -> Float[Array, ""]:
    """Difference of logits ratio, `-(z_y - max_{i != y} z_i) / (z_(1) - z_(3))`.

    Logits of -inf, of classes that are ruled out, do not count. With fewer than three left, where
    no third logit exists, the plain `margin`.

    References: Croce and Hein 2020 (AutoAttack), eq. 6.

    >>> float(dlr(jnp.array([4.0, 2.0, 0.0]), jnp.array(0)))
    -0.5
    """
    logits = logits_of(outputs)
    if logits.size < 3:
        return margin(logits, y)
    ranked, count = _ranked(logits)
    return margin(logits, y) / jnp.where(count < 3, 1.0, ranked[-1] - ranked[-3] + TINY)


def targeted_dlr(outputs: PyTree, y: Any, target: Any) -> Float[Array, ""]:
    """DLR towards one class, `-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)`.

    With three classes `z_(3)` stands for the mean, with two the ratio is left out: nothing else is
    defined there. Logits of -inf do not count.

    Args:
        outputs: Logits, or a tuple that they are the first of.
        y: True class.
        target: Wanted class.

    References: Croce and Hein 2020 (AutoAttack), eq. 7.

    >>> float(targeted_dlr(jnp.array([4.0, 2.0, 1.0, 0.0]), jnp.array(0), jnp.array(2)))
    -0.857142...
    """
    logits = logits_of(outputs)
    gap = of_class(logits, target) - of_class(logits, y)
    if logits.size < 3:
        return gap
    ranked, count = _ranked(logits)
    lower = ranked[max(logits.size - 4, 0) : -2].mean()
    return gap / jnp.where(count < 3, 1.0, ranked[-1] - lower + TINY)


def _ranked(logits: Array) -> tuple[Array, Array]:
    """Logits in rising order, those of -inf as the least of the others, and how many others."""
    alive = logits > -jnp.inf
    least = jnp.min(jnp.where(alive, logits, jnp.inf))
    return jnp.sort(jnp.where(alive, logits, least)), jnp.sum(alive)
