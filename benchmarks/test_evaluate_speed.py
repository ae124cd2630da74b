"""`evaluate`, which attacks survivors only, against every attack on every image."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import jaxrobust as jr
from benchmarks._clock import Row, round_robin
from benchmarks._rivals import madry_network

BALL = jr.Ball("linf", 0.3)
NETWORKS = ("natural", "adversarial")

CHECKPOINTS = "JAXROBUST_CHECKPOINTS"
"""Environment variable of the tests: folder with both runs of `experiments.madry_mnist`."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is evaluated.

    Attributes:
        checkpoints: Folder with the runs `natural` and `adversarial`.
        num_images: MNIST test images, the first ones.
        batch_size: Rows at once.
        num_steps: PGD steps; BIM takes a quarter of them.
        seed: Of the attacks.
    """

    checkpoints: Path
    num_images: int = 2000
    batch_size: int = 256
    num_steps: int = 40
    seed: int = 0

    @functools.cached_property
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels."""
        test = jr.data.load("mnist", "test")
        return test.x[: self.num_images], test.y[: self.num_images]

    @functools.cached_property
    def attacks(self) -> dict[str, Any]:
        """From weak to strong."""
        return {
            "fgsm": jr.attacks.fgsm,
            "bim": functools.partial(jr.attacks.bim, num_steps=max(1, self.num_steps // 4)),
            "pgd": functools.partial(jr.attacks.pgd, num_steps=self.num_steps, step_size=0.01),
        }


def every_attack_on_every_image(
    logits_fn: Partial, data: tuple[Any, Any], attacks: Mapping[str, Any], key: Any, size: int
) -> float:
    """Robust accuracy by plain calls in batches of one shape; the draws are those of `evaluate`."""
    x, y = data
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(y)))
    standing = np.ones(len(y), bool)
    for start in range(0, len(y), size):
        rows = np.arange(start, min(start + size, len(y)))
        padded = rows[np.arange(size) % len(rows)]
        batch, labels = jnp.asarray(x[padded]), jnp.asarray(y[padded])
        right = _right(logits_fn, batch, labels)
        for name, attack in attacks.items():
            draws = jr.attacks.salted(keys[padded], name)
            x_adv = attack(logits_fn, batch, labels, key=draws, ball=BALL)
            right &= _right(logits_fn, x_adv, labels)
        standing[rows] = np.asarray(right)[: len(rows)]
    return float(standing.mean())


@jax.jit
def _right(logits_fn: Partial, x: Any, y: Any) -> Any:
    return jnp.argmax(logits_fn(x), -1) == y


def contenders(setting: Setting, which: str) -> dict[str, Callable[[], float]]:
    """Both ways to the robust accuracy of one network."""
    _, logits_fn = madry_network(setting.checkpoints, which, setting.seed)
    key = jax.random.key(setting.seed)

    def evaluate() -> float:
        report = jr.evaluate(
            logits_fn, setting.data, attacks=setting.attacks, ball=BALL, key=key,
            batch_size=setting.batch_size,
        )  # fmt: skip
        return report.robust_accuracy

    def plain() -> float:
        return every_attack_on_every_image(
            logits_fn, setting.data, setting.attacks, key, setting.batch_size
        )

    return {"evaluate, survivors only": evaluate, "every attack on every image": plain}


def measure(setting: Setting, rounds: int) -> dict[str, list[Row]]:
    """One table a network."""

    def quality(accuracy: float) -> dict[str, float]:
        return {"robust_accuracy": accuracy}

    return {name: round_robin(contenders(setting, name), quality, rounds) for name in NETWORKS}


@pytest.mark.skipif(CHECKPOINTS not in os.environ, reason=f"needs trained networks: {CHECKPOINTS}")
@pytest.mark.parametrize("which", NETWORKS)
def test_same_robust_accuracy(benchmark: Any, which: str) -> None:
    """Leaving out the fallen changes the work, not the answer."""
    setting = Setting(Path(os.environ[CHECKPOINTS]), num_images=48, batch_size=16, num_steps=4)
    ways = contenders(setting, which)
    evaluate, plain = ways.values()
    found = benchmark.pedantic(evaluate, rounds=1, warmup_rounds=1)
    assert abs(found - plain()) * setting.num_images <= 1 + 1e-6
