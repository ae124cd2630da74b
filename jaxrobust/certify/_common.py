"""What every bound on an explicit network begins with: reading it, and refusing what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from jaxrobust import checks
from jaxrobust.layers import Conv, Dense, Flatten, Layer, Relu, Sigmoid
from jaxrobust.linalg import as_float64
from jaxrobust.threat import NORMS, Box

ROUNDING = (
    "float64 rounding is subtracted throughout, so this holds for the network in real arithmetic "
    "with these weights; its evaluation in float32 is not covered"
)

TRANSPOSED = ": is the kernel transposed? It is (inputs, outputs), PyTorch's weight.T"

_FLOATS_AT_ONCE = 2**22  # 32 MiB for the largest array of a chunk


class Problem(NamedTuple):
    """A network and its examples on the host, in float64.

    Attributes:
        hidden: All layers but the last `Dense`.
        last: The last `Dense`, which is bounded through the differences of its columns.
        shapes: Shape of one example in front of each hidden layer, and in front of the last.
        x: `(batch, *dims)`.
        y: `(batch,)`.
        eps: Radius.
    """

    hidden: list[Layer]
    last: Dense
    shapes: list[tuple[int, ...]]
    x: np.ndarray
    y: np.ndarray
    eps: float


def read(
    layers: Sequence[Layer], x: Any, y: Any, eps: Any, norm: str, box: Box | None = None
) -> Problem:
    """Check the arguments of a bound and bring them to float64.

    A network that does not end in `Dense` gets the identity as its last layer.

    Raises:
        ValueError: For traced arrays, unknown or misshapen layers, weights that are not finite,
            images outside the box, labels out of range, an unknown norm, and a radius that is not
            one finite number >= 0.
    """
    network = on_host(layers)
    for name, value in (("x", x), ("y", y), ("eps", eps)):
        refuse_tracers(name, value)
    if norm not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {norm!r}")
    if not (box is None or (isinstance(box, Box) and -math.inf < box.low <= box.high < math.inf)):
        raise ValueError(f"box must be a Box(low, high) of finite numbers; got {box!r}")
    checks.check_images(x, Box(-math.inf, math.inf) if box is None else box)
    shapes = _shapes(network, tuple(x.shape[1:]))
    if len(shapes[-1]) != 1 or shapes[-1][0] < 2:
        raise ValueError(
            "layers must return logits of shape (batch, classes) with at least 2 classes; "
            f"for x of shape {x.shape} they return (batch, {', '.join(map(str, shapes[-1]))})"
        )
    classes = shapes[-1][0]
    checks.check_labels(y, x.shape[0], classes)
    last = network[-1]
    if not isinstance(last, Dense):
        last = Dense(np.eye(classes), np.zeros(classes))
        network, shapes = [*network, last], [*shapes, (classes,)]
    return Problem(network[:-1], last, shapes[:-1], as_float64(x, "x"), np.asarray(y), _radius(eps))


def on_host(layers: Sequence[Layer]) -> list[Layer]:
    """The layers in float64.

    Raises:
        ValueError: For traced arrays, weights that are not finite, and anything that is no sequence
            of layers.
    """
    if isinstance(layers, Layer) or not isinstance(layers, Sequence) or len(layers) == 0:
        hint = "; a model's own layers(variables) reads it" if isinstance(layers, Mapping) else ""
        came = "an empty one" if layers in ([], ()) else f"a {type(layers).__name__}"
        raise ValueError(f"layers must be a sequence of at least one layer; got {came}{hint}")
    refuse_tracers("layers", layers)
    return [_to_host(layer, f"layers[{i}]") for i, layer in enumerate(layers)]


def in_chunks(problem: Problem) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """The examples, as many at once as memory should hold: `(rows, x[rows], y[rows])`."""
    step = rows_at_once(problem)
    for start in range(0, len(problem.x), step):
        rows = slice(start, start + step)
        yield rows, problem.x[rows], problem.y[rows]


def rows_at_once(problem: Problem) -> int:
    """For how many rows memory should hold the values of any one layer."""
    sizes = [math.prod(shape) for shape in problem.shapes]
    for i, layer in enumerate(problem.hidden):
        if isinstance(layer, Conv):  # one patch for each position of the output
            height, width, _ = problem.shapes[i + 1]
            sizes.append(height * width * math.prod(layer.kernel.shape[:3]))
    return max(1, _FLOATS_AT_ONCE // max(sizes))


def padding_of(size: int, kernel: int, stride: int, padding: str) -> tuple[int, int, int]:
    """Output length, and zeros in front and behind, of a convolution along one axis.

    >>> padding_of(28, 5, 2, "SAME"), padding_of(28, 5, 2, "VALID")
    ((14, 1, 2), (12, 0, 0))
    """
    if padding == "VALID":
        return (size - kernel) // stride + 1, 0, 0
    out = -(-size // stride)
    total = max((out - 1) * stride + kernel - size, 0)
    return out, total // 2, total - total // 2


def refuse_tracers(name: str, value: Any) -> None:
    """Refuse arguments that are traced: certificates need concrete numbers."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value)):
        raise ValueError(
            f"{name} is traced (jit, vmap, grad), but a certificate runs on the host in float64: "
            "call it outside the transformation, with concrete arrays"
        )


