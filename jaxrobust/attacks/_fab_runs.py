"""The runs of Fast Adaptive Boundary on one example, whatever boundary each follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust import gradients, losses
from jaxrobust.attacks._lift import clear_success, reached
from jaxrobust.attacks._projections import shortest_step
from jaxrobust.gradients import Gradient
from jaxrobust.losses import Loss
from jaxrobust.threat import Box
from jaxrobust.threat import norm as threat_norm
from jaxrobust.types import logits_of

DUAL = {"linf": "l1", "l2": "l2", "l1": "linf"}
"""Norm of a slope that says how far away a boundary is."""

RADII = {"linf": 0.3, "l2": 1.0, "l1": 5.0}
"""The authors' default radii, within half of which restarts begin; in widths of the box."""

BEYOND = 1e-3
"""Share of the clean image's gap by which the final search goes past the boundary."""

PUSH = 1.1
"""Factor by which steps of a randomised model go farther after a success of a single draw.

Ours. Projections end at the boundary, where half of the draws fail, and none of them is a success.
"""

Plane = Callable[[Array, Array], tuple[Array, Array]]
"""`(x, key) -> (gap, slope)`: by how much a rival leads, negative before the boundary."""


class Rule(NamedTuple):
    """Settings, as in `fab`."""

    box: Box
    norm: str
    num_steps: int
    num_restarts: int
    restart_radius: Float[Array, ""]
    alpha_max: float
    eta: float
    beta: float
    gradient: Gradient


class Goal(NamedTuple):
    """What counts as success: the first arguments of `reached`."""

    model: Callable[..., Any]
    loss: Loss
    label: Array


class Best(NamedTuple):
    """The closest success so far; its distance is inf while there is none."""

    x_adv: Float[Array, "*d"]
    distance: Float[Array, ""]


def clean(goal: Goal, x: Array, key: Array) -> Best:
    """The clean image, at distance 0 where it is a success already."""
    nothing = jnp.full_like(x, jnp.inf, shape=())
    return Best(x, jnp.where(reached(*goal, x, key, goal.model(x, key)), 0.0, nothing))


def nearest_plane(model: Callable[..., Any], y: Array, rule: Rule) -> Plane:
    """Of all classes' linearised boundaries with y, the nearest."""
    estimate = rule.gradient(lambda x, key: logits_of(model(x, key)))

    def plane(x: Array, key: Array) -> tuple[Array, Array]:
        logits, pullback = gradients.vjp(estimate, x, key)
        classes = jnp.arange(logits.size)
        pairs = (1.0 * (classes == classes[:, None]) - 1.0 * (classes == y)).astype(logits.dtype)
        gaps, slopes = logits - logits[y], jax.vmap(pullback)(pairs)
        lengths = jax.vmap(lambda w: threat_norm(w, DUAL[rule.norm]))(slopes)
        safe = jnp.where(lengths > 0, lengths, 1.0)
        far = jnp.where((lengths > 0) & (classes != y), jnp.abs(gaps) / safe, jnp.inf)
        return gaps[jnp.argmin(far)], slopes[jnp.argmin(far)]

    return plane


def plane_of(gap: Callable[[Array, Array], Array], rule: Rule) -> Plane:
    """The linearised boundary where one function of image and key is 0."""
    estimate = rule.gradient(gap)

    def plane(x: Array, key: Array) -> tuple[Array, Array]:
        value, pullback = gradients.vjp(estimate, x, key)
        return value, pullback(jnp.ones_like(value))

    return plane


def best_of_runs(goal: Goal, plane: Plane, x: Array, key: Array, best: Best, rule: Rule) -> Best:
    """A run from the clean image, then restarts about it."""

    def again(best: Best, restart: Array) -> tuple[Best, None]:
        start_key, walk_key = jax.random.split(jax.random.fold_in(key, restart))
        start = _random_start(x, start_key, best, rule)
        return _run(goal, plane, x, start, walk_key, best, rule), None

    best = _run(goal, plane, x, x, jax.random.fold_in(key, 0), best, rule)
    if rule.num_restarts == 1:
        return best
    return jax.lax.scan(again, best, jnp.arange(1, rule.num_restarts))[0]


