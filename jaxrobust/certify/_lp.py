"""The Kolter-Wong bound: a feasible point of the dual of the linear program, in closed form.

The linear program replaces each ReLU by the triangle over its bounds; the dual point is a backward
pass through slopes. Every query is a linear function `coef . h + constant` of one example's values
h at some place in the network, and is pulled back to the pixels layer by layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from jaxrobust.certify._common import ROUNDING, Problem, in_chunks, padding_of, read, rows_at_once
from jaxrobust.certify._enclosure import (
    Region,
    cube,
    differences,
    down,
    linear,
    terms,
    through,
    up,
)
from jaxrobust.layers import Conv, Dense, Flatten, Layer, Relu, Sigmoid
from jaxrobust.linalg import gamma, raised
from jaxrobust.threat import Box
from jaxrobust.types import Images, Labels, MarginBound

# More than underflow takes from an inner product, for each unit that its result is multiplied with.
_UNDERFLOW = raised(0.0, 0)


class _Affine(NamedTuple):
    """An affine layer `W h + b`.

    Attributes:
        layer: The layer.
        shape: Of one example in front of it.
        weight: `(rows, outputs)`, upper side of `|W| |h| + |b|`: what a relative error of an
            output's coefficient is multiplied with.
    """

    layer: Dense | Conv
    shape: tuple[int, ...]
    weight: np.ndarray


class _Relaxed(NamedTuple):
    """A ReLU between two lines of one slope: `slope z <= relu(z) <= slope z + gap`.

    Attributes:
        slope: `(rows, units)`, in [0, 1].
        gap: `(rows, units)`.
    """

    slope: np.ndarray
    gap: np.ndarray


class _Network(NamedTuple):
    """A stretch of layers over a box of inputs, all values of an example in one axis.

    Attributes:
        middle: `(rows, inputs)`.
        spread: `(rows, inputs)`: what a coefficient's size is multiplied with, rounding included.
        stages: The layers, in order.
        lost: `(rows,)`, upper side of what underflow takes from any query.
    """

    middle: np.ndarray
    spread: np.ndarray
    stages: list[_Affine | _Relaxed]
    lost: np.ndarray


def lp(
    layers: Sequence[Layer],
    x: Images,
    y: Labels,
    *,
    eps: float | Array,
    box: Box | None = Box(),  # noqa: B008 (immutable)
) -> MarginBound:
    """Lower bounds of the margins over an linf ball by the dual of the linear program.

    A ReLU whose input lies in `[l, u]`, `l < 0 < u`, is held between `s z` and `s (z - l)`,
    `s = u / (u - l)`; a linear function of the logits then goes back through the network to the
    pixels, where its least value over the ball is known. The bounds of the first affine layer are
    intervals, which are exact; those of deeper units come from the same dual and from intervals,
    whichever is better. The choice of s is not the best one, so the linear program itself may give
    more. As s changes with eps, a larger eps can in rare cases give a slightly larger bound.

    With n terms to an inner product, a computed coefficient is taken as it is and the bound lowered
    by `gamma_n |nu| (|W| |h| + |b|)`, with |h| from above: the error of the coefficients of h times
    what they are multiplied with. Slopes may be rounded, since any slope in [0, 1] is valid with
    its own gap.

    Args:
        layers: The network, `Dense`, `Conv`, `Relu` and `Flatten`, on examples as in `x`.
        x: `(batch, *dims)` images, in the box if there is one.
        y: `(batch,)` true classes.
        eps: Radius of the linf ball in pixel units, one number.
        box: Legal pixel values; the bound speaks of the ball within the box. None for the whole
            ball, as in the paper.

    Returns:
        Margins over the ball (and box); rows with overflow or NaN are `-inf`.

    Raises:
        ValueError: For traced arrays, `Sigmoid` and other layers that are unknown or do not fit,
            images outside the box, labels out of range, or a radius that is not one finite number.

    References:
        Wong and Kolter, Provable Defenses against Adversarial Examples via the Convex Outer
        Adversarial Polytope, ICML 2018, Theorem 1 and Algorithm 1. The box, the intersection with
        intervals and the account of rounding are added here.

    >>> first, last = Dense(np.array([[1.0, -1.0]]), np.zeros(2)), Dense(np.eye(2), np.zeros(2))
    >>> x, y = np.array([[0.5]]), np.array([0])
    >>> lp([first, Relu(), last], x, y, eps=0.1).margins  # relu(x) - relu(-x) = x
    array([[inf, 0.4]])
    """
    problem = read(layers, x, y, eps, "linf", box)
    for i, layer in enumerate(problem.hidden):
        if isinstance(layer, Sigmoid):
            raise ValueError(
                f"layers[{i}] is a Sigmoid, which this bound does not cover: it takes Dense, Conv, "
                "Relu and Flatten (interval and spectral take Sigmoid too)"
            )
    margins = np.empty((len(problem.x), len(problem.last.bias)))
    with np.errstate(over="ignore", invalid="ignore"):
        for rows, x_rows, y_rows in in_chunks(problem):
            margins[rows] = _margins(problem, *cube(x_rows, problem.eps, box), y_rows)
    margins[~np.isfinite(margins)] = -np.inf
    margins[np.arange(len(problem.y)), problem.y] = np.inf
    within = "without a box" if box is None else f"within the box [{box.low:g}, {box.high:g}]"
    proof = (
        "dual of the convex outer polytope (each ReLU between two parallel lines) over the linf "
        f"ball {within}; {ROUNDING}"
    )
    return MarginBound(margins, "linf", problem.eps, "lp", proof)


def _margins(problem: Problem, low: np.ndarray, high: np.ndarray, y: np.ndarray) -> np.ndarray:
    network, reach = _relax(problem, low.reshape(len(low), -1), high.reshape(len(high), -1))
    classes = np.arange(len(problem.last.bias))
    margins = np.full((len(y), len(classes)), -np.inf)
    step = rows_at_once(problem)
    for label in np.unique(y):
        last = differences(problem.last, int(label))
        rows, targets = np.meshgrid(np.flatnonzero(y == label), classes[classes != label])
        rows, targets = rows.ravel(), targets.ravel()
        for part in (slice(i, i + step) for i in range(0, len(rows), step)):
            coef, constant = last.kernel.T[targets[part]], last.bias[targets[part]]
            # A difference is off by one rounding.
            off = 2.0**-52 * (_dot(np.abs(coef), reach[rows[part]]) + np.abs(constant))
            below, _ = _bounds(network, rows[part], coef, constant, off)
            margins[rows[part], targets[part]] = below
    return margins


def _relax(problem: Problem, low: np.ndarray, high: np.ndarray) -> tuple[_Network, np.ndarray]:
    """The hidden layers over `[low, high]`, and an upper side of the last values' size."""
    middle = 0.5 * low + 0.5 * high
    spread = np.maximum(high - middle, middle - low) * (1.0 + 2.0**-50)
    spread = spread + gamma(low.shape[1]) * np.abs(middle)
    network = _Network(middle, spread, [], np.zeros(len(low)))
    step = rows_at_once(problem)
    reach = np.maximum(-low, high)
    for layer, shape in zip(problem.hidden, problem.shapes[:-1], strict=True):
        match layer:
            case Dense() | Conv():
                weight = linear(layer, reach.reshape(-1, *shape), np.abs(layer.kernel))
                weight = raised(weight + np.abs(layer.bias), terms(layer) + 1)
                region = Region(low.reshape(-1, *shape), high.reshape(-1, *shape))
                low, high = (a.reshape(len(a), -1) for a in through(layer, region)[:2])
                network.stages.append(_Affine(layer, shape, weight.reshape(len(low), -1)))
            case Relu():
                low, high = _refine(network, low, high, step)
                network.stages.append(_relaxed(low, high))
                low, high = np.maximum(low, 0.0), np.maximum(high, 0.0)
            case Flatten():
                continue
        network = network._replace(lost=network.lost + _UNDERFLOW * reach.sum(1))
        reach = np.maximum(-low, high)
    return network, reach


