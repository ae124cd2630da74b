"""Fast Minimum-Norm: gradient ascent within a ball whose radius follows the boundary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust import checks, gradients, losses
from jaxrobust.attacks._lift import lift_free, loss_of, reached
from jaxrobust.attacks._minimum_norm import aim, weighable
from jaxrobust.attacks._projections import within_l2
from jaxrobust.gradients import Gradient
from jaxrobust.losses import Loss
from jaxrobust.threat import NORMS, UNIT_BOX, Ball, Box
from jaxrobust.threat import norm as threat_norm
from jaxrobust.types import Images, Keys, Labels, LogitsFn

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
"""Norm of a gradient that says how far away a boundary is."""

STEP_END = 0.01
"""Share of the step size that is left at the end."""

GAMMA_END = 0.001
"""What gamma falls to."""


ZERO = (losses.margin, losses.dlr, losses.f2, losses.f3, losses.f6, losses.f7)
"""Losses of this library that are 0 where they begin to succeed."""


class _State(NamedTuple):
    here: Float[Array, "*d"]
    eps: Float[Array, ""]
    best: Float[Array, "*d"]
    distance: Float[Array, ""]  # of the best; inf while nothing was found


def fmn(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    box: Box = UNIT_BOX,
    norm: Literal["linf", "l2", "l1"] = "linf",
    target: Labels | None = None,
    loss: Loss = losses.margin,
    num_steps: int = 100,
    step_size: float = 1.0,
    gamma: float = 0.05,
    gradient: Gradient = gradients.exact,
) -> Float[Array, "batch *dims"]:
    """FMN: minimum-norm attack by normalised gradient steps in a ball of adaptive radius.

    The radius is the distance to the linearised boundary until a first success; then it shrinks by
    a factor `1 - gamma` at each success, and grows by `1 + gamma` at each failure. Step size and
    gamma fall as half a cosine, to 1 % of the first and to 0.001. Starts from the clean image.

    Deviations from the authors' code: a step is projected exactly onto the part of the ball that
    lies in the box (theirs: onto the ball, then the box, where long l2 steps can get stuck); and
    before a first success the radius is a factor `1 + gamma` larger, since just the linearised
    distance ends in a tie on affine classifiers. Memory: some five images a row beside the model's
    gradient.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`; see `per_example`.
        x: `(batch, *dims)` images inside the box.
        y: `(batch,)` true labels.
        key: Typed key; used by random gradients and random models only. Success on a randomised
            model takes 16 more draws, in each of which it must hold.
        box: Legal pixel values.
        norm: What is minimised.
        target: `(batch,)` wanted classes; None where any wrong class will do.
        loss: Untargeted loss of one example, to be maximised, that reaches 0 where it succeeds: the
            margin, as published, or `losses.penalized` of `losses.f6`.
        num_steps: Gradient steps; 1000 in the publication.
        step_size: First length of a step, in l2 whatever the norm, pixel units.
        gamma: First relative change of the radius, in (0, 1).
        gradient: Gradient estimator.

    Returns:
        `(batch, *dims)` images in the box; the clean one where no step succeeded.

    Raises:
        ValueError: For images, labels, key, box, norm, counts or sizes that cannot be meant; for a
            targeted loss, and for one of this library's that is not 0 at the boundary.

    References:
        Pintor et al. 2021, algorithm 1.

    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> fmn(logits_fn, jnp.full((1, 2), 0.6), jnp.array([0]), key=jax.random.key(0)).round(2)
    Array([[0.25, 0.25]], dtype=float32)
    """
    checks.check_choice(norm, "norm", NORMS)
    checks.check_count(num_steps, "num_steps")
    checks.check_radius(step_size, "step_size")
    if not step_size > 0:
        raise ValueError(f"step_size must be positive; got {step_size}")
    if not 0 < gamma < 1:
        raise ValueError(f"gamma must lie in (0, 1); got {gamma}")
    bare = losses.confident(weighable(loss), 0.0)
    while (func := getattr(bare, "func", None)) is not None:
        bare = func
    if getattr(bare, "__module__", "").startswith(losses.__name__) and bare not in ZERO:
        raise ValueError(
            "loss must be 0 where it begins to succeed, such as losses.margin: the search takes it "
            f"for a distance to the boundary; got {loss!r:.80}"
        )
    return lift_free(
        _search, logits_fn, x, y, key=key, box=box, target=target, norm=norm, loss=loss,
        num_steps=num_steps, step_size=float(step_size), gamma=float(gamma), gradient=gradient,
    )  # fmt: skip


def _search(
    model: Callable[..., Any], x: Array, y: Array, key: Array, *, box: Box,
    norm: Literal["linf", "l2", "l1"], loss: Loss, num_steps: int, step_size: float,
    gamma: float, gradient: Gradient, target: Array | None = None,
) -> Array:  # fmt: skip
    aimed, label = aim(loss, target), y if target is None else target
    estimate = gradient(loss_of(model, aimed, label))
    farthest = threat_norm(jnp.maximum(x - box.low, box.high - x), norm)

    def step(state: _State, t: Array) -> tuple[_State, None]:
        here, eps, best, distance = state
        now = gradients.step_key(gradient, key, t)
        gap, pullback = gradients.vjp(estimate, here, now)
        slope = pullback(jnp.ones_like(gap))
        hit = reached(model, aimed, label, here, now, model(here, now))
        size = threat_norm(here - x, norm)
        was_found = distance < jnp.inf
        best = jnp.where(hit & (size < distance), here, best)
        distance = jnp.where(hit, jnp.minimum(size, distance), distance)

        cosine = ((1 + jnp.cos(jnp.pi * t / num_steps)) / 2).astype(x.dtype)
        change = GAMMA_END + (gamma - GAMMA_END) * cosine
        steepness = threat_norm(slope, DUAL[norm])
        to_boundary = jnp.abs(gap) / jnp.where(steepness > 0, steepness, 1.0)
        wider = (1 + change) * jnp.where(was_found, eps, size + to_boundary)
        eps = jnp.where(hit, jnp.minimum((1 - change) * eps, distance), wider)
        eps = jnp.minimum(eps, farthest)

        length = threat_norm(slope, "l2")
        stride = step_size * (STEP_END + (1 - STEP_END) * cosine)
        there = here + stride * slope / jnp.where(length > 0, length, 1.0)
        there = (
            within_l2(x, there, eps, box)
            if norm == "l2"
            else Ball(norm, eps, box).project(x, there)
        )
        there = jnp.where(jnp.all(jnp.isfinite(there)), there, here)
        return _State(there, eps, best, distance), None

    nothing = jnp.full_like(x, jnp.inf, shape=())
    start = _State(x, farthest, x, nothing)
    return jax.lax.scan(step, start, jnp.arange(num_steps))[0].best
