"""Forty PGD steps on the MNIST network against Foolbox and torchattacks; loops; convolutions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import foolbox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchattacks
from jax.tree_util import Partial

import jaxrobust as jr
from benchmarks._clock import Row, round_robin
from benchmarks._rivals import (
    from_torch,
    logits_gap,
    madry_network,
    to_torch,
    torch_madry_cnn,
    use_fastest_threads,
)

BALL = jr.Ball("linf", 0.3)
STEP = 0.01


@dataclasses.dataclass(frozen=True)
class Setting:
    """The network in both libraries, a batch, and how long to walk.

    Attributes:
        checkpoints: Folder with the run `adversarial`; fresh weights where None.
        batch_size: Images attacked at once.
        num_steps: PGD steps against the rivals.
        loop_steps: Steps of the loop that is compared with its unrolled self.
        seed: Of the attacks' random starts, and of fresh weights.
    """

    checkpoints: Path | None = None
    batch_size: int = 256
    num_steps: int = 40
    loop_steps: int = 10
    seed: int = 0

    @functools.cached_property
    def network(self) -> tuple[Any, Partial]:
        """Parameters and `logits_fn`."""
        return madry_network(self.checkpoints, "adversarial", self.seed)

    @functools.cached_property
    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """The first MNIST test images."""
        test = jr.data.load("mnist", "test")
        return test.x[: self.batch_size], test.y[: self.batch_size]


def rivals(setting: Setting) -> dict[str, Callable[[], Any]]:
    """PGD from a random start: ours, Foolbox's and torchattacks', the last two in NCHW."""
    params, logits_fn = setting.network
    x, y = (jnp.asarray(part) for part in setting.batch)
    key = jax.random.key(setting.seed)
    module = torch_madry_cnn(params)
    logits_gap(logits_fn, module, x)
    images, labels = to_torch(x), torch.from_numpy(np.array(y, np.int64))
    use_fastest_threads(module, images)
    torch.manual_seed(setting.seed)

    # `run` is the search alone; calling the attack would judge its images as well.
    wrapped = foolbox.PyTorchModel(module, bounds=BALL.box, device="cpu")
    by_foolbox = foolbox.attacks.LinfProjectedGradientDescentAttack(
        abs_stepsize=STEP, steps=setting.num_steps, random_start=True
    )
    criterion = foolbox.criteria.Misclassification(labels)
    by_torchattacks = torchattacks.PGD(
        module, eps=BALL.eps, alpha=STEP, steps=setting.num_steps, random_start=True
    )
    return {
        "jaxrobust": lambda: jr.attacks.pgd(
            logits_fn, x, y, key=key, ball=BALL, num_steps=setting.num_steps, step_size=STEP
        ),
        "foolbox": lambda: by_foolbox.run(wrapped, images, criterion, epsilon=BALL.eps),
        "torchattacks": lambda: by_torchattacks(images, labels),
    }


def loops(setting: Setting) -> dict[str, Callable[[], Any]]:
    """The attack's scan over steps, and the same update written out step after step."""
    _, logits_fn = setting.network
    x, y = (jnp.asarray(part) for part in setting.batch)
    key = jax.random.key(setting.seed)

    @jax.jit
    def unrolled(logits_fn: Partial, x: Any, y: Any) -> Any:
        model = jr.per_example(logits_fn)

        def one(x: Any, y: Any) -> Any:
            climb = jax.grad(lambda x_adv: jr.losses.cross_entropy(model(x_adv, key), y))
            x_adv = x
            for _ in range(setting.loop_steps):
                x_adv = BALL.project(x, BALL.step(x_adv, climb(x_adv), STEP))
            return x_adv

        return jax.vmap(one)(x, y)

    return {
        "scan": lambda: jr.attacks.pgd(
            logits_fn, x, y, key=key, ball=BALL, num_steps=setting.loop_steps, step_size=STEP,
            random_start=False,
        ),
        "unrolled": lambda: unrolled(logits_fn, x, y),
    }  # fmt: skip


def convolutions(setting: Setting) -> dict[str, Callable[[], Any]]:
    """The same scan with and without `gradients.canonical` around its pull-back."""
    _, logits_fn = setting.network
    x, y = (jnp.asarray(part) for part in setting.batch)

    def attack(gradient: Any) -> Any:
        return jr.attacks.pgd(
            logits_fn, x, y, key=jax.random.key(setting.seed), ball=BALL,
            num_steps=setting.loop_steps, step_size=STEP, random_start=False, gradient=gradient,
        )  # fmt: skip

    def plain(f: Any) -> Any:
        """`exact` by another name, so that its program is traced anew, under the patch."""
        return f

    def without() -> Any:
        with mock.patch("jaxrobust.gradients._vjp.canonical", lambda f: f):
            return attack(plain)

    return {"canonical": lambda: attack(jr.gradients.exact), "as differentiated": without}


TABLES = {"rivals": rivals, "loops": loops, "convolutions": convolutions}
"""What is compared with what."""


def quality(setting: Setting, x_adv: Any) -> dict[str, float]:
    """Mean final loss, images broken and largest distance, all judged by our network."""
    _, logits_fn = setting.network
    x, y = setting.batch
    x_adv = from_torch(x_adv) if isinstance(x_adv, torch.Tensor) else np.asarray(x_adv)
    logits = logits_fn(x_adv)
    return {
        "loss": float(jnp.mean(jax.vmap(jr.losses.cross_entropy)(logits, jnp.asarray(y)))),
        "broken": int(np.sum(np.argmax(logits, -1) != y)),
        "linf": float(np.max(np.abs(x_adv - x))),
    }


def measure(setting: Setting, rounds: int) -> dict[str, list[Row]]:
    """All tables."""
    judge = functools.partial(quality, setting)
    return {name: round_robin(make(setting), judge, rounds) for name, make in TABLES.items()}


@pytest.fixture(scope="module")
def small() -> Setting:
    """Enough to show that the contenders run and agree; too little to time them by."""
    return Setting(batch_size=32, num_steps=5, loop_steps=5)


@pytest.mark.parametrize("contender", ["jaxrobust", "foolbox", "torchattacks"])
def test_pgd(benchmark: Any, small: Setting, contender: str) -> None:
    """Each contender stays in the ball and raises the loss as the others do."""
    runs = rivals(small)
    x_adv = benchmark.pedantic(
        lambda: jax.block_until_ready(runs[contender]()), rounds=3, warmup_rounds=1
    )
    found, ours = quality(small, x_adv), quality(small, runs["jaxrobust"]())
    clean = quality(small, small.batch[0])
    assert found["linf"] <= BALL.eps + 1e-6
    assert found["loss"] > clean["loss"]
    assert found["loss"] == pytest.approx(ours["loss"], rel=0.2)


@pytest.mark.parametrize("table", ["loops", "convolutions"])
def test_the_same_images_either_way(small: Setting, table: str) -> None:
    """What is compared in time computes the same thing."""
    one, other = (np.asarray(run()) for run in TABLES[table](small).values())
    assert np.mean(np.abs(one - other) > 1e-5) <= 1e-3
