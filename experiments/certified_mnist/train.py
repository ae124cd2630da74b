"""Train one network of the experiment; a run that was stopped goes on where it was."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import PyTree

import jaxrobust as jr
from experiments.certified_mnist.config import EPS, FRONTIER, HELD_OUT, RECIPES, Recipe

BATCH = 100
RATE = 1e-3
MODEL = jr.models.mlp()  # 784-500-10
FORWARD = jr.objectives.from_module(MODEL.apply)


def layers(params: PyTree) -> list[Any]:
    """The network as the certificates want it."""
    return MODEL.layers({"params": params})


def folder_of(name: str, out: Path) -> Path:
    """Where a network's run lives."""
    return out / name.replace(", ", "-").replace(" ", "-").lower()


def network(name: str, out: Path, seed: int = 0) -> jr.train.Fit:
    """Train a network of `RECIPES` or `FRONTIER`, or finish it, or only read what is finished."""
    recipe = (RECIPES | FRONTIER)[name]
    train = jr.data.load("mnist", f"train[:-{HELD_OUT}]")
    held = jr.data.load("mnist", f"train[-{HELD_OUT}:]")
    steps = len(train.y) // BATCH
    init_key, fit_key, finish_key = jax.random.split(jax.random.key(seed), 3)

    def validate(params: PyTree, model_state: PyTree) -> dict[str, float]:
        del model_state
        logits = np.asarray(MODEL.apply({"params": params}, held.x))
        return {"clean_error": float(np.mean(logits.argmax(1) != held.y))}

    fit = functools.partial(
        jr.train.fit, data=(train.x, train.y), batch_size=BATCH, validate=validate, resume=True,
        progress=True,
    )  # fmt: skip
    done = fit(
        objective(recipe, steps),
        MODEL.init(init_key, train.x[:1])["params"],
        optax.adam(schedule(recipe.decay, recipe.num_epochs * steps)),
        key=fit_key,
        num_epochs=recipe.num_epochs,
        directory=folder_of(name, out),
    )
    if recipe.finish_epochs:
        loss = jr.losses.generalized_cross_entropy(0.7)
        done = fit(
            jr.objectives.sdp_robust(
                FORWARD, layers, jr.objectives.warm_mixing(), eps=recipe.strength, loss=loss
            ),
            done.params,
            optax.adam(schedule("cosine", recipe.finish_epochs * steps)),
            key=finish_key,
            num_epochs=recipe.finish_epochs,
            directory=last_folder(name, out),
        )
    return done


def last_folder(name: str, out: Path) -> Path:
    """The folder whose last checkpoint is the trained network."""
    folder = folder_of(name, out)
    finished = (RECIPES | FRONTIER)[name].finish_epochs
    return folder.with_name(f"{folder.name}-finish") if finished else folder


def objective(recipe: Recipe, steps: int) -> jr.Objective:
    """The training method of a recipe, `steps` to an epoch."""
    o, strength = jr.objectives, recipe.strength
    renew = None if recipe.renew_epochs is None else recipe.renew_epochs * steps
    match recipe.kind:
        case "natural":
            return o.cross_entropy(FORWARD)
        case "frobenius":
            return o.add(o.hinge(FORWARD), o.frobenius_norm(layers, strength))
        case "spectral":
            return o.add(o.hinge(FORWARD), o.spectral_norm(layers, strength))
        case "madry":
            attack = functools.partial(jr.attacks.pgd, num_steps=40, step_size=0.1)
            adversarial = o.madry(FORWARD, attack, ball=jr.Ball("linf", 0.3))
            return o.add(o.cross_entropy(FORWARD), o.scale(strength, adversarial))
        case "dual":
            # A pair is refreshed once in five steps, and its optimiser counts refreshes.
            rate = optax.cosine_decay_schedule(DUAL_RATE, recipe.num_epochs * steps // 5)
            solver = o.lanczos_dual(optax.adam(rate))
            return o.sdp_regularized(
                FORWARD, layers, solver, weight=strength, eps=EPS, renew_every=renew
            )
        case "mixing":
            return o.sdp_regularized(
                FORWARD, layers, o.warm_mixing(), weight=strength, eps=EPS, renew_every=renew
            )
        case "robust":
            return o.sdp_robust(FORWARD, layers, o.warm_mixing(), eps=strength)
        case "lp":
            rising = optax.linear_schedule(0.01, strength, recipe.num_epochs * steps // 2)
            return o.scheduled(lambda eps: o.lp_robust(FORWARD, layers, eps=eps), eps=rising)


DUAL_RATE = 2e-2
"""Adam's rate of the duals' logarithms, falling to zero."""


def schedule(decay: str, steps: int) -> optax.Schedule:
    """The learning rate."""
    if decay == "cosine":
        return optax.cosine_decay_schedule(RATE, steps)
    return optax.piecewise_constant_schedule(RATE, {steps // 3: 0.1, 2 * steps // 3: 0.1})
