"""The Kolter-Wong bound as a function to differentiate, for training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust.layers import Conv, Dense, Flatten, Layer, Relu, apply
from jaxrobust.threat import Box
from jaxrobust.types import Images, Labels


class _Affine(NamedTuple):
    """An affine layer, and the shape of one example in front of it."""

    layer: Dense | Conv
    shape: tuple[int, ...]


class _Relaxed(NamedTuple):
    """`slope z <= relu(z) <= slope z + gap`, each `(batch, units)`."""

    slope: Array
    gap: Array


_Stages = list[_Affine | _Relaxed]


def lp_margins(
    layers: Sequence[Layer],
    x: Images,
    y: Labels,
    *,
    eps: float | Array,
    box: Box | None = Box(),  # noqa: B008 (immutable)
) -> Float[Array, "batch classes"]:
    """The bound of `lp`, in the dtype of the images, for `jit`, `vmap` and `grad`; not proved.

    Rounding is not accounted for, and values are not checked: use `lp` to certify. The derivative
    goes through all bounds, the intermediate ones included; where a pre-activation is exactly 0 it
    is one of the one-sided derivatives. From the third affine layer on, every unit of a hidden
    layer is a query of its own: memory grows as batch times units times the widest layer before.

    Args:
        layers: The network, `Dense`, `Conv`, `Relu` and `Flatten`, on examples as in `x`.
        x: `(batch, *dims)` images, in the box if there is one.
        y: `(batch,)` true classes.
        eps: Radius of the linf ball in pixel units: one number, which may be traced.
        box: Legal pixel values; None for the whole ball.

    Returns:
        Lower bounds of `f_y - f_i` over the ball (and box); `+inf` at `i = y`.

    Raises:
        ValueError: For `Sigmoid` and what is no layer.

    References:
        Wong and Kolter, ICML 2018, Theorem 1 and Algorithm 1; differences as in `lp`.

    >>> layers = [Dense(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), Relu(),
    ...           Dense(jnp.eye(2), jnp.zeros(2))]
    >>> lp_margins(layers, jnp.array([[0.5]]), jnp.array([0]), eps=0.25)
    Array([[ inf, 0.25]], dtype=float32)
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    hidden, last = _split(layers, x)
    low, high = x - eps, x + eps
    if box is not None:
        low, high = jnp.maximum(low, box.low), jnp.minimum(high, box.high)
    pixels = (0.5 * (low + high), 0.5 * (high - low))
    stages: _Stages = []
    for i, layer in enumerate(hidden):
        match layer:
            case Dense() | Conv():
                stages.append(_Affine(layer, low.shape[1:]))
                low, high = _interval(layer, low, high)
            case Relu():
                low, high = _refine(stages, pixels, low, high)
                stages.append(_relaxed(low, high))
                low, high = jnp.maximum(low, 0.0), jnp.maximum(high, 0.0)
            case Flatten():
                low, high = (a.reshape(a.shape[0], -1) for a in (low, high))
            case _:
                raise ValueError(
                    f"layers[{i}] is a {type(layer).__name__}, which this bound does not cover: it "
                    "takes Dense, Conv, Relu and Flatten"
                )
    kernel, bias = jnp.asarray(last.kernel), jnp.asarray(last.bias)
    # All classes but the true one, which would cost as much as any other and be 0.
    others = (y[:, None] + jnp.arange(1, bias.size, dtype=y.dtype)) % bias.size
    coef = kernel.T[y][:, None] - kernel.T[others]
    below, _ = _bounds(stages, pixels, coef, bias[y][:, None] - bias[others])
    margins = jnp.full((y.size, bias.size), jnp.inf, below.dtype)
    return margins.at[jnp.arange(y.size)[:, None], others].set(below)


def _split(layers: Sequence[Layer], x: Array) -> tuple[Sequence[Layer], Dense]:
    """All layers but the last `Dense`, which is the identity where there is none."""
    if layers and isinstance(layers[-1], Dense):
        return layers[:-1], layers[-1]
    classes = jax.eval_shape(lambda x: apply(layers, x), x).shape[-1]
    return layers, Dense(jnp.eye(classes, dtype=x.dtype), jnp.zeros(classes, x.dtype))


