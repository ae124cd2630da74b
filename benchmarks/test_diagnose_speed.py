"""How long `diagnose` takes on MNIST networks, the first time and once it is compiled."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import jaxrobust as jr
from benchmarks._rivals import madry_network
from benchmarks.test_parity import digits_mlp

NETWORKS = ("natural", "adversarial")
MOST = 300.0
"""Seconds that a diagnosis of 500 images may take on two cores, compilation included."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is diagnosed.

    Attributes:
        checkpoints: Folder with the runs of `experiments.madry_mnist`.
        num_images: The first so many of the test set's second half.
        eps: Radius in linf.
        seed: Of all draws.
    """

    checkpoints: Path
    num_images: int = 500
    eps: float = 0.3
    seed: int = 0


def measure(setting: Setting) -> Mapping[str, list[dict[str, Any]]]:
    """A row for each network; the first pays for compilation, which the second shares."""
    test = jr.data.load("mnist", "test[5000:]")
    x, y = test.x[: setting.num_images], test.y[: setting.num_images]
    rows = []
    for name in NETWORKS:
        _, logits_fn = madry_network(setting.checkpoints, name, setting.seed)
        rows.append({"network": name, **timed(logits_fn, x, y, setting.eps, setting.seed)})
    return {f"{setting.num_images} images of MNIST, linf {setting.eps:g}": rows}


def timed(logits_fn: Any, x: np.ndarray, y: np.ndarray, eps: float, seed: int) -> dict[str, Any]:
    """Seconds of a diagnosis, and what it says."""
    begun = time.perf_counter()
    found = jr.diagnose(logits_fn, x, y, key=jax.random.key(seed), ball=jr.Ball("linf", eps))
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds, "in_time": seconds < MOST, "clean_accuracy": found.clean_accuracy,
        "warnings": ", ".join(one.name for one in found.warnings) or "none",
    }  # fmt: skip


@pytest.mark.parametrize("eps", [0.1])
def test_a_diagnosis_is_told(eps: float) -> None:
    """On a small honest network."""
    setting = digits_mlp()
    row = timed(setting.logits_fn, setting.x[:40], setting.y[:40], eps, 0)
    assert row["warnings"] == "none"
    assert row["clean_accuracy"] > 0.8
