"""What the semidefinite certificates of flows need of a network: two relaxations."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrobust import checks
from jaxrobust.certify import _common
from jaxrobust.certify._displacements import reach
from jaxrobust.certify._pairs import TwoLayers, class_pairs, pair_matmul, two_layers
from jaxrobust.certify._sdp_constants import SdpConstants, checksum, sdp_constants
from jaxrobust.certify._sdp_proof import pair_matrix, scaled_upper
from jaxrobust.flow import NullSpace, check_null_space
from jaxrobust.layers import Dense, Flatten, Layer
from jaxrobust.linalg import raised

SWEEPS, ROUNDS = 200, 32
"""Sweeps between two looks at the gap; and looks, after which a pair keeps the gap it has."""


def spatial_layers(
    layers: Sequence[Layer], shape: tuple[int, int], null_space: NullSpace = "dirichlet"
) -> list[Layer]:
    """The network as a function of pixel changes in units of how far each pixel can move.

    The first kernel's rows times proved upper sides of lambda (Proposition 2 for `eps = 1`), one a
    pixel for all its channels. In linf these layers bound flows: what `certify.sdp_constants` (and
    any objective that trains for it) says of them holds for `W diag(lambda)` but for one rounding
    an entry, which `certify.spatial` adds.

    Args:
        layers: `Dense, Relu | Sigmoid, Dense`, or one `Dense`; `Flatten` may stand in front.
        shape: Height and width of the images.
        null_space: See `flow.FlowBall`.

    Raises:
        ValueError: For other networks, a shape that does not fit them, an unknown rule.

    References: paper 002, section 4.1.

    >>> layers = [Dense(np.ones((1, 2)), np.zeros(2))]
    >>> spatial_layers(layers, (1, 1))[0].kernel.round(3)  # four missing neighbours
    array([[0.5, 0.5]])
    """
    network = _common.on_host(layers)
    kernel = two_layers(network).kernel
    _check_shape(shape)
    check_null_space(null_space, shape)
    channels, rest = divmod(len(kernel), math.prod(shape))
    if rest or not channels:
        raise ValueError(
            f"shape must be the height and width of the images; got {shape} for layers that take "
            f"{len(kernel)} inputs"
        )
    scales = np.repeat(reach(tuple(shape), null_space).pixels.ravel(), channels)[:, None]
    first = next(i for i, layer in enumerate(network) if not isinstance(layer, Flatten))
    dense = network[first]
    assert isinstance(dense, Dense)  # two_layers says so
    return [*network[:first], Dense(dense.kernel * scales, dense.bias), *network[first + 1 :]]


def spatial_constants(
    layers: Sequence[Layer],
    shape: tuple[int, int],
    null_space: NullSpace = "dirichlet",
    *,
    bound: Literal["sdp_l2", "sdp"] = "sdp_l2",
    tol: float = 1e-4,
) -> SdpConstants:
    """Solve the program of every pair of classes, once for all images and every eps.

    Args:
        layers: `Dense, Relu | Sigmoid, Dense`, or one `Dense`; `Flatten` may stand in front.
        shape: Height and width of the images.
        null_space: See `flow.FlowBall`; "sdp_l2" has the same constants for all.
        bound: As in `spatial`.
        tol: Relative gap between the proved bound and a feasible value at which a pair is done.
            Nothing is raised where it is not reached: `gap` says how far it came.

    Returns:
        For "sdp" the constants of `spatial_layers`. For "sdp_l2", `f_i - f_j` changes by at most
        `radius / 4 upper[i, j]` where the image changes by `radius` in l2; no file of them is read.

    Raises:
        ValueError: As `spatial_layers` and `sdp_constants`; for another bound.

    >>> layers = [Dense(np.array([[3.0, 0.0], [4.0, 0.0]]), np.zeros(2))]
    >>> constants = spatial_constants(layers, (2, 1))
    >>> (constants.upper / 4).round(6)  # the l2 norm of the gradient
    array([[0., 5.],
           [5., 0.]])
    """
    checks.check_choice(bound, "bound", ("sdp_l2", "sdp"))
    if not tol > 0:
        raise ValueError(f"tol must be positive; got {tol}")
    scaled = spatial_layers(layers, shape, null_space)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is not bounded
        if bound == "sdp":
            return sdp_constants(scaled, tol=tol)
        return _l2_constants(two_layers(_common.on_host(layers)), tol)


def l2_checksum(network: TwoLayers) -> str:
    """By which constants of "sdp_l2" know their network."""
    return f"l2 {checksum(network)}"


def scaling_error(network: TwoLayers) -> np.ndarray:
    """How much more `upper` can be than that of the products which scaling rounded.

    Each entry of the first kernel is off by one unit roundoff of itself; see `pair_matrix` for how
    an entry's error reaches the optimum.

    Args:
        network: With the scaled kernel.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        each = np.abs(network.kernel).sum(0)
        v = np.abs(network.last[:, :, None] - network.last[:, None, :])
        total = np.einsum("k,kij->ij", each, v)
        return raised(2.0**-50 * network.slopes[1] * total, network.kernel.size + 8)


