"""Train the networks of the table: natural, adversarial, and B, which is natural too."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

import jaxrobust as jr
from experiments.madry_mnist.config import HELD_OUT, Config

MODELS = ("natural", "adversarial", "architecture-b")


class ArchitectureB(nn.Module):
    """A different network for transfer: B of Tramèr et al. 2017, without its dropout.

    conv 8x8x64 stride 2 (SAME), conv 6x6x128 stride 2, conv 5x5x128 (VALID), dense 10; ReLU.
    """

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of a batch of MNIST images."""
        x = nn.relu(nn.Conv(64, (8, 8), (2, 2))(x))
        x = nn.relu(nn.Conv(128, (6, 6), (2, 2), padding="VALID")(x))
        x = nn.relu(nn.Conv(128, (5, 5), padding="VALID")(x))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


def network(which: str, config: Config, folder: Path, *, resume: bool) -> PyTree:
    """Train one network, or finish a training that was stopped; returns its variables."""
    train = jr.data.load("mnist", f"train[:-{HELD_OUT}]")
    held = jr.data.load("mnist", f"train[-{HELD_OUT}:]")
    model = ArchitectureB() if which == "architecture-b" else jr.models.madry_cnn()
    key = jax.random.fold_in(jax.random.key(config.seed), MODELS.index(which))
    init_key, fit_key, attack_key = jax.random.split(key, 3)
    forward = jr.objectives.from_module(model.apply)
    ball = jr.Ball("linf", config.eps)
    batches = len(train.y) // config.batch_size

    attack = functools.partial(
        jr.attacks.pgd, num_steps=config.num_steps, step_size=config.step_size
    )

    def against(eps: Any) -> jr.Objective:
        return jr.objectives.madry(forward, attack, ball=jr.Ball("linf", eps))

    if which != "adversarial":
        objective = jr.objectives.cross_entropy(forward)
        num_epochs = steps(which, config) // batches
    else:
        rising = optax.linear_schedule(0.0, config.eps, config.warmup_epochs * batches)
        objective = jr.objectives.scheduled(
            against,
            eps=rising if config.warmup_epochs else optax.constant_schedule(config.eps),
        )
        num_epochs = config.num_epochs
    rate = (
        optax.cosine_decay_schedule(config.learning_rate, num_epochs * batches)
        if config.decay == "cosine"
        else config.learning_rate
    )

    def validate(params: PyTree, model_state: PyTree) -> dict[str, float]:
        del model_state
        logits_fn = jax.tree_util.Partial(model.apply, {"params": params})
        clean, robust = [], []
        for start in range(0, 1000, 250):
            x, y = held.x[start : start + 250], held.y[start : start + 250]
            key = jax.random.fold_in(attack_key, start)
            x_adv = jr.attacks.pgd(logits_fn, x, y, key=key, ball=ball, num_steps=20)
            clean.append(jnp.argmax(logits_fn(x), -1) == y)
            robust.append(jnp.argmax(logits_fn(x_adv), -1) == y)
        return {"accuracy": float(np.mean(clean)), "pgd20_accuracy": float(np.mean(robust))}

    params = jr.train.fit(
        objective,
        model.init(init_key, train.x[:1])["params"],
        optax.adam(rate),
        data=(train.x, train.y),
        key=fit_key,
        num_epochs=num_epochs,
        batch_size=config.batch_size,
        validate=validate,
        directory=folder / which,
        resume=resume,
        progress=True,
    ).params
    return {"params": params}


def steps(which: str, config: Config) -> int:
    """Steps of a finished training."""
    num_epochs = config.num_epochs if which == "adversarial" else min(config.num_epochs, 5)
    return num_epochs * (55_000 // config.batch_size)
