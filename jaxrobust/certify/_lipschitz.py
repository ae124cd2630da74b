"""Bounds from the norms of the layers: `margin(x) - radius * ||hidden|| * ||V_y - V_i||_2`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Array

from jaxrobust.certify._common import ROUNDING, in_chunks, read
from jaxrobust.certify._enclosure import Region, differences, down, dual_norms, margins_over
from jaxrobust.layers import Conv, Dense, Layer, Sigmoid
from jaxrobust.linalg import frobenius_upper, proved_upper, raised
from jaxrobust.types import Images, Labels, MarginBound


def spectral(
    layers: Sequence[Layer], x: Images, y: Labels, *, eps: float | Array, norm: str = "linf"
) -> MarginBound:
    """Lower bounds of the margins from the spectral norms of the layers.

    `f_y(x') - f_i(x') >= f_y(x) - f_i(x) - r ||V_y - V_i||_2 prod ||W_l||_2`, with r the l2 radius
    of the ball: `eps sqrt(d)` for linf, `eps` for l2 and l1. ReLU and Flatten move no two values
    further apart, and a Sigmoid layer, whose slope is at most 1/4, counts as a matrix of norm 1/4;
    the last step is Cauchy-Schwarz, for a network of one `Dense` too. With one hidden layer this is
    Eq. 17 of the paper; it extends to any depth. The box is not used.

    A convolution's norm is the least of three upper sides (A is its matrix, K its kernel):
    `sqrt(||A||_1 ||A||_inf)`, which bounds `||A||_2`; `sqrt(p) sigma_max(K)` for K as a matrix of
    taps by outputs, because A applies K to patches and a pixel lies in at most
    `p = ceil(height / stride) ceil(width / stride)` of them; and `||A||_F`.

    Args:
        layers: The network, `Dense`, `Conv`, `Relu`, `Sigmoid` and `Flatten`, on examples as in
            `x`.
        x: `(batch, *dims)` images in the network's own units, of any range (normalised ones, say).
        y: `(batch,)` true classes.
        eps: Radius in the units of x, one number: 0.1 of [0, 1] is 25.5 of 0-255 images.
        norm: "linf", "l2" or "l1", over all entries of one example.

    Returns:
        Margins over the ball; `-inf` where a layer's norm or the clean margin is not finite.

    Raises:
        ValueError: For traced arrays, layers that are unknown or do not fit, labels out of range,
            an unknown norm, or a radius that is not one finite number.

    References:
        Raghunathan, Steinhardt and Liang, Certified Defenses against Adversarial Examples, ICLR
        2018, Eq. 17.

    >>> layers = [Dense(np.array([[1.0, -1.0], [0.0, 0.0]]), np.zeros(2))]
    >>> x, y = np.array([[0.5, 0.5]]), np.array([0])
    >>> spectral(layers, x, y, eps=0.1, norm="l2").margins  # 1 - .1 (2)
    array([[inf, 0.8]])
    """
    return _bound("spectral", layers, x, y, eps, norm, _spectral_norm)


def frobenius(
    layers: Sequence[Layer], x: Images, y: Labels, *, eps: float | Array, norm: str = "linf"
) -> MarginBound:
    """Lower bounds of the margins from the Frobenius norms of the layers.

    As `spectral`, with the Frobenius norm of each hidden layer's matrix in place of its spectral
    norm; never better. With one hidden layer this is Eq. 18 of the paper.

    Args:
        layers: The network, `Dense`, `Conv`, `Relu`, `Sigmoid` and `Flatten`, on examples as in
            `x`.
        x: `(batch, *dims)` images in the network's own units, of any range (normalised ones, say).
        y: `(batch,)` true classes.
        eps: Radius in the units of x, one number: 0.1 of [0, 1] is 25.5 of 0-255 images.
        norm: "linf", "l2" or "l1", over all entries of one example.

    Returns:
        Margins over the ball; `-inf` where a layer's norm or the clean margin is not finite.

    Raises:
        ValueError: As `spectral`.

    References:
        Raghunathan, Steinhardt and Liang, Certified Defenses against Adversarial Examples, ICLR
        2018, Eq. 18.

    >>> layers = [Dense(np.array([[1.0, -1.0], [0.0, 0.0]]), np.zeros(2))]
    >>> x, y = np.array([[0.5, 0.5]]), np.array([0])
    >>> frobenius(layers, x, y, eps=0.1, norm="l2").margins
    array([[inf, 0.8]])
    """
    return _bound("frobenius", layers, x, y, eps, norm, _frobenius_norm)


def _bound(
    method: str,
    layers: Sequence[Layer],
    x: Images,
    y: Labels,
    eps: float | Array,
    norm: str,
    norm_of: Callable[[Dense | Conv, tuple[int, ...]], float],
) -> MarginBound:
    problem = read(layers, x, y, eps, norm)
    dims = problem.x[:1].size if len(problem.x) else 1
    radius = problem.eps * math.sqrt(dims) if norm == "linf" else problem.eps
    margins = np.empty((len(problem.x), len(problem.last.bias)))
    for rows, x_rows, y_rows in in_chunks(problem):
        margins[rows] = margins_over(problem, Region(x_rows, x_rows), y_rows)
    with np.errstate(over="ignore", invalid="ignore"):
        hidden = 1.0
        for layer, shape in zip(problem.hidden, problem.shapes[:-1], strict=True):
            if isinstance(layer, (Dense, Conv)):
                hidden *= norm_of(layer, shape)
            elif isinstance(layer, Sigmoid):
                hidden *= 0.25
        reach = raised(radius * hidden, len(problem.hidden) + 4)
        for label in np.unique(problem.y):
            rows = problem.y == label
            slopes = dual_norms(differences(problem.last, int(label)), problem.shapes[-1], "l2")
            margins[rows] = down(margins[rows] - raised(reach * slopes, 2))
    margins[~np.isfinite(margins)] = -np.inf
    margins[np.arange(len(problem.y)), problem.y] = np.inf
    proof = (
        f"clean margin minus the l2 radius {radius:g} of the {norm} ball, times proved upper sides "
        f"of the layers' {method} norms; the box is not used; {ROUNDING}"
    )
    return MarginBound(margins, norm, problem.eps, method, proof)


def _spectral_norm(layer: Dense | Conv, shape: tuple[int, ...]) -> float:
    kernel = layer.kernel
    if isinstance(layer, Dense):
        return min(proved_upper(kernel), _frobenius_norm(layer, shape))
    height, width, _, outputs = kernel.shape
    rows, columns = layer.strides
    weights = np.abs(kernel)
    # One output sees each tap once; one pixel meets only the taps of its own phase of the stride.
    to_output = weights.sum((0, 1, 2)).max()
    from_pixel = max(
        weights[i::rows, j::columns].sum((0, 1, 3)).max()
        for i in range(min(rows, height))
        for j in range(min(columns, width))
    )
    by_sums = raised(math.sqrt(to_output) * math.sqrt(from_pixel), kernel.size + 4)
    patches = math.ceil(height / rows) * math.ceil(width / columns)
    by_patches = math.sqrt(patches) * proved_upper(kernel.reshape(-1, outputs))
    least = min(raised(by_patches, 4), _frobenius_norm(layer, shape))
    return min(by_sums, least) if math.isfinite(by_sums) else least


def _frobenius_norm(layer: Dense | Conv, shape: tuple[int, ...]) -> float:
    if isinstance(layer, Dense):
        return frobenius_upper(layer.kernel)
    # A row of the convolution's matrix for each output: its norms, cut at the padding.
    return frobenius_upper(dual_norms(layer, shape, "l2"))
