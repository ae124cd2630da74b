"""stAdv: flows that fool a model and vary little from pixel to pixel, in the penalty form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust import checks, gradients, losses
from jaxrobust.attacks._box_descent import Adam, adam_start, adam_step, look
from jaxrobust.attacks._lift import lift_free, reached
from jaxrobust.attacks._minimum_norm import aim, untargeted
from jaxrobust.flow import smoothed, total_variation, warp
from jaxrobust.gradients import Gradient
from jaxrobust.losses import Loss
from jaxrobust.threat import UNIT_BOX, Box, check_box
from jaxrobust.types import Images, Keys, Labels, LogitsFn


class _State(NamedTuple):
    white: Float[Array, "height width 2"]  # what is descended on
    adam: Adam
    best: Float[Array, "height width 2"]
    variation: Float[Array, ""]  # of the best


def flow(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    box: Box = UNIT_BOX,
    target: Labels | None = None,
    loss: Loss = losses.f6,
    kappa: float | None = None,
    tau: float | Array = 0.05,
    num_steps: int = 200,
    learning_rate: float = 1.0,
    gradient: Gradient = gradients.exact,
) -> Float[Array, "batch *dims"]:
    """The images that the flows of `flow_field`, whose arguments these are, make of x.

    Returns:
        `(batch, height, width, ...)` images in the box; the clean one where no flow succeeded, and
        where the model is wrong (or gives the target) already.

    Raises:
        ValueError: As `flow_field`.

    >>> logits_fn = lambda x: jnp.stack([x[:, 0, 0], x[:, 0, 1] + 0.1], -1)
    >>> x = jnp.array([[[0.8, 0.2, 0.1]]])
    >>> image = flow(logits_fn, x, jnp.array([0]), key=jax.random.key(0))
    >>> jnp.argmax(logits_fn(image), -1)
    Array([1], dtype=int32)
    """
    return _lifted(
        logits_fn, x, y, key, box, target, loss, kappa, tau, num_steps, learning_rate, gradient
    )[0]


def flow_field(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    box: Box = UNIT_BOX,
    target: Labels | None = None,
    loss: Loss = losses.f6,
    kappa: float | None = None,
    tau: float | Array = 0.05,
    num_steps: int = 200,
    learning_rate: float = 1.0,
    gradient: Gradient = gradients.exact,
) -> Float[Array, "batch height width 2"]:
    """stAdv: flows that minimise `-loss + tau * flow.total_variation`.

    Of all flows seen that succeed, the one of least total variation comes back. Moving the whole
    image has none: where that fools the model, flows end near it.

    Deviations from the publication, which descends on the flow itself by L-BFGS from a start drawn
    uniformly from [0, 1): the variable is `w` of `r = flow.smoothed(w) / c`, any flow still, with c
    such that a w of ones moves no pixel by more than 1. It starts as published, uniformly in [0, 1)
    (all in one direction, which is never on a kink), drawn from `key`. In w one step moves regions
    and not single pixels, between which the roots of the variation are steepest. Adam descends, in
    steps that shrink linearly to nothing; `benchmarks.run flow` compares that with L-BFGS, in w and
    in the flow, and with Adam in the flow.

    Memory: some ten flows a row beside what one gradient of the model takes.

    Args:
        logits_fn: `(batch, height, width, ...) -> (batch, classes)`; see `per_example`.
        x: `(batch, height, width)` images inside the box, or with channels.
        y: `(batch,)` true labels.
        key: Typed key, of the start, random gradients and models. Success on a randomised model
            takes 16 more draws, in each of which it must hold.
        box: Legal pixel values.
        target: `(batch,)` wanted classes; None where any wrong class will do.
        loss: Untargeted loss of one example, to be maximised, 0 from success on: `losses.f6`, whose
            margin the paper takes, or another of `f1` to `f7`.
        kappa: Confidence: by how much the wanted logit must exceed all others; where None, that of
            the loss (`losses.confident`).
        tau: Weight of the total variation: a scalar or one a row.
        num_steps: Steps of Adam. With 200 flows are still rougher than they need be, and where
            logits are small against tau many that exist are missed; 1,000 find most of those.
        learning_rate: Of its first step, in pixels: no pixel moves much farther in one step.
        gradient: Gradient estimator, in the image.

    Returns:
        `(batch, height, width, 2)` displacements in pixels, down and to the right; 0 where no flow
        succeeded, and where the model is wrong (or gives the target) already.

    Raises:
        ValueError: For images, labels, target, key, box or settings that cannot be meant; for a
            targeted loss; for a kappa that the loss cannot have.

    References:
        Xiao et al. 2018, eq. 2 to 4 (paper 002, eq. 9).

    >>> logits_fn = lambda x: jnp.stack([x[:, 0, 0], x[:, 0, 1] + 0.1], -1)
    >>> x = jnp.array([[[0.8, 0.2, 0.1]]])
    >>> flow_field(logits_fn, x, jnp.array([0]), key=jax.random.key(0)).shape
    (1, 1, 3, 2)
    """
    return _lifted(
        logits_fn, x, y, key, box, target, loss, kappa, tau, num_steps, learning_rate, gradient
    )[1]


def _lifted(
    logits_fn: LogitsFn, x: Any, y: Any, key: Any, box: Box, target: Any, loss: Loss,
    kappa: float | None, tau: Any, num_steps: int, learning_rate: float, gradient: Gradient,
) -> tuple[Array, Array]:  # fmt: skip
    check_box(box)
    checks.check_images(x, box)
    check_grid(x)
    untargeted(loss)
    checks.check_count(num_steps, "num_steps")
    checks.check_radius(tau, "tau", len(x))
    checks.check_radius(learning_rate, "learning_rate")
    return lift_free(
        _search, logits_fn, x, y, key=key, box=box, target=target,
        rows={"tau": jnp.asarray(tau, x.dtype)}, loss=losses.confident(loss, kappa),
        num_steps=num_steps, learning_rate=float(learning_rate), gradient=gradient,
    )  # fmt: skip


def check_grid(x: Any) -> None:
    """Refuse images whose pixels have no rows and columns to be moved along."""
    if x.ndim < 3:
        raise ValueError(
            f"x must be a batch of shape (batch, height, width, ...); got shape {x.shape}"
        )


def shown(x: Float[Array, "*d"], flow: Array, box: Box) -> Float[Array, "*d"]:
    """The image that a flow makes: clipped, as rounding may carry it out of the box."""
    return jnp.clip(warp(x, flow), *box)


def pulled(x: Float[Array, "*d"], flow: Array, slope: Float[Array, "*d"]) -> Array:
    """Slope in the flow from that in the image.

    Not through the clipping of `shown`, whose derivative at the ends of the box, where the pixels
    of black and white images lie, is a half.
    """
    (pulled,) = jax.vjp(lambda flow: warp(x, flow), flow)[1](slope)
    return pulled


def _search(
    model: Callable[..., Any], x: Array, y: Array, key: Array, *, tau: Array, target: Any = None,
    box: Box, loss: Loss, num_steps: int, learning_rate: float, gradient: Gradient,
) -> tuple[Array, Array]:  # fmt: skip
    aimed, label = aim(loss, target), y if target is None else target
    start_key, walk_key = jax.random.split(key)
    start = jax.random.uniform(start_key, (*x.shape[:2], 2), x.dtype)
    unit = jnp.max(smoothed(jnp.ones_like(start)))

    def success(x: Array, key: Array, outputs: Any) -> Array:
        return reached(model, aimed, label, x, key, outputs)

    def objective(white: Array) -> tuple[Array, tuple[Array, Array]]:
        flow = smoothed(white) / unit
        variation = total_variation(flow)
        return tau * variation, (flow, variation)

    def step(s: _State, t: Array) -> tuple[_State, None]:
        now = gradients.step_key(gradient, walk_key, t)
        value, back, (flow, variation) = jax.vjp(objective, s.white, has_aux=True)
        seen = look(
            model, lambda out, _: aimed(out, label), success, gradient, shown(x, flow, box), now
        )
        better = seen.success & (variation < s.variation)
        (rough,) = back(jnp.ones_like(value))
        slope = rough - smoothed(pulled(x, flow, seen.slope)) / unit  # its own transpose
        slope = jnp.where(jnp.isfinite(slope), slope, 0)
        adam, move = adam_step(s.adam, slope, learning_rate)
        moved = s.white - (1 - t / num_steps).astype(x.dtype) * move
        best = jnp.where(better, flow, s.best), jnp.where(better, variation, s.variation)
        return _State(moved, adam, *best), None

    none = jnp.zeros_like(start)
    # Nothing to do: no flow varies less than none.
    aimless = success(x, walk_key, model(x, walk_key))
    never = jnp.where(aimless, -1.0, jnp.finfo(x.dtype).max).astype(x.dtype)
    first = _State(start, adam_start(start), none, never)
    found = jax.lax.scan(step, first, jnp.arange(num_steps))[0].best
    return shown(x, found, box), found
