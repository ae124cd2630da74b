"""Train one network of the experiment; a run that was stopped goes on where it was."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

import jaxrobust as jr
from experiments.madry_mnist import config as madry_config
from experiments.madry_mnist import train as madry_train
from experiments.second_order.config import BATCH, CPU, HELD_OUT, RATE, SHARED, Recipe


def model_of(name: str) -> Any:
    """The architecture of a network."""
    return jr.models.madry_cnn() if name.startswith("mnist") else jr.models.small_cnn()


def folder_of(name: str, out: Path, madry: Path) -> Path:
    """Where the last checkpoint of a network lies; `madry` is that experiment's `--out`."""
    if name in SHARED:
        return madry_train.final(SHARED[name], madry_config.CPU, madry / "cpu")
    return out / name.replace(" ", "-")


def network(name: str, out: Path, madry: Path, seed: int = 0) -> PyTree:
    """Train a network, or finish it, or only read what is finished; returns its variables."""
    if name in SHARED:
        return madry_train.network(SHARED[name], madry_config.CPU, madry / "cpu", resume=True)
    recipe, model = CPU[name], model_of(name)
    train = jr.data.load(recipe.data, f"train[:-{HELD_OUT}]")
    held = jr.data.load(recipe.data, f"train[-{HELD_OUT}:]")
    steps = len(train.y) // BATCH
    key = jax.random.fold_in(jax.random.key(seed), list(CPU).index(name))
    init_key, fit_key, noise_key = jax.random.split(key, 3)
    forward = jr.objectives.from_module(model.apply)
    noise = recipe.sigma * jax.random.normal(noise_key, held.x[:1000].shape)

    def validate(params: PyTree, model_state: PyTree) -> dict[str, float]:
        del model_state
        hits = lambda x: float(
            np.mean(jnp.argmax(model.apply({"params": params}, x), -1) == held.y[:1000])
        )
        x = held.x[:1000]
        return {"accuracy": hits(x), "noisy_accuracy": hits(x + noise)}

    params = jr.train.fit(
        objective(recipe, forward, steps),
        model.init(init_key, train.x[:1])["params"],
        optax.adam(optax.cosine_decay_schedule(RATE, recipe.num_epochs * steps)),
        data=(train.x, train.y),
        batch_size=BATCH,
        key=fit_key,
        num_epochs=recipe.num_epochs,
        directory=folder_of(name, out, madry),
        validate=validate,
        resume=True,
        progress=True,
    ).params
    return {"params": params}


def objective(recipe: Recipe, forward: Any, steps: int) -> jr.Objective:
    """The training method of a recipe, `steps` to an epoch."""
    o = jr.objectives
    match recipe.method:
        case "natural":
            return o.cross_entropy(forward)
        case "madry":
            attack = functools.partial(jr.attacks.pgd, num_steps=7)
            rising = optax.linear_schedule(0.0, recipe.eps, recipe.num_epochs * steps // 4)
            ball = jr.Ball(recipe.norm, recipe.eps)
            return o.madry(forward, attack, ball=ball, eps_schedule=rising)
        case "stability":
            return o.stability(forward, sigma=recipe.sigma)
        case "gaussian":
            return o.gaussian_augmentation(forward, sigma=recipe.sigma)
