"""Sets that surely hold a layer's values: intervals in float64, every rounding error within.

Written for the host: convolutions are matrix products over patches, so that the classical error
bound of an inner product speaks of them as of dense layers. NaN stands for "nothing is known" and
spreads to everything computed from it; an overflow turns into NaN.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxrobust.certify._common import Problem, padding_of
from jaxrobust.layers import Conv, Dense, Flatten, Layer, Relu, Sigmoid
from jaxrobust.linalg import gamma, raised
from jaxrobust.threat import Box

# Roundings beside those of the inner product: the bias, and forming a difference of columns.
_MORE = 4


class Region(NamedTuple):
    """Values h of one place in the network: `low <= h <= high` and `|h - centre| <= eps`.

    Attributes:
        low: `(batch, *dims)`.
        high: `(batch, *dims)`.
        centre: `(batch, *dims)`, or None where only the interval is known.
        eps: Radius of the ball around the centre.
        norm: Its norm, "l2" or "l1".
    """

    low: np.ndarray
    high: np.ndarray
    centre: np.ndarray | None = None
    eps: float = 0.0
    norm: str = "l2"


def down(value: np.ndarray) -> np.ndarray:
    """A float64 not above what was rounded to `value` in one addition."""
    return value - 2.0**-52 * np.abs(value)  # leaves 0 alone: a sum that rounds to 0 is exact


def up(value: np.ndarray) -> np.ndarray:
    """A float64 not below what was rounded to `value` in one addition."""
    return value + 2.0**-52 * np.abs(value)


def cube(x: np.ndarray, eps: float, box: Box | None) -> tuple[np.ndarray, np.ndarray]:
    """Sides of the linf ball around each image, cut to the box where there is one."""
    low, high = down(x - eps), up(x + eps)
    if box is None:
        return low, high
    return np.minimum(np.maximum(low, box.low), x), np.maximum(np.minimum(high, box.high), x)


def sigmoid(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper side of `1 / (1 + exp(-value))`; NaN stays NaN.

    `exp` is not correctly rounded. It is taken to err by at most 2^-46 relatively, 128 units of the
    last place, where the C and vector libraries that NumPy calls stay within four; the margin of
    2^-44 pays for that and for the operations after it.
    """
    power = np.exp(-np.abs(value))  # at most 1, so that nothing overflows
    close = np.where(value >= 0, 1.0, power) / (1.0 + power)
    low = np.where(close < 2.0**-1000, 0.0, close * (1.0 - 2.0**-44))  # exp may have underflowed
    return low, np.minimum(raised(close * (1.0 + 2.0**-44), 0), 1.0)


