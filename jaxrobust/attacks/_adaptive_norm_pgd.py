"""AN-PGD: one PGD for a direction, then bisection along it to the boundary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrobust import checks, gradients, losses
from jaxrobust.attacks._gradient import climb
from jaxrobust.attacks._lift import lift_free, reached
from jaxrobust.attacks._minimum_norm import aim, untargeted
from jaxrobust.gradients import Gradient
from jaxrobust.losses import Loss
from jaxrobust.threat import UNIT_BOX, Ball, Box
from jaxrobust.threat import norm as threat_norm
from jaxrobust.types import Images, Keys, Labels, LogitsFn

REACH = 1.05
"""How far the bisection looks, in units of `d_max` (released code)."""

SEARCHES = ("margin", "soft_margin")


class _State(NamedTuple):
    low: Float[Array, ""]  # largest radius known to fail
    high: Float[Array, ""]
    best: Float[Array, "*d"]  # the image at `high`
    found: Bool[Array, ""]  # whether it was seen to succeed


def adaptive_norm_pgd(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    box: Box = UNIT_BOX,
    norm: Literal["linf", "l2"] = "linf",
    target: Labels | None = None,
    radius: float | Array | None = None,
    d_max: float | Array | None = None,
    num_steps: int = 40,
    num_bisections: int = 10,
    search: Literal["margin", "soft_margin"] = "margin",
    loss: Loss = losses.soft_margin,
    gradient: Gradient = gradients.exact,
) -> Float[Array, "batch *dims"]:
    """Adaptive-norm PGD: the distance of what it returns estimates the margin of the classifier.

    PGD in the ball of `radius` (random start, steps of `2.5 * radius / num_steps`) gives a
    direction. Along it, ten bisections look for the boundary, inwards from PGD's image where that
    is a success, and otherwise outwards to `1.05 * d_max`. The nearer the radius is to the margin,
    the better the direction: MMA training starts from the distance that it found in the last epoch.
    A distance of 0 is no margin by itself: where the model is right on the clean image, nothing was
    found, and the margin is at least not known to be smaller than `d_max`.

    Deviations from the authors' code: images on the way are clipped to the box, the one that is
    returned as well; the direction has length 1 as in algorithm 1 (there it is divided by the
    radius, which PGD's image need not reach); returned is the nearest image that was seen to
    succeed, the far end of the last bracket and not its unseen middle. So the distance exceeds that
    of the boundary on the path by at most `1.05 * d_max / 2**num_bisections`, and a boundary within
    that of the far end is not found. On affine classifiers without a box the direction is the best
    one in linf; in l2 it keeps up to a fifth of the random start, and the way is some 2 % longer.
    With more classes than two, a `loss` of `losses.margin` finds nearer ones than the published one
    (affine, four classes, l2: 6 instead of 11 % above the exact distance). Memory: some seven
    images a row beside the model's gradient.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`; see `per_example`.
        x: `(batch, *dims)` images inside the box.
        y: `(batch,)` true labels.
        key: Typed key. Success on a randomised model takes 16 more draws, in each of which it must
            hold.
        box: Legal pixel values.
        norm: What is minimised.
        target: `(batch,)` wanted classes; None where any wrong class will do.
        radius: Of the PGD, a scalar or one a row, in pixel units; `d_max / 10` where None (our
            choice).
        d_max: The largest margin of interest, a scalar or one a row; where None, the distance to
            the farthest corner of the box.
        num_steps: Of the PGD: 40 for MNIST, 10 for CIFAR-10.
        num_bisections: Evaluations along the direction.
        search: What the bisection seeks: "margin", an image of another class, or "soft_margin", the
            zero of `losses.soft_margin`, as MMA training does. Untargeted, that lies before the
            boundary, and the images are not misclassified.
        loss: Untargeted loss that PGD climbs.
        gradient: Gradient estimator of the PGD.

    Returns:
        `(batch, *dims)` images in the box; the clean one where nothing was found, and where it is
        already what is sought.

    Raises:
        ValueError: For images, labels, key, box, norm, radii or counts that cannot be meant; for a
            targeted loss.

    References:
        Ding et al. 2020, "MMA Training", algorithm 1 (paper 001).

    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> adaptive_norm_pgd(logits_fn, jnp.full((1, 2), 0.6), jnp.array([0]),
    ...     key=jax.random.key(0)).round(2)
    Array([[0.25, 0.25]], dtype=float32)
    """
    checks.check_choice(norm, "norm", ("linf", "l2"))
    checks.check_choice(search, "search", SEARCHES)
    checks.check_count(num_steps, "num_steps")
    checks.check_count(num_bisections, "num_bisections")
    untargeted(loss)
    num_rows = len(x) if hasattr(x, "shape") else None
    rows = {}
    for name, value in {"radius": radius, "d_max": d_max}.items():
        if value is not None:
            checks.check_radius(value, name, num_rows)
            rows[name] = jnp.asarray(value, getattr(x, "dtype", None))
    return lift_free(
        _search, logits_fn, x, y, key=key, box=box, target=target, rows=rows, norm=norm,
        num_steps=num_steps, num_bisections=num_bisections, soft=search == "soft_margin", loss=loss,
        gradient=gradient,
    )  # fmt: skip


def _search(
    model: Callable[..., Any], x: Array, y: Array, key: Array, *, box: Box,
    norm: Literal["linf", "l2"], num_steps: int, num_bisections: int, soft: bool, loss: Loss,
    gradient: Gradient, radius: Array | None = None, d_max: Array | None = None,
    target: Array | None = None,
) -> Array:  # fmt: skip
    label = y if target is None else target
    margin, soft_margin = aim(losses.margin, target), aim(losses.soft_margin, target)
    farthest = threat_norm(jnp.maximum(x - box.low, box.high - x), norm)
    d_max = farthest if d_max is None else d_max
    reach = REACH * d_max
    radius = d_max / 10 if radius is None else jnp.minimum(radius, reach)
    pgd_key, judge_key = jax.random.split(key)

    def hit(x_adv: Array, turn: int | Array) -> Array:
        now = jax.random.fold_in(judge_key, turn)
        outputs = model(x_adv, now)
        if soft:
            return soft_margin(outputs, label) >= 0
        return reached(model, margin, label, x_adv, now, outputs)

    x_adv, _ = climb(
        model, x, label, pgd_key, ball=Ball(norm, radius, box), num_steps=num_steps,
        step_size=2.5 * radius / num_steps, num_restarts=1, random_start=True,
        loss=aim(loss, target), gradient=gradient, record=False,
    )  # fmt: skip
    x_adv = jnp.where(jnp.all(jnp.isfinite(x_adv)), x_adv, x)
    length = threat_norm(x_adv - x, norm)
    direction = (x_adv - x) / jnp.where(length > 0, length, 1.0)

    def bisect(state: _State, turn: Array) -> tuple[_State, None]:
        low, high, best, found = state
        middle = (low + high) / 2
        there = jnp.clip(x + middle * direction, *box)
        success = hit(there, turn)
        return _State(
            jnp.where(success, low, middle),
            jnp.where(success, middle, high),
            jnp.where(success, there, best),
            found | success,
        ), None

    at_once = hit(x_adv, 0)
    start = _State(
        jnp.where(at_once, jnp.zeros_like(length), length),
        jnp.where(at_once, length, jnp.maximum(reach, length)),
        x_adv,
        at_once,
    )
    end, _ = jax.lax.scan(bisect, start, 1 + jnp.arange(num_bisections))
    usable = end.found & ~hit(x, num_bisections + 1)
    return jnp.where(usable, end.best, x)
