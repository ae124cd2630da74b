"""From a search on one example to an attack on a batch: checks, keys, vmap, jit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, PyTree

from jaxrobust import checks, losses
from jaxrobust.loops import at_most
from jaxrobust.losses import Loss
from jaxrobust.threat import Ball, Box, check_ball, check_box, check_threat
from jaxrobust.types import (
    Images,
    Keys,
    Labels,
    LogitsFn,
    as_partial,
    logits_of,
    per_example,
    row_keys,
)

ROUNDING = 16
"""A margin below so many units in the last place of its logits is no success elsewhere."""

COARSE_ROUNDING = 2
"""The same of logits of half precision, of which sixteen units are an eighth."""

DRAWS = 16
"""Fresh draws of a randomised model in each of which a success must hold.

Our choice. A search that looks at N images near the boundary keeps one that the model gets wrong
with a probability of about `N ** (-1 / DRAWS)`, and seldom one that it gets wrong less often.
"""

FRESH = 0x66726573
"""Folded into a step's key for those draws, so that no gradient has seen them."""


def lift(
    search: Callable[..., PyTree],
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    ball: Ball,
    scalars: dict[str, Any] | None = None,
    rows: dict[str, Any] | None = None,
    **static: Any,
) -> PyTree:
    """Run `search(model, x, y, key, ball=ball, **scalars, **rows, **static)` on each row.

    Compiled once for each shape, model function and set of static arguments. The result is a
    constant to differentiation.

    Args:
        search: Module-level function of one example; `model(x, key)` is the lifted `logits_fn`.
        logits_fn: The batch model, or a `Randomized` one.
        x: `(batch, *dims)` images.
        y: `(batch,)` labels.
        key: One key, or one a row.
        ball: The threat; `eps` a scalar or one a row.
        scalars: Traced numbers, each a scalar or one a row.
        rows: More arrays that the search is handed by name, one entry a row.
        static: Hashable arguments, part of the compiled program's identity.
    """
    check_ball(ball, len(x) if hasattr(x, "shape") else None)
    keys = check_call(logits_fn, x, y, key, ball)
    for name, value in (scalars or {}).items():
        checks.check_radius(value, name, len(x))
    x = jnp.asarray(x)
    rows = (rows or {}) | {k: jnp.asarray(v, x.dtype) for k, v in (scalars or {}).items()}
    rows["ball"] = Ball(ball.norm, jnp.asarray(ball.eps, x.dtype), ball.box)
    return _run(
        search, tuple(sorted(static.items())), as_partial(logits_fn), x, jnp.asarray(y), keys, rows
    )


