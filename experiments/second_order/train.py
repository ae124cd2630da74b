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
from experiments.second_order.config import HELD_OUT, RECIPES, SHARED, Recipe, Schedule


def folder_of(name: str, preset: str, out: Path, madry: Path) -> Path:
    """Where the last checkpoint of a network lies; `madry` is that experiment's `--out`."""
    shared = _trained_preset(preset)
    if name in SHARED:
        return madry / shared / SHARED[name]
    return out / shared / name.replace(" ", "-")


def steps(name: str, preset: str) -> int:
    """Steps of a finished training; any will do for a smoke test."""
    if preset == "smoke":
        return 1
    if name in SHARED:
        return madry_train.steps(SHARED[name], madry_config.PRESETS[preset])
    recipe = RECIPES[preset][name]
    return recipe.num_epochs * recipe.steps_per_epoch


def network(name: str, preset: str, out: Path, madry: Path, seed: int = 0) -> None:
    """Train a network, or finish it."""
    if name in SHARED:
        shared = _trained_preset(preset)
        config = madry_config.PRESETS[shared]
        madry_train.network(SHARED[name], config, madry / shared, resume=True)
        return
    recipe = RECIPES[preset][name]
    model = getattr(jr.models, recipe.model)()
    train = jr.data.load(recipe.data, f"train[:-{HELD_OUT}]")
    held = jr.data.load(recipe.data, f"train[-{HELD_OUT}:]")
    key = jax.random.fold_in(jax.random.key(seed), list(RECIPES[preset]).index(name))
    init_key, fit_key, noise_key = jax.random.split(key, 3)
    noise = recipe.sigma * jax.random.normal(noise_key, held.x[:1000].shape)
    variables = model.init(init_key, train.x[:1])
    model_state = {k: v for k, v in variables.items() if k != "params"}
    if model_state:
        forward, frozen = jr.objectives.from_stateful_module(model.apply)
    else:
        forward = frozen = jr.objectives.from_module(model.apply)

    def validate(params: PyTree, model_state: PyTree) -> dict[str, float]:
        def hits(x: Any) -> float:
            parts = [frozen(params, model_state, jnp.asarray(part))[0] for part in np.split(x, 10)]
            return float(np.mean(np.concatenate(parts).argmax(-1) == held.y[:1000]))

        x = held.x[:1000]
        return {"accuracy": hits(x), "noisy_accuracy": hits(x + np.asarray(noise))}

    jr.train.fit(
        objective(recipe, forward, frozen),
        variables["params"],
        optimizer(recipe.schedule, recipe.num_epochs * recipe.steps_per_epoch),
        data=train,
        batch_size=recipe.schedule.batch_size,
        key=fit_key,
        num_epochs=recipe.num_epochs,
        model_state=model_state,
        directory=folder_of(name, preset, out, madry),
        validate=validate,
        resume=True,
        progress=True,
    )


def _trained_preset(preset: str) -> str:
    """The trained networks' preset: a smoke test looks at those of the cpu preset."""
    return "cpu" if preset == "smoke" else preset


def optimizer(schedule: Schedule, total: int) -> optax.GradientTransformation:
    """The optimiser of a run of `total` steps."""
    rate: Any = schedule.rate
    if schedule.decay == "cosine":
        rate = optax.cosine_decay_schedule(schedule.rate, total)
    elif schedule.decay == "steps":
        drops = {total // 2: 0.1, 3 * total // 4: 0.1}
        rate = optax.piecewise_constant_schedule(schedule.rate, drops)
    if schedule.optimizer == "adam":
        return optax.adam(rate)
    return optax.chain(optax.add_decayed_weights(2e-4), optax.sgd(rate, momentum=0.9))


def objective(recipe: Recipe, forward: Any, frozen: Any) -> jr.Objective:
    """The training method of a recipe; `frozen` is the forward function that attacks see."""
    o = jr.objectives
    match recipe.method:
        case "natural":
            return o.cross_entropy(forward)
        case "madry":
            attack = functools.partial(jr.attacks.pgd, num_steps=recipe.schedule.num_steps)
            quarter = recipe.num_epochs * recipe.steps_per_epoch // 4
            rising = optax.linear_schedule(0.0, recipe.eps, quarter)
            return o.scheduled(
                lambda eps: o.madry(
                    forward, attack, ball=jr.Ball(recipe.norm, eps), eval_forward=frozen
                ),
                eps=rising if recipe.schedule.warm_up else optax.constant_schedule(recipe.eps),
            )
        case "stability":
            return o.stability(forward, sigma=recipe.sigma)
        case "gaussian":
            return o.gaussian_augmentation(forward, sigma=recipe.sigma)
