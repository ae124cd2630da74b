"""Interval bound propagation, with the last layer bounded through its differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array

from jaxrobust.certify._common import ROUNDING, in_chunks, read
from jaxrobust.certify._enclosure import Region, cube, margins_over
from jaxrobust.layers import Layer
from jaxrobust.threat import Box
from jaxrobust.types import Images, Labels, MarginBound


def interval(
    layers: Sequence[Layer],
    x: Images,
    y: Labels,
    *,
    eps: float | Array,
    norm: str = "linf",
    box: Box = Box(),  # noqa: B008 (immutable)
) -> MarginBound:
    """Lower bounds of the margins by interval bound propagation (IBP).

    Intervals of all pixels go through the network layer by layer; the last `Dense` is applied as
    `(V_y - V_i) h`, so that the logits' common part cancels. For l2 and l1 balls the first affine
    layer also knows `|w (x' - x)| <= eps ||w||_dual`, and each unit keeps the better side of both.
    With a single affine layer the bound is exact up to rounding, for l2 and l1 as long as the box
    does not cut the ball. Two affine layers in a row are not merged.

    Args:
        layers: The network, `Dense`, `Conv`, `Relu`, `Sigmoid` and `Flatten`, on examples as in
            `x`.
        x: `(batch, *dims)` images in the box.
        y: `(batch,)` true classes.
        eps: Radius in pixel units of the box, one number.
        norm: "linf", "l2" or "l1", over all entries of one example.
        box: Legal pixel values; the bound speaks of the ball within the box.

    Returns:
        Margins over the ball and the box; rows with overflow or NaN are `-inf`.

    Raises:
        ValueError: For traced arrays, layers that are unknown or do not fit, images outside the
            box, labels out of range, an unknown norm, or a radius that is not one finite number.

    References:
        Gowal et al., On the Effectiveness of Interval Bound Propagation for Training Verifiably
        Robust Models, arXiv:1810.12715, section 3. The dual norms of the first layer and the
        account of rounding are added here.

    >>> from jaxrobust.layers import Dense
    >>> layers = [Dense(np.array([[1.0, -1.0], [0.5, 0.0]]), np.zeros(2))]
    >>> x, y = np.array([[0.5, 0.5]]), np.array([0])
    >>> interval(layers, x, y, eps=0.1).margins  # 2 (.5) + .5 (.5) - .1 (2 + .5)
    array([[inf,  1.]])
    """
    problem = read(layers, x, y, eps, norm, box)
    margins = np.empty((len(problem.x), len(problem.last.bias)))
    for rows, x_rows, y_rows in in_chunks(problem):
        low, high = cube(x_rows, problem.eps, box)
        region = Region(low, high)  # an linf ball is its interval
        if norm != "linf":
            region = Region(low, high, x_rows, problem.eps, norm)
        margins[rows] = margins_over(problem, region, y_rows)
    proof = (
        f"interval arithmetic over the {norm} ball within the box [{box.low:g}, {box.high:g}]; "
        f"{ROUNDING}"
    )
    return MarginBound(margins, norm, problem.eps, "interval", proof, box=box)
