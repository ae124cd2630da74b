"""Linear functions of a network's values, bounded over a box of inputs; rounding accounted for.

Each ReLU is held between two parallel lines. A query is a linear function `coef . h + constant` of
one example's values h at some place in the network; it is pulled back layer by layer to the inputs,
where its least and largest values are known.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from jaxrobust.certify._common import Problem, padding_of, rows_at_once
from jaxrobust.certify._enclosure import Region, down, linear, terms, through, up
from jaxrobust.layers import Conv, Dense, Flatten, Relu
from jaxrobust.linalg import gamma, raised

# More than underflow takes from an inner product, for each unit that its result is multiplied with.
_UNDERFLOW = raised(0.0, 0)


class Affine(NamedTuple):
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


class Relaxed(NamedTuple):
    """A ReLU between two lines of one slope: `slope z <= relu(z) <= slope z + gap`.

    Attributes:
        slope: `(rows, units)`, in [0, 1].
        gap: `(rows, units)`.
    """

    slope: np.ndarray
    gap: np.ndarray


class Network(NamedTuple):
    """A stretch of layers over a box of inputs, all values of an example in one axis.

    Attributes:
        middle: `(rows, inputs)`.
        spread: `(rows, inputs)`: what a coefficient's size is multiplied with, rounding included.
        stages: The layers, in order.
        lost: `(rows,)`, upper side of what underflow takes from any query.
    """

    middle: np.ndarray
    spread: np.ndarray
    stages: list[Affine | Relaxed]
    lost: np.ndarray


def relax(problem: Problem, low: np.ndarray, high: np.ndarray) -> tuple[Network, np.ndarray]:
    """The hidden layers over `[low, high]`, and an upper side of the last values' size."""
    middle = 0.5 * low + 0.5 * high
    spread = np.maximum(high - middle, middle - low) * (1.0 + 2.0**-50)
    spread = spread + gamma(low.shape[1]) * np.abs(middle)
    network = Network(middle, spread, [], np.zeros(len(low)))
    step = rows_at_once(problem)
    reach = np.maximum(-low, high)
    for layer, shape in zip(problem.hidden, problem.shapes[:-1], strict=True):
        match layer:
            case Dense() | Conv():
                weight = linear(layer, reach.reshape(-1, *shape), np.abs(layer.kernel))
                weight = raised(weight + np.abs(layer.bias), terms(layer) + 1)
                region = Region(low.reshape(-1, *shape), high.reshape(-1, *shape))
                low, high = (a.reshape(len(a), -1) for a in through(layer, region)[:2])
                network.stages.append(Affine(layer, shape, weight.reshape(len(low), -1)))
            case Relu():
                low, high = _refine(network, low, high, step)
                network.stages.append(_relaxed(low, high))
                low, high = np.maximum(low, 0.0), np.maximum(high, 0.0)
            case Flatten():
                continue
        network = network._replace(lost=network.lost + _UNDERFLOW * reach.sum(1))
        reach = np.maximum(-low, high)
    return network, reach


def _relaxed(low: np.ndarray, high: np.ndarray) -> Relaxed:
    """The slope `u / (u - l)`, as rounded, and the gap that belongs to it.

    A coefficient a becomes `a' = fl(a s)`, that is a slope `s (1 + 2^-53)` or less, never above 1;
    `relu(z) - slope z` is largest at an end of the interval.
    """
    crosses = ~((low >= 0.0) | (high <= 0.0))  # NaN crosses, and spreads
    slope = np.where(crosses, high / np.where(crosses, high - low, 1.0), low >= 0.0)
    at_high = (1.0 - slope) * high + 2.0**-52 * slope * high
    gap = raised(np.maximum(slope * -low, at_high), 4)
    return Relaxed(slope, np.where(crosses, gap, 0.0))


def _refine(
    network: Network, low: np.ndarray, high: np.ndarray, step: int
) -> tuple[np.ndarray, np.ndarray]:
    """Better bounds, by the dual, of those outputs of the last stage that may be positive."""
    if sum(isinstance(stage, Affine) for stage in network.stages) < 2:
        return low, high  # an interval is exact
    *before, last = network.stages
    if not isinstance(last, Affine):
        return low, high  # nothing is below 0
    low, high, inner = low.copy(), high.copy(), network._replace(stages=before)
    rows, units = np.nonzero(high > 0.0)  # behind a ReLU the others are 0
    bias = np.resize(last.layer.bias, low.shape[1])
    for part in (slice(i, i + step) for i in range(0, len(rows), step)):
        row, unit = rows[part], units[part]
        below, above = bounds(inner, row, _weights(last, unit, low.shape[1]), bias[unit], 0.0)
        low[row, unit] = np.fmax(low[row, unit], np.where(np.isfinite(below), below, np.nan))
        high[row, unit] = np.fmin(high[row, unit], np.where(np.isfinite(above), above, np.nan))
    return low, high


def bounds(
    network: Network,
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
            case Relaxed(slope, gap):
                gaps = gap[rows]
                below = below + dot(np.maximum(-coef, 0.0), gaps)
                above = above + dot(np.maximum(coef, 0.0), gaps)
                coef = coef * slope[rows]
            case Affine(layer, shape, weight):
                units = max(coef.shape[1], layer.kernel.size // layer.kernel.shape[-2])
                longest = max(longest, units, math.prod(shape))
                value = value + coef @ np.resize(layer.bias, coef.shape[1])
                error = error + gamma(units) * dot(np.abs(coef), weight[rows])
                error = error + 2.0**-53 * np.abs(value)
                coef = _adjoint(layer, shape, coef)
    value = value + dot(coef, network.middle[rows])
    error = error + dot(np.abs(coef), network.spread[rows]) + 2.0**-53 * np.abs(value)
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
            rows = slice(i, i + down_by * tall, down_by)
            columns = slice(j, j + right_by * wide, right_by)
            pulled[:, rows, columns] += taps[:, :, :, i, j]
    inside = pulled[:, above : above + shape[0], left : left + shape[1]]
    return inside.reshape(len(coef), -1)


def _weights(stage: Affine, units: np.ndarray, outputs: int) -> np.ndarray:
    """The row of weights behind each of some outputs, without rounding."""
    if isinstance(stage.layer, Dense):
        return stage.layer.kernel.T[units]
    hot = np.zeros((len(units), outputs))
    hot[np.arange(len(units)), units] = 1.0
    return _adjoint(stage.layer, stage.shape, hot)


def dot(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Inner products of the rows."""
    return np.einsum("qj,qj->q", left, right)