def _radius(eps: Any) -> float:
    if np.ndim(eps) != 0:
        raise ValueError(
            f"eps must be a single number, since a MarginBound speaks of one radius; got shape "
            f"{np.shape(eps)}"
        )
    checks.check_radius(eps, "eps")
    return float(eps)


def _to_host(layer: Any, name: str) -> Layer:
    """The layer with float64 NumPy arrays; an error for anything that is no layer."""
    match layer:
        case Dense(kernel, bias):
            layer = Dense(as_float64(kernel, f"{name}.kernel"), as_float64(bias, f"{name}.bias"))
            rank, form = 2, "(inputs, outputs)"
        case Conv(kernel, bias, strides, padding):
            if padding not in ("SAME", "VALID"):
                raise ValueError(f"{name}.padding must be SAME or VALID; got {padding!r}")
            steps = strides if isinstance(strides, Sequence) else ()
            if len(steps) != 2 or not all(isinstance(s, int) and s >= 1 for s in steps):
                raise ValueError(f"{name}.strides must be two integers >= 1; got {strides!r}")
            layer = Conv(
                as_float64(kernel, f"{name}.kernel"), as_float64(bias, f"{name}.bias"),
                strides, padding,
            )  # fmt: skip
            rank, form = 4, "(height, width, inputs, outputs)"
        case Relu() | Sigmoid() | Flatten():
            return layer
        case _:
            raise ValueError(
                f"{name} must be a Dense, Conv, Relu, Sigmoid or Flatten; got "
                f"{type(layer).__name__}"
            )
    if layer.kernel.ndim != rank or layer.kernel.size == 0:
        raise ValueError(f"{name}.kernel must have shape {form}; got {layer.kernel.shape}")
    for part in ("kernel", "bias"):
        bad = np.argwhere(~np.isfinite(getattr(layer, part)))
        if len(bad):
            raise ValueError(
                f"{name}.{part} must be finite; entry {tuple(bad[0].tolist())} of "
                f"{getattr(layer, part).shape} is {getattr(layer, part)[tuple(bad[0])]}"
            )
    if layer.bias.shape != layer.kernel.shape[-1:]:
        hint = TRANSPOSED if rank == 2 and layer.bias.shape == layer.kernel.shape[:1] else ""
        raise ValueError(
            f"{name}.bias must have shape {layer.kernel.shape[-1:]}, one number for each output "
            f"of its kernel; got {layer.bias.shape}{hint}"
        )
    return layer


def _shapes(network: Sequence[Layer], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shape of one example in front of each layer and behind the last."""
    shapes = [shape]
    for i, layer in enumerate(network):
        hint = ""
        match layer:
            case Dense(kernel, _):
                wanted, fits = f"({kernel.shape[0]},)", shape == kernel.shape[:1]
                if len(shape) > 1 and math.prod(shape) == kernel.shape[0]:
                    hint = ": put Flatten() in front"
                elif math.prod(shape) == kernel.shape[1]:
                    hint = TRANSPOSED
                shape = kernel.shape[1:]
            case Conv(kernel, _, strides, padding):
                height, width, channels, outputs = kernel.shape
                wanted = f"(height, width, {channels})"
                fits = len(shape) == 3 and shape[2] == channels
                if padding == "VALID":
                    wanted += f" of at least {height} x {width}"
                    fits = fits and all(np.greater_equal(shape[:2], (height, width)))
                if fits:
                    axes = zip(shape[:2], (height, width), strides, strict=True)
                    shape = (*(padding_of(*axis, padding)[0] for axis in axes), outputs)
            case Flatten():
                wanted, fits, shape = "", True, (math.prod(shape),)
            case _:
                wanted, fits = "", True
        if not fits:
            raise ValueError(
                f"layers[{i}] ({type(layer).__name__}) takes examples of shape {wanted}; with x of "
                f"shape (batch, {', '.join(map(str, shapes[0]))}) it gets {shapes[-1]}{hint}"
            )
        shapes.append(shape)
    return shapes