def _interval(layer: Dense | Conv, low: Array, high: Array) -> tuple[Array, Array]:
    kernel, bias = jnp.asarray(layer.kernel), jnp.asarray(layer.bias)
    middle = _linear(layer, 0.5 * (low + high), kernel) + bias
    reach = _linear(layer, 0.5 * (high - low), jnp.abs(kernel))
    return middle - reach, middle + reach


def _linear(layer: Dense | Conv, h: Array, kernel: Array) -> Array:
    """The layer without its bias, with another kernel in place of its own."""
    if isinstance(layer, Dense):
        return h @ kernel
    return jax.lax.conv_general_dilated(
        h, kernel, layer.strides, layer.padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _relaxed(low: Array, high: Array) -> _Relaxed:
    low, high = (a.reshape(a.shape[0], -1) for a in (low, high))
    crosses = (low < 0.0) & (high > 0.0)
    # The quotient is made harmless where it is not used: NaN would come back in the gradient.
    slope = jnp.where(crosses, high / jnp.where(crosses, high - low, 1.0), low >= 0.0)
    return _Relaxed(slope, jnp.where(crosses, -low * slope, 0.0))


def _refine(
    stages: _Stages, pixels: tuple[Array, Array], low: Array, high: Array
) -> tuple[Array, Array]:
    """Bounds of the last stage's outputs by the dual, where intervals are not exact already."""
    affine = [stage for stage in stages if isinstance(stage, _Affine)]
    if len(affine) < 2 or stages[-1] is not affine[-1]:
        return low, high
    layer, shape = affine[-1]
    units = math.prod(low.shape[1:])
    hot = jnp.eye(units, dtype=low.dtype)[None]
    coef = jnp.broadcast_to(_adjoint(layer, shape, hot), (low.shape[0], units, math.prod(shape)))
    constant = jnp.resize(jnp.asarray(layer.bias), (units,))[None]
    below, above = _bounds(stages[:-1], pixels, coef, constant)
    return jnp.maximum(low, below.reshape(low.shape)), jnp.minimum(high, above.reshape(low.shape))


def _bounds(
    stages: _Stages, pixels: tuple[Array, Array], coef: Array, constant: Array
) -> tuple[Array, Array]:
    """Least and largest value of `coef . h + constant`, coef `(batch, queries, units)`."""
    below = above = constant
    for stage in reversed(stages):
        match stage:
            case _Relaxed(slope, gap):
                below = below + jnp.sum(jnp.minimum(coef, 0.0) * gap[:, None], -1)
                above = above + jnp.sum(jnp.maximum(coef, 0.0) * gap[:, None], -1)
                coef = coef * slope[:, None]
            case _Affine(layer, shape):
                shift = coef @ jnp.resize(jnp.asarray(layer.bias), coef.shape[-1:])
                below, above, coef = below + shift, above + shift, _adjoint(layer, shape, coef)
    middle, spread = (a.reshape(a.shape[0], 1, -1) for a in pixels)
    ahead, aside = coef * middle, jnp.abs(coef) * spread
    return below + jnp.sum(ahead - aside, -1), above + jnp.sum(ahead + aside, -1)


def _adjoint(layer: Dense | Conv, shape: tuple[int, ...], coef: Array) -> Array:
    """Coefficients of a layer's inputs, from those of its outputs: `(..., units)` both."""
    kernel = jnp.asarray(layer.kernel)
    rows = math.prod(coef.shape[:-1])
    example = jax.ShapeDtypeStruct((rows, *shape), coef.dtype)
    outputs = jax.eval_shape(lambda h: _linear(layer, h, kernel), example).shape
    (pulled,) = jax.linear_transpose(lambda h: _linear(layer, h, kernel), example)(
        coef.reshape(outputs)
    )
    return pulled.reshape(*coef.shape[:-1], math.prod(shape))
