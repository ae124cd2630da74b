"""What the commands share: models by name, data, attacks, certificates, one classifier's entry."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import shlex
import sys
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np

from jaxrobust import attacks, certify, data, evaluation, models, report
from jaxrobust.layers import Conv, Dense, Flatten, Layer, Relu, Sigmoid
from jaxrobust.threat import Ball
from jaxrobust.types import Attack, LogitsFn

ModelName = Literal["mlp", "small_cnn", "madry_cnn"]
NormName = Literal["linf", "l2", "l1"]

_DAMAGED = (
    ValueError, TypeError, AttributeError, KeyError, EOFError, NotImplementedError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""Whatever a file that is no sound npz makes `np.load` raise."""

EPS = {
    "digits": {"linf": 0.1, "l2": 0.5, "l1": 2.0},
    "mnist": {"linf": 0.1, "l2": 1.0, "l1": 5.0},
}
"""Radii used where none is given, of [0, 1]."""
OTHER_EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}


def default_eps(dataset: str, norm: str) -> float:
    """The radius used for a data set where none is given."""
    return EPS.get(dataset, OTHER_EPS)[norm]


def build(name: ModelName, num_classes: int) -> nn.Module:
    """A network by its name."""
    if name == "mlp":
        return models.mlp(num_classes=num_classes)
    return {"small_cnn": models.small_cnn, "madry_cnn": models.madry_cnn}[name](num_classes)


def explicit(module: nn.Module, variables: Any) -> list[Layer] | None:
    """The network's layers, where it is made of what certificates can read."""
    return module.layers(variables) if hasattr(module, "layers") else None  # pyright: ignore


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


@functools.cache  # the same objects each time, so that nothing is compiled twice
def standard_attacks(num_steps: int, num_restarts: int) -> dict[str, Attack]:
    """FGSM, BIM and PGD, in that order."""
    pgd = functools.partial(attacks.pgd, num_steps=num_steps, num_restarts=num_restarts)
    name = f"pgd-{num_steps}" + (f" x{num_restarts}" if num_restarts > 1 else "")
    return {"fgsm": attacks.fgsm, "bim-10": attacks.bim, name: pgd}


BOUNDS: dict[str, Callable[..., Any]] = {
    "interval": certify.interval,
    "spectral": certify.spectral,
    "frobenius": certify.frobenius,
}


def curve(
    logits_fn: LogitsFn,
    layers: Sequence[Layer] | None,
    test: data.Dataset,
    main: evaluation.Report,
    ball: Ball,
    key: Any,
    *,
    num_steps: int,
    **options: Any,
) -> report.Curve:
    """Accuracy against eps: PGD at rising radii above, certificates below.

    An example broken at one radius is broken at every larger one, so only survivors go on. What
    the main evaluation broke counts as well.
    """
    radii = [float(ball.eps * share) for share in (0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)]
    pgd = functools.partial(attacks.pgd, num_steps=num_steps)
    pinned = {f"pgd at {eps:g}": attacks.at_eps(pgd, eps) for eps in radii}
    widest = Ball(ball.norm, radii[-1], ball.box)
    found = evaluation.evaluate(
        logits_fn, (test.x, test.y), attacks=pinned, ball=widest, key=key, **options
    )
    nearest = np.minimum(found.examples["distance"], main.examples["distance"])
    found = dataclasses.replace(found, examples=found.examples | {"distance": nearest})
    grid = [0.0, *radii]
    certified: dict[str, list[float]] = {}
    if layers is not None:
        correct = found.examples["clean_correct"]
        for name, bound in BOUNDS.items():
            proof = certify.on_layers(bound, layers)
            certified[name] = [
                float(np.mean(correct & proof(
                    test.x, test.y, key=key, ball=Ball(ball.norm, eps, ball.box)
                ).certified))
                for eps in grid
            ]  # fmt: skip
    return report.Curve(grid, [float(a) for a in found.accuracy_at(np.array(grid))], certified)


def command_line() -> str:
    """The command as it was typed."""
    return "jaxrobust " + shlex.join(sys.argv[1:])


def fingerprint(settings: Any) -> str:
    """A short checksum of settings, for the name of a folder."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]


def key_of(seed: int, name: str) -> Any:
    """An independent key for each purpose of a run."""
    salt = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    return jax.random.fold_in(jax.random.key(seed), salt)


def made_at() -> str:
    """Now, for the report."""
    import datetime

    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def announce(folder: Path) -> None:
    """Say where the report lies."""
    from rich.console import Console

    Console().print(f"report: {folder / 'index.html'}", soft_wrap=True)
