"""Kernel densities of embeddings: 10,000 images against 1,000 points of each of ten classes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import joblib
import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.neighbors import KernelDensity

import jaxrobust as jr
from benchmarks._clock import Row, round_robin


@dataclasses.dataclass(frozen=True)
class Setting:
    """Embeddings of ten Gaussian classes.

    Attributes:
        num_queries: Images.
        num_points: Reference points of each class.
        dims: Numbers of an embedding.
        seed: Of all of them.
    """

    num_queries: int = 10_000
    num_points: int = 1000
    dims: int = 64
    seed: int = 0
    num_classes: int = 10
    bandwidth: float = 1.0

    @functools.cached_property
    def points(self) -> np.ndarray:
        """`(classes, points, dims)` float32."""
        rng = np.random.default_rng(self.seed)
        shape = (self.num_classes, self.num_points, self.dims)
        return (self._centres[:, None] + 0.5 * rng.normal(size=shape)).astype(np.float32)

    @functools.cached_property
    def queries(self) -> np.ndarray:
        """`(images, dims)` float32, a little wider than the points."""
        rng = np.random.default_rng(self.seed + 1)
        near = self._centres[rng.integers(self.num_classes, size=self.num_queries)]
        return (near + 0.6 * rng.normal(size=near.shape)).astype(np.float32)

    @functools.cached_property
    def exact(self) -> np.ndarray:
        """Log-densities of the first 50 queries, by the formula in float64."""
        columns = []
        for points in self.points.astype(np.float64):
            apart = np.sum((self.queries[:50, None].astype(np.float64) - points) ** 2, -1)
            columns.append(logsumexp(-apart / (2 * self.bandwidth**2), axis=1))
        size = self.dims / 2 * np.log(2 * np.pi * self.bandwidth**2) + np.log(self.num_points)
        return np.stack(columns, 1) - size

    @property
    def _centres(self) -> np.ndarray:
        return 2 * np.random.default_rng(self.seed + 2).normal(size=(self.num_classes, self.dims))


def of_class(points: Any, queries: Any, bandwidth: float, leaf_size: int) -> np.ndarray:
    """One class by scikit-learn."""
    tree = KernelDensity(bandwidth=bandwidth, leaf_size=leaf_size).fit(points)
    return tree.score_samples(queries)


def contenders(setting: Setting) -> dict[str, Callable[[], Any]]:
    """Ours, scikit-learn as it comes, in two processes, and in a single leaf, where it is exact."""
    labels = np.repeat(np.arange(setting.num_classes), setting.num_points)
    density = jr.detect.kernel_density(
        setting.points.reshape(-1, setting.dims), labels, num_classes=setting.num_classes,
        bandwidth=setting.bandwidth,
    )  # fmt: skip
    queries = jnp.asarray(setting.queries)
    theirs = [part.astype(np.float64) for part in (setting.points, setting.queries)]

    def scikit(leaf_size: int, processes: int) -> np.ndarray:
        job = joblib.delayed(of_class)
        jobs = (job(points, theirs[1], setting.bandwidth, leaf_size) for points in theirs[0])
        return np.stack(list(joblib.Parallel(n_jobs=processes)(jobs)), 1)

    return {
        "detect.kernel_density": lambda: density.raw(queries),
        "scikit-learn": lambda: scikit(40, 1),
        "scikit-learn, two processes": lambda: scikit(40, 2),
        "scikit-learn, one leaf": lambda: scikit(setting.num_points + 1, 1),
    }


def quality(setting: Setting, found: Any) -> dict[str, float]:
    """Largest error, in nats and relative to the log-density."""
    off = np.abs(np.asarray(found, np.float64)[:50] - setting.exact)
    return {"nats_off": float(off.max()), "share_off": float((off / np.abs(setting.exact)).max())}


def measure(setting: Setting, rounds: int) -> dict[str, list[Row]]:
    """The table."""
    title = f"{setting.num_queries} x {setting.num_points} x {setting.num_classes}"
    judge = functools.partial(quality, setting)
    return {f"{title}, {setting.dims} dims": round_robin(contenders(setting), judge, rounds)}


@pytest.fixture(scope="module")
def small() -> Setting:
    """Enough to show that all run; too little to time them by."""
    return Setting(num_queries=300, num_points=150)


def test_detect(benchmark: Any, small: Setting) -> None:
    """Ours is right to 1e-5, and so is scikit-learn where it prunes nothing."""
    runs = contenders(small)
    found = benchmark.pedantic(
        lambda: np.asarray(runs["detect.kernel_density"]()), rounds=3, warmup_rounds=1
    )
    assert quality(small, found)["share_off"] < 1e-5
    assert quality(small, runs["scikit-learn, one leaf"]())["share_off"] < 1e-9
