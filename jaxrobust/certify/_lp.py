"""The Kolter-Wong bound: a feasible point of the dual of the linear program, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array

from jaxrobust.certify._common import ROUNDING, Problem, in_chunks, read, rows_at_once
from jaxrobust.certify._enclosure import cube, differences
from jaxrobust.certify._lp_dual import bounds, dot, relax
from jaxrobust.layers import Layer, Sigmoid
from jaxrobust.threat import Box
from jaxrobust.types import Images, Labels, MarginBound


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
    more. A smaller region changes s, and can rarely give a slightly smaller bound: the box has been
    seen to, a smaller eps not.

    With n terms to an inner product, a computed coefficient is taken as it is and the bound lowered
    by `gamma_n |nu| (|W| |h| + |b|)`, with |h| from above: the error of the coefficients of h times
    what they are multiplied with. Slopes may be rounded, since any slope in [0, 1] is valid with
    its own gap.

    Args:
        layers: The network, `Dense`, `Conv`, `Relu` and `Flatten`, on examples as in `x`.
        x: `(batch, *dims)` images, in the box if there is one; else of any range.
        y: `(batch,)` true classes.
        eps: Radius of the linf ball in the units of x, one number.
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

    >>> from jaxrobust.layers import Dense, Relu
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
    return MarginBound(margins, "linf", problem.eps, "lp", proof, box=box)


def _margins(problem: Problem, low: np.ndarray, high: np.ndarray, y: np.ndarray) -> np.ndarray:
    network, reach = relax(problem, low.reshape(len(low), -1), high.reshape(len(high), -1))
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
            off = 2.0**-52 * (dot(np.abs(coef), reach[rows[part]]) + np.abs(constant))
            below, _ = bounds(network, rows[part], coef, constant, off)
            margins[rows[part], targets[part]] = below
    return margins
