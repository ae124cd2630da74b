"""Smoothing on the MNIST network: averaged gradients against exact ones, votes against PyTorch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.tree_util import Partial

import jaxrobust as jr
from benchmarks._clock import Row, round_robin
from benchmarks._rivals import (
    logits_gap,
    madry_network,
    to_torch,
    torch_madry_cnn,
    use_fastest_threads,
)

BALL = jr.Ball("l2", 2.0)
SIGMA = 0.2


@dataclasses.dataclass(frozen=True)
class Setting:
    """The network, a batch, how many gradients, and how many votes.

    Attributes:
        checkpoints: Folder with the run `adversarial`; fresh weights where None.
        batch_size: Images attacked at once.
        num_samples: Noise draws averaged in one smoothed gradient.
        num_steps: Smoothed steps; the exact attack takes `num_samples` times as many.
        num_certified: Images certified.
        num_votes: Noisy copies of each.
        seed: Of the noise, and of fresh weights.
    """

    checkpoints: Path | None = None
    batch_size: int = 32
    num_samples: int = 10
    num_steps: int = 2
    num_certified: int = 20
    num_votes: int = 10_000
    seed: int = 0

    @functools.cached_property
    def network(self) -> tuple[Any, Partial]:
        """Parameters and `logits_fn`."""
        return madry_network(self.checkpoints, "adversarial", self.seed)

    @property
    def logits_fn(self) -> Partial:
        """The network."""
        return self.network[1]

    @functools.cached_property
    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """The first MNIST test images."""
        test = jr.data.load("mnist", "test")
        return test.x[: self.batch_size], test.y[: self.batch_size]


def contenders(setting: Setting) -> dict[str, Callable[[], Any]]:
    """Equally many gradients of the model: exact ones in turn, or averaged `num_samples` a step.

    And exact ones of `num_samples` copies of every image at once, which tells what the larger batch
    costs apart from the noise.
    """
    x, y = (jnp.asarray(part) for part in setting.batch)
    copies = [jnp.repeat(part, setting.num_samples, axis=0) for part in (x, y)]
    key = jax.random.key(setting.seed)
    exact = functools.partial(jr.attacks.pgd, random_start=False, key=key, ball=BALL)
    smoothed = functools.partial(
        jr.attacks.second_order, sigma=SIGMA, num_steps=setting.num_steps,
        num_samples=setting.num_samples,
    )  # fmt: skip
    return {
        "exact": lambda: exact(
            setting.logits_fn, x, y, num_steps=setting.num_samples * setting.num_steps
        ),
        "smoothed": lambda: smoothed(setting.logits_fn, x, y, key=key, ball=BALL),
        "exact, of copies": lambda: exact(setting.logits_fn, *copies, num_steps=setting.num_steps)[
            :: setting.num_samples
        ],
    }


def quality(setting: Setting, x_adv: Any) -> dict[str, float]:
    """Mean final loss, images broken and largest distance."""
    x, y = setting.batch
    logits = setting.logits_fn(x_adv)
    distances = jax.vmap(BALL.distance)(jnp.asarray(x), jnp.asarray(x_adv))
    return {
        "loss": float(jnp.mean(jax.vmap(jr.losses.cross_entropy)(logits, jnp.asarray(y)))),
        "broken": int(np.sum(np.argmax(logits, -1) != y)),
        "l2": float(jnp.max(distances)),
    }


def votes(setting: Setting) -> dict[str, Callable[[], np.ndarray]]:
    """Votes of each class for noisy copies of the first images, here and in PyTorch.

    PyTorch goes image by image in batches of 512, counts on the device, and takes one thread or
    one a core, whichever is faster.
    """
    x = setting.batch[0][: setting.num_certified]
    module = torch_madry_cnn(setting.network[0])
    logits_gap(setting.logits_fn, module, x)
    images = to_torch(x)
    piece = min(512, setting.num_votes)
    use_fastest_threads(module, images[:1].repeat(piece, 1, 1, 1))

    def ours() -> np.ndarray:
        found = jr.certify.smoothing(
            setting.logits_fn, x, key=jax.random.key(setting.seed), sigma=SIGMA, n0=0,
            n=setting.num_votes, alpha=0.05, interval="bonferroni",
        )  # fmt: skip
        return found.counts

    def theirs() -> np.ndarray:
        torch.manual_seed(setting.seed)
        counts = torch.zeros(len(images), 10, dtype=torch.int64)
        with torch.inference_mode():
            for row, image in enumerate(images):
                for start in range(0, setting.num_votes, piece):
                    size = min(piece, setting.num_votes - start)
                    noisy = image + SIGMA * torch.randn(size, *image.shape)
                    counts[row] += torch.bincount(module(noisy).argmax(1), minlength=10)
        return counts.numpy()

    return {"jaxrobust": ours, "pytorch": theirs}


def agreement(counts: np.ndarray) -> dict[str, float]:
    """Votes counted, and the mean share of the winner."""
    return {
        "votes": int(counts.sum()),
        "winner_share": float(np.mean(counts.max(1) / counts.sum(1))),
    }


def measure(setting: Setting, rounds: int) -> dict[str, list[Row]]:
    """Both tables."""
    judge = functools.partial(quality, setting)
    return {
        "smoothed gradients": round_robin(contenders(setting), judge, rounds),
        "votes": round_robin(votes(setting), agreement, min(rounds, 3)),
    }


@pytest.fixture(scope="module")
def small() -> Setting:
    """Enough to show that the contenders run; too little to time them by."""
    return Setting(batch_size=4, num_samples=3, num_steps=1, num_certified=2, num_votes=300)


@pytest.mark.parametrize("contender", ["exact", "smoothed", "exact, of copies"])
def test_attack(benchmark: Any, small: Setting, contender: str) -> None:
    """Each contender stays in the ball and raises the loss."""
    run = contenders(small)[contender]
    x_adv = benchmark.pedantic(lambda: jax.block_until_ready(run()), rounds=2, warmup_rounds=1)
    found = quality(small, x_adv)
    assert found["l2"] <= BALL.eps * (1 + 1e-5)
    assert found["loss"] > quality(small, small.batch[0])["loss"]


def test_one_smoothed_gradient_is_the_mean_of_exact_ones(small: Setting) -> None:
    """What is compared in time is the same work: gradients at `num_samples` noisy images."""
    x, y = (jnp.asarray(part[0]) for part in small.batch)
    model = jr.per_example(small.logits_fn)
    loss = lambda x, key: jr.losses.cross_entropy(model(x, key), y)
    key = jax.random.key(small.seed)
    estimate = jr.gradients.smoothed(SIGMA, small.num_samples)(loss)
    value, pullback = jr.gradients.vjp(estimate, x, key)
    one_by_one = []
    for draw in jax.random.split(key, small.num_samples):
        noise = jax.random.normal(jax.random.split(draw)[0], x.shape)
        one_by_one.append(jax.grad(loss)(x + SIGMA * noise, key))
    mean = jnp.mean(jnp.stack(one_by_one), 0)
    np.testing.assert_allclose(pullback(jnp.ones_like(value)), mean, rtol=1e-3, atol=1e-6)


def test_votes_agree(small: Setting) -> None:
    """Both libraries draw other noise from the same distribution: shares differ by chance only."""
    shares = [run() / small.num_votes for run in votes(small).values()]
    assert all(share.sum(1) == pytest.approx(1.0) for share in shares)
    spread = 4 * np.sqrt(0.5 / small.num_votes)  # four deviations of a difference of shares of 1/2
    assert np.abs(shares[0] - shares[1]).max() < spread