def _relaxed(low: np.ndarray, high: np.ndarray) -> _Relaxed:
    """The slope `u / (u - l)`, as rounded, and the gap that belongs to it.

    A coefficient a becomes `a' = fl(a s)`, that is a slope `s (1 + 2^-53)` or less, never above 1;
    `relu(z) - slope z` is largest at an end of the interval.
    """
    crosses = ~((low >= 0.0) | (high <= 0.0))  # NaN crosses, and spreads
    slope = np.where(crosses, high / np.where(crosses, high - low, 1.0), low >= 0.0)
    at_high = (1.0 - slope) * high + 2.0**-52 * slope * high
    gap = raised(np.maximum(slope * -low, at_high), 4)
    return _Relaxed(slope, np.where(crosses, gap, 0.0))


def _refine(
    network: _Network, low: np.ndarray, high: np.ndarray, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Better bounds, by the dual, of those outputs of the last stage that may be positive."""
    if sum(isinstance(stage, _Affine) for stage in network.stages) < 2:
        return low, high  # an interval is exact
    *before, last = network.stages
    if not isinstance(last, _Affine):
        return low, high  # nothing is below 0
    low, high, inner = low.copy(), high.copy(), network._replace(stages=before)
    rows, units = np.nonzero(high > 0.0)  # behind a ReLU the others are 0
    bias = np.resize(last.layer.bias, low.shape[1])
    for part in (slice(i, i + step) for i in range(0, len(rows), step)):
        row, unit = rows[part], units[part]
        below, above = _bounds(inner, row, _weights(last, unit, low.shape[1]), bias[unit], 0.0)
        low[row, unit] = np.fmax(low[row, unit], np.where(np.isfinite(below), below, np.nan))
        high[row, unit] = np.fmin(high[row, unit], np.where(np.isfinite(above), above, np.nan))
    return low, high


def _bounds(
    network: _Network,
    rows: np.ndarray,
    coef: np.ndarray,
    constant: np.ndarray,
    off: np.ndarray | float,
) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest value of `coef . h + constant`, h behind the network; both sides at once.

    Args:
        network: The layers.
        rows: `(queries,)`, the example that each query is about.
        coef: `(queries, units)`.
        constant: `(queries,)`.
        off: Error of the query itself.
    """
    value, error, below, above = constant, network.lost[rows] + off, 0.0, 0.0
    longest = coef.shape[1]
    for stage in reversed(network.stages):
        match stage:
            case _Relaxed(slope, gap):
                gaps = gap[rows]
                below = below + _dot(np.maximum(-coef, 0.0), gaps)
                above = above + _dot(np.maximum(coef, 0.0), gaps)
                coef = coef * slope[rows]
            case _Affine(layer, shape, weight):
                units = max(coef.shape[1], layer.kernel.size // layer.kernel.shape[-2])
                longest = max(longest, units, math.prod(shape))
                value = value + coef @ np.resize(layer.bias, coef.shape[1])
                error = error + gamma(units) * _dot(np.abs(coef), weight[rows])
                error = error + 2.0**-53 * np.abs(value)
                coef = _adjoint(layer, shape, coef)
    value = value + _dot(coef, network.middle[rows])
    error = error + _dot(np.abs(coef), network.spread[rows]) + 2.0**-53 * np.abs(value)
    n = longest + 4 * len(network.stages) + 16
    return down(value - raised(error + below, n)), up(value + raised(error + above, n))


def _adjoint(layer: Dense | Conv, shape: tuple[int, ...], coef: np.ndarray) -> np.ndarray:
    """Coefficients of a layer's inputs, from those of its outputs."""
    if isinstance(layer, Dense):
        return coef @ layer.kernel.T
    height, width, channels, outputs = layer.kernel.shape
    down_by, right_by = layer.strides
    tall, above, under = padding_of(shape[0], height, down_by, layer.padding)
    wide, left, right = padding_of(shape[1], width, right_by, layer.padding)
    taps = coef.reshape(-1, tall, wide, outputs) @ layer.kernel.reshape(-1, outputs).T
    taps = taps.reshape(-1, tall, wide, height, width, channels)
    pulled = np.zeros((len(coef), shape[0] + above + under, shape[1] + left + right, channels))
    for i in range(height):
        for j in range(width):
            rows, columns = (
                slice(i, i + down_by * tall, down_by),
                slice(j, j + right_by * wide, right_by),
            )
            pulled[:, rows, columns] += taps[:, :, :, i, j]
    inside = pulled[:, above : above + shape[0], left : left + shape[1]]
    return inside.reshape(len(coef), -1)


def _weights(stage: _Affine, units: np.ndarray, outputs: int) -> np.ndarray:
    """The row of weights behind each of some outputs, without rounding."""
    if isinstance(stage.layer, Dense):
        return stage.layer.kernel.T[units]
    hot = np.zeros((len(units), outputs))
    hot[np.arange(len(units)), units] = 1.0
    return _adjoint(stage.layer, stage.shape, hot)


def _dot(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Inner products of the rows."""
    return np.einsum("qj,qj->q", left, right)