def final_search(goal: Goal, x: Array, key: Array, best: Best, rule: Rule) -> Array:
    """Three steps of false position between the clean image and the best.

    References: Croce and Hein 2020, eq. 9; the gap is that of the class at the far end.
    """
    first = logits_of(goal.model(x, key))

    def halve(ends: tuple[Array, ...], turn: Array) -> tuple[tuple[Array, ...], None]:
        near, far, near_logits, far_logits = ends
        rival = jnp.argmax(far_logits)
        low, high, lowest = (-losses.margin(z, rival) for z in (near_logits, far_logits, first))
        share = (-BEYOND * lowest - low) / (high - low)
        share = jnp.where((share >= 0) & (share <= 1), share, 1.0)
        middle = jnp.clip(near + share * (far - near), *rule.box)
        outputs = goal.model(middle, key)
        hit = reached(*goal, middle, jax.random.fold_in(key, turn), outputs)
        logits = logits_of(outputs)
        inward = (near, middle, near_logits, logits)
        outward = (middle, far, logits, far_logits)
        return jax.tree.map(lambda a, b: jnp.where(hit, a, b), inward, outward), None

    last = logits_of(goal.model(best.x_adv, key))
    return jax.lax.scan(halve, (x, best.x_adv, first, last), jnp.arange(3))[0][1]


def _run(
    goal: Goal, plane: Plane, x: Array, start: Array, key: Array, best: Best, rule: Rule
) -> Best:
    def step(state: tuple[Array, Best, Array], t: Array) -> tuple[Any, None]:
        here, best, push = state
        now = gradients.step_key(rule.gradient, key, t)
        gap, slope = plane(here, now)
        own = _onto(here, slope, -gap, rule)
        from_clean = _onto(x, slope, -gap - jnp.sum(slope * (x - here)), rule)
        lengths = [jnp.maximum(threat_norm(d, rule.norm), 1e-8) for d in (own, from_clean)]
        alpha = jnp.minimum(lengths[0] / (lengths[0] + lengths[1]), rule.alpha_max)
        eta = rule.eta * push
        there = (1 - alpha) * (here + eta * own) + alpha * (x + eta * from_clean)
        there = jnp.clip(there, *rule.box)
        legal = jnp.all(jnp.isfinite(there))
        there = jnp.where(legal, there, here)
        outputs = goal.model(there, now)
        hit = legal & reached(*goal, there, now, outputs)
        lucky = legal & ~hit & clear_success(goal.loss, outputs, goal.label)
        distance = threat_norm(there - x, rule.norm)
        closer = hit & (distance < best.distance)
        best = jax.tree.map(
            lambda new, old: jnp.where(closer, new, old), Best(there, distance), best
        )
        nearer = jnp.where(hit, jnp.maximum(push / PUSH, 1), push)
        push = jnp.where(lucky, push * PUSH, nearer)
        return (jnp.where(hit, x + rule.beta * (there - x), there), best, push), None

    first = (start, best, jnp.ones_like(x, shape=()))
    return jax.lax.scan(step, first, jnp.arange(rule.num_steps))[0][1]


def _onto(z: Array, slope: Array, rise: Array, rule: Rule) -> Array:
    """Step to the plane, from whichever side."""
    side = jnp.where(rise < 0, -1.0, 1.0).astype(z.dtype)
    return shortest_step(z, side * slope, side * rise, rule.box, rule.norm)


def _random_start(x: Array, key: Array, best: Best, rule: Rule) -> Array:
    """At half the radius of restarts, and at most half the least distance found so far."""
    uniform = rule.norm == "linf"
    draw = (
        jax.random.uniform(key, x.shape, x.dtype, -1.0, 1.0)
        if uniform
        else jax.random.normal(key, x.shape, x.dtype)
    )
    radius = jnp.minimum(best.distance, rule.restart_radius)
    return jnp.clip(x + 0.5 * radius * draw / threat_norm(draw, rule.norm), *rule.box)
