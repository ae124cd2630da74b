"""How far smooth flows reach, from above: proved, in float64, for the certificates of flows."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jaxrobust.flow import NullSpace
from jaxrobust.linalg import gamma, proved_upper, raised

_FLOATS_AT_ONCE = 2**22  # 32 MiB for the largest array of a chunk


class Reach(NamedTuple):
    """What `|M r| <= 1` lets one part of a flow do, from above.

    Attributes:
        pixels: `(height, width)` lambda: the farthest that each pixel moves.
        norm: The largest l2 norm of all displacements, `||M^-1||_2`.
    """

    pixels: Float[np.ndarray, "height width"]
    norm: float


@functools.lru_cache(maxsize=16)
def reach(shape: tuple[int, int], null_space: NullSpace = "dirichlet") -> Reach:
    """Proved upper sides of `flow.largest_displacement` and of `||M^-1||_2`.

    `M'M = A x I + I x B`, A and B tridiagonal with small integers, so products with it are known up
    to a few roundings. With G the inverse among the flows that the rule allows, `lambda_i^2 =
    d'Gd`: d is the unit vector of pixel i ("dirichlet"), less the mean ("zero_mean"), or less that
    of the pinned pixel, whose flows are those of mean zero, each moved as a whole. For **any** z

        d'Gd = d'z + d'G(d - M'Mz) <= d'z + |d| |d - M'Mz| / floor,

    floor a lower side of the least eigenvalue that counts, and z is what the eigenvectors of A and
    B, computed somehow, make of d. Under "dirichlet" the floor is the sum of proved lower sides of
    A's and B's; otherwise `8 sin(pi / 2n)^2`, n the longer side, is that of twice a path's
    Laplacian. A pinned pixel's norm comes from the matrix without that pixel's row and column,
    which is formed: `8 (height width)^2` bytes, and its cube in time.

    Args:
        shape: Height and width.
        null_space: See `flow.FlowBall`.
    """
    lines = [_line(size, null_space == "dirichlet") for size in shape]
    floor = _floor(lines)
    size = math.prod(shape)
    pixels = np.empty(size)
    step = max(1, _FLOATS_AT_ONCE // size)
    for start in range(0, size, step):
        rows = np.arange(start, min(start + step, size))
        d = np.zeros((len(rows), size))
        d[np.arange(len(rows)), rows] = 1.0
        if null_space == "zero_mean":
            d -= 1.0 / size
        elif isinstance(null_space, tuple):
            d[:, np.ravel_multi_index(null_space, shape)] -= 1.0
        pixels[rows] = _energy(d.reshape(-1, *shape), lines, floor)
    lambdas = np.sqrt(pixels).reshape(shape) * (1.0 + 2.0**-51)
    lambdas.flags.writeable = False  # it is cached
    if isinstance(null_space, tuple):
        floor = _pinned_floor(shape, null_space, lines)
    norm = raised(1.0 / math.sqrt(floor), 2) if floor > 0 else math.inf
    return Reach(lambdas, float(norm))


def pull(
    weights: Float[np.ndarray, "rows height width"], null_space: NullSpace
) -> Float[np.ndarray, " rows"]:
    """Upper sides of `sum_i w_i |a_i|` over `|M a| <= 1`, for weights that are not negative.

    M'M has no positive entry beside its diagonal, so that its inverse G has no negative one under
    "dirichlet" or with a pinned pixel, the signs of a do not matter, and the maximum is
    `sqrt(w'Gw)`. Flows of mean zero must have both signs: infinity, where nothing is proved.

    Args:
        weights: The weights.
        null_space: See `flow.FlowBall`.
    """
    rows, *shape = weights.shape
    if null_space == "zero_mean":
        return np.full(rows, np.inf)
    largest = np.max(weights, axis=(1, 2), initial=0.0)
    scale = np.where((largest > 0) & (largest < np.inf), largest, 1.0)
    d = raised(weights / scale[:, None, None], 1)
    lines = [_line(size, null_space == "dirichlet") for size in shape]
    floor, error = _floor(lines), 0.0
    if isinstance(null_space, tuple):
        total = d.sum((1, 2))
        d[:, *null_space] -= total
        error = gamma(d[0].size + 2) * total / math.sqrt(floor)  # of the sum, at one pixel
    energy = _energy(d, lines, floor)
    return raised(scale * (np.sqrt(energy) * (1.0 + 2.0**-51) + error), 3)


def _line(size: int, framed: bool) -> np.ndarray:
    """`M'M` along one direction, exactly."""
    degree = np.full(size, 2.0)
    degree[0] -= 1
    degree[-1] -= 1
    beside = np.eye(size, k=1) + np.eye(size, k=-1)
    return 2 * (np.diag(degree) - beside) + framed * np.diag(2 - degree)


def _floor(lines: list[np.ndarray]) -> float:
    """Lower side of the least eigenvalue of `M'M`, but for the 0 that a rule takes away."""
    if lines[0].sum() > 0:  # "dirichlet": rows that sum to more than 0
        least = sum(-proved_upper(-line, "lambda_max") for line in lines)
    else:
        longer = max(len(line) for line in lines)
        if longer == 1:  # no flow moves anything
            return math.inf
        least = 8 * math.sin(math.pi / (2 * longer)) ** 2  # libm's is good to better than 2^-40
    return least * (1.0 - 2.0**-40)


def _pinned_floor(shape: tuple[int, int], pixel: tuple[int, int], lines: list[np.ndarray]) -> float:
    matrix = np.kron(lines[0], np.eye(shape[1])) + np.kron(np.eye(shape[0]), lines[1])
    kept = np.arange(len(matrix)) != np.ravel_multi_index(pixel, shape)
    if not kept.any():
        return math.inf
    return -proved_upper(-matrix[np.ix_(kept, kept)], "lambda_max") * (1.0 - 2.0**-40)


def _energy(d: np.ndarray, lines: list[np.ndarray], floor: float) -> np.ndarray:
    """Upper side of `d'Gd` for each d; entries of d may be off by one rounding.

    Where constants are in the null space, `G M'M z` is z less its mean, which d may see if rounding
    leaves it a sum.
    """
    (values, rows), (others, columns) = (np.linalg.eigh(line) for line in lines)
    weight = values[:, None] + others
    weight = np.where(weight > floor / 2, 1.0 / np.where(weight > floor / 2, weight, 1.0), 0.0)
    z = rows @ ((rows.T @ d @ columns) * weight) @ columns.T
    first, second = lines
    size, terms = d[0].size, sum(len(line) for line in lines) + 8
    absolute = np.abs(d) + np.abs(first) @ np.abs(z) + np.abs(z) @ np.abs(second)
    left = np.abs(d - first @ z - z @ second) + raised(gamma(terms) * absolute, terms)
    lengths = [np.sqrt(raised(np.sum(part * part, (1, 2)), size + 2)) for part in (d, left)]
    error = lengths[0] * lengths[1] / floor + gamma(size + 4) * np.sum(np.abs(d * z), (1, 2))
    if first.sum() == 0:  # its rows sum to 0: constants are in the null space
        total = np.abs(d.sum((1, 2))) + gamma(size) * np.sum(np.abs(d), (1, 2))
        error = error + total * np.max(np.abs(z), (1, 2))
    energy = np.sum(d * z, (1, 2)) + raised(error, size + 8)
    energy = np.maximum(energy, 0.0) * (1.0 + 2.0**-51)
    return np.where(d.any((1, 2)), energy, 0.0)
