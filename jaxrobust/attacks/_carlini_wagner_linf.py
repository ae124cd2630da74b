"""Carlini and Wagner's linf attack: a penalty on pixels beyond a limit that shrinks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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

LEAST = 1 / 256
"""The limit at which nothing more is looked for, in widths of the box."""

SLACK = 1e-4
"""A success counts as within the limit where the penalty is at most this share of c."""


class _State(NamedTuple):
    variable: Float[Array, "*d"]
    adam: Adam
    step: Int[Array, ""]  # at the present c
    previous: Float[Array, ""]  # the objective when progress was last looked at
    c: Float[Array, ""]
    tau: Float[Array, ""]  # the limit, in widths of the box
    best: Float[Array, "*d"]
    distance: Float[Array, ""]  # of the best, in widths of the box


@minimises("linf")
def carlini_wagner_linf(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    box: Box = UNIT_BOX,
    target: Labels | None = None,
    loss: Loss = losses.f6,
    method: Literal["change_of_variable", "clipped", "projected"] = "change_of_variable",
    num_steps: int = 1000,
    learning_rate: float = 5e-3,
    initial_c: float = 1e-5,
    largest_c: float = 20.0,
    decrease_factor: float = 0.9,
    kappa: float | None = None,
    abort_early: bool = True,
    gradient: Gradient = gradients.exact,
) -> Float[Array, "batch *dims"]:
    """Carlini and Wagner's linf attack: Adam on `sum (|delta| - tau)^+ - c * loss`.

    The limit tau starts at the width of the box. After each success within it, it becomes
    `decrease_factor` times itself or the distance found, whichever is smaller; the search goes on
    from that image. Where `num_steps` steps do not succeed, c doubles; the row ends when c reaches
    `largest_c`, or tau 1/256 of the width. Rows are not in step with each other. Of all images seen
    that succeed, the nearest comes back; it may be farther by a tenth than one towards the same
    class need be, which a `decrease_factor` nearer to 1 makes less.

    Distances, c and units are those of `carlini_wagner_l2`, as are its deviations; another is that
    a success within the limit is told by class and penalty, so that losses that fall below 0 may be
    used too.

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
        num_steps: Steps of Adam for each c. A row takes at most `num_steps` for each of about 54
            limits (by default) and 21 doublings of c, and commonly a small part of that.
        learning_rate: Of Adam.
        initial_c: First c.
        largest_c: Where c stops to double; it is not tried itself.
        decrease_factor: Of the limit after each success, in (0, 1).
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
        Carlini and Wagner 2017, sec. VI-C (paper 001); their code.

    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> carlini_wagner_linf(logits_fn, jnp.full((1, 2), 0.6), jnp.array([0]),
    ...     key=jax.random.key(0), num_steps=100, initial_c=0.1).round(2)
    Array([[0.25, 0.25]], dtype=float32)
    """
    check_descent(loss, method, num_steps, learning_rate, initial_c, largest_c)
    if not 0 < decrease_factor < 1:
        raise ValueError(f"decrease_factor must lie in (0, 1); got {decrease_factor}")
    return lift_free(
        _search, logits_fn, x, y, key=key, box=box, target=target,
        loss=losses.confident(loss, kappa), method=method, num_steps=num_steps,
        learning_rate=float(learning_rate), initial_c=float(initial_c),
        largest_c=float(largest_c), decrease_factor=float(decrease_factor),
        abort_early=bool(abort_early), gradient=gradient,
    )  # fmt: skip


def _search(
    model: Callable[..., Any], x: Array, y: Array, key: Array, *, target: Any = None, box: Box,
    loss: Loss, method: str, num_steps: int, learning_rate: float, initial_c: float,
    largest_c: float, decrease_factor: float, abort_early: bool, gradient: Gradient,
) -> Array:  # fmt: skip
    aimed, label = aim(loss, target), y if target is None else target
    width = box[1] - box[0]
    number = jnp.zeros_like(x, shape=())
    count = jnp.zeros_like(x, shape=(), dtype=jnp.int32)
    period = -(-num_steps // 10)
    never = number + jnp.finfo(x.dtype).max

    def success(x: Array, key: Array, outputs: Any) -> Array:
        return reached(model, aimed, label, x, key, outputs)

    def step(turn: Array, s: _State) -> _State:
        at = place(method, s.variable, x, box)
        now = gradients.step_key(gradient, key, turn)
        seen = look(model, lambda out, _: aimed(out, label), success, gradient, at.x_adv, now)
        excess = jax.nn.relu(jnp.abs(at.delta) - s.tau)
        outwards = jnp.sign(at.delta) * (excess > 0)
        slope = outwards * at.delta_rate - s.c * at.x_rate * seen.slope
        adam, move = adam_step(s.adam, slope, learning_rate)
        distance = jnp.max(jnp.abs(at.x_adv - x)) / width
        better = seen.success & (distance < s.distance)
        best = jnp.where(better, at.x_adv, s.best)
        nearest = jnp.where(better, distance, s.distance)
        within = seen.success & (jnp.sum(excess) <= SLACK * s.c)
        tau = decrease_factor * jnp.minimum(s.tau, nearest)
        tighter = _State(
            variable_of(method, at.x_adv, x, box), adam_start(x), count, never, s.c, tau, best,
            nearest,
        )  # fmt: skip
        objective = jnp.sum(excess) - s.c * seen.loss
        looked = s.step % period == 0
        spent = s.step + 1 == num_steps
        if abort_early:
            spent |= looked & is_stuck(objective, s.previous)
        previous = jnp.where(spent, never, jnp.where(looked, objective, s.previous))
        onwards = _State(
            settle(method, s.variable - move, x, box), adam, jnp.where(spent, 0, s.step + 1),
            previous, jnp.where(spent, 2 * s.c, s.c), s.tau, best, nearest,
        )  # fmt: skip
        return pick(within, tighter, onwards)

    aimless = success(x, key, model(x, key))  # nothing to do
    start = _State(
        variable_of(method, x, x, box), adam_start(x), count, never, number + initial_c,
        jnp.where(aimless, 0.0, number + 1), x, number + jnp.inf,
    )  # fmt: skip
    doublings = math.ceil(math.log2(largest_c / initial_c)) + 1
    limits = math.ceil(math.log(LEAST) / math.log(decrease_factor)) + 1
    found = at_most(
        (doublings + limits) * num_steps, lambda s: (s.tau > LEAST) & (s.c < largest_c), step, start
    )
    return found.best
