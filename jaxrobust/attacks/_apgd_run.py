"""One run of Auto-PGD: when it looks back, how it steps, and how the step size adapts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from jaxrobust.loops import at_most
from jaxrobust.threat import Ball, norm

RHO = 0.75
"""Share of steps that must raise the loss, or the step is halved."""

MOMENTUM = 0.75
"""Weight of the new step; the rest goes to the one before."""

STAGES = ((3, 3), (2, 3), (1, 4))
"""Radius of the first stages in eps, and tenths of the steps: the reference's l1 schedule."""

Evaluate = Callable[[Array, Array], tuple[Array, Array, Array]]
"""`(image, turn) -> (loss, gradient, whether the aim is reached)`."""


class Plan(NamedTuple):
    """What is due at each evaluation of a run, the first and the last image included."""

    factor: np.ndarray  # radius of the stage, in eps
    begins: np.ndarray  # the stage's first image
    window: np.ndarray  # steps since the last checkpoint, where this is one; 0 elsewhere


class Run(NamedTuple):
    """How a run ended: the first image that reached the aim, or the one of highest loss."""

    image: Float[Array, "*d"]
    loss: Float[Array, ""]
    reached: Bool[Array, ""]


class Pace(NamedTuple):
    """What adapts at checkpoints."""

    size: Float[Array, ""]  # of a step, in the ball's norm
    rises: Int[Array, ""]  # of the loss, since the last checkpoint
    seen: Float[Array, ""]  # highest loss at the last checkpoint
    halved: Bool[Array, ""]  # at the last checkpoint
    share: Float[Array, ""]  # l1: of entries that a step moves
    support: Float[Array, ""]  # l1: changed entries at the last checkpoint


class _State(NamedTuple):
    here: Float[Array, "*d"]  # to be evaluated next
    before: Float[Array, "*d"]
    last: Float[Array, ""]  # loss of the image evaluated last
    best: Run
    slope: Float[Array, "*d"]  # gradient at the best image
    pace: Pace


