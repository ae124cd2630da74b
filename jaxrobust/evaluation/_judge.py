"""Compiled programs of `evaluate`: predict a batch, attack a batch and judge what came back.

Each is one `shard_map` over the rows of a batch, cached by what it is compiled for, so that
repeated evaluations (one an epoch, say) trace once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxrobust import gradients, losses
from jaxrobust.evaluation._report import reach
from jaxrobust.threat import Threat, norm, num_pixels_changed
from jaxrobust.types import (
    Attack,
    LogitsFn,
    Randomized,
    logits_of,
    per_example,
    predicted_class,
)

AXIS = "rows"


class Clean(NamedTuple):
    """Judgement of the clean rows."""

    prediction: Array  # -1 where they hold NaN or +inf
    like_probabilities: Array
    changed: Array  # another draw of a randomised model predicts another class


class Slopes(NamedTuple):
    """Judgement of the gradients of the cross-entropy at clean rows."""

    zero: Array
    not_finite: Array


class Judged(NamedTuple):
    """Judgement of the attacked rows."""

    success: Array  # of the image brought into ball and box
    prediction: Array
    distance: Array  # as returned; inf where not finite, NaN where the threat cannot tell
    l0: Array  # so are these, but NaN where the image as returned is classified correctly
    l2: Array
    linf: Array
    broken_at: Array  # smallest distance at which a wrong prediction was seen; inf where none,
    # NaN where the threat cannot tell
    outside: Array  # as returned: out of the box or the ball
    not_finite: Array  # as returned
    image: Array  # brought into ball and box


@functools.lru_cache(maxsize=64)
def clean_program(votes: int, devices: tuple[Any, ...]) -> Callable[..., Clean]:
    """`(logits_fn, x, judge_keys) -> Clean`, rows sharded over the devices."""

    def clean(logits_fn: LogitsFn, x: Array, keys: Array) -> Clean:
        logits = logits_of(jax.vmap(per_example(logits_fn))(x, keys))
        total = jnp.sum(logits.astype(jnp.float32), -1)
        alike = jnp.all(logits >= 0, -1) & (jnp.abs(total - 1) < 1e-2)  # if of half precision, too
        predicted = _predict(logits_fn, votes, x, keys)
        changed = jnp.zeros_like(alike)
        if isinstance(logits_fn, Randomized):
            other = jax.vmap(jax.random.fold_in, (0, None))(keys, votes)  # no vote's key
            redrawn = logits_of(jax.vmap(per_example(logits_fn))(x, other))
            changed = predicted_class(redrawn) != predicted_class(logits)
        return Clean(predicted, alike, changed)

    return sharded(clean, devices)


@functools.lru_cache(maxsize=64)
def gradient_program(devices: tuple[Any, ...]) -> Callable[..., Slopes]:
    """`(logits_fn, x, y, keys) -> Slopes`, rows sharded over the devices."""

    def slopes(logits_fn: LogitsFn, x: Array, y: Array, keys: Array) -> Slopes:
        flat = ascent(logits_fn, x, y, keys).reshape(len(x), -1)
        return Slopes(jnp.all(flat == 0, -1), ~jnp.all(jnp.isfinite(flat), -1))

    return sharded(slopes, devices)


def ascent(logits_fn: LogitsFn, x: Array, y: Array, keys: Array) -> Array:
    """Gradient of each row's cross-entropy by the row's image."""
    model = per_example(logits_fn)

    def one(x: Array, y: Array, key: Array) -> Array:
        loss = lambda x, key: losses.cross_entropy(model(x, key), y)
        value, pullback = gradients.vjp(loss, x, key)
        return pullback(jnp.ones_like(value))

    return jax.vmap(one)(x, y, keys)


def no_derivative(logits_fn: LogitsFn, x: Any, y: Any, key: Any) -> Exception | None:
    """Why the model, which has values, has no derivative at all, if so."""
    model, one = per_example(logits_fn), jnp.asarray(x[:1])[0]
    loss = lambda x, key: losses.cross_entropy(model(x, key), jnp.asarray(y)[0])
    try:
        jax.eval_shape(jax.grad(loss), one, key)
    except Exception as error:  # whatever a model's own derivative may raise
        return error
    return None


@functools.lru_cache(maxsize=64)
def attack_program(votes: int, devices: tuple[Any, ...]) -> Callable[..., Judged]:
    """`((attack, logits_fn), x, y, keys, judge_keys, ball) -> Judged`, rows sharded.

    The attack is a pytree like the model: attacks that differ in an array only (the radius that
    `at_eps` pins) share one compiled program.
    """

    def attack_and_judge(
        functions: tuple[Attack, LogitsFn],
        x: Array,
        y: Array,
        keys: Array,
        judge_keys: Array,
        ball: Threat,
    ) -> Judged:
        attack, logits_fn = functions
        x_adv = attack(logits_fn, x, y, key=keys, ball=ball)
        if jnp.shape(x_adv) != x.shape:
            raise ValueError(f"must return images of shape {x.shape}; got {jnp.shape(x_adv)}")
        finite = jnp.all(jnp.isfinite(x_adv), axis=tuple(range(1, x.ndim)))
        x_adv = jnp.where(_over(finite, x), x_adv, x)
        legal = jnp.clip(x_adv, *ball.box)
        judge = jax.vmap(lambda ball, x, z: ball.judged(x, z))
        image, distance = judge(ball, x, legal)
        outside = (distance > reach(ball.eps)) | jnp.any((legal != x_adv).reshape(len(x), -1), -1)

        prediction = _predict(logits_fn, votes, image, judge_keys)
        success = prediction != y
        # The image as returned matters for the curve over eps, and differs in these rows only.
        as_returned = jax.lax.cond(
            jnp.any(outside),
            lambda: _predict(logits_fn, votes, legal, judge_keys) != y,
            lambda: success,
        )
        _, reached = judge(ball, x, image)
        broken_at = jnp.minimum(
            jnp.where(success, jnp.minimum(reached, distance), jnp.inf),
            jnp.where(as_returned, distance, jnp.inf),
        )
        distance = jnp.where(finite, distance, jnp.inf)
        moved = legal - x

        def how_far(measure: Callable[[Array], Array]) -> Array:
            return jnp.where(as_returned & finite, jax.vmap(measure)(moved), jnp.nan)

        return Judged(
            success, prediction, distance, how_far(num_pixels_changed),
            how_far(lambda delta: norm(delta, "l2")), how_far(lambda delta: norm(delta, "linf")),
            broken_at, outside, ~finite, image,
        )  # fmt: skip

    return sharded(attack_and_judge, devices)


def _predict(logits_fn: LogitsFn, votes: int, x: Array, keys: Array) -> Array:
    """Predicted class of each row, by majority of `votes` where the model is randomised."""
    model = jax.vmap(per_example(logits_fn))
    if not isinstance(logits_fn, Randomized):
        return predicted_class(logits_of(model(x, keys)))

    def vote(tally: Array, v: Array) -> tuple[Array, None]:
        logits = logits_of(model(x, jax.vmap(jax.random.fold_in, (0, None))(keys, v)))
        predicted = predicted_class(logits)
        return tally + jax.nn.one_hot(predicted, tally.shape[-1], dtype=tally.dtype), None

    shape = jax.eval_shape(lambda: logits_of(model(x, keys))).shape
    tally, _ = jax.lax.scan(vote, jnp.zeros_like(x, jnp.int32, shape), jnp.arange(votes))
    return jnp.where(jnp.sum(tally, -1) > 0, jnp.argmax(tally, -1), -1)


def sharded(program: Callable[..., Any], devices: tuple[Any, ...]) -> Callable[..., Any]:
    """Compile a program whose first argument is whole on each device, and whose others are rows."""
    mesh = Mesh(np.array(devices), (AXIS,))
    whole, rows = PartitionSpec(), PartitionSpec(AXIS)

    @jax.jit
    def compiled(functions: Any, *args: Any) -> Any:
        if len(devices) == 1:  # nothing to split, and not every model can be differentiated there
            return program(functions, *args)
        specs = (whole, *[rows] * len(args))
        # check_vma=False: a user's model need not be written for varying-axes types.
        mapped = jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)
        return mapped(functions, *args)

    def run(functions: Any, *args: Any) -> Any:
        # Weights may be committed to one device, by a checkpoint for example.
        return compiled(jax.device_put(functions, NamedSharding(mesh, whole)), *args)

    return run


def _over(mask: Array, x: Array) -> Array:
    return mask.reshape(-1, *[1] * (x.ndim - 1))
