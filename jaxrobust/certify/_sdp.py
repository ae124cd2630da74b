"""The semidefinite certificate of paper 003 for networks with one hidden layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Array

from jaxrobust.certify import _common
from jaxrobust.certify._enclosure import Region, down, margins_over, up
from jaxrobust.certify._pairs import two_layers
from jaxrobust.certify._sdp_constants import SdpConstants, checksum, sdp_constants
from jaxrobust.layers import Layer
from jaxrobust.types import Images, Labels, MarginBound


def sdp(
    layers: Sequence[Layer],
    x: Images,
    y: Labels,
    *,
    eps: float | Array,
    solver: Literal["mixing", "dual"] = "mixing",
    tol: float = 1e-4,
    constants: SdpConstants | None = None,
) -> MarginBound:
    """Lower bounds of the margins over linf balls by semidefinite programming.

    `f_y(x') - f_i(x') >= f_y(x) - f_i(x) - eps / 4 S_iy`, with S_iy an upper side of the program of
    paper 003 for the pair. It bounds the gradient everywhere, so one solve serves all images and
    every eps; the box is not used. Exact for one affine layer (Eq. 2).

    Args:
        layers: `Dense, Relu | Sigmoid, Dense`, or one `Dense`; `Flatten` may stand in front.
        x: `(batch, *dims)` images in the network's own units, of any range (normalised ones, say).
        y: `(batch,)` true classes.
        eps: Linf radius in the units of x, one number: 0.1 of [0, 1] is 25.5 of 0-255 images.
        solver: See `sdp_constants`.
        tol: See `sdp_constants`.
        constants: What `sdp_constants(layers)` returned, in place of `solver` and `tol`; where
            None it is solved here. Give `on_layers` a `partial(sdp, constants=...)`: otherwise each
            batch of an evaluation solves the network anew.

    Returns:
        Margins over the ball, `-inf` where nothing is proved. `gap` says how much of each is the
        solver's: the relaxation's own optimum lies within `[margins, margins + gap]`, but for the
        rounding taken off.

    Raises:
        ValueError: As `sdp_constants`; for constants of another network; for images, labels and
            eps as the other certificates.

    References: paper 003, Eq. 11.

    >>> from jaxrobust.layers import Dense
    >>> layers = [Dense(np.array([[1.0, -1.0], [0.5, 0.0]]), np.zeros(2))]
    >>> sdp(layers, np.array([[0.5, 0.5]]), np.array([0]), eps=0.1).margins.round(6)
    array([[inf,  1.]])
    """
    problem = _common.read(layers, x, y, eps, "linf")
    network = two_layers(_common.on_host(layers))
    if constants is None:
        constants = sdp_constants(layers, solver=solver, tol=tol)
    elif not isinstance(constants, SdpConstants):
        raise ValueError(
            f"constants must be what sdp_constants(layers) returns; got {type(constants).__name__}"
        )
    elif constants.network != checksum(network):
        raise ValueError("constants must be those of these layers; got another network's")
    margins, slack = margins_by_slope(problem, problem.eps, constants.upper, constants.lower)
    proof = (
        "semidefinite relaxation of the margins' gradient over all inputs (paper 003, Eq. 11, with "
        "Eq. 9 corrected); each dual is made feasible by a float64 Cholesky factorisation with its "
        f"rounding added; {_common.ROUNDING}"
    )
    return MarginBound(margins, "linf", problem.eps, "sdp", proof, gap=slack)


def margins_by_slope(
    problem: _common.Problem, radius: float, upper: np.ndarray, lower: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Clean margins less `radius / 4 upper`, and the part of it that is the solver's.

    Args:
        problem: Network and examples.
        radius: Of the changes of the images, from above.
        upper: `(classes, classes)` as in `SdpConstants`.
        lower: `(classes, classes)` likewise.

    Returns:
        `(batch, classes)` margins, `-inf` where nothing is proved, and gaps.
    """
    margins = np.empty((len(problem.x), len(problem.last.bias)))
    with np.errstate(invalid="ignore", over="ignore"):
        lost = up(up(radius * upper[problem.y]) / 4)
        for rows, x_rows, y_rows in _common.in_chunks(problem):
            clean = margins_over(problem, Region(x_rows, x_rows), y_rows)
            margins[rows] = down(clean - lost[rows])
        slack = radius / 4 * (upper - lower)[problem.y]
    slack[np.isnan(slack)] = np.inf
    margins[np.isnan(margins)] = -np.inf  # a radius of 0 times a bound that is not there, too
    margins[np.arange(len(margins)), problem.y] = np.inf
    return margins, slack
