"""Certificates against smooth flows: paper 002's bounds, corrected, and a tighter one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from jaxrobust import checks
from jaxrobust.certify import _common
from jaxrobust.certify._displacements import Reach, pull, reach
from jaxrobust.certify._lipschitz import frobenius, spectral
from jaxrobust.certify._pairs import class_pairs, two_layers
from jaxrobust.certify._sdp import margins_by_slope
from jaxrobust.certify._sdp_constants import SdpConstants, checksum
from jaxrobust.certify._spatial_constants import (
    l2_checksum,
    scaling_error,
    spatial_constants,
    spatial_layers,
)
from jaxrobust.flow import FlowBall
from jaxrobust.flow._ball import check_flow_ball
from jaxrobust.layers import Dense, Flatten, Layer
from jaxrobust.linalg import frobenius_upper, raised
from jaxrobust.types import Images, Labels, MarginBound

BOUNDS = ("sdp_l2", "sdp", "spectral", "frobenius", "linear")


def spatial(
    layers: Sequence[Layer],
    x: Images,
    y: Labels,
    *,
    ball: FlowBall,
    bound: Literal["sdp_l2", "sdp", "spectral", "frobenius", "linear"] = "sdp_l2",
    constants: SdpConstants | None = None,
) -> MarginBound:
    """Lower bounds of the margins over all images `flow.warp(x, r)`, r in the ball.

    A flow of the ball moves pixel i within a disc of radius `eps lambda_i`, which changes it by at
    most `h(eps lambda_i) <= sqrt(2) eps lambda_i` widths of the box; all C channels together change
    by at most `sqrt(2 C) eps ||M^-1||_2` widths in l2. The bounds are those of

    - "sdp_l2": the semidefinite relaxation over that l2 ball (ours; 1.6 to 2.9 times tighter than
      the paper's on the networks of `experiments/spatial`);
    - "sdp": the paper's, over the box of all pixels' changes, the program of `certify.sdp` for
      `W diag(lambda)`. For one affine layer it is exact over the box (Eq. 16);
    - "spectral", "frobenius": `certify.spectral` and `frobenius` over the l2 ball, any depth;
    - "linear": the closed form for one affine layer, ours: with w the absolute difference of two
      classes' weights, summed over channels, margins fall by no more than `sqrt(2) eps sqrt(w'Gw)`
      widths, G the inverse of M'M (not for "zero_mean"), nor than `sum_i w_i h(eps lambda_i)`, nor
      than over the l2 ball.

    The derivation is in `experiments/spatial/README.md`. None of them looks at the image beyond its
    clean margins. Factors that print lacks (eps and ||M^-1||, slopes along both axes) are in;
    `h(t) = sqrt(2) t - t^2 / 2` for small t is ours.

    Args:
        layers: `Dense, Relu | Sigmoid, Dense`, or one `Dense`, with `Flatten` in front; for
            "spectral" and "frobenius" any network, for "linear" one `Dense`.
        x: `(batch, height, width)` images in `ball.box`, or `(batch, height, width, channels)`.
        y: `(batch,)` true classes.
        ball: The flows, one radius for all. The width of its box is the largest slope between two
            pixels.
        bound: Which.
        constants: What `spatial_constants(layers, shape, null_space, bound=bound)` returned; where
            None it is solved here, and again at each call. Not for norms and the closed form.

    Returns:
        Margins over the ball, `-inf` where nothing is proved; `norm` is "flow" and the rule; `gap`
        as in `certify.sdp`, None for norms and the closed form.

    Raises:
        ValueError: For traced arrays; images that are flat or out of the box, labels, layers and
            radius as the other certificates; for another bound, or constants of other layers,
            another rule or another bound.

    References: paper 002, Eq. 15 and 16, section 4.1, appendix 6.7 and 6.8, each corrected.

    >>> from jaxrobust.layers import Dense, Flatten
    >>> layers = [Flatten(), Dense(np.array([[1.0, -1.0]]), np.zeros(2))]
    >>> x, y = np.array([[[1.0]]]), np.array([0])
    >>> spatial(layers, x, y, ball=FlowBall(0.1), bound="sdp").margins.round(4)
    array([[   inf, 1.8611]])
    """
    checks.check_choice(bound, "bound", BOUNDS)
    problem, limits = _read(layers, x, y, ball)
    box = ball.box
    channels = problem.x[:1].size // limits.pixels.size if len(problem.x) else 1
    width = math.nextafter(box.high - box.low, math.inf)
    far = _changes(problem.eps, limits.pixels)
    # Raised factor by factor: what underflows in one must not be multiplied by another.
    in_l2 = raised(float(raised(math.sqrt(2.0) * problem.eps, 2)) * limits.norm, 2)
    in_l2 = min(float(in_l2), frobenius_upper(far))
    in_l2 = float(raised(in_l2 * width * math.sqrt(channels), 6))
    if bound in ("spectral", "frobenius", "linear") and constants is not None:
        raise ValueError(f"constants must be None for {bound!r}, which has none")
    if bound in ("spectral", "frobenius"):
        by_norms = spectral if bound == "spectral" else frobenius
        found = by_norms(layers, x, y, eps=np.float64(in_l2), norm="l2")
        proof = f"all flows change the image by at most {in_l2:g} in l2; {found.proof}"
        return dataclasses.replace(
            found, norm=ball.norm, eps=problem.eps, method=f"spatial {bound}", proof=proof, box=box
        )

    if bound == "linear":
        lost = _linear(layers, problem.eps, far, ball, width, in_l2)
        margins, _ = margins_by_slope(problem, 4.0, raised(lost, 1), lost)
        proof = (
            "closed form of what the pixels of one affine layer can do together, by proved bounds "
            f"of M^-1 and images in [{box.low:g}, {box.high:g}]; {_common.ROUNDING}"
        )
        return MarginBound(margins, ball.norm, problem.eps, "spatial linear", proof, box=box)

    shape = limits.pixels.shape
    constants = _constants(layers, shape, ball, bound, constants)
    if bound == "sdp":
        moved = limits.pixels > 0
        radius = float(np.max(far[moved] / limits.pixels[moved], initial=0.0))
        radius = float(raised(radius * width, 4))
        rounded = scaling_error(two_layers(spatial_layers(layers, shape, ball.null_space)))
        upper = raised(constants.upper + rounded, 1)
        over = f"the box of all pixels' changes, at most {radius:g} times lambda"
    else:
        radius, upper, over = in_l2, constants.upper, f"the l2 ball of radius {in_l2:g}"
    margins, gap = margins_by_slope(problem, radius, upper, constants.lower)
    proof = (
        f"flows change an image within {over}, by proved bounds of M^-1 and images in "
        f"[{box.low:g}, {box.high:g}]; semidefinite relaxation of the margins' gradient over all "
        "inputs (paper 002, section 4.1, corrected); each dual is made feasible by a float64 "
        f"Cholesky factorisation with its rounding added; {_common.ROUNDING}"
    )
    return MarginBound(margins, ball.norm, problem.eps, f"spatial {bound}", proof, box=box, gap=gap)


def _read(layers: Any, x: Any, y: Any, ball: Any) -> tuple[_common.Problem, Reach]:
    check_flow_ball(ball)
    problem = _common.read(layers, x, y, ball.eps, "linf", ball.box)
    if problem.x.ndim not in (3, 4):
        raise ValueError(
            "x must be images of shape (batch, height, width) or (batch, height, width, channels), "
            f"since flows move pixels along rows and columns; got {problem.x.shape}: reshape them, "
            "and put Flatten() in front of the layers"
        )
    shape = problem.x.shape[1:3]
    check_flow_ball(ball, shape)
    return problem, reach(shape, ball.null_space)


def _linear(
    layers: Sequence[Layer], eps: float, far: np.ndarray, ball: FlowBall, width: float, in_l2: float
) -> np.ndarray:
    """By how much each pair of classes' difference can change, from above.

    `|dx_i| <= |a_i| + |b_i|` widths for the two parts a, b of a flow, for all channels alike; the
    image changes by `in_l2` at most.
    """
    match [layer for layer in _common.on_host(layers) if not isinstance(layer, Flatten)]:
        case [Dense(kernel, _)]:
            pass
        case network:
            names = ", ".join(type(layer).__name__ for layer in network)
            raise ValueError(f"layers must be one Dense for bound='linear'; got {names}")
    classes = kernel.shape[1]
    first, second = class_pairs(classes)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not bounded
        each = raised(np.abs(kernel[:, first] - kernel[:, second]), 1)
        in_norm = raised(in_l2 * np.array([frobenius_upper(v) for v in each.T]), 1)
        each = each.reshape(far.size, -1, len(first))  # pixels, channels, pairs
        weights = raised(each.sum(1), each.shape[1]).T.reshape(-1, *far.shape)
        box = raised(np.sum(weights * far, axis=(1, 2)), far.size + 1)
        budget = float(raised(math.sqrt(2.0) * eps, 2))
        ellipsoid = raised(budget * pull(weights, ball.null_space), 1)
        least = np.fmin(raised(width * np.fmin(box, ellipsoid), 1), in_norm)
    lost = np.zeros((classes, classes))
    lost[first, second] = lost[second, first] = least
    return lost


def _changes(eps: float, pixels: np.ndarray) -> np.ndarray:
    """By how many widths of the box each pixel can change: `h(eps lambda)`, from above.

    With the displacement's parts a, b of absolute value at most 1 the pixel itself keeps the weight
    `(1 - |a|)(1 - |b|)`, and what takes its place differs by at most the width. Over the disc
    `a^2 + b^2 <= t^2` that leaves `1 - (1 - a)(1 - b)` at `a + b = min(1, sqrt(2) t)`.
    """
    with np.errstate(over="ignore"):
        t = np.minimum(raised(eps * pixels, 1), 1.0)
    inner = math.sqrt(2.0) * t - 0.5 * t * t
    outer = 0.5 + 0.5 * t * t
    # Differences lose at most a few units of their larger part.
    safe = np.where(t * math.sqrt(2.0) <= 1.0, inner + 2.0**-50 * t, outer + 2.0**-50)
    return np.minimum(safe, 1.0)


def _constants(
    layers: Sequence[Layer],
    shape: tuple[int, ...],
    ball: FlowBall,
    bound: Literal["sdp_l2", "sdp"],
    constants: SdpConstants | None,
) -> SdpConstants:
    """Those that were given, if they are of these layers; or solved now."""
    images = (shape[0], shape[1])
    if constants is None:
        return spatial_constants(layers, images, ball.null_space, bound=bound)
    if not isinstance(constants, SdpConstants):
        raise ValueError(
            "constants must be what spatial_constants(layers, shape, null_space) returns; got "
            f"{type(constants).__name__}"
        )
    if bound == "sdp":
        wanted = checksum(two_layers(spatial_layers(layers, images, ball.null_space)))
    else:
        wanted = l2_checksum(two_layers(_common.on_host(layers)))
    if constants.network != wanted:
        raise ValueError(
            f"constants must be those of these layers, of images of {images}, of "
            f"{ball.null_space!r} and of bound={bound!r}; got others"
        )
    return constants
