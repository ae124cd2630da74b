"""Train one network of the experiment; a run that was stopped goes on where it was."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import PyTree

import jaxrobust as jr
from experiments import records
from experiments.pdm.config import BATCH, HELD_OUT, NETWORKS, PRESETS, PROXIES, RATE, SAME_CLASS


def folder_of(data: str, name: str, preset: str, out: Path) -> Path:
    """Where a network's checkpoints lie."""
    trained = "cpu" if preset == "smoke" else preset  # a smoke test looks at those
    return out / trained / f"{data}-{name.replace(' ', '-')}"


def num_steps(data: str, name: str, preset: str) -> tuple[int, int]:
    """Epochs of a network's training, and steps of an epoch."""
    epochs = PRESETS["cpu" if preset == "smoke" else preset].epochs[data]
    images = {"mnist": 60_000, "cifar10": 50_000}[data] - HELD_OUT
    return math.ceil(epochs / 2) if name in PROXIES else epochs, images // BATCH


@functools.cache  # one module a depth, so that networks share compiled programs
def model(name: str, preset: str) -> Any:
    """The module of a network."""
    sizes = PRESETS[preset]
    return jr.models.resnet(sizes.proxy_depth if name in PROXIES else sizes.depth)


def network(data: str, name: str, preset: str, out: Path, seed: int) -> None:
    """Train one network to its end; a proxy's teacher must have been trained."""
    images = jr.data.load(data, f"train[:-{HELD_OUT}]")
    held = jr.data.load(data, f"train[-{HELD_OUT}:]")
    epochs, per_epoch = num_steps(data, name, preset)
    key = jax.random.fold_in(jax.random.key(seed), [*NETWORKS, *PROXIES].index(name))
    init_key, fit_key = jax.random.split(key)
    module = model(name, preset)
    forward, frozen = jr.objectives.from_stateful_module(_apply(name, preset))
    start = module.init(init_key, images.x[:1])
    total = epochs * per_epoch
    rate = optax.piecewise_constant_schedule(RATE, {total // 2: 0.1, 3 * total // 4: 0.1})
    decay = optax.add_decayed_weights(
        PRESETS[preset].weight_decay, lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)
    )

    def validate(params: PyTree, model_state: PyTree) -> dict[str, float]:
        parts = [
            jax.jit(frozen)(params, model_state, jnp.asarray(x))[0][0] for x in np.split(held.x, 10)
        ]
        logits = np.concatenate(parts) * (-1 if reverses(name) else 1)
        return {"accuracy": float(np.mean(logits.argmax(-1) == held.y))}

    jr.train.fit(
        objective(name, forward, lambda: defended(data, name, preset, out)),
        start["params"],
        optax.chain(decay, optax.sgd(rate, momentum=0.9)),
        (images.x, images.y),
        key=fit_key,
        num_epochs=epochs,
        batch_size=BATCH,
        model_state={"batch_stats": start["batch_stats"]},
        validate=validate,
        directory=folder_of(data, name, preset, out),
        resume=True,
        progress=True,
    )


def objective(name: str, forward: Any, teacher: Any) -> jr.Objective:
    """The training method of a network; `teacher` returns the network that a proxy imitates."""
    o = jr.objectives
    if name in PROXIES:
        return o.distillation(forward, teacher(), temperature=1.0)
    siamese = functools.partial(o.siamese, forward, same_class=SAME_CLASS)
    match name:
        case "baseline":
            return o.cross_entropy(forward)
        case "rce":
            return o.reverse_cross_entropy(forward)
        case "pdm":
            return o.pdm(forward, same_class=SAME_CLASS)
        case "siamese":
            return o.add(o.cross_entropy(forward), siamese())
        case "rvl":
            return o.add(o.cross_entropy(forward), o.reduce_variance(forward))
        case _:
            return o.add(o.cross_entropy(forward), siamese(), o.reduce_variance(forward))


def reverses(name: str) -> bool:
    """Whether a network predicts the class of its smallest output."""
    return name in ("rce", "pdm")


def defended(data: str, name: str, preset: str, out: Path) -> Partial:
    """The network that a proxy imitates."""
    target = name.removeprefix("proxy ")
    found = trained(data, target, preset, out)
    if found is None:
        raise ValueError(f"{target} must be trained first: --stage train --only {target}")
    return found


@functools.cache  # a checkpoint is read once
def trained(data: str, name: str, preset: str, out: Path, kept: Path | None = None) -> Any:
    """A network that returns logits, the largest of which it predicts, and the embedding.

    None where its training is not over, and no copy kept in that folder.
    """
    epochs, per_epoch = num_steps(data, name, preset)
    folder = folder_of(data, name, preset, out)
    copy = kept / f"{name.replace(' ', '-')}.npz" if kept else None
    found = records.restored(_apply(name, preset), folder, epochs * per_epoch, copy)
    return jr.transforms.reversed_logits(found) if found and reverses(name) else found


@functools.cache
def _apply(name: str, preset: str) -> Any:
    return functools.partial(model(name, preset).apply, method="outputs")
