"""What the semidefinite certificate needs of a network: every pair's program, solved and proved."""

from __future__ import annotations

import dataclasses
import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxrobust import files
from jaxrobust.certify import _common
from jaxrobust.certify._pairs import TwoLayers, class_pairs, two_layers
from jaxrobust.certify._sdp_proof import pair_matrix, scaled_upper, shifted_upper
from jaxrobust.certify._sdp_solvers import Solved, by_interior_point, by_mixing
from jaxrobust.identity import digest
from jaxrobust.layers import Layer
from jaxrobust.linalg import as_float64, raised

SOLVERS = ("mixing", "dual")


@dataclasses.dataclass(frozen=True, eq=False)
class SdpConstants:
    """What the certificate needs of a network, whichever the images and eps.

    Attributes:
        upper: `(classes, classes)` symmetric: `f_i - f_j` changes by at most `eps / 4 upper[i, j]`
            over a linf ball. Proved; `inf` where that failed.
        lower: `(classes, classes)`: values that the programs' optima are not below, but for
            rounding; `-inf` where no solver ran.
        left: `(pairs, 1 + hidden)` duals, pairs i < j in the order of `np.triu_indices`.
        right: `(pairs, inputs)` duals.
        network: Checksum of the weights they belong to.
    """

    upper: np.ndarray
    lower: np.ndarray
    left: np.ndarray
    right: np.ndarray
    network: str

    @property
    def gap(self) -> float:
        """Largest `1 - lower / upper` over the pairs; infinite where one is not bounded at all."""
        first, second = class_pairs(len(self.upper))
        upper, lower = self.upper[first, second], self.lower[first, second]
        if not (np.isfinite(upper).all() and np.isfinite(lower).all()):
            return math.inf
        positive = upper > 2.0**-900  # what is less is the allowance for underflow: a bound of 0
        return float(np.max(1.0 - lower[positive] / upper[positive], initial=0.0))

    def save(self, path: str | Path) -> None:
        """Write everything to an npz file; `load_sdp_constants` reads and proves it again."""
        files.write_arrays(Path(path), dataclasses.asdict(self))


