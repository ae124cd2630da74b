"""Train one network of the experiment; a run that was stopped goes on where it was."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

import jaxrobust as jr
from experiments import records
from experiments.neural_ode.config import (
    DATA,
    NETWORKS,
    PRESETS,
    STEADY,
    STEADY_WEIGHT,
    WEIGHT_DECAY,
)


def folder_of(data: str, name: str, preset: str, out: Path, seed: int) -> Path:
    """Where a network's checkpoints lie."""
    return out / preset / f"{data}-{name.replace(' ', '-')}-{seed}"


def num_images(data: str, preset: str) -> int:
    """Images that networks are trained on."""
    whole = DATA[data].images - DATA[data].held_out
    return min(PRESETS[preset].images or whole, whole)


def load(data: str, split: str) -> jr.data.Dataset:
    """Images of a set of config.py."""
    return jr.data.load(DATA[data].source, split, size=DATA[data].size)


def num_steps(data: str, preset: str) -> tuple[int, int]:
    """Epochs of a training, and steps of an epoch."""
    return PRESETS[preset].epochs, num_images(data, preset) // PRESETS[preset].batch


@functools.cache  # one module a kind, so that networks share compiled programs
def model(name: str, preset: str, solver: str = "euler") -> Any:
    """The module of a network.

    Args:
        name: As in config.py.
        preset: As in config.py.
        solver: "euler"; or "adaptive", Dormand and Prince's with tolerances of 1e-3, differentiated
            as it steps; or "backsolve", the same by the adjoint ODE.
    """
    make = {"cnn": jr.models.residual_cnn, "odenet": jr.models.odenet, "tisode": jr.models.tisode}
    kind, _, extra = name.removesuffix(" clean").partition("-")
    options: dict[str, Any] = {"after": jr.models.FeatureDenoising() if extra == "fdn" else None}
    if solver != "euler":
        options["solver"] = diffrax.Dopri5()
        options["controller"] = diffrax.PIDController(rtol=1e-3, atol=1e-3)
        options["adjoint"] = diffrax.BacksolveAdjoint() if solver == "backsolve" else None
    return make[kind](PRESETS[preset].width, **options)


def randomises(name: str) -> bool:
    """Whether a network changes its image at random."""
    return name.endswith("-ird")


@functools.cache
def resized(data: str) -> Any:
    """What such a network does to it."""
    return functools.partial(jr.transforms.resize_and_pad, padding=DATA[data].padding)


def augment(data: str, name: str) -> Any:
    """What is done to training images."""
    noisy = functools.partial(jr.transforms.sometimes_noisy, sigmas=DATA[data].trained)

    def change(x: Array, key: Array) -> Array:
        noise_key, place_key = jax.random.split(key)
        x = x if name.endswith(" clean") else noisy(x, noise_key)
        return resized(data)(x, place_key) if randomises(name) else x

    return change


def network(data: str, name: str, preset: str, out: Path, seed: int) -> None:
    """Train a network to its end."""
    images = load(data, f"train[:{num_images(data, preset)}]")
    held = load(data, f"train[-{DATA[data].held_out}:]")
    epochs, per_epoch = num_steps(data, preset)
    init_key, fit_key = jax.random.split(
        jax.random.fold_in(jax.random.key(seed), NETWORKS.index(name))
    )
    total = epochs * per_epoch
    falls = {round(share * total): 0.2 for share in (0.3, 0.6, 0.9)}
    rate = optax.piecewise_constant_schedule(PRESETS[preset].rate, falls)
    apply = jax.jit(_apply(name, preset, "euler"))

    def validate(params: PyTree, model_state: PyTree) -> dict[str, float]:
        del model_state
        parts = np.array_split(held.x[:1000], 4)
        logits = [apply({"params": params}, jnp.asarray(x)) for x in parts]
        right = np.concatenate(logits).argmax(-1) == held.y[:1000]
        return {"accuracy": float(np.mean(right))}

    jr.train.fit(
        objective(name, preset, PRESETS[preset].steady_from * per_epoch),
        model(name, preset).init(init_key, images.x[:1])["params"],
        optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.adam(rate)),
        (images.x, images.y), key=fit_key, num_epochs=epochs, batch_size=PRESETS[preset].batch,
        augment=augment(data, name), validate=validate,
        directory=folder_of(data, name, preset, out, seed), resume=True, progress=True,
    )  # fmt: skip


def objective(name: str, preset: str, steady_from: int) -> jr.Objective:
    """The training method of a network: with the steady loss, from a step on, for TisODE."""
    o, module = jr.objectives, model(name, preset)
    if not name.startswith("tisode"):
        return o.cross_entropy(o.from_module(module.apply))

    def outputs(variables: PyTree, x: Array) -> PyTree:
        return module.apply(variables, x, STEADY, method="outputs")

    return o.scheduled(
        lambda weight: o.steady_state(
            o.from_module(outputs), weight=weight, loss=jr.losses.cross_entropy
        ),
        weight=lambda step: jnp.where(step >= steady_from, STEADY_WEIGHT, 0.0),
    )


def trained(
    data: str, name: str, preset: str, out: Path, seed: int, solver: str = "euler"
) -> Partial | None:
    """A network as a function that returns logits; None where its training is not over.

    Without what it does to its image at random: see `defended`.
    """
    epochs, per_epoch = num_steps(data, preset)
    folder = folder_of(data, name, preset, out, seed)
    return records.restored(_apply(name, preset, solver), folder, epochs * per_epoch)


def defended(data: str, name: str, logits_fn: Partial) -> Any:
    """The network as it is judged."""
    return jr.transforms.randomized(logits_fn, resized(data)) if randomises(name) else logits_fn


@functools.cache
def _apply(name: str, preset: str, solver: str) -> Any:
    return model(name, preset, solver).apply