def _l2_constants(network: TwoLayers, tol: float) -> SdpConstants:
    """By mixing of all pairs: left factors with unit rows, right ones of Frobenius norm 1."""
    classes = network.last.shape[1]
    first, second = class_pairs(classes)
    columns = math.ceil(math.sqrt(2 * (2 + network.kernel.shape[1])))  # holds any optimum
    largest = _largest(network.kernel)
    kernel = jnp.asarray(network.kernel / largest)
    draw = jax.random.normal(jax.random.key(0), (len(kernel), columns), kernel.dtype)
    upper, lower = np.zeros((classes, classes)), np.zeros((classes, classes))
    lefts, rights = [], []
    for i, j in zip(first, second, strict=True):
        v = network.last[:, i] - network.last[:, j]
        matrix, error = pair_matrix(network, int(i), int(j))
        scale, right = largest * _largest(v), draw
        best, least, dual = math.inf, -math.inf, np.ones(len(matrix))
        for _ in range(ROUNDS):
            left, right, rows = _mix(kernel, jnp.asarray(v / _largest(v)), right, network.slopes)
            found = _proved(matrix, found_dual := np.asarray(rows, np.float64) * scale)
            if found < best:
                best, dual = found, found_dual
            least = max(least, _value(matrix, np.asarray(left, np.float64)))
            if not (best < math.inf and best - least > tol * best):
                break
        bound = float(raised(best + error, 2))
        upper[i, j] = upper[j, i] = bound if bound >= 0 else math.inf
        lower[i, j] = lower[j, i] = min(least, upper[i, j])
        lefts.append(dual)
        rights.append(np.ones(len(kernel)))
    return SdpConstants(upper, lower, np.stack(lefts), np.stack(rights), l2_checksum(network))


def _proved(matrix: np.ndarray, left: np.ndarray) -> float:
    """Upper side of `max <M, P>` over `P >= 0` with unit diagonal left and unit trace right.

    `scaled_upper` with duals of 1 on the right proves `2 s sqrt(sum p sum_i P_ii)` for a diagonal
    that sums to the number of columns that are not zero; here it sums to 1.
    """
    columns = np.count_nonzero(matrix.any(axis=0))
    if columns == 0:
        return 0.0
    bound = scaled_upper(matrix, left, np.ones(matrix.shape[1]))
    return float(raised(bound / math.sqrt(columns), 4))


def _value(matrix: np.ndarray, left: np.ndarray) -> float:
    """`2 |A' left|_F` for rows scaled to norm 1: the optimum is not below, but for rounding."""
    left = left / np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 2.0**-500)
    return 2.0 * float(np.linalg.norm(matrix.T @ left))


@functools.partial(jax.jit, static_argnames="slopes")
def _mix(
    kernel: Float[Array, "inputs hidden"],
    v: Float[Array, " hidden"],
    right: Float[Array, "inputs k"],
    slopes: tuple[float, float],
) -> tuple[Array, Array, Array]:
    """Left and right factors after the sweeps, and the row norms of `A right`: the duals."""
    matmul = pair_matmul(kernel, v, slopes)
    transposed = jax.linear_transpose(matmul, right)

    def sweep(right: Array, _: Any) -> tuple[Array, tuple[()]]:
        left = matmul(right)
        norms = jnp.linalg.norm(left, axis=1, keepdims=True)
        (product,) = transposed(left / jnp.where(norms > 0, norms, 1.0))
        size = jnp.linalg.norm(product)
        return product / jnp.where(size > 0, size, 1.0), ()

    with jax.default_matmul_precision("highest"):
        right, _ = jax.lax.scan(sweep, right, None, length=SWEEPS)
        left = matmul(right)
    return left, right, jnp.linalg.norm(left, axis=1)


def _check_shape(shape: Any) -> None:
    sizes = shape if isinstance(shape, tuple) and len(shape) == 2 else (0,)
    if not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ValueError(f"shape must be the height and width of the images; got {shape!r}")


def _largest(array: np.ndarray) -> float:
    """The largest absolute value, or 1 where that is no scale."""
    largest = float(np.max(np.abs(array), initial=0.0))
    return largest if 0.0 < largest < np.inf else 1.0