def sdp_constants(
    layers: Sequence[Layer],
    *,
    solver: Literal["mixing", "dual"] = "mixing",
    tol: float = 1e-4,
    duals: tuple[Any, Any] | None = None,
) -> SdpConstants:
    """Solve the program of every pair of classes, and prove an upper side of each.

    Args:
        layers: `Dense, Relu | Sigmoid, Dense`, or one `Dense`; `Flatten` may stand in front.
        solver: "mixing", block mixing (`linalg.mixing`) with its closed-form dual, nine pairs at
            once; "dual", an interior-point method on the paper's dual (Eq. 14) in float64, slower
            and good for a `tol` down to about 1e-9.
        tol: Relative gap between the proved bound and a feasible value at which a pair is done.
            Mixing stops short of gaps near float32's 1e-6, or after 19,200 sweeps; nothing is
            raised then, for the bound holds all the same: `gap` says how far it came.
        duals: `(left, right)` as in `SdpConstants`, real numbers of any origin: nothing is solved,
            `solver` and `tol` are not used, and the smaller of what both forms of the dual prove is
            taken.

    Returns:
        The constants. A pair for which nothing could be proved (weights so large that their
        products overflow) has an upper side of `inf`.

    Raises:
        ValueError: For traced arrays and weights that are not finite; for other networks (deeper or
            convolutional ones are for `certify.lp`); for an unknown solver, a tolerance that is not
            positive, misshapen duals.

    References:
        Raghunathan, Steinhardt and Liang, Certified Defenses against Adversarial Examples, ICLR
        2018 (paper 003), Eq. 10, 11 and 14. Eq. 9 is corrected (see `pair_matmul`), sigmoids have
        the paper's factor 1/4, and the solver and the proof in floating point are ours.

    >>> from jaxrobust.layers import Dense, Relu
    >>> layers = [Dense(np.array([[1.0], [-1.0]]), np.zeros(1)), Relu(),
    ...           Dense(np.array([[1.0, 0.0]]), np.zeros(2))]
    >>> round(float(sdp_constants(layers).upper[0, 1]) / 4, 3)  # slope 1 in each input
    2.0
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}; got {solver!r}")
    if not tol > 0:
        raise ValueError(f"tol must be positive; got {tol}")
    network = two_layers(_common.on_host(layers))
    pairs = _pairs(network)
    if duals is not None:
        solved = _given(network, duals, (scaled_upper, shifted_upper))
    elif solver == "mixing":
        solved = by_mixing(network, pairs, tol)
    else:
        solved = [by_interior_point(pair_matrix(network, i, j)[0], tol) for i, j in pairs]
    return _collected(network, solved)


def load_sdp_constants(path: str | Path, layers: Sequence[Layer]) -> SdpConstants:
    """Constants written by `SdpConstants.save`, their duals proved again for these layers.

    The bounds in the file are not believed, so a damaged file gives a valid bound or none. The
    feasible values are: they make the gap, and no margin.

    Args:
        path: The file.
        layers: The network.

    Raises:
        ValueError: If the file is no such file, or belongs to another network.
    """
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            left, right, lower = stored["left"], stored["right"], stored["lower"]
            network = str(stored["network"])
            if lower.dtype != np.float64 or lower.ndim != 2 or not left.ndim == right.ndim == 2:
                raise ValueError(f"lower has shape {lower.shape} and type {lower.dtype}")
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"path must hold constants written by save; {path}: {error}") from error
    read = two_layers(_common.on_host(layers))
    if network != checksum(read):
        raise ValueError(f"path must hold constants of these layers; {path} has another network's")
    proved = _collected(read, _given(read, (left, right), (scaled_upper,)))
    if lower.shape != proved.upper.shape:
        raise ValueError(f"path must hold constants of these layers; lower has {lower.shape}")
    return dataclasses.replace(proved, lower=np.minimum(lower, proved.upper))


def _pairs(network: TwoLayers) -> list[tuple[int, int]]:
    first, second = class_pairs(network.last.shape[1])
    return list(zip(first.tolist(), second.tolist(), strict=True))


def _given(
    network: TwoLayers, duals: tuple[Any, Any], bounds: tuple[Callable[..., float], ...]
) -> list[Solved]:
    """The least that the bounds make of given duals."""
    pairs, hidden = _pairs(network), network.kernel.shape[1]
    shapes = [(len(pairs), 1 + hidden), (len(pairs), len(network.kernel))]
    left, right = (as_float64(side, "duals") for side in duals)
    if [left.shape, right.shape] != shapes:
        raise ValueError(f"duals must have shapes {shapes}; got {[left.shape, right.shape]}")
    solved = []
    for (i, j), p, q in zip(pairs, left, right, strict=True):
        matrix, _ = pair_matrix(network, i, j)
        solved.append(Solved(p, q, -np.inf, min(bound(matrix, p, q) for bound in bounds)))
    return solved


def _collected(network: TwoLayers, solved: list[Solved]) -> SdpConstants:
    """Square tables of the pairs, the error of forming each matrix added."""
    classes = network.last.shape[1]
    upper, lower = np.zeros((classes, classes)), np.zeros((classes, classes))
    for (i, j), pair in zip(_pairs(network), solved, strict=True):
        bound = float(raised(pair.upper + pair_matrix(network, i, j)[1], 2))
        upper[i, j] = upper[j, i] = bound if bound >= 0 else np.inf  # NaN is no bound
        lower[i, j] = lower[j, i] = min(pair.lower, bound)  # rounding may cross them
    left, right = np.stack([s.left for s in solved]), np.stack([s.right for s in solved])
    return SdpConstants(upper, lower, left, right, checksum(network))


def checksum(network: TwoLayers) -> str:
    """By which constants know their network."""
    return digest([network.kernel, network.last, np.asarray(network.slopes)])
