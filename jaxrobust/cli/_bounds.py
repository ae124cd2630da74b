"""Certificates by name, and which of them a report can afford."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from jaxrobust import certify
from jaxrobust.layers import Dense, Flatten, Layer, Relu
from jaxrobust.types import MarginBound

BOUNDS: dict[str, Callable[..., MarginBound]] = {
    "sdp": certify.sdp,
    "lp": certify.lp,
    "interval": certify.interval,
    "spectral": certify.spectral,
    "frobenius": certify.frobenius,
}
"""Tightest first, as a rule."""

EVERY_NORM = ("interval", "spectral", "frobenius")
GAP = 1e-4
"""Relative gap at which a pair of classes counts as solved."""


def certificates(layers: Sequence[Layer] | None, norm: str) -> dict[str, Callable[..., Any]]:
    """The certificates of a report, in the form that `evaluate` wants.

    For linf these are lp too where all layers are dense (a convolutional network takes it seconds
    an image), and sdp where one layer is hidden at most, solved here once for all images and radii.

    Args:
        layers: The network; None for one that bounds cannot read.
        norm: Norm of the threat.
    """
    if layers is None:
        return {}
    bounds = {name: BOUNDS[name] for name in EVERY_NORM}
    if norm == "linf" and all(isinstance(layer, Dense | Relu | Flatten) for layer in layers):
        bounds = {"lp": certify.lp, **bounds}
    if norm == "linf" and _is_shallow(layers):
        constants = certify.sdp_constants(layers, tol=GAP)
        bounds = {"sdp": functools.partial(certify.sdp, constants=constants), **bounds}
    return {name: certify.on_layers(bound, layers) for name, bound in bounds.items()}


def _is_shallow(layers: Sequence[Layer]) -> bool:
    """Whether sdp reads the network."""
    try:
        certify.two_layers(layers)
    except ValueError:
        return False
    return True
