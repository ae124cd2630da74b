"""Squared norms of derivatives in the input, as regularisers that may be added to any objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxrobust import checks, gradients
from jaxrobust.objectives._base import Forward
from jaxrobust.types import Batch, Objective, Out, logits_of


def squared_products(
    forward: Forward,
    directions: Callable[[Key[Array, ""], int, int], Float[Array, "products rows classes"]],
    *,
    weight: float | Array,
    metric: str,
) -> Objective:
    """`weight` times the sum over products i of the batch mean of `||J(x_b)^T v_ib||^2`.

    J is the Jacobian of the logits in the image; v are directions in the space of logits, which do
    not depend on the model. One product after another, each with its share of the gradient, so
    that memory does not grow with their number.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        directions: Of a key, the number of rows and that of classes; one row serves all.
        weight: At least 0.
        metric: Under which the sum, without its weight, is reported.
    """

    def penalty(
        params: PyTree, model_state: PyTree, x: Array, direction: Float[Array, "rows classes"]
    ) -> Array:
        logits, pullback = jax.vjp(lambda x: _logits(forward, params, model_state, x), x)
        (product,) = pullback(jnp.broadcast_to(direction, logits.shape).astype(logits.dtype))
        return jnp.sum(product * product) / len(x)

    slope = jax.value_and_grad(penalty)

    def summed(params: PyTree, model_state: PyTree, batch: Batch, key: Array) -> Any:
        x = batch.x
        shape = jax.eval_shape(lambda x: _logits(forward, params, model_state, x), x).shape
        chosen = directions(key, len(x), shape[-1])
        if len(chosen) == 1:
            return slope(params, model_state, x, chosen[0])

        in_a_loop = gradients.canonical(slope)

        def add(total: Any, direction: Array) -> tuple[Any, None]:
            more = in_a_loop(params, model_state, x, direction)
            return jax.tree.map(jnp.add, total, more), None

        nothing = jax.tree.map(jnp.zeros_like, (jnp.sum(x[:0]), params))
        return jax.lax.scan(add, nothing, chosen)[0]

    return regulariser(summed, weight=weight, metric=metric)


def regulariser(
    value_and_grad: Callable[[PyTree, PyTree, Batch, Array], tuple[Array, PyTree]],
    *,
    weight: float | Array,
    metric: str,
) -> Objective:
    """`weight` times a value, which leaves the model's state alone."""
    checks.check_radius(weight, "weight")

    def init(params: PyTree, key: Key[Array, ""]) -> tuple[()]:
        del params, key
        return ()

    def weighted(
        params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, *, key: Key[Array, ""]
    ) -> tuple[Out, PyTree]:
        value, grads = value_and_grad(params, model_state, batch, key)
        out = Out(weight * value, model_state, state, {metric: value})
        return out, jax.tree.map(lambda g: weight * g, grads)

    weighted.__qualname__ = metric
    return Objective(init, weighted)


def _logits(forward: Forward, params: PyTree, model_state: PyTree, x: Array) -> Array:
    return logits_of(forward(params, model_state, x)[0])
