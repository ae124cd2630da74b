"""The boundary attack: a walk along the decision boundary towards the image, by classes alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import checks, losses
from jaxrobust.attacks._lift import lift_free, reached
from jaxrobust.attacks._minimum_norm import aim, minimises
from jaxrobust.loops import at_most
from jaxrobust.threat import UNIT_BOX, Box, norm
from jaxrobust.types import Images, Keys, Labels, LogitsFn

BISECTIONS = 10
"""Halvings of the line from the image to the start."""

CONVERGED = 1e-7
"""Relative step towards the image below which the walk ends."""

WINDOWS = (100, 30)
"""Judged steps that the success rates of sphere and source are taken over."""

RATES = ((0.2, 0.5), (0.1, 0.25))
"""Success rates below which steps shrink and above which they grow."""


class _Window(NamedTuple):
    hits: Bool[Array, " size"]
    pushed: Int[Array, ""]  # since the last change of step


class _State(NamedTuple):
    x_adv: Float[Array, "*d"]
    spherical_step: Float[Array, ""]
    source_step: Float[Array, ""]
    spherical: _Window
    source: _Window


@minimises("l2")
def boundary(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    box: Box = UNIT_BOX,
    target: Labels | None = None,
    start: Images | None = None,
    num_steps: int = 25_000,
    num_starts: int = 100,
    spherical_step: float = 0.01,
    source_step: float = 0.01,
    step_adaptation: float = 1.5,
    update_every: int = 10,
) -> Float[Array, "batch *dims"]:
    """Boundary attack: minimum l2 norm from predicted classes only, no logits and no gradients.

    From an image that has the wanted class, bisected to the boundary, each step draws a random
    direction on the sphere around x, then goes a little towards x, and stays where the class is
    still right and x nearer. Both step lengths follow their success rates. The walk ends where no
    small step helps: untargeted at the boundary with the class that the start led to, which need
    not be the nearest.

    Queries an image: at most `1 + num_starts + 10 + num_steps (1 + 1 / update_every)`, and one more
    for a start that is given; the walk ends early where its steps have shrunk to nothing. Of a
    randomised model each query that is answered with the wanted class takes 16 more draws, which
    must all answer so. Memory: a few arrays of batch x dims, beside the model's forward pass.

    Settings, rates and windows are foolbox's (3.3.4), of which this differs in that each image
    draws and stops by itself, and in its starts: noise of random brightness and contrast, from flat
    to black and white, since plain uniform noise is all of one class to many networks.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`; see `per_example`.
        x: `(batch, *dims)` images inside the box.
        y: `(batch,)` true labels.
        key: Typed key.
        box: Legal pixel values.
        target: `(batch,)` wanted classes; None where any wrong class will do.
        start: `(batch, *dims)` images to start from, where they have the wanted class: another
            attack's, or images of the target class, which noise seldom has.
        num_steps: Most steps of the walk.
        num_starts: Most draws of noise for a start.
        spherical_step: First step along the sphere, relative to the distance from x.
        source_step: First step towards x, likewise.
        step_adaptation: Factor by which steps grow and shrink, above 1.
        update_every: Steps between two that count towards the success rates, for which the image
            on the sphere is queried as well.

    Returns:
        `(batch, *dims)` images in the box; the clean one where no start was found.

    Raises:
        ValueError: For images, labels, key, box, counts or steps that cannot be meant.

    References:
        Brendel et al. 2018, algorithm 1 and sec. 2 (paper 000 evaluates by it).

    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> x_adv = boundary(logits_fn, jnp.full((1, 2), 0.6), jnp.array([0]), key=jax.random.key(0),
    ...     num_steps=500, spherical_step=0.1, source_step=0.1)
    >>> bool(x_adv.sum() < 0.5), bool(jnp.linalg.norm(x_adv - 0.6) < 0.55)  # at best sqrt(0.245)
    (True, True)
    """
    checks.check_count(num_steps, "num_steps")
    checks.check_count(num_starts, "num_starts")
    checks.check_count(update_every, "update_every")
    for name, value in (("spherical_step", spherical_step), ("source_step", source_step)):
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be positive and finite; got {value}")
    if not 1 < step_adaptation < float("inf"):
        raise ValueError(f"step_adaptation must be finite and above 1; got {step_adaptation}")
    rows = {}
    if start is not None:
        checks.check_images(start, box, "start")
        if start.shape != x.shape:
            raise ValueError(f"start must have the shape of x, {x.shape}; got {start.shape}")
        rows["start"] = jnp.asarray(start, x.dtype)
    return lift_free(
        _search, logits_fn, x, y, key=key, box=box, target=target, rows=rows,
        num_steps=num_steps, num_starts=num_starts, steps=(spherical_step, source_step),
        step_adaptation=float(step_adaptation), update_every=update_every,
    )  # fmt: skip


def _search(
    model: Callable[..., Any], x: Array, y: Array, key: Array, *, box: Box, num_steps: int,
    num_starts: int, steps: tuple[float, float], step_adaptation: float, update_every: int,
    target: Array | None = None, start: Array | None = None,
) -> Array:  # fmt: skip
    aimed, label = aim(losses.margin, target), y if target is None else target

    def fooled(x: Array, key: Array) -> Array:
        return reached(model, aimed, label, x, key, model(x, key))

    start_key, walk_key = jax.random.split(key)
    already = fooled(x, key)
    found, image = _start(fooled, x, start_key, box, num_starts, start, already)

    def step(state: _State, t: Array, judged: bool) -> _State:
        draw_key, query_key = jax.random.split(jax.random.fold_in(walk_key, t))
        on_sphere, candidate = _propose(state, x, draw_key, box)
        hit = fooled(candidate, query_key)
        nearer = norm(candidate - x, "l2") < norm(state.x_adv - x, "l2")
        moved = state._replace(x_adv=jnp.where(hit & nearer, candidate, state.x_adv))
        if not judged:
            return moved
        return _adapt(moved, fooled(on_sphere, query_key), hit, step_adaptation)

    def some(state: _State, first: Array, count: int) -> _State:
        if not count:
            return state
        plain = lambda state, t: (step(state, t, judged=False), None)
        return jax.lax.scan(plain, state, first + jnp.arange(count))[0]

    def block(turn: Array, state: _State) -> _State:
        first = turn * update_every
        state = some(state, first, update_every - 1)
        return step(state, first + update_every - 1, judged=True)

    spherical, source = (
        _Window(jnp.zeros_like(x, bool, shape=(size,)), jnp.zeros_like(x, jnp.int32, shape=()))
        for size in WINDOWS
    )
    along, inward = (jnp.full_like(x, length, shape=()) for length in steps)
    state = _State(image, along, inward, spherical, source)
    going = lambda state: found & ~already & (state.source_step >= CONVERGED)
    blocks, rest = divmod(num_steps, update_every)
    state = at_most(blocks, going, block, state)
    state = some(state, jnp.asarray(blocks * update_every), rest)
    usable = found & ~already & jnp.all(jnp.isfinite(state.x_adv))
    return jnp.where(usable, state.x_adv, x)


def _start(
    fooled: Callable[[Array, Array], Array], x: Array, key: Array, box: Box, num_starts: int,
    start: Array | None, already: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Whether an image of the wanted class was found, and where the line to it crosses."""

    def draw(turn: Array, _: Any) -> tuple[Array, Array]:
        draw_key, query_key = jax.random.split(jax.random.fold_in(key, turn))
        noise_key, look_key = jax.random.split(draw_key)
        brightness, contrast = jax.random.uniform(look_key, (2,), x.dtype)
        noise = brightness + 4 * contrast * jax.random.uniform(noise_key, x.shape, x.dtype, -1, 1)
        noise = box[0] + (box[1] - box[0]) * jnp.clip(noise, 0, 1)
        return fooled(noise, query_key), noise

    given = (already, x)
    if start is not None:
        given = (already | fooled(start, jax.random.fold_in(key, num_starts)), start)
    found, far = at_most(num_starts, lambda state: ~state[0], draw, given)

    def halve(state: tuple[Array, Array, Array], turn: Array) -> tuple[Any, None]:
        low, high, image = state
        middle = (low + high) / 2
        between = jnp.clip(x + middle * (far - x), *box)
        hit = fooled(between, jax.random.fold_in(key, num_starts + 1 + turn))
        low, high = jnp.where(hit, low, middle), jnp.where(hit, middle, high)
        return (low, high, jnp.where(hit, between, image)), None

    zero = jnp.zeros_like(x, shape=())
    state, _ = jax.lax.scan(halve, (zero, zero + 1, far), jnp.arange(BISECTIONS))
    return found, state[2]


def _propose(state: _State, x: Array, key: Array, box: Box) -> tuple[Array, Array]:
    """A random image as far from x as the present one, and one that goes from there towards x."""
    away = state.x_adv - x
    length = norm(away, "l2")
    draw = jax.random.normal(key, x.shape, x.dtype)
    draw = draw - jnp.vdot(draw, away) / _safe(length) ** 2 * away
    draw = draw * (state.spherical_step * length / _safe(norm(draw, "l2")))
    on_sphere = x + (away + draw) / jnp.sqrt(1 + state.spherical_step**2)
    on_sphere = jnp.clip(on_sphere, *box)
    reached = norm(on_sphere - x, "l2")  # less than the length where the box cut it
    share = jnp.maximum(state.source_step * length + reached - length, 0) / _safe(reached)
    return on_sphere, jnp.clip(on_sphere + share * (x - on_sphere), *box)


def _safe(length: Array) -> Array:
    return jnp.where(length > 0, length, 1.0)


def _adapt(state: _State, on_sphere: Array, nearer: Array, factor: float) -> _State:
    """Both steps follow the sphere's success rate, and the step towards x also its own."""
    spherical, grow = _judge(_push(state.spherical, on_sphere), RATES[0], factor)
    source, more = _judge(_push(state.source, nearer), RATES[1], factor)
    return state._replace(
        spherical_step=state.spherical_step * grow, source_step=state.source_step * grow * more,
        spherical=spherical, source=source,
    )  # fmt: skip


def _push(window: _Window, hit: Array) -> _Window:
    slot = window.pushed % window.hits.size
    return _Window(window.hits.at[slot].set(hit), window.pushed + 1)


def _judge(window: _Window, rates: tuple[float, float], factor: float) -> tuple[_Window, Array]:
    """The factor of a step by the rate over a full window, which then starts anew."""
    rate = jnp.mean(window.hits)
    full = window.pushed >= window.hits.size
    low, high = full & (rate < rates[0]), full & (rate > rates[1])
    change = jnp.where(high, factor, jnp.where(low, 1 / factor, 1.0))
    return window._replace(pushed=jnp.where(low | high, 0, window.pushed)), change
