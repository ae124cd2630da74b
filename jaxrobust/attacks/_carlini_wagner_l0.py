"""Carlini and Wagner's l0 attack: pixels that matter least are given back, round after round."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import gradients, losses
from jaxrobust.attacks._box_descent import (
    Adam,
    adam_start,
    adam_step,
    check_descent,
    is_stuck,
    look,
    pick,
    place,
    settle,
    variable_of,
)
from jaxrobust.attacks._lift import lift_free, reached
from jaxrobust.attacks._minimum_norm import aim, minimises
from jaxrobust.gradients import Gradient
from jaxrobust.loops import at_most
from jaxrobust.losses import Loss
from jaxrobust.threat import UNIT_BOX, Box
from jaxrobust.types import Images, Keys, Labels, LogitsFn

SHARE = 0.3
"""At most this times the root of the number of changed pixels are frozen in a round."""

MATTERS = 0.01
"""A pixel that changes the margin by more, to first order, is the last to be frozen in a round."""

CHANGED = 1e-4
"""A pixel counts as changed from here on, in widths of the box."""


class _State(NamedTuple):
    variable: Float[Array, "*d"]
    adam: Adam
    step: Int[Array, ""]  # at the present c
    previous: Float[Array, ""]  # objective a tenth of the steps ago
    c: Float[Array, ""]
    free: Bool[Array, " pixels"]  # the pixels that may change
    best: Float[Array, "*d"]  # where the last round succeeded: the fewest pixels


@minimises("l0")
def carlini_wagner_l0(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    box: Box = UNIT_BOX,
    target: Labels | None = None,
    loss: Loss = losses.confident(losses.f6, 0.01),  # noqa: B008
    method: Literal["change_of_variable", "clipped", "projected"] = "change_of_variable",
    num_steps: int = 1000,
    learning_rate: float = 1e-2,
    initial_c: float = 1e-3,
    largest_c: float = 2e6,
    kappa: float | None = None,
    abort_early: bool = True,
    gradient: Gradient = gradients.exact,
) -> Float[Array, "batch *dims"]:
    """Carlini and Wagner's l0 attack: few pixels, by the l2 attack on ever fewer of them.

    A round descends on `|delta|^2 - c * loss` over the pixels still free, from where the last round
    ended, until it succeeds. Then the free pixels of the smallest `|delta| * |gradient|` go back to
    their clean values for good: up to 0.3 times the root of the number of changed pixels, and none
    after one that matters. Where `num_steps` steps do not succeed, c doubles; the row ends when c
    reaches `largest_c`. Rows are not in step with each other.

    Of images with three dimensions or more the last axis holds the channels, and a pixel of several
    channels counts as one; elsewhere each entry is a pixel.

    Distances, c and units are those of `carlini_wagner_l2`, as are its deviations. Two more: the
    gradient that chooses pixels is the margin's, in the image, as in the paper's text; the authors'
    code takes the objective's, where the loss has just become constant. And a colour pixel's score
    is the product of sums of absolute values, so that opposite changes do not cancel.

    Memory: some ten images a row beside what one gradient of the model takes.

    Args:
        logits_fn: As for `carlini_wagner_l2`, like all that is not listed here.
        x: `(batch, *dims)` images inside the box.
        y: `(batch,)` true labels.
        key: Typed key; used as by `carlini_wagner_l2`.
        box: Legal pixel values.
        target: `(batch,)` wanted classes; None where any wrong class will do.
        loss: Untargeted loss of one example, to be maximised.
        method: How the image is kept in the box.
        num_steps: Steps of Adam for each c. A row takes at most `num_steps` for each pixel and each
            of about 32 values of c, and commonly a small part of that.
        learning_rate: Of Adam.
        initial_c: First c.
        largest_c: Where c stops to double; it is not tried itself.
        kappa: Confidence: by how much the wanted logit must exceed all others; where None, that of
            the loss (`losses.confident`).
        abort_early: Double c too when the objective has not fallen by 1 part in 10 000 over a tenth
            of the steps, as the l2 attack does; not so in the authors' code, where most steps go
            into values of c that lead nowhere.
        gradient: Gradient estimator.

    Returns:
        `(batch, *dims)` images in the box; the clean one where no step succeeded, and where the
        model is wrong (or gives the target) already.

    Raises:
        ValueError: As `carlini_wagner_l2`; for an `initial_c` that is not below `largest_c`.

    References:
        Carlini and Wagner 2017, sec. VI-B (paper 001); their code.

    >>> logits_fn = lambda x: jnp.stack([x @ jnp.array([2.0, 1.0]), 0 * x[:, 0] + 1], -1)
    >>> x_adv = carlini_wagner_l0(logits_fn, jnp.full((1, 2), 0.5), jnp.array([0]),
    ...     key=jax.random.key(0), num_steps=100, initial_c=1.0, largest_c=8.0)
    >>> (x_adv != 0.5).tolist()
    [[True, False]]
    """
    check_descent(loss, method, num_steps, learning_rate, initial_c, largest_c)
    return lift_free(
        _search, logits_fn, x, y, key=key, box=box, target=target,
        loss=losses.confident(loss, kappa), method=method, num_steps=num_steps,
        learning_rate=float(learning_rate), initial_c=float(initial_c),
        largest_c=float(largest_c), abort_early=bool(abort_early), gradient=gradient,
    )  # fmt: skip


def _search(
    model: Callable[..., Any], x: Array, y: Array, key: Array, *, target: Any = None, box: Box,
    loss: Loss, method: str, num_steps: int, learning_rate: float, initial_c: float,
    largest_c: float, abort_early: bool, gradient: Gradient,
) -> Array:  # fmt: skip
    aimed, label = aim(loss, target), y if target is None else target
    width = box[1] - box[0]
    count = jnp.zeros_like(x, shape=(), dtype=jnp.int32)
    period = -(-num_steps // 10)
    never = jnp.zeros_like(x, shape=()) + jnp.finfo(x.dtype).max
    channels = x.shape[-1] if x.ndim >= 3 else 1
    num_pixels = x.size // channels
    most = math.ceil(SHARE * math.sqrt(num_pixels))

    def success(x: Array, key: Array, outputs: Any) -> Array:
        return reached(model, aimed, label, x, key, outputs)

    def climbed(outputs: Any, done: Array) -> Array:
        # A round's last gradient moves nothing and only tells which pixels matter; there the loss
        # may be flat.
        return jnp.where(done, losses.margin(outputs, label), aimed(outputs, label))

    def by_pixel(image: Array) -> Array:
        return image.reshape(num_pixels, channels)

    def freeze(free: Array, delta: Array, slope: Array) -> Array:
        size = jnp.abs(by_pixel(delta))
        score = jnp.sum(size, -1) * jnp.sum(jnp.abs(by_pixel(slope)), -1)
        changed = jnp.sum(jnp.max(size, -1) >= CHANGED)
        least, which = jax.lax.top_k(jnp.where(free, -score, -jnp.inf), most)
        rank = jnp.arange(most)
        before = jnp.concatenate([jnp.zeros_like(least[:1]), -least[:-1]])
        chosen = (rank < jnp.maximum(SHARE * jnp.sqrt(changed), 1)) & (before <= MATTERS)
        return free.at[which].set(free[which] & ~chosen)

    def step(turn: Array, s: _State) -> _State:
        at = place(method, s.variable, x, box)
        mask = jnp.broadcast_to(s.free[:, None], (num_pixels, channels)).reshape(x.shape)
        x_adv = jnp.where(mask, at.x_adv, x)
        now = gradients.step_key(gradient, key, turn)
        seen = look(model, climbed, success, gradient, x_adv, now)
        slope = mask * (2 * at.delta * at.delta_rate - s.c * at.x_rate * seen.slope)
        adam, move = adam_step(s.adam, slope, learning_rate)
        free = freeze(s.free, (x_adv - x) / width, width * seen.slope)
        from_here = variable_of(method, at.x_adv, x, box)
        fewer = _State(from_here, adam_start(x), count, never, s.c, free, x_adv)
        objective = jnp.sum((mask * at.delta) ** 2) - s.c * seen.loss
        looked = s.step % period == 0
        spent = s.step + 1 == num_steps
        if abort_early:
            spent |= looked & is_stuck(objective, s.previous)
        previous = jnp.where(spent, never, jnp.where(looked, objective, s.previous))
        onwards = _State(
            settle(method, s.variable - move, x, box), adam, jnp.where(spent, 0, s.step + 1),
            previous, jnp.where(spent, 2 * s.c, s.c), s.free, s.best,
        )  # fmt: skip
        return pick(seen.success, fewer, onwards)

    aimless = success(x, key, model(x, key))  # nothing to do
    free = jnp.zeros_like(x, shape=(num_pixels,), dtype=bool) | ~aimless
    start = _State(
        variable_of(method, x, x, box), adam_start(x), count, never, 0 * never + initial_c, free, x
    )  # fmt: skip
    doublings = math.ceil(math.log2(largest_c / initial_c)) + 1
    found = at_most(
        (doublings + num_pixels) * num_steps, lambda s: jnp.any(s.free) & (s.c < largest_c), step,
        start,
    )  # fmt: skip
    return found.best
