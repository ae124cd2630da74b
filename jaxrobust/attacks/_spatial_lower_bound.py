"""Algorithms 1 and 2 of paper 002: an input and a flow that change a margin most."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust import checks
from jaxrobust.flow import FlowBall, solved, warp
from jaxrobust.flow._ball import check_flow_ball
from jaxrobust.layers import Dense, Flatten, Layer, Relu, apply
from jaxrobust.linalg import top_eigenpair
from jaxrobust.threat import norm


class SpatialLowerBound(NamedTuple):
    """What was found.

    Attributes:
        x: The input, in the box.
        flow: `(height, width, 2)`, in the ball.
        loss: By how much the margin grows: `F(warp(x, flow)) - F(x)`, measured; 0 where no iterate
            is better than no flow.
        surrogate: The value of Theorem 1 or 2 at their own input, as printed. It bounds the
            theorems' linear approximation, which takes x for the slope of the warp, and no loss.
        trace: `(num_steps + 1,)` the loss of every iterate, the theorem's first; `loss` is the
            largest, or 0.
    """

    x: Float[Array, "height width *channels"]
    flow: Float[Array, "height width 2"]
    loss: Float[Array, ""]
    surrogate: Float[Array, ""]
    trace: Float[Array, " steps"]


def spatial_lower_bound(
    layers: Sequence[Layer],
    shape: tuple[int, ...],
    y: int,
    *,
    ball: FlowBall,
    target: int | None = None,
    num_midpoints: int = 10,
    num_steps: int = 30,
) -> SpatialLowerBound:
    """An input and a smooth flow between which `F = f_target - f_y` grows as much as can be found.

    The loss is the integral of `d/dz F(warp(x, z r))` over [0, 1], by midpoints. In turn, x goes to
    the end of its range that the sum favours, and r to the flow that is best for the sum's other
    factors held fixed. Both are exact for fixed gradients of F and slopes of the warp, so they may
    overshoot: the best iterate by measured loss is returned, or no flow.

    Start (Theorem 1): x is the minimum-norm solution of `W x = 1`, stretched to the range, r the
    surrogate's best flow, the same down and to the right. With more hidden units than inputs W is
    its first rows, as many as inputs; with fewer all of it, where the theorem asks for full rank.
    Theorem 2, for one `Dense`: x is the top eigenvector of `diag(v) (M'M)^-1 diag(v)`.

    Deviations: the budget is `FlowBall`'s, and flows need not be the same along both axes; W is
    transposed where print forgets it, and biases count; slopes are those of the warp, not x; each
    turn updates x once.

    Args:
        layers: `Dense, Relu, Dense`, or one `Dense`; `Flatten` may stand in front.
        shape: Of one example: `(height, width)`, or `(height, width, channels)`.
        y: Class that is to lose.
        ball: The flows. `ball.eps` is one number; it may be traced and swept by `vmap`. `ball.box`
            holds the inputs: the paper's is `Box(-1, 1)`, in which they need be no images.
        target: Class that is to win; None for the largest of the others at each point, so that F is
            Carlini and Wagner's margin (appendix 6.6).
        num_midpoints: Of the integral; the paper does not say how many.
        num_steps: Turns.

    Returns:
        Input, flow, measured loss, surrogate and trace. A flow of `eps = 0` has a loss of 0.

    Raises:
        ValueError: For other layers, a shape that does not fit them, classes out of range, a
            ball, range or counts that cannot be meant.

    References:
        Paper 002, Algorithms 1 and 2, Theorems 1 and 2, Eq. 6 to 8 and 12 to 14.

    >>> layers = [Flatten(), Dense(jnp.array([[1.0, 0.0], [-1.0, 0.0]]), jnp.zeros(2))]
    >>> found = spatial_lower_bound(layers, (1, 2), 1, ball=FlowBall(0.5))
    >>> bool(found.loss > found.trace[0] - 1e-6), found.flow.shape
    (True, (1, 2, 2))
    """
    _check(layers, shape, y, target, ball, num_midpoints, num_steps)
    arrays = jax.tree.map(jnp.asarray, list(layers))
    dtype = jnp.result_type(*jax.tree.leaves(arrays))
    ball = dataclasses.replace(ball, eps=jnp.asarray(ball.eps, dtype))
    return _ascent(
        tuple(arrays), ball, shape=tuple(shape), y=y, target=target,
        num_midpoints=num_midpoints, num_steps=num_steps,
    )  # fmt: skip


@functools.partial(
    jax.jit,
    static_argnames=("shape", "y", "target", "num_midpoints", "num_steps"),
)
def _ascent(
    layers: tuple[Layer, ...], ball: FlowBall, *, shape: tuple[int, ...], y: int,
    target: int | None, num_midpoints: int, num_steps: int,
) -> SpatialLowerBound:  # fmt: skip
    low, high = ball.box

    def margin(x: Array) -> Array:
        logits = apply(layers, x[None] if isinstance(layers[0], Flatten) else x.reshape(1, -1))[0]
        other = jnp.max(jnp.delete(logits, y)) if target is None else logits[target]
        return other - logits[y]

    def measured(x: Array, flow: Array) -> Array:
        return margin(warp(x, flow)) - margin(x)

    gradient = jax.grad(margin)
    places = (jnp.arange(num_midpoints, dtype=ball.eps.dtype) + 0.5) / num_midpoints

    def slopes_of_x(x: Array, flow: Array) -> Array:
        """The sum's coefficients of x, for fixed gradients of the margin."""

        def term(z: Array) -> Array:
            fixed = gradient(warp(x, z * flow))

            def rate(x: Array) -> Array:
                return jax.jvp(lambda z: warp(x, z * flow), (z,), (jnp.ones_like(z),))[1]

            return jax.vjp(rate, x)[1](fixed)[0]

        return jnp.sum(jax.vmap(term)(places), 0)

    def slopes_of_flow(x: Array, flow: Array) -> Array:
        def term(z: Array) -> Array:
            return jax.grad(lambda r: margin(warp(x, r)))(z * flow)

        return jnp.sum(jax.vmap(term)(places), 0)

    def turn(state: tuple[Array, ...], _: Any) -> tuple[tuple[Array, ...], Array]:
        x, flow, best_x, best_flow, most = state
        rate = slopes_of_x(x, flow)
        x = jnp.where(rate > 0, high, jnp.where(rate < 0, low, x))
        flow = ball.step(jnp.zeros_like(flow), slopes_of_flow(x, flow), ball.eps)
        loss = measured(x, flow)
        better = (loss > most) & jnp.any(flow != 0)  # a flow of 0 has no loss but rounding
        kept = jnp.where(better, x, best_x), jnp.where(better, flow, best_flow)
        return (x, flow, *kept, jnp.where(better, loss, most)), loss

    dense = [layer for layer in layers if isinstance(layer, Dense)]
    if len(dense) == 2:
        direction = _active(dense[0].kernel).reshape(shape)
    else:
        v = jax.grad(margin)(jnp.zeros(shape, ball.eps.dtype))
        direction = _eigenvector(v, ball)
    x = (low + high) / 2 + (high - low) / 2 * _unit(direction)
    weights = x * gradient(x)
    weights = weights.reshape(*shape[:2], -1).sum(-1)
    surrogate = ball.eps * jnp.sqrt(jnp.vdot(weights, solved(weights, ball.null_space)))
    both = jnp.stack([weights, weights], -1)
    flow = ball.step(jnp.zeros_like(both), both, ball.eps)
    start = measured(x, flow)
    better = (start > 0) & jnp.any(flow != 0)  # than no flow
    best = x, jnp.where(better, flow, 0), jnp.where(better, start, 0)
    (_, _, x, flow, loss), trace = jax.lax.scan(turn, (x, flow, *best), length=num_steps)
    return SpatialLowerBound(x, flow, loss, surrogate, jnp.append(start, trace))


