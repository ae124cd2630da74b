"""A training step of each method on an MNIST network: Madry's in PyTorch too, and shares of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

import jaxrobust as jr
from benchmarks._clock import Row, round_robin
from benchmarks._rivals import (
    logits_gap,
    madry_network,
    to_torch,
    torch_madry_cnn,
    use_fastest_threads,
)
from jaxrobust.types import Batch

BALL = jr.Ball("linf", 0.3)
STEP, RATE = 0.01, 1e-4


@dataclasses.dataclass(frozen=True)
class Setting:
    """The network, a batch, and how long attacks are.

    Attributes:
        checkpoints: Folder with the run `adversarial`; fresh weights where None.
        batch_size: Images of a step.
        num_steps: PGD steps against PyTorch.
        long_steps: PGD steps, or YOPO's passes times steps over five, against which shares count.
        seed: Of random starts, and of fresh weights.
    """

    checkpoints: Path | None = None
    batch_size: int = 128
    num_steps: int = 10
    long_steps: int = 40
    seed: int = 0

    @functools.cached_property
    def params(self) -> Any:
        """Of the network."""
        return madry_network(self.checkpoints, "adversarial", self.seed)[0]

    @functools.cached_property
    def batch(self) -> Batch:
        """The first MNIST training images."""
        found = jr.data.load("mnist", f"train[:{self.batch_size}]")
        rows = jnp.arange(self.batch_size)
        return Batch(jnp.asarray(found.x), jnp.asarray(found.y, jnp.int32), rows)


def step_of(setting: Setting, objective: jr.Objective) -> Callable[[], Any]:
    """One compiled step, its Adam included, always from the same weights; returns the loss."""
    optimizer = optax.adam(RATE)
    key = jax.random.key(setting.seed)
    params = jax.tree.map(jnp.asarray, setting.params)
    state = objective.init(params, key)

    @jax.jit
    def step(params: Any, opt_state: Any, state: Any, batch: Batch) -> Any:
        out, grads = objective.value_and_grad(params, {}, state, batch, key=key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return out.loss, optax.apply_updates(params, updates), opt_state, out.state

    return lambda: step(params, optimizer.init(params), state, setting.batch)[0]


def pgd(num_steps: int) -> Callable[..., Any]:
    """As published for MNIST."""
    return functools.partial(jr.attacks.pgd, num_steps=num_steps, step_size=STEP)


def rivals(setting: Setting) -> dict[str, Callable[[], Any]]:
    """Madry's step, and the same written in PyTorch: random start, signs, Adam."""
    forward = jr.objectives.from_module(jr.models.madry_cnn().apply)
    ours = jr.objectives.madry(forward, pgd(setting.num_steps), ball=BALL)
    module = torch_madry_cnn(setting.params)
    network = jax.tree_util.Partial(jr.models.madry_cnn().apply, {"params": setting.params})
    logits_gap(network, module, setting.batch.x)
    images = to_torch(setting.batch.x)
    labels = torch.from_numpy(np.array(setting.batch.y, np.int64))
    use_fastest_threads(module, images)
    start = {name: value.clone() for name, value in module.state_dict().items()}
    loss_of = torch.nn.functional.cross_entropy

    def theirs() -> torch.Tensor:
        module.load_state_dict(start)
        module.requires_grad_(False)
        x_adv = (images + torch.empty_like(images).uniform_(-BALL.eps, BALL.eps)).clamp(0, 1)
        for _ in range(setting.num_steps):
            x_adv.requires_grad_()
            (slope,) = torch.autograd.grad(loss_of(module(x_adv), labels), x_adv)
            x_adv = x_adv.detach() + STEP * slope.sign()
            x_adv = images + (x_adv - images).clamp(-BALL.eps, BALL.eps)
            x_adv = x_adv.clamp(0, 1)
        module.requires_grad_(True)
        optimizer = torch.optim.Adam(module.parameters(), lr=RATE)
        loss = loss_of(module(x_adv), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    torch.manual_seed(setting.seed)
    return {"jaxrobust": step_of(setting, ours), "PyTorch": theirs}


def shares(setting: Setting) -> dict[str, Callable[[], Any]]:
    """Against a step of PGD-40: YOPO-5-10 and others that seek the same at less."""
    o, model = jr.objectives, jr.models.madry_cnn()
    forward = o.from_module(model.apply)
    steps = setting.long_steps
    one = functools.partial(jr.attacks.pgd, num_steps=1, step_size=1.25 * BALL.eps)
    margins = functools.partial(jr.attacks.adaptive_norm_pgd, num_steps=steps, search="soft_margin")
    return {
        name: step_of(setting, objective)
        for name, objective in {
            f"PGD-{steps}": o.madry(forward, pgd(steps), ball=BALL),
            f"YOPO-5-{steps // 4}": o.yopo(
                *o.from_split_module(model), 5, steps // 4, ball=BALL, step_size=STEP
            ),
            f"TRADES-{steps}": o.trades(forward, pgd(steps), ball=BALL, beta=1.0),
            f"MMA-{steps}": o.mma(forward, margins, num_examples=setting.batch_size),
            "fast": o.madry(forward, one, ball=BALL),
            "free, one of its repeats": o.free(forward, ball=BALL, shape=setting.batch.x.shape),
        }.items()
    }


def regularisers(setting: Setting) -> dict[str, Callable[[], Any]]:
    """Against a natural step."""
    o = jr.objectives
    forward = o.from_module(jr.models.madry_cnn().apply)
    natural = o.cross_entropy(forward)
    return {"natural": step_of(setting, natural)} | {
        f"with {name}": step_of(setting, o.add(natural, regulariser))
        for name, regulariser in {
            "input gradient": o.input_gradient(forward),
            "Jacobian, one projection": o.jacobian(forward),
            "Jacobian, exact": o.jacobian(forward, num_projections=None),
            "cross-Lipschitz": o.cross_lipschitz(forward),
        }.items()
    }


TABLES = {"rivals": rivals, "shares": shares, "regularisers": regularisers}
"""What is compared with what."""


def quality(answer: Any) -> dict[str, float]:
    """The step's loss."""
    return {"loss": float(answer)}


def measure(setting: Setting, rounds: int) -> dict[str, list[Row]]:
    """All tables; a quality is how many images a second are trained on."""
    found = {}
    for name, make in TABLES.items():
        rows = round_robin(make(setting), quality, rounds)
        for row in rows:
            row.quality["images_per_s"] = setting.batch_size / row.median_s
        found[name] = rows
    return found


def test_a_step_has_the_rivals_loss(benchmark: Any) -> None:
    """Both attack the same network as well."""
    small = Setting(batch_size=16, num_steps=3)
    runs = rivals(small)
    ours = quality(benchmark.pedantic(lambda: jax.block_until_ready(runs["jaxrobust"]())))
    assert ours["loss"] == pytest.approx(quality(runs["PyTorch"]())["loss"], rel=0.2)


@pytest.mark.parametrize("table", ["shares", "regularisers"])
def test_every_method_takes_a_step(table: str) -> None:
    """What is timed gives a finite loss."""
    for run in TABLES[table](Setting(batch_size=4, long_steps=4)).values():
        assert np.isfinite(quality(run())["loss"])