def windows(num_steps: int, which: str) -> list[int]:
    """Steps from one checkpoint to the next.

    linf and l2: .22 of all steps at first, .03 less each time, .06 at least; l1: always .04.

    >>> windows(100, "linf")
    [22, 19, 16, 13, 10, 7, 6, 6]
    """
    first, less, least = (4, 0, 4) if which == "l1" else (22, 3, 6)
    length = max(first * num_steps // 100, 1)
    less = less and max(less * num_steps // 100, 1)
    least = max(least * num_steps // 100, 1)
    found = []
    while sum(found) + length <= num_steps:
        found.append(length)
        length = max(length - less, least)
    return found


def plan(num_steps: int, which: str, larger_eps: bool) -> Plan:
    """The timetable of a run; with `larger_eps`, of its three stages one after the other."""
    steps = [-(-tenths * num_steps // 10) for _, tenths in STAGES[:-1]]
    stages = [*steps, num_steps - sum(steps)] if larger_eps else [num_steps]
    factors = [factor for factor, _ in STAGES] if larger_eps else [1]
    parts = []
    for factor, length in zip(factors, stages, strict=True):
        window = np.zeros(length + 1, np.int32)
        lengths = windows(length, which)
        window[np.cumsum(lengths)] = lengths
        parts.append(Plan(np.full(length + 1, factor), np.arange(length + 1) == 0, window))
    return Plan(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def random_start(x: Float[Array, "*d"], ball: Ball, key: Key[Array, ""]) -> Float[Array, "*d"]:
    """The reference's start: on the sphere in linf and l2; in l1 normal noise, projected."""
    if ball.norm == "linf":
        noise = jax.random.uniform(key, x.shape, x.dtype, -1.0, 1.0)
    else:
        noise = jax.random.normal(key, x.shape, x.dtype)
    if ball.norm != "l1":
        noise = ball.eps * noise / norm(noise, ball.norm)
    return ball.project(x, x + noise)


def ascend(
    evaluate: Evaluate, x: Float[Array, "*d"], ball: Ball, key: Key[Array, ""], num_steps: int,
    larger_eps: bool, needed: Bool[Array, ""],
) -> Run:  # fmt: skip
    """Climb from a random start; ends at the first image that reaches the aim, or where not needed.

    Under `vmap`, an example that is through with all its runs thus holds up no other's.
    """
    timetable = plan(num_steps, ball.norm, larger_eps)
    factor, begins, window = (jnp.asarray(column) for column in timetable)

    def ball_of(t: Any) -> Ball:
        return Ball(ball.norm, ball.eps * factor[t].astype(x.dtype), ball.box)

    def fresh(image: Array, radius: Any) -> _State:
        def like(value: Any, dtype: Any = x.dtype) -> Array:
            return jnp.full_like(x, value, dtype, shape=())

        changed = jnp.count_nonzero(image - x).astype(x.dtype)
        support = changed if larger_eps else like(x.size)
        share = changed / x.size / 1.5 if larger_eps else like(0.2)
        size = like(1.0 if ball.norm == "l1" else 2.0) * radius
        pace = Pace(size, like(0, jnp.int32), like(-jnp.inf), like(True, bool), share, support)
        best = Run(image, like(-jnp.inf), like(False, bool))
        return _State(image, image, like(jnp.inf), best, jnp.zeros_like(x), pace)

    def turn(t: Array, state: _State) -> _State:
        now = ball_of(t)
        if larger_eps:
            anew = fresh(now.project(x, state.best.image), now.eps)
            state = _where(begins[t], anew, state)
        value, slope, reached = evaluate(state.here, t)
        reached = reached & (factor[t] == 1)
        better = reached | (value > state.best.loss)
        best = _where(better, Run(state.here, value, reached), state.best)
        best_slope = jnp.where(better, slope, state.slope)

        rises = state.pace.rises + (value > state.last)
        pace = state.pace._replace(rises=rises.astype(jnp.int32))
        changed = jnp.count_nonzero(best.image - x).astype(x.dtype)
        after, back = (
            sparser(pace, changed, x.size, now.eps) if ball.norm == "l1"
            else halving(pace, window[t], best.loss)
        )  # fmt: skip
        due = window[t] > 0
        pace = _where(due, after, pace)
        here = jnp.where(due & back, best.image, state.here)
        slope = jnp.where(due & back, best_slope, slope)
        weight = jnp.where(begins[t], 1.0, MOMENTUM).astype(x.dtype)
        moved = step(x, here, state.before, slope, now, pace, weight)
        return _State(moved, here, value, best, best_slope, pace)

    start = ball_of(0)
    state = fresh(random_start(x, start, key), start.eps)
    goes_on = lambda state: needed & ~state.best.reached
    return at_most(len(timetable.factor), goes_on, turn, state).best


def halving(pace: Pace, window: Any, loss: Array) -> tuple[Pace, Array]:
    """The pace after a checkpoint in linf and l2, and whether to go back to the best image.

    The step is halved where at most `RHO` of the window's steps raised the loss (the paper has
    "less than", the reference this), or where the step stayed and the highest loss did too.
    """
    halve = (pace.rises <= RHO * window) | (~pace.halved & (pace.seen >= loss))
    size = jnp.where(halve, pace.size / 2, pace.size)
    rises = jnp.zeros_like(pace.rises)
    return pace._replace(size=size, rises=rises, seen=loss, halved=halve), halve


def sparser(pace: Pace, changed: Array, size: int, eps: Any) -> tuple[Pace, Array]:
    """The pace after a checkpoint in l1, and whether to go back to the best image.

    Steps move two thirds as many entries as the best image has changed. Where these became fewer by
    a twentieth the step size starts again at eps; elsewhere it shrinks, to a tenth of it at least.
    """
    fewer = changed < 0.95 * pace.support
    length = jnp.where(fewer, eps, jnp.maximum(pace.size / 1.5, eps / 10))
    return pace._replace(size=length, share=changed / size / 1.5, support=changed), fewer


def step(
    x: Array, here: Array, before: Array, slope: Array, ball: Ball, pace: Pace, weight: Array
) -> Array:
    """The next image: a step with momentum, or in l1 one along the largest entries."""
    if ball.norm == "l1":
        magnitude = jnp.abs(slope)
        rank = jnp.clip((1 - pace.share) * x.size, 0, x.size - 1).astype(jnp.int32)
        large = magnitude >= jnp.sort(magnitude.ravel())[rank]
        sign = jnp.where(large, jnp.sign(slope), 0)
        count = jnp.maximum(jnp.sum(jnp.abs(sign)), 1)
        return ball.project(x, here + pace.size * sign / count)
    moved = ball.project(x, ball.step(here, slope, pace.size))
    return ball.project(x, here + weight * (moved - here) + (1 - weight) * (here - before))


def _where(condition: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)
