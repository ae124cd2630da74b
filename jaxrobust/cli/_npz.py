"""A network from an npz file of plain arrays."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from jaxrobust.layers import Conv, Dense, Flatten, Layer, Relu, Sigmoid

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
        raise ValueError(f"--layers: {path} is damaged or no npz file: {error}") from error
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
        layers += [between] if layers else []
        flat = any(isinstance(before, Dense) for before in layers)
        layers += [layer] if flat or isinstance(layer, Conv) else [Flatten(), layer]
    return layers


def _affine(
    kernel: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    strides: np.ndarray | None = None,
    padding: np.ndarray | None = None,
) -> Dense | Conv:
    if kernel is None or bias is None:
        raise ValueError("kernel and bias must both be there")
    for name, array in (("kernel", kernel), ("bias", bias)):
        if not (np.issubdtype(array.dtype, np.floating) and np.isfinite(array).all()):
            raise ValueError(f"{name} must hold finite floating-point numbers ({array.dtype})")
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
