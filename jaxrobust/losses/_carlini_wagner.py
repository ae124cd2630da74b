"""Carlini and Wagner's seven objectives, each as minus the paper's f.

So they are maximised, as every loss is, and are not negative where their target is reached.
f2, f3, f6 and f7 are 0 or more exactly there (ties aside); f1, f4 and f5 ask for a probability of
one half, which implies it.

References: Carlini and Wagner 2017, sec. V-A (paper 001).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxrobust.losses._common import cross_entropy, margin
from jaxrobust.types import logits_of


@dataclasses.dataclass(frozen=True)
class CarliniWagner:
    """A loss that seeks a class; its two forms are `loss(outputs, y)` and `targeted(loss)`.

    The untargeted form is that of the wrong class nearest at hand (paper 001 attacks every class
    and takes the best).

    Args:
        formula: The loss of `(logits, target)`.
        kappa: Confidence: by how much the wanted logit must exceed all others, or, untargeted, some
            wrong logit the true one. The wanted logit enters the formula lowered by it, or the true
            one raised.

    >>> float(f6(jnp.array([3.0, 1.0]), jnp.array(0)))
    -2.0
    """

    formula: Callable[[Array, Any], Array]
    kappa: float = 0.0

    def towards(self, logits: Float[Array, " classes"], target: Any) -> Float[Array, ""]:
        """The targeted form."""
        return self.formula(logits.at[target].add(-self.kappa), target)

    def __call__(self, outputs: PyTree, y: Any) -> Float[Array, ""]:
        """The untargeted form, away from the true class y."""
        logits = logits_of(outputs)
        others = jnp.where(jnp.arange(logits.size) == y, -jnp.inf, logits)
        return self.formula(logits.at[y].add(self.kappa), jnp.argmax(others))


def _f1(logits: Array, target: Any) -> Array:
    """In base 2; printed with its sign reversed, as `1 - loss`."""
    return 1 - cross_entropy(logits, target) / jnp.log(2.0).astype(logits.dtype)


def _f2(logits: Array, target: Any) -> Array:
    return -jax.nn.relu(margin(jax.nn.softmax(logits), target))


def _f3(logits: Array, target: Any) -> Array:
    return jnp.log(2.0).astype(logits.dtype) - jax.nn.softplus(
        margin(jax.nn.softmax(logits), target)
    )


def _f4(logits: Array, target: Any) -> Array:
    return -jax.nn.relu(0.5 - jax.nn.softmax(logits)[target])


def _f5(logits: Array, target: Any) -> Array:
    """In nats; printed as `-log(2 F_t - 2)`, which is not defined. f1 times log 2."""
    return jnp.log(2.0).astype(logits.dtype) - cross_entropy(logits, target)


def _f6(logits: Array, target: Any) -> Array:
    return -jax.nn.relu(margin(logits, target))


def _f7(logits: Array, target: Any) -> Array:
    return jnp.log(2.0).astype(logits.dtype) - jax.nn.softplus(margin(logits, target))


f1 = CarliniWagner(_f1)
"""`log2 F_t + 1`, F the softmax: which base the paper means is open, and 2 is our choice."""
f2 = CarliniWagner(_f2)
"""`-max(max_{i != t} F_i - F_t, 0)`."""
f3 = CarliniWagner(_f3)
"""`log 2 - softplus(max_{i != t} F_i - F_t)`."""
f4 = CarliniWagner(_f4)
"""`-max(1/2 - F_t, 0)`."""
f5 = CarliniWagner(_f5)
"""`log(2 F_t)`, in nats (our choice): as corrected, f1 but for its scale."""
f6 = CarliniWagner(_f6)
"""`-max(max_{i != t} Z_i - Z_t, 0)`, Z the logits: the paper's choice."""
f7 = CarliniWagner(_f7)
"""`log 2 - softplus(max_{i != t} Z_i - Z_t)`."""
