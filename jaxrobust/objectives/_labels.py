"""Labels that are probabilities: smoothed, or adversarial."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrobust.checks import check_radius, known

Labels = Callable[[Array, Array], Array]
"""`labels(logits, y) -> probabilities` of one example: its clean logits, its class."""


def smoothed_labels(eps: float | Array = 0.5) -> Labels:
    """Label smoothing: `1 - eps` for the true class, `eps / (classes - 1)` for every other.

    Args:
        eps: In [0, 1], the share of the wrong classes together; 0.5 in paper 001. (Elsewhere eps is
            often shared among all classes.)

    Raises:
        ValueError: For an eps that is not.

    References: paper 001 (bilateral adversarial training), rows "-LS".

    >>> smoothed_labels(0.5)(jnp.zeros(3), jnp.array(0))
    Array([0.5 , 0.25, 0.25], dtype=float32)
    """
    check_radius(eps, "eps")
    if not known(eps, lambda eps: eps <= 1):
        raise ValueError(f"eps must be at most 1, a share; got {eps}")

    def labels(logits: Float[Array, " classes"], y: Int[Array, ""]) -> Float[Array, " classes"]:
        others = jnp.full_like(logits, eps / (logits.size - 1))
        shares = jnp.where(jnp.arange(logits.size) == y, 1 - eps, others)
        return _of_a_class(shares.astype(logits.dtype), y)

    return labels


def adversarial_labels(beta: float | Array = 9.0, gamma: float | Array = 0.01) -> Labels:
    """Adversarial labels: the less likely a wrong class, the larger its share.

    With v_k minus the log-probability of class k at the clean image and MC the wrong class of least
    v, the shares of the wrong classes are as `w_k = v_k - v_MC + gamma`, and the true class has
    beta times the largest of them; all add up to 1. So `y'_k = eps_y w_k / sum_j w_j` with an eps_y
    of each example's own, `eps_y = 1 / (1 + beta max_j w_j / sum_j w_j)`: between `1 / (1 + beta)`
    and `1 / (1 + beta / (n - 1))` with n classes.

    Paper 001 speaks of one eps_y for all and pairs it with beta (0.5 with 9, n = 10); that holds of
    uniform shares only. The released code fixes beta, and so does this.

    Args:
        beta: Share of the true class in units of the largest other; 9 on CIFAR-10, 100 on ImageNet.
        gamma: Share that the most confusing class starts from, in nats.

    Raises:
        ValueError: For numbers that are not finite and at least 0, or a gamma of 0, which leaves no
            shares where all wrong classes are equally likely.

    References: paper 001 (bilateral adversarial training).

    >>> adversarial_labels(2.0, 1.0)(jnp.array([5.0, 1.0, 0.0]), jnp.array(0))  # w is 1 and 2
    Array([0.5714..., 0.1428..., 0.2857...], dtype=float32)
    """
    check_radius(beta, "beta")
    check_radius(gamma, "gamma")
    if not known(gamma, lambda gamma: gamma > 0):
        raise ValueError(f"gamma must be positive; got {gamma}")

    def labels(logits: Float[Array, " classes"], y: Int[Array, ""]) -> Float[Array, " classes"]:
        true = jnp.arange(logits.size) == y
        largest = jnp.max(jnp.where(true, -jnp.inf, logits))
        weights = jnp.where(true, 0.0, largest - logits + gamma)
        weights = jnp.where(true, beta * jnp.max(weights), weights)
        return _of_a_class(weights / jnp.sum(weights), y)

    return labels


def _of_a_class(shares: Array, y: Array) -> Array:
    """NaN where there is no class y, as a loss of it is."""
    return jnp.where((y >= 0) & (y < shares.size), shares, jnp.nan)
