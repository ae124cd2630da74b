"""Train the networks: natural, and the three of defensive distillation; stopped runs go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from jaxtyping import PyTree

import jaxrobust as jr
from experiments.carlini_wagner import config
from experiments.carlini_wagner.config import HELD_OUT, NETWORKS, TEMPERATURE, WIDTHS


def model_of(data: str) -> Any:
    """The paper's network for a data set."""
    return jr.models.carlini_wagner_cnn(WIDTHS[data])


def folder_of(data: str, network: str, preset: str, out: Path) -> Path:
    """Where a network's checkpoints lie."""
    trained = "cpu" if preset == "smoke" else preset  # a smoke test looks at those
    return out / trained / f"{data}-{network}"


def train(data: str, network: str, preset: str, out: Path, seed: int) -> None:
    """Train one network to its end; what it starts from must have been trained."""
    schedule = config.PRESETS[preset].schedule[data]
    model = model_of(data)
    images = jr.data.load(data, f"train[:-{HELD_OUT}]")
    held = jr.data.load(data, f"train[-{HELD_OUT}:]")
    key = jax.random.fold_in(jax.random.key(seed), NETWORKS.index(network))
    init_key, fit_key = jax.random.split(key)
    forward, frozen = jr.objectives.from_stateful_module(model.apply)
    hot = network not in ("natural", "initial")
    objective = jr.objectives.cross_entropy(forward, temperature=TEMPERATURE if hot else 1.0)
    if network == "distilled":
        params = _restored(folder_of(data, "teacher", preset, out))
        teacher = Partial(model.apply, {"params": params})
        objective = jr.objectives.distillation(forward, teacher, temperature=TEMPERATURE)
    start = model.init(init_key, images.x[:1])
    if network in ("teacher", "distilled"):
        start = {**start, "params": _restored(folder_of(data, "initial", preset, out))}
    total = config.steps(data, network, config.PRESETS[preset])
    cosine = schedule.cosine and network != "initial"
    rate = optax.cosine_decay_schedule(schedule.rate, total) if cosine else schedule.rate

    def validate(params: PyTree, model_state: PyTree) -> dict[str, float]:
        parts = [frozen(params, model_state, jnp.asarray(x))[0] for x in np.split(held.x, 10)]
        return {"accuracy": float(np.mean(np.concatenate(parts).argmax(-1) == held.y))}

    jr.train.fit(
        objective, start["params"], optax.sgd(rate, momentum=0.9, nesterov=True), data=images,
        batch_size=128, key=fit_key, num_epochs=1 if network == "initial" else schedule.num_epochs,
        model_state={k: v for k, v in start.items() if k != "params"},
        directory=folder_of(data, network, preset, out), validate=validate, resume=True,
        progress=True,
    )  # fmt: skip


def _restored(folder: Path) -> PyTree:
    if not (folder / "checkpoints").exists():
        raise ValueError(f"{folder.name} must be trained first: --stage train --only {folder.name}")
    return jax.tree.map(jnp.asarray, jr.train.restore(folder)[0])