def lift_free(
    search: Callable[..., PyTree],
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    box: Box,
    target: Labels | None = None,
    rows: dict[str, Any] | None = None,
    **static: Any,
) -> PyTree:
    """Run `search(model, x, y, key, box=box, **static)`, for no ball in particular, on each row.

    What minimum-norm attacks are lifted by; see `lift`.

    Args:
        search: Module-level function of one example. Where there is a target, `target=` hands it
            the row's class.
        logits_fn: The batch model, or a `Randomized` one.
        x: `(batch, *dims)` images.
        y: `(batch,)` true labels.
        key: One key, or one a row.
        box: Legal pixel values.
        target: `(batch,)` wanted classes; None where any wrong class will do.
        rows: More arrays that the search is handed by name, one entry a row.
        static: Hashable arguments, part of the compiled program's identity.
    """
    check_box(box)
    num_classes = check_model(logits_fn, x, y, key, box)
    if target is not None:
        checks.check_target(target, y, num_classes)
    keys = row_keys(key, len(x))
    rows = (rows or {}) | ({} if target is None else {"target": jnp.asarray(target)})
    static |= {"box": Box(*box)}
    return _run(
        search, tuple(sorted(static.items())), as_partial(logits_fn), jnp.asarray(x),
        jnp.asarray(y), keys, rows,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(
    search: Callable[..., PyTree],
    static: tuple[tuple[str, Any], ...],
    logits_fn: LogitsFn,
    x: Any,
    y: Any,
    keys: Any,
    rows: dict[str, Any],
) -> PyTree:
    model = per_example(logits_fn)

    def one(x: Any, y: Any, key: Any, rows: dict[str, Any]) -> PyTree:
        return search(model, x, y, key, **rows, **dict(static))

    axes = (0, 0, 0, jax.tree.map(row_axis, rows))
    return jax.lax.stop_gradient(jax.vmap(one, axes)(x, y, keys, rows))


def row_axis(leaf: Any) -> int | None:
    """Axis along which `vmap` takes a number that is a scalar or one a row."""
    return 0 if leaf.ndim else None


def check_call(logits_fn: LogitsFn, x: Any, y: Any, key: Any, ball: Any) -> Any:
    """Refuse arguments of an attack within a threat that cannot be meant; returns the row keys."""
    check_threat(ball, len(x) if hasattr(x, "shape") else None)
    check_model(logits_fn, x, y, key, ball.box)
    return row_keys(key, len(x))


def check_model(logits_fn: LogitsFn, x: Any, y: Any, key: Any, box: Box) -> int:
    """Refuse images, labels, key and model that cannot be meant; returns the number of classes."""
    checks.check_images(x, box)
    checks.check_precision(x)
    num_rows = x.shape[0]
    if num_rows == 0:
        raise ValueError("x must hold at least one image; got an empty batch")
    keys = row_keys(key, num_rows)
    model = jax.vmap(per_example(logits_fn))
    outputs = checks.output_shapes(model, jnp.asarray(x), keys)
    num_classes = checks.check_logits(logits_of(outputs), num_rows)
    checks.check_labels(y, num_rows, num_classes)
    return num_classes


def loss_of(model: Callable[..., PyTree], loss: Loss, y: Any) -> Callable[..., Any]:
    """The function of image and key that a gradient attack climbs."""
    return lambda x, key: loss(model(x, key), y)


def clear_success(loss: Loss, outputs: Any, label: Any) -> Bool[Array, ""]:
    """`losses.success` by more than rounding, so that it holds in any other compilation too.

    The best of thousands of images lies as near to the boundary as it can. Logits of NaN, which
    predict nothing, lie near no boundary.
    """
    logits = logits_of(outputs)
    rival = jnp.max(jnp.where(jnp.arange(len(logits)) == label, -jnp.inf, logits))
    pair = jnp.stack([logits[label], rival])  # no other makes the margin, a masked class's least
    size = jnp.max(jnp.where(jnp.isfinite(pair), jnp.abs(pair), 0))
    about = jnp.finfo(logits.dtype)
    units = ROUNDING if about.bits >= 32 else COARSE_ROUNDING
    within = jnp.abs(losses.margin(logits, label)) <= units * about.eps * size
    return losses.success(loss, outputs, label) & ~within


def reached(
    model: Callable[..., PyTree],
    loss: Loss,
    label: Any,
    x: Float[Array, "*d"],
    key: Key[Array, ""],
    outputs: PyTree,
) -> Bool[Array, ""]:
    """Whether an image is a success: the one rule of all attacks that keep an image because it is.

    It is a `clear_success`. One draw of a randomised model proves nothing, and the luckiest of many
    less: there it must also be one in each of `DRAWS` fresh draws, up to the first that fails. They
    are asked for only where the draw at hand succeeds.

    Args:
        model: `per_example` of the model.
        loss: The aim; of outputs and label.
        label: True class, or the target where the loss is targeted.
        x: The image.
        key: Of this step; fresh keys are folded from it.
        outputs: Of the model at x, by whatever key.
    """
    hit = clear_success(loss, outputs, label)
    if not getattr(model, "random", False):
        return hit

    def again(turn: Array, _: Array) -> Array:
        return clear_success(loss, model(x, _fresh(key, turn)), label)

    return at_most(DRAWS, lambda held: held, again, hit)


def over_draws(
    model: Callable[..., PyTree], x: Float[Array, "*d"], y: Any, key: Key[Array, ""]
) -> tuple[Bool[Array, ""], Float[Array, ""]]:
    """Whether a randomised model is wrong in each of `DRAWS` fresh draws, and their mean margin.

    A draw that predicts nothing counts as infinitely wrong.
    """

    def draw(turn: Array) -> tuple[Array, Array]:
        outputs = model(x, _fresh(key, turn))
        gap = losses.margin(outputs, y)
        return clear_success(losses.margin, outputs, y), jnp.where(jnp.isnan(gap), jnp.inf, gap)

    wrong, gaps = jax.lax.map(draw, jnp.arange(DRAWS))
    return jnp.all(wrong), jnp.mean(gaps)


def _fresh(key: Key[Array, ""], turn: Array) -> Key[Array, ""]:
    return jax.random.fold_in(jax.random.fold_in(key, FRESH), turn)
