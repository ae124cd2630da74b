"""The losses that training and attacks share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from jaxrobust.types import logits_of

Loss = Callable[[Any, Any], Array]


def cross_entropy(
    outputs: PyTree, y: Int[Array, ""] | Float[Array, " classes"]
) -> Float[Array, ""]:
    """Softmax cross-entropy with an integer label, or with a probability of each class, in nats.

    >>> float(cross_entropy(jnp.array([0.0, 0.0]), jnp.array(0)))  # log 2
    0.693147...
    """
    logits = logits_of(outputs)
    if jnp.ndim(y):
        return -jnp.sum(y * jax.nn.log_softmax(logits))
    return jax.nn.logsumexp(logits) - of_class(logits, y)


def of_class(logits: Array, y: Array) -> Array:
    """Logit of a class; NaN, not some other class, where the label is out of range."""
    return logits.at[y].get(mode="fill", fill_value=jnp.nan)


def margin(outputs: PyTree, y: Int[Array, ""]) -> Float[Array, ""]:
    """Largest other logit minus the true one: positive exactly when misclassified.

    References: Carlini and Wagner 2017, f6 without its clamp (paper 001).

    >>> float(margin(jnp.array([3.0, 1.0]), jnp.array(0)))
    -2.0
    """
    logits = logits_of(outputs)
    others = jnp.where(jnp.arange(logits.size) == y, -jnp.inf, logits)
    return jnp.max(others) - of_class(logits, y)


def soft_margin(outputs: PyTree, y: Int[Array, ""]) -> Float[Array, ""]:
    """Log-sum-exp of the other logits minus the true one: `margin`, smooth and never below it.

    Positive exactly where the true class has less than half of the probability, so that its zero
    lies before the boundary; with two classes, on it.

    References: Ding et al. 2020, "MMA Training" (the soft logit margin, SLM; paper 001).

    >>> float(soft_margin(jnp.array([3.0, 1.0]), jnp.array(0)))
    -2.0
    """
    logits = logits_of(outputs)
    others = jnp.where(jnp.arange(logits.size) == y, -jnp.inf, logits)
    return jax.nn.logsumexp(others) - of_class(logits, y)


def hinge(outputs: PyTree, y: Int[Array, ""]) -> Float[Array, ""]:
    """Multiclass hinge loss `max(0, 1 + max_{i != y} f_i - f_y)` (paper 003, sec. 6).

    >>> float(hinge(jnp.array([3.0, 2.5]), jnp.array(0)))
    0.5
    """
    return jnp.maximum(0.0, 1.0 + margin(outputs, y))


def reverse_cross_entropy(outputs: PyTree, y: Int[Array, ""]) -> Float[Array, ""]:
    """Cross-entropy with the reversed label, `-1 / (L - 1) sum_{j != y} log softmax_j(z)`, in nats.

    The least logit wins: a network trained so predicts by `softmax(-z)`, which is
    `transforms.reversed_logits`. No smaller than `log(L - 1)`, L the number of classes, which is
    where all classes but y share the probability evenly.

    Args:
        outputs: The network's own logits z, not reversed, or a tuple that they are the first of.
        y: True class.

    Raises:
        ValueError: For fewer than two classes.

    References: Pang et al. 2018 (RCE); paper 004, sec. 3.3, which leaves out that the test uses
        `softmax(-z)`.

    >>> float(reverse_cross_entropy(jnp.array([-50.0, 0.0, 0.0]), jnp.array(0)))  # log 2
    0.693147...
    """
    logits = logits_of(outputs)
    if logits.size < 2:
        raise ValueError(f"outputs must hold logits of at least two classes; got {logits.size}")
    own = jnp.arange(logits.size) == y
    others = jnp.sum(jnp.where(own, 0.0, jax.nn.log_softmax(logits)))
    # NaN, as `of_class` has it, where the label is none of the classes.
    return jnp.where(jnp.any(own), -others / (logits.size - 1), jnp.nan)


def kl(outputs: PyTree, y: Any) -> Float[Array, ""]:
    """Kullback-Leibler divergence of the softmax from a reference's, in nats; no label counts.

    `sum_j p_j log(p_j / q_j)`, q the softmax of the logits and p that of the reference.

    Args:
        outputs: `(logits, reference logits, ...)`: `transforms.beside` makes such a model.
        y: Any label; ignored.

    >>> float(kl((jnp.array([0.0, jnp.log(3.0)]), jnp.zeros(2)), 0))  # log(2 / sqrt 3)
    0.143841...
    """
    del y
    log_q, log_p = jax.nn.log_softmax(outputs[0]), jax.nn.log_softmax(outputs[1])
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q))


@dataclasses.dataclass(frozen=True)
class generalized_cross_entropy:  # noqa: N801 - reads as the function it is
    """`(1 - p_y^q) / q`, p the softmax: between cross-entropy (q to 0) and `1 - p_y` (q = 1).

    Bounded by 1 / q, so that hopeless examples lose their weight.

    Args:
        q: In (0, 1].

    References: Zhang and Sabuncu, arXiv:1805.07836, Eq. 6 (there against noisy labels).

    >>> float(generalized_cross_entropy(1.0)(jnp.array([0.0, 0.0]), jnp.array(0)))
    0.5
    """

    q: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.q <= 1:
            raise ValueError(f"q must lie in (0, 1]; got {self.q}")

    def __call__(self, outputs: PyTree, y: Any) -> Array:
        """The loss at the true class `y`."""
        return -jnp.expm1(-self.q * cross_entropy(outputs, y)) / self.q
