"""What the commands share: models and radii by name, attacks, accuracy against eps."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np

from jaxrobust import attacks, data, evaluation, models, report
from jaxrobust.layers import Layer
from jaxrobust.threat import Ball
from jaxrobust.types import Attack, LogitsFn, MarginBound

ModelName = Literal["mlp", "small_cnn", "madry_cnn"]
NormName = Literal["linf", "l2", "l1"]

EPS = {
    "digits": {"linf": 0.1, "l2": 0.5, "l1": 2.0},
    "mnist": {"linf": 0.1, "l2": 1.0, "l1": 5.0},
}
"""Radii used where none is given, of [0, 1]."""
OTHER_EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0}


def default_eps(dataset: str, norm: str) -> float:
    """The radius used for a data set where none is given."""
    return EPS.get(dataset, OTHER_EPS)[norm]


@functools.cache  # one module, so that networks of one architecture share compiled programs
def build(name: ModelName, num_classes: int) -> nn.Module:
    """A network by its name."""
    if name == "mlp":
        return models.mlp(num_classes=num_classes)
    return {"small_cnn": models.small_cnn, "madry_cnn": models.madry_cnn}[name](num_classes)


def explicit(module: nn.Module, variables: Any) -> list[Layer] | None:
    """The network's layers, where it is made of what certificates can read."""
    return module.layers(variables) if hasattr(module, "layers") else None  # pyright: ignore


@functools.cache  # the same objects each time, so that nothing is compiled twice
def standard_attacks(num_steps: int, num_restarts: int) -> dict[str, Attack]:
    """FGSM, BIM and PGD, in that order."""
    pgd = functools.partial(attacks.pgd, num_steps=num_steps, num_restarts=num_restarts)
    name = f"pgd-{num_steps}" + (f" x{num_restarts}" if num_restarts > 1 else "")
    return {"fgsm": attacks.fgsm, "bim-10": attacks.bim, name: pgd}


def curve(
    logits_fn: LogitsFn,
    bounds: Mapping[str, Callable[..., MarginBound]],
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
    correct = found.examples["clean_correct"]
    balls = [Ball(ball.norm, eps, ball.box) for eps in grid]
    certified = {
        name: [
            float(np.mean(correct & bound(test.x, test.y, key=key, ball=at).certified))
            for at in balls
        ]
        for name, bound in bounds.items()
    }
    return report.Curve(grid, [float(a) for a in found.accuracy_at(np.array(grid))], certified)


def check_out(folder: Path) -> None:
    """Refuse a file where a folder is to be."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out must be a folder; {folder} is a file")


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
