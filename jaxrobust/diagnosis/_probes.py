"""What a diagnosis measures: the model around an image, and the attacks whose order tells."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrobust import attacks, gradients, losses
from jaxrobust.evaluation._judge import ascent, sharded
from jaxrobust.loops import at_most
from jaxrobust.threat import Ball
from jaxrobust.types import Attack, LogitsFn, logits_of, per_example, row_keys

DIFFERENCE = 0.02
"""Change of every pixel in a finite difference, in widths of the box: 5 grey levels of 255.

Far above rounding, and far below what an attack changes; a slope that does not describe the model
over it describes nothing that an attack can use.
"""

DIRECTIONS = 8
"""Random directions of finite differences."""

DRAWS = 8
"""Draws of a random model in one averaged gradient."""


class Height(NamedTuple):
    """How high the loss is at an image, one entry a row.

    Attributes:
        height: `losses.soft_margin`: rises with the cross-entropy, and still does where float32
            rounds that to 0.
    """

    height: Array


class Signs(NamedTuple):
    """Where the model's loss rises at an image, one entry a row.

    Attributes:
        signs: `(batch, pixels)` int8, the sign of each entry of the cross-entropy's gradient.
    """

    signs: Array


class Same(NamedTuple):
    """Whether the model looks at its image, one entry a row.

    Attributes:
        same: All its outputs are equal at the image and at one of uniform noise.
    """

    same: Array


class Look(NamedTuple):
    """What is seen of the model at an image, one entry a row.

    Attributes:
        margin: Largest wrong logit minus the true one.
        height: As `Height`.
        zero: The cross-entropy's gradient is exactly zero.
        not_finite: It is not finite.
        signs: As `Signs`.
        slope: How far the margin would move between opposite ends of the box, to first order, as a
            share of its size.
        mismatch: Between derivatives and finite differences of the margin: 0 is none, 1 all; NaN
            where one of them is.
    """

    margin: Array
    height: Array
    zero: Array
    not_finite: Array
    signs: Array
    slope: Array
    mismatch: Array


@functools.lru_cache(maxsize=64)
def height_program(devices: tuple[Any, ...]) -> Callable[..., Height]:
    """`(logits_fn, x, y, keys) -> Height`, rows sharded over the devices."""

    def heights(logits_fn: LogitsFn, x: Array, y: Array, keys: Array) -> Height:
        outputs = jax.vmap(per_example(logits_fn))(x, keys)
        return Height(jax.vmap(losses.soft_margin)(outputs, y))

    return sharded(heights, devices)


@functools.lru_cache(maxsize=64)
def same_program(devices: tuple[Any, ...]) -> Callable[..., Same]:
    """`((logits_fn, box), x, y, keys) -> Same`, rows sharded over the devices."""

    def same(functions: tuple[LogitsFn, Array], x: Array, y: Array, keys: Array) -> Same:
        logits_fn, box = functions

        def one(x: Array, key: Array) -> Same:
            low, high = box.astype(x.dtype)
            noise = jax.random.uniform(jax.random.fold_in(key, 1), x.shape, x.dtype, low, high)
            here, there = (logits_of(per_example(logits_fn)(image, key)) for image in (x, noise))
            return Same(jnp.all(here == there))

        return jax.vmap(one)(x, keys)

    return sharded(same, devices)


@functools.lru_cache(maxsize=64)
def signs_program(devices: tuple[Any, ...]) -> Callable[..., Signs]:
    """`(logits_fn, x, y, keys) -> Signs`, rows sharded over the devices."""

    def signs(logits_fn: LogitsFn, x: Array, y: Array, keys: Array) -> Signs:
        return Signs(jax.vmap(_signs)(ascent(logits_fn, x, y, keys)))

    return sharded(signs, devices)


def _signs(rise: Array) -> Array:
    return jnp.sign(rise).ravel().astype(jnp.int8)


@functools.lru_cache(maxsize=64)
def look_program(devices: tuple[Any, ...]) -> Callable[..., Look]:
    """`((logits_fn, box), x, y, keys) -> Look`, rows sharded over the devices."""

    def look(functions: tuple[LogitsFn, Array], x: Array, y: Array, keys: Array) -> Look:
        logits_fn, box = functions
        low_end, high_end = box.astype(x.dtype)
        width = high_end - low_end
        model = per_example(logits_fn)

        def one(x: Array, y: Array, key: Array) -> Look:
            logits = lambda x, key: logits_of(model(x, key))
            seen, pullback = gradients.vjp(logits, x, key)
            margin, of_margin = jax.value_and_grad(losses.margin)(seen, y)
            rise = pullback(jax.grad(losses.cross_entropy)(seen, y))
            slope = pullback(of_margin)

            def difference(key_of: Array) -> tuple[Array, Array]:
                change = DIFFERENCE * width * jax.random.rademacher(key_of, x.shape, x.dtype)
                ends = [jnp.clip(x + c, low_end, high_end) for c in (change, -change)]
                high, low = (losses.margin(logits(end, key), y) for end in ends)
                return high - low, jnp.vdot(slope, ends[0] - ends[1])

            measured, derived = jax.lax.map(
                difference, jax.random.split(jax.random.fold_in(key, 1), DIRECTIONS)
            )
            apart = jnp.sum(jnp.abs(measured - derived))
            size = jnp.sum(jnp.abs(measured) + jnp.abs(derived))
            reach = width * jnp.sum(jnp.abs(slope))
            return Look(
                margin,
                losses.soft_margin(seen, y),
                jnp.all(rise == 0),
                ~jnp.all(jnp.isfinite(rise)),
                _signs(rise),
                reach / jnp.where(margin == 0, 1, jnp.abs(margin)),
                jnp.where(size == 0, 0, apart / jnp.where(size == 0, 1, size)),
            )

        return jax.vmap(one)(x, y, keys)

    return sharded(look, devices)


def random_draws(
    logits_fn: LogitsFn, x: Array, y: Array, *, key: Array, ball: Ball, num_draws: int
) -> Array:
    """Random images of the ball, half of them from its inside and half from its rim.

    Each row stops at the first that is misclassified; otherwise the draw of highest margin.
    """
    model = per_example(logits_fn)
    eps = jnp.broadcast_to(jnp.asarray(ball.eps, x.dtype), x.shape[:1])

    def one(x: Array, y: Array, key: Array, eps: Array) -> Array:
        own = Ball(ball.norm, eps, ball.box)

        def draw(turn: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
            draw_key, model_key = jax.random.split(jax.random.fold_in(key, turn))
            noise = jax.random.normal(draw_key, x.shape, x.dtype)
            rim = own.project(x, own.step(x, noise, eps))
            image = jnp.where(turn % 2 == 0, own.sample(x, draw_key), rim)
            margin = losses.margin(model(image, model_key), y).astype(x.dtype)
            better = ~(margin <= best[1])
            return jnp.where(better, image, best[0]), jnp.where(better, margin, best[1])

        lowest = jnp.full_like(x, -jnp.inf, shape=())
        return at_most(num_draws, lambda best: best[1] <= 0, draw, (x, lowest))[0]

    return jax.vmap(one)(x, y, row_keys(key, len(x)), eps)


class Probes(NamedTuple):
    """The attacks of a diagnosis; equal settings give the same objects, so nothing is retraced."""

    one_step: Attack
    iterative: Attack
    other: Attack  # climbs the margin, with averaged gradients where the model is random
    frozen: Attack  # the same on a single draw of the model's randomness
    random: Attack
    black_box: Attack


@functools.lru_cache(maxsize=64)
def probes(num_steps: int, num_queries: int, norm: str, random: bool) -> Probes:
    """The attacks of a diagnosis.

    Args:
        num_steps: Gradient steps of those that iterate.
        num_queries: Images that those without gradients ask for.
        norm: Of the ball.
        random: Whether the model is.
    """
    climb = functools.partial(attacks.pgd, num_steps=num_steps)
    black_box: Attack = functools.partial(attacks.square, num_queries=num_queries)
    if norm == "l1":  # of which Square does not speak
        steps = max(num_queries // 32, 1)
        black_box = functools.partial(
            attacks.pgd, num_steps=steps, loss=losses.margin, gradient=gradients.nes(16, 0.01)
        )
    return Probes(
        attacks.fgsm,
        functools.partial(climb, random_start=False),
        functools.partial(
            climb, loss=losses.margin, gradient=gradients.eot(DRAWS) if random else gradients.exact
        ),
        functools.partial(climb, loss=losses.margin, gradient=gradients.eot(1, fresh=False)),
        functools.partial(random_draws, num_draws=num_queries),
        black_box,
    )