def margins_over(problem: Problem, region: Region, y: np.ndarray) -> np.ndarray:
    """Lower bounds of all margins `f_y - f_i` where the input lies in the region.

    Returns:
        `(batch, classes)`: `+inf` at `i = y`, `-inf` where nothing is known.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        for layer in problem.hidden:
            region = through(layer, region)
        margins = np.full((len(y), len(problem.last.bias)), -np.inf)
        for label in np.unique(y):
            rows = np.flatnonzero(y == label)
            own = _each(region, operator.itemgetter(rows))
            margins[rows] = through(differences(problem.last, int(label)), own).low
    margins[~np.isfinite(margins)] = -np.inf
    margins[np.arange(len(y)), y] = np.inf
    return margins


def differences(last: Dense, label: int) -> Dense:
    """The layer that computes `f_label - f_i` for all i, each entry correctly rounded."""
    return Dense(last.kernel[:, [label]] - last.kernel, last.bias[label] - last.bias)


def dual_norms(layer: Dense | Conv, shape: tuple[int, ...], norm: str) -> np.ndarray:
    """Upper side of the dual norm of the row of weights behind each output of a layer.

    Rows of a convolution are cut where they reach into the padding.

    Args:
        layer: Affine layer.
        shape: Of one example in front of it.
        norm: "l2" (dual: itself) or "l1" (dual: the largest absolute entry).

    Returns:
        The norms, in the shape of one example behind the layer.
    """
    kernel = layer.kernel
    seen = np.ones((1, *shape))
    if norm == "l2":
        squares = linear(layer, seen, kernel * kernel)[0]
        return np.sqrt(raised(squares, terms(layer) + _MORE)) * (1.0 + 2.0**-50)
    taps = np.abs(kernel).reshape(-1, kernel.shape[-1])
    inside = seen if isinstance(layer, Dense) else patches(layer, seen)
    largest = np.zeros((*inside.shape[1:-1], kernel.shape[-1]))
    for t, tap in enumerate(taps):
        np.maximum(largest, inside[0, ..., t, None] * tap, out=largest)
    return largest * (1.0 + 2.0**-50)  # an entry may be a difference, rounded once


def through(layer: Layer, region: Region) -> Region:
    """The region behind a layer."""
    match layer:
        case Relu():  # moves no two values further apart, so the ball stays a ball
            return _each(region, lambda a: np.maximum(a, 0.0))
        case Flatten():
            return _each(region, lambda a: a.reshape(len(a), math.prod(a.shape[1:])))
        case Sigmoid():  # the ball is given up: its centre would not be known exactly
            return Region(sigmoid(region.low)[0], sigmoid(region.high)[1])
    low, high, centre, eps, norm = region
    middle = 0.5 * low + 0.5 * high
    spread = np.maximum(high - middle, middle - low) * (1.0 + 2.0**-50)
    bounds = _bounds(*_around(layer, middle, spread))
    if centre is not None:
        value, error = _around(layer, centre, np.zeros_like(centre))
        reach = raised(eps * dual_norms(layer, centre.shape[1:], norm) + error, 2)
        by_ball = _bounds(value, reach)
        bounds = np.maximum(bounds[0], by_ball[0]), np.minimum(bounds[1], by_ball[1])
    return Region(*bounds)


def _around(
    layer: Dense | Conv, centre: np.ndarray, spread: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`value, error` with `|layer(h) - value| <= error` where `|h - centre| <= spread`.

    In exact arithmetic the error is `|K| spread`; with n terms and roundings the computed value is
    off by up to `gamma_n (|K| |centre| + |bias|)` more. An entry of a difference of columns is off
    by one rounding, which the count n includes.
    """
    n = terms(layer) + _MORE
    value = linear(layer, centre, layer.kernel) + layer.bias
    weights = np.abs(layer.kernel)
    error = linear(layer, spread + gamma(n) * np.abs(centre), weights)
    return value, raised(error + gamma(n) * np.abs(layer.bias), n + _MORE)


def _bounds(value: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # An overflow in the value is no bound: what it should have been may be finite, of any sign.
    known = np.isfinite(value) & np.isfinite(error)
    value = np.where(known, value, np.nan)
    return down(value - error), up(value + error)


def linear(layer: Dense | Conv, x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The layer without its bias, with another kernel of the same shape in its place."""
    if isinstance(layer, Conv):
        x = patches(layer, x)
    return x @ kernel.reshape(-1, kernel.shape[-1])


def patches(layer: Conv, x: np.ndarray) -> np.ndarray:
    """What the kernel sees: `(batch, height, width, taps)`, taps in the kernel's order."""
    size = layer.kernel.shape[:2]
    axes = [
        padding_of(*axis, layer.padding)
        for axis in zip(x.shape[1:3], size, layer.strides, strict=True)
    ]
    padded = np.pad(x, [(0, 0), axes[0][1:], axes[1][1:], (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(1, 2))
    windows = windows[:, :: layer.strides[0], :: layer.strides[1]].transpose(0, 1, 2, 4, 5, 3)
    return windows.reshape(*windows.shape[:3], math.prod(windows.shape[3:]))


def terms(layer: Dense | Conv) -> int:
    """Number of products in one output."""
    return math.prod(layer.kernel.shape[:-1])


def _each(region: Region, change: Callable[[np.ndarray], np.ndarray]) -> Region:
    low, high, centre, eps, norm = region
    moved = None if centre is None else change(centre)
    return Region(change(low), change(high), moved, eps, norm)