def _active(kernel: Array) -> Array:
    """The x of minimum norm at which (the first) hidden units, without their bias, are 1."""
    rows = kernel[:, : len(kernel)].T
    return jnp.linalg.pinv(rows) @ jnp.ones(len(rows), rows.dtype)


def _eigenvector(v: Array, ball: FlowBall) -> Array:
    """Top eigenvector of `diag(v) (M'M)^-1 diag(v)`; channels of a pixel move together."""
    channels = tuple(range(2, v.ndim))

    def matvec(u: Array) -> Array:
        moved = solved(jnp.sum(v * u.reshape(v.shape), channels), ball.null_space)
        return (v * jnp.expand_dims(moved, channels)).ravel()

    return top_eigenpair(matvec, v.ravel(), num_steps=min(v.size, 50), tol=math.inf).vector.reshape(
        v.shape
    )


def _unit(direction: Array) -> Array:
    """Scaled to a largest absolute value of 1."""
    largest = norm(direction, "linf")
    return direction / jnp.where(largest > 0, largest, 1.0)


def _check(
    layers: Any, shape: Any, y: Any, target: Any, ball: Any, num_midpoints: Any, num_steps: Any,
) -> None:  # fmt: skip
    names = [type(layer).__name__ for layer in layers]
    kinds = [layer for layer in layers if not isinstance(layer, Flatten)]
    match kinds:
        case [Dense()] | [Dense(), Relu(), Dense()]:
            pass
        case _:
            raise ValueError(f"layers must be Dense, Relu, Dense or one Dense; got {names}")
    sizes = shape if isinstance(shape, tuple) and len(shape) in (2, 3) else (0,)
    inputs, classes = kinds[0].kernel.shape[0], kinds[-1].kernel.shape[1]
    if not all(isinstance(n, int) and n >= 1 for n in sizes) or math.prod(sizes) != inputs:
        raise ValueError(
            "shape must be (height, width) or (height, width, channels) of the layers' "
            f"{inputs} inputs; got {shape!r}"
        )
    for name, value in (("y", y), ("target", y if target is None else target)):
        if not isinstance(value, int) or not 0 <= value < classes:
            raise ValueError(f"{name} must be a class in 0..{classes - 1}; got {value!r}")
    if target == y:
        raise ValueError(f"target must be another class than y; got {target} for both")
    check_flow_ball(ball, sizes)
    checks.check_radius(ball.eps, "eps")
    checks.check_count(num_midpoints, "num_midpoints")
    checks.check_count(num_steps, "num_steps", 0)
