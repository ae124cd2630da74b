"""Carlini and Wagner's l2 attack: Adam on distance and loss, and a search for their balance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import checks, gradients, losses
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

LARGEST_C = 1e10
"""Upper end of the search before anything succeeded."""


class _State(NamedTuple):
    variable: Float[Array, "*d"]
    adam: Adam
    step: Int[Array, ""]  # within the present search
    previous: Float[Array, ""]  # the objective when progress was last looked at
    reached: Bool[Array, ""]  # whether the present search has succeeded
    c: Float[Array, ""]
    low: Float[Array, ""]  # the largest c that failed
    high: Float[Array, ""]  # the smallest that did not
    search: Int[Array, ""]
    best: Float[Array, "*d"]
    distance: Float[Array, ""]  # of the best, squared, in widths of the box


@minimises("l2")
def carlini_wagner_l2(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    box: Box = UNIT_BOX,
    target: Labels | None = None,
    loss: Loss = losses.f6,
    method: Literal["change_of_variable", "clipped", "projected"] = "change_of_variable",
    num_steps: int = 10_000,
    num_searches: int = 9,
    learning_rate: float = 1e-2,
    initial_c: float = 1e-3,
    kappa: float | None = None,
    abort_early: bool = True,
    gradient: Gradient = gradients.exact,
) -> Float[Array, "batch *dims"]:
    """Carlini and Wagner's l2 attack: minimum-norm, by Adam on `|delta|^2 - c * loss`.

    The constant c is searched for: ten times larger until a search succeeds, then by bisection.
    Each search starts at the clean image again. Of all images seen that succeed, the nearest comes
    back. Searches are not in step: a row that aborts one begins its next at once, so a batch takes
    as long as its longest row.

    Distances, c and the learning rate of the two methods without a change of variable are in widths
    of the box, so that the published constants hold for any box.

    An untargeted attack ends at the boundary of a class that leads on its way, as in the authors'
    code; where another is nearer, `every_target` finds it.

    Deviations from the authors' code: distances are taken from x itself, not from its image under
    the change of variable; an untargeted attack climbs towards the wrong class that leads at each
    step; progress is judged by each row's own objective. A success must exceed rounding.

    Memory: some ten images a row beside what one gradient of the model takes.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`, or a tuple with the logits first where the
            loss wants more; see `per_example`.
        x: `(batch, *dims)` images inside the box.
        y: `(batch,)` true labels.
        key: Typed key; used by random gradients and models only. Success on a randomised model
            takes 16 more draws, in each of which it must hold.
        box: Legal pixel values.
        target: `(batch,)` wanted classes; None where any wrong class will do.
        loss: Untargeted loss of one example, to be maximised, not negative where it succeeds:
            `losses.f1` to `f7`, or one of them in `losses.penalized`.
        method: How the image is kept in the box. "change_of_variable" descends on w of
            `mid + half * tanh(w)`; "clipped" shows the model the clipped image while the
            perturbation itself is free; "projected" clips after each step.
        num_steps: Most steps of Adam in a search.
        num_searches: Values of c that are tried. With ten or more, the last repeats the smallest
            that succeeded.
        learning_rate: Of Adam.
        initial_c: First c, below 1e10.
        kappa: Confidence: by how much the wanted logit must exceed all others; where None, that of
            the loss (`losses.confident`).
        abort_early: End a search when the objective has not fallen by 1 part in 10 000 over a tenth
            of the steps. Where that tenth is short, Adam's first overshoot may look like an end.
        gradient: Gradient estimator.

    Returns:
        `(batch, *dims)` images in the box; the clean one where no step succeeded, and where the
        model is wrong (or gives the target) already.

    Raises:
        ValueError: For images, labels, target, key, box or settings that cannot be meant; for a
            targeted loss; for a kappa that the loss cannot have.

    References:
        Carlini and Wagner 2017, sec. V and VI-A (paper 001); their code.

    >>> import jax
    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> carlini_wagner_l2(logits_fn, jnp.full((1, 2), 0.6), jnp.array([0]), num_steps=100,
    ...     key=jax.random.key(0), initial_c=1.0, num_searches=5).round(2)
    Array([[0.25, 0.25]], dtype=float32)
    """
    check_descent(loss, method, num_steps, learning_rate, initial_c, LARGEST_C)
    checks.check_count(num_searches, "num_searches")
    return lift_free(
        _search, logits_fn, x, y, key=key, box=box, target=target,
        loss=losses.confident(loss, kappa), method=method, num_steps=num_steps,
        num_searches=num_searches, learning_rate=float(learning_rate), initial_c=float(initial_c),
        abort_early=bool(abort_early), gradient=gradient,
    )  # fmt: skip


def _search(
    model: Callable[..., Any], x: Array, y: Array, key: Array, *, target: Any = None, box: Box,
    loss: Loss, method: str, num_steps: int, num_searches: int, learning_rate: float,
    initial_c: float, abort_early: bool, gradient: Gradient,
) -> Array:  # fmt: skip
    aimed, label = aim(loss, target), y if target is None else target
    width = box[1] - box[0]
    period = -(-num_steps // 10)
    number = jnp.zeros_like(x, shape=())
    count = jnp.zeros_like(x, shape=(), dtype=jnp.int32)
    never = number + jnp.finfo(x.dtype).max
    begin = variable_of(method, x, x, box)

    def success(x: Array, key: Array, outputs: Any) -> Array:
        return reached(model, aimed, label, x, key, outputs)

    def step(turn: Array, s: _State) -> _State:
        at = place(method, s.variable, x, box)
        now = gradients.step_key(gradient, key, turn)
        seen = look(model, lambda out, _: aimed(out, label), success, gradient, at.x_adv, now)
        objective = jnp.sum(at.delta**2) - s.c * seen.loss
        slope = 2 * at.delta * at.delta_rate - s.c * at.x_rate * seen.slope
        adam, move = adam_step(s.adam, slope, learning_rate)
        distance = jnp.sum(((at.x_adv - x) / width) ** 2)
        better = seen.success & (distance < s.distance)
        looked = s.step % period == 0
        stuck = looked & is_stuck(objective, s.previous)
        s = _State(
            settle(method, s.variable - move, x, box), adam, s.step + 1,
            jnp.where(looked, objective, s.previous), s.reached | seen.success, s.c, s.low, s.high,
            s.search, jnp.where(better, at.x_adv, s.best), jnp.where(better, distance, s.distance),
        )  # fmt: skip
        over = s.step == num_steps
        if abort_early:
            over |= stuck
        return pick(over, next_search(s), s)

    def next_search(s: _State) -> _State:
        low = jnp.where(s.reached, s.low, jnp.maximum(s.low, s.c))
        high = jnp.where(s.reached, jnp.minimum(s.high, s.c), s.high)
        larger = jnp.minimum(10 * s.c, LARGEST_C)
        c = jnp.where(high < LARGEST_C, (low + high) / 2, larger)
        if num_searches >= 10:
            c = jnp.where(s.search + 2 == num_searches, high, c)
        return _State(
            begin, adam_start(x), count, never, count > 0, c, low, high, s.search + 1, s.best,
            s.distance,
        )  # fmt: skip

    aimless = success(x, key, model(x, key))  # nothing to do
    found = at_most(
        num_searches * num_steps, lambda s: s.search < num_searches, step,
        _State(
            begin, adam_start(x), count, never, count > 0, number + initial_c, number,
            number + LARGEST_C, jnp.where(aimless, num_searches, count), x, never,
        ),
    )  # fmt: skip
    return found.best
