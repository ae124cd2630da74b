"""The matrix of paper 003 for a pair of classes, as a linear map that is never formed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float, Int

from jaxrobust.layers import Dense, Flatten, Layer, Relu, Sigmoid

Product = Callable[[Array], Array]


class TwoLayers(NamedTuple):
    """What the certificate needs of `V sigma(W x)`.

    Attributes:
        kernel: `(inputs, hidden)`, the first layer's.
        last: `(hidden, classes)`, the second's.
        slopes: Least and largest derivative of sigma.
    """

    kernel: Any
    last: Any
    slopes: tuple[float, float]


def two_layers(layers: Sequence[Layer]) -> TwoLayers:
    """Read `Dense, Relu | Sigmoid, Dense`, or one `Dense`; any `Flatten` in front is left out.

    A single layer is the case of the identity for an activation, whose derivative is 1.

    Raises:
        ValueError: For any other network, and for layers that do not fit.

    >>> two_layers([Flatten(), Dense(np.ones((2, 5)), 0), Sigmoid(), Dense(np.ones((5, 3)), 0)])[2]
    (0.0, 0.25)
    """
    match [layer for layer in layers if not isinstance(layer, Flatten)]:
        case [Dense(kernel, _)]:
            network = TwoLayers(kernel, np.eye(kernel.shape[1], dtype=kernel.dtype), (1.0, 1.0))
        case [Dense(kernel, _), Relu(), Dense(last, _)]:
            network = TwoLayers(kernel, last, (0.0, 1.0))
        case [Dense(kernel, _), Sigmoid(), Dense(last, _)]:
            network = TwoLayers(kernel, last, (0.0, 0.25))
        case _:
            names = ", ".join(type(layer).__name__ for layer in layers)
            raise ValueError(
                "layers must be Dense, Relu or Sigmoid, Dense for the semidefinite certificate; "
                f"got {names}. certify.lp bounds deeper and convolutional ReLU networks"
            )
    if network.kernel.shape[1] != network.last.shape[0]:
        raise ValueError(
            f"layers must fit: the first Dense has {network.kernel.shape[1]} outputs, the second "
            f"{network.last.shape[0]} inputs"
        )
    if network.last.shape[1] < 2:
        raise ValueError("layers must return at least 2 classes; got 1")
    return network


def class_pairs(classes: int) -> tuple[Int[np.ndarray, " pairs"], Int[np.ndarray, " pairs"]]:
    """First and second class of every pair i < j, in the order used everywhere.

    >>> class_pairs(3)
    (array([0, 0, 1]), array([1, 2, 2]))
    """
    return np.triu_indices(classes, 1)


def pair_numbers(classes: int) -> Int[np.ndarray, "classes others"]:
    """Row i: the numbers of the pairs that class i is in.

    >>> pair_numbers(3)
    array([[0, 1],
           [0, 2],
           [1, 2]])
    """
    first, second = class_pairs(classes)
    return np.stack([np.flatnonzero((first == i) | (second == i)) for i in range(classes)])


def pair_matmul(
    kernel: Float[Array, "inputs hidden"],
    v: Float[Array, " hidden"],
    slopes: tuple[float, float] = (0.0, 1.0),
) -> Callable[[Float[Array, "inputs k"]], Float[Array, "rows k"]]:
    """`right -> A right` for `A = [(a + b) v'W; (b - a) diag(v) W]`, of `1 + hidden` rows.

    Over a linf ball the margin of a pair changes by at most `eps / 4 max <M, P>`, for
    `M = [[0, A], [A', 0]]` and P as in `linalg.mixing`: a perturbation with signs t changes it at
    the rate `t' W' diag(v) z` for some activation slopes `z = ((a + b) + (b - a) s) / 2`, s in
    [-1, 1].

    Args:
        kernel: First layer, W transposed.
        v: Difference of two columns of the second layer.
        slopes: a and b, least and largest derivative of the activation.

    References: paper 003, Eq. 7 to 10, for slopes 0 and 1. Its Eq. 9 couples the constant with s
        and the sum of the inputs, which is no upper bound; Eq. 7 couples it with t, as here.
    """
    low, high = slopes

    def matmul(right: Array) -> Array:
        hidden = jnp.matmul(kernel.T, right, precision=Precision.HIGHEST)
        constant = jnp.matmul(v[None], hidden, precision=Precision.HIGHEST)
        return jnp.concatenate([(low + high) * constant, (high - low) * v[:, None] * hidden])

    return matmul


def pair_halves(
    kernel: Float[Array, "inputs hidden"],
    v: Float[Array, " hidden"],
    slopes: tuple[float, float] = (0.0, 1.0),
) -> tuple[Product, Product]:
    """`t -> A t` and `s -> A' s` for the A of `pair_matmul`.

    Args:
        kernel: As in `pair_matmul`.
        v: As in `pair_matmul`.
        slopes: As in `pair_matmul`.
    """
    low, high = slopes
    total, spread = low + high, high - low
    transposed = kernel.T  # made once: a product with the transpose takes twice as long

    def times(inputs: Array) -> Array:
        units = v * jnp.matmul(inputs, kernel, precision=Precision.HIGHEST)
        return jnp.concatenate([total * jnp.sum(units)[None], spread * units])

    def back(rows: Array) -> Array:
        weights = v * (total * rows[0] + spread * rows[1:])
        return jnp.matmul(weights, transposed, precision=Precision.HIGHEST)

    return times, back


def pair_matvec(
    kernel: Float[Array, "inputs hidden"],
    v: Float[Array, " hidden"],
    slopes: tuple[float, float] = (0.0, 1.0),
) -> Callable[[Float[Array, " rows+inputs"]], Float[Array, " rows+inputs"]]:
    """`z -> M z` for `M = [[0, A], [A', 0]]` with the A of `pair_matmul`, the rows of A first.

    Args:
        kernel: As in `pair_matmul`.
        v: As in `pair_matmul`.
        slopes: As in `pair_matmul`.

    >>> matvec = pair_matvec(jnp.array([[2.0], [3.0]]), jnp.array([1.0]))
    >>> matvec(jnp.array([1.0, 0.0, 1.0, 1.0]))
    Array([5., 5., 2., 3.], dtype=float32)
    """
    times, back = pair_halves(kernel, v, slopes)
    rows = 1 + len(v)

    def matvec(z: Array) -> Array:
        return jnp.concatenate([times(z[rows:]), back(z[:rows])])

    return matvec
