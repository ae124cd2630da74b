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

    def slope(
        params: PyTree, model_state: PyTree, x: Array, direction: Float[Array, "rows classes"]
    ) -> tuple[Array, PyTree]:
        logits = lambda params, x: _logits(forward, params, model_state, x)
        return squared_product(logits, params, x, direction)[1:]

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


def squared_product(
    f: Callable[[PyTree, Array], Array], params: PyTree, x: Array, direction: Array
) -> tuple[Array, Array, PyTree]:
    """`f(params, x)`, `||J^T v||^2` a row with J its derivative in x, and that square's gradient.

    The gradient is that of a product in forward mode, `2 <v, dJ (J^T v)>`, with convolutions like
    those of a natural step: differentiating the backward pass again takes twice as long with
    strided ones on a CPU. Models without a forward mode (`jax.custom_vjp`) take that way.
    """

    def backward(params: PyTree) -> tuple[Array, Array, Array]:
        outputs, pullback = jax.vjp(lambda x: f(params, x), x)
        v = jnp.broadcast_to(direction, outputs.shape).astype(outputs.dtype)
        return outputs, v, pullback(v)[0]

    outputs, v, product = backward(params)

    def along(params: PyTree) -> Array:
        _, moved = jax.jvp(lambda x: f(params, x), (x,), (product,))
        return 2 / len(x) * jnp.vdot(v, moved)

    def squared(params: PyTree) -> Array:
        return jnp.sum(backward(params)[2] ** 2) / len(x)

    reverse_only = "custom_vjp_call" in str(jax.make_jaxpr(f)(params, x))  # at any depth
    grads = jax.grad(squared if reverse_only else along)(params)
    return outputs, jnp.sum(product**2) / len(x), grads


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
