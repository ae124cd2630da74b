"""Train one network of the experiment; a run that was stopped goes on where it was."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import PyTree

import jaxrobust as jr
from experiments import records
from experiments.spatial.config import (
    BATCH,
    DUAL_RATE,
    HELD_OUT,
    HIDDEN,
    KEPT,
    POOL_STEPS,
    PRESETS,
    RATE,
    RECIPES,
    TAU,
    Recipe,
)

SHAPE = (28, 28)


@functools.cache  # one module a kind, so that networks share compiled programs
def model(kind: str) -> Any:
    """The module of a kind of network."""
    dense = jr.models.mlp(() if kind.startswith("linear") else (HIDDEN,))
    return jr.models.spatial_transformer(dense) if kind == "transformer" else dense


def layers(params: PyTree, kind: str) -> list[Any]:
    """The network as certificates want it; not of the transformer."""
    return model(kind).layers({"params": params})


def folder_of(name: str, preset: str, out: Path) -> Path:
    """Where a network's run lives."""
    return out / preset / name.replace(" ", "-")


def num_steps(name: str, preset: str) -> tuple[int, int]:
    """Epochs of a network's training, and steps of an epoch."""
    epochs = RECIPES[name].num_epochs
    return math.ceil(epochs * PRESETS[preset].epochs), (60_000 - HELD_OUT) // BATCH


def network(name: str, preset: str, out: Path, seed: int = 0) -> None:
    """Train a network of `RECIPES`, or finish it."""
    recipe = RECIPES[name]
    if not recipe.num_epochs:
        return
    train = jr.data.load("mnist", f"train[:-{HELD_OUT}]")
    held = jr.data.load("mnist", f"train[-{HELD_OUT}:]")
    epochs, per_epoch = num_steps(name, preset)
    init_key, fit_key = jax.random.split(jax.random.key(seed))
    module = model(recipe.kind)

    def validate(params: PyTree, model_state: PyTree) -> dict[str, float]:
        del model_state
        logits = np.asarray(module.apply({"params": params}, held.x))
        return {"clean_accuracy": float(np.mean(logits.argmax(1) == held.y))}

    jr.train.fit(
        objective(recipe, epochs * per_epoch, train.x.shape),
        module.init(init_key, train.x[:1])["params"],
        optax.adam(optax.cosine_decay_schedule(RATE, epochs * per_epoch)),
        (train.x, train.y),
        key=fit_key,
        num_epochs=epochs,
        batch_size=BATCH,
        validate=validate,
        directory=folder_of(name, preset, out),
        resume=True,
        progress=True,
    )


def objective(recipe: Recipe, steps: int, shape: tuple[int, ...]) -> jr.Objective:
    """The training method of a recipe, of so many steps on images of this shape in all."""
    o, strength = jr.objectives, recipe.strength
    module: nn.Module = model(recipe.kind)
    forward = o.from_module(module.apply)
    of_params = functools.partial(layers, kind=recipe.kind)
    match recipe.kind:
        case "adversarial" | "linear adversarial":
            attack = functools.partial(jr.attacks.flow, tau=TAU, num_steps=POOL_STEPS)
            return o.flow_adversarial(forward, attack, shape=shape, weight=strength)
        case "frobenius":
            return o.add(o.hinge(forward), o.frobenius_norm(of_params, strength))
        case "spectral":
            return o.add(o.hinge(forward), o.spectral_norm(of_params, strength))
        case "transformer":
            return o.hinge(forward)
        case "sdp":
            # A pair is refreshed once in five steps, and its optimiser counts refreshes.
            solver = o.lanczos_dual(optax.adam(optax.cosine_decay_schedule(DUAL_RATE, steps // 5)))
            return o.spatial_sdp(
                forward, of_params, solver, weight=strength, eps=0.05, shape=SHAPE,
                renew_every=steps // 5,
            )  # fmt: skip
        case _:
            return o.cross_entropy(forward)


def trained(name: str, preset: str, out: Path, seed: int, results: Path) -> Partial | None:
    """A network as a function that returns logits; None where its training is not over.

    Those of `KEPT` are copied to `results`, and read there where there is no checkpoint.
    """
    kind = RECIPES[name].kind
    if not RECIPES[name].num_epochs:
        start = model(kind).init(jax.random.key(seed), np.zeros((1, *SHAPE, 1), np.float32))
        return Partial(_apply(kind), start)
    epochs, per_epoch = num_steps(name, preset)
    kept = folder_of(name, preset, results).with_suffix(".npz") if name in KEPT else None
    return records.restored(_apply(kind), folder_of(name, preset, out), epochs * per_epoch, kept)


@functools.cache
def _apply(kind: str) -> Any:
    return model(kind).apply
