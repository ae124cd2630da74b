"""What `jaxrobust certify` found: the numbers, the files of its folder, and the words."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrobust import certify, evaluation, files, report
from jaxrobust.cli import _common as common
from jaxrobust.layers import Conv, Dense, Layer
from jaxrobust.types import MarginBound

RESULTS_NAME = "certify.json"
CONSTANTS_NAME, MARGINS_NAME = "sdp_constants.npz", "margins.npz"
FORMAT = 1
"""Version of the layout of `certify.json`."""


class Solved(NamedTuple):
    """Constants of the semidefinite certificate, and where they came from."""

    constants: certify.SdpConstants
    reused: bool
    seconds: float

    def described(self) -> dict[str, Any]:
        """For `certify.json`; the gap is null where a pair of classes is not bounded."""
        gap = self.constants.gap
        return {
            "file": CONSTANTS_NAME,
            "gap": gap if math.isfinite(gap) else None,
            "reused": self.reused,
            "seconds": self.seconds,
        }


def summary(clean: np.ndarray, eps: list[float], bounds: Sequence[MarginBound]) -> report.Certified:
    """Shares of the examples, in the order of the bounds."""
    methods: dict[str, list[float]] = {}
    best: dict[float, Any] = dict.fromkeys(eps, -np.inf)
    for bound in bounds:
        methods.setdefault(bound.method, []).append(float(np.mean(bound.certified)))
        best[bound.eps] = np.maximum(best[bound.eps], bound.margins)
    combined = [float(np.mean(np.all(best[radius] > 0, axis=1))) for radius in eps]
    return report.Certified("linf", len(clean), float(np.mean(clean)), eps, methods, combined)


def write(
    folder: Path, found: report.Certified, done: Any, y: np.ndarray, about: dict[str, Any]
) -> None:
    """Margins, chart, and last the numbers, with the checksum of the margins."""
    margins = {f"{bound.method}/{bound.eps!r}": bound.margins for bound, _ in done}
    packed = io.BytesIO()
    np.savez_compressed(packed, labels=y, **margins)
    content = {
        "format": FORMAT,
        "command": common.command_line(),
        "created": common.made_at(),
        "norm": found.norm,
        "clean_accuracy": found.clean,
        "bounds": [
            {
                "method": bound.method,
                "eps": bound.eps,
                "certified_accuracy": float(np.mean(bound.certified)),
                "seconds": seconds,
                "proof": bound.proof,
            }
            for bound, seconds in done
        ],
        "any_method": dict(zip(map(repr, found.eps), found.combined, strict=True)),
        "arrays": {
            "file": MARGINS_NAME,
            "sha256": hashlib.sha256(packed.getvalue()).hexdigest(),
        },
        "seed": None,  # nothing is random
        "environment": evaluation.environment(),
        **about,
    }
    files.write_whole(folder / MARGINS_NAME, packed.getvalue())
    files.write_whole(folder / "certified.svg", report.certified_figure(found))
    files.write_json(folder / RESULTS_NAME, content)


def announce(
    folder: Path, found: report.Certified, solved: Solved | None, refused: dict[str, str]
) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    report.print_certified(found, console)
    if solved is not None:
        how = "read and proved again" if solved.reused else "solved and proved"
        gap = solved.constants.gap
        console.print(f"sdp: constants {how} in {solved.seconds:.1f} s, relative gap {gap:.1e}")
    for method, reason in refused.items():
        console.print(f"{method} does not apply: {reason}", markup=False)
    console.print(f"results: {folder / 'certify.json'}", soft_wrap=True, markup=False)


def words(layer: Layer) -> str:
    """A layer in words.

    >>> words(Dense(np.ones((3, 2)), np.zeros(2)))
    'Dense (3, 2)'
    """
    name = type(layer).__name__
    if isinstance(layer, Conv):
        return f"{name} {layer.kernel.shape}, strides {layer.strides}, {layer.padding}"
    return f"{name} {layer.kernel.shape}" if isinstance(layer, Dense) else name
