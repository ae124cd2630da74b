"""Train the two networks of the table, naturally and adversarially."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

import jaxrobust as jr
from experiments.madry_mnist.config import HELD_OUT, Config

MODELS = ("natural", "adversarial")


def network(which: str, config: Config, folder: Path, *, resume: bool) -> PyTree:
    """Train one network, or finish a training that was stopped; returns its variables."""
    train = jr.data.load("mnist", f"train[:-{HELD_OUT}]")
    held = jr.data.load("mnist", f"train[-{HELD_OUT}:]")
    model = jr.models.madry_cnn()
    key = jax.random.fold_in(jax.random.key(config.seed), MODELS.index(which))
    init_key, fit_key, attack_key = jax.random.split(key, 3)
    forward = jr.objectives.from_module(model.apply)
    ball = jr.Ball("linf", config.eps)
    steps = len(train.y) // config.batch_size
    if which == "natural":
        objective = jr.objectives.cross_entropy(forward)
        num_epochs = min(config.num_epochs, 5)
    else:
        attack = functools.partial(
            jr.attacks.pgd, num_steps=config.num_steps, step_size=config.step_size
        )
        warmup = optax.linear_schedule(0.0, config.eps, config.warmup_epochs * steps)
        objective = jr.objectives.madry(
            forward, attack, ball=ball, eps_schedule=warmup if config.warmup_epochs else None
        )
        num_epochs = config.num_epochs
    rate = (
        optax.cosine_decay_schedule(config.learning_rate, num_epochs * steps)
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

    fitted = jr.train.fit(
        objective, model.init(init_key, train.x[:1])["params"], optax.adam(rate),
        (train.x, train.y), key=fit_key, num_epochs=num_epochs, batch_size=config.batch_size,
        validate=validate, directory=folder / which, resume=resume, progress=True,
    )  # fmt: skip
    return {"params": fitted.params}
