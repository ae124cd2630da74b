"""The second-order attack of paper 000: PGD along gradients averaged over Gaussian noise."""

from __future__ import annotations

from jaxtyping import Array, Float

from jaxrobust import checks, gradients, losses
from jaxrobust.attacks._gradient import ball_eps, pgd
from jaxrobust.losses import Loss
from jaxrobust.threat import Ball
from jaxrobust.types import Images, Keys, Labels, LogitsFn


def second_order(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    ball: Ball,
    sigma: float,
    num_steps: int = 20,
    num_samples: int = 10,
    fresh: bool = True,
    step_size: float | Array | None = None,
    loss: Loss = losses.cross_entropy,
) -> Float[Array, "batch *dims"]:
    """PGD with `gradients.smoothed`, from the clean image, in the released settings.

    `pgd_trace(..., random_start=False, gradient=gradients.smoothed(sigma, num_samples, fresh))`
    shows the loss, gradient norm and success of each step.

    The paper's text gives the update only. Counts and steps are the released code's, where l2
    attacks climb the margin (`losses.margin`, there cut off 50 past success) and linf ones the
    cross-entropy; here it is the paper's `L` unless asked otherwise. That code clips l2 iterates to
    the box once, at the end; here every iterate stays inside. All its draws of a run are one and
    the same noise: that is `num_samples=1, fresh=False`.

    Memory: as `pgd`; an accelerator takes all samples of a gradient at once, a CPU one by one.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`; see `per_example`.
        x: `(batch, *dims)` images inside `ball.box`.
        y: `(batch,)` labels, or target classes where the loss is `losses.targeted`.
        key: Typed key, one or one a row.
        ball: The threat; `eps` a scalar or one a row.
        sigma: Standard deviation of the noise in pixel units. The paper leaves the attack's open,
            and trains and smooths MNIST's networks with 0.2.
        num_steps: Gradient steps.
        num_samples: Noise draws averaged in each.
        fresh: New draws at every step; False keeps those of the first.
        step_size: In the ball's norm and pixel units, a scalar or one a row. Where None, `eps / 10`
            in linf and `2.5 * eps / num_steps` otherwise (unpublished for l1).
        loss: Loss of one example, to be maximised.

    Returns:
        `(batch, *dims)` attacked images, inside the ball and the box.

    Raises:
        ValueError: As `pgd`; for a negative sigma or a count below 1.

    References:
        Paper 000, eq. 4.

    >>> import jax, jax.numpy as jnp
    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> second_order(logits_fn, jnp.full((1, 2), 0.5), jnp.array([0]), key=jax.random.key(0),
    ...     ball=Ball("linf", 0.25), sigma=0.1).round(4)
    Array([[0.25, 0.25]], dtype=float32)
    """
    eps = ball_eps(ball)
    if sigma:  # none is legal: plain PGD
        checks.check_sigma(sigma, ball.box)
    if step_size is None and ball.norm == "linf":
        step_size = eps / 10
    return pgd(
        logits_fn, x, y, key=key, ball=ball, num_steps=num_steps, step_size=step_size,
        random_start=False, loss=loss, gradient=gradients.smoothed(sigma, num_samples, fresh),
    )  # fmt: skip
