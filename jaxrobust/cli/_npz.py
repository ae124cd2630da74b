"""A network from an npz file of plain arrays."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxrobust.layers import Conv, Dense, Flatten, Layer, Relu, Sigmoid

TRANSPOSED = " (is it transposed? A kernel is (inputs, outputs), PyTorch's weight.T)"

_DAMAGED = (
    ValueError, TypeError, AttributeError, KeyError, EOFError, NotImplementedError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""Whatever a file that is no sound npz makes `np.load` raise."""


def read_layers(path: Path, activation: str) -> list[Layer]:
    """A network from an npz file of plain arrays.

    Layer by layer in rising order of N, whose gaps mean nothing: `N.kernel` of shape (inputs,
    outputs) is a `Dense`, of shape (height, width, inputs, outputs) a `Conv` over NHWC images;
    `N.bias` is `(outputs,)`; a convolution may have `N.strides`, two integers, and `N.padding`,
    "SAME" or "VALID" (1, 1 and SAME where not given). The activation stands between any two layers
    and a `Flatten` in front of the first `Dense`.

    Args:
        path: The file.
        activation: "relu" or "sigmoid".

    Raises:
        ValueError: If there is no such file, or it holds anything else.
    """
    try:
        # Members of another kind than arrays come as bytes, files of one array as that array.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: np.asarray(stored[name]) for name in stored.files}
    except OSError as error:
        raise ValueError(f"--layers: {path} cannot be read: {error.strerror or error}") from error
    except _DAMAGED as error:
        raise ValueError(
            f"--layers: {path} is no npz file, as numpy.savez writes them, or damaged"
        ) from error
    parts: dict[int, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        found = re.fullmatch(r"(0|[1-9]\d{0,8})\.(kernel|bias|strides|padding)", name)
        if found is None:
            raise ValueError(
                f"--layers: {path} must hold arrays N.kernel, N.bias, N.strides and N.padding; "
                f"got {name!r}"
            )
        parts.setdefault(int(found[1]), {})[found[2]] = array
    if not parts:
        raise ValueError(f"--layers: {path} holds no arrays")
    between = {"relu": Relu(), "sigmoid": Sigmoid()}[activation]
    layers: list[Layer] = []
    for number, own in sorted(parts.items()):
        try:
            layer = _affine(**own)  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError) as error:
            raise ValueError(f"--layers: {path}, layer {number}: {error}") from error
        _check_fits(path, number, layer, layers)
        layers += [between] if layers else []
        flat = any(isinstance(before, Dense) for before in layers)
        layers += [layer] if flat or isinstance(layer, Conv) else [Flatten(), layer]
    return layers


def _check_fits(path: Path, number: int, layer: Dense | Conv, before: list[Layer]) -> None:
    """Refuse a dense layer that does not take what the dense layer in front of it gives."""
    last = before[-1] if before else None
    if not (isinstance(last, Dense) and isinstance(layer, Dense)):
        return
    (inputs, outputs), given = layer.kernel.shape, last.kernel.shape[1]
    if inputs != given:
        hint = TRANSPOSED if outputs == given else ""
        raise ValueError(
            f"--layers: {path}, layer {number}: kernel has {inputs} inputs, but the layer in front "
            f"has {given} outputs{hint}"
        )


def _affine(
    kernel: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    strides: np.ndarray | None = None,
    padding: np.ndarray | None = None,
) -> Dense | Conv:
    if kernel is None or bias is None:
        raise ValueError("kernel and bias must both be there")
    for name, array in (("kernel", kernel), ("bias", bias)):
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{name} must hold floating-point numbers; got {array.dtype}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must hold finite numbers; got NaN or infinite ones")
    if kernel.ndim in (2, 4) and bias.shape != kernel.shape[-1:]:
        hint = TRANSPOSED if kernel.ndim == 2 and bias.shape == kernel.shape[:1] else ""
        raise ValueError(
            f"bias must have shape {kernel.shape[-1:]} for a kernel of shape {kernel.shape}; got "
            f"{bias.shape}{hint}"
        )
    if kernel.ndim == 2 and strides is None and padding is None:
        return Dense(kernel, bias)
    if kernel.ndim != 4:
        raise ValueError(
            "kernel must have shape (inputs, outputs), without strides and padding, or (height, "
            f"width, inputs, outputs); got {kernel.shape}"
        )
    steps = np.ones(2, int) if strides is None else strides
    if steps.shape != (2,) or not np.issubdtype(steps.dtype, np.integer):
        raise ValueError(f"strides must be two integers; got {steps.tolist()}")
    form: Any = "SAME" if padding is None else str(padding)
    return Conv(kernel, bias, (int(steps[0]), int(steps[1])), form)
