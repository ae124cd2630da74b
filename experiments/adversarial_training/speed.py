"""What a training costs: seconds a step, all methods in turn in one run."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from experiments.adversarial_training import config, train
from experiments.adversarial_training.config import RECIPES, SHAPES
from jaxrobust.types import Batch


def costs(data: str, preset: str) -> dict[str, Any]:
    """Seconds and gradients an epoch of each training, on images of noise.

    The least of the steps' times, each of gradient and update: what else the machine does makes
    steps longer, never shorter. One method after another, and again, so that a spell of other work
    hits all.
    """
    names = [name for name in config.names(data, preset) if name not in config.TWINS]
    ready = {name: _prepared(name, data, preset) for name in names}
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(config.SIZES[preset].timed):
        for name, (step, state, batch) in ready.items():
            begun = time.perf_counter()
            jax.block_until_ready(step(state, batch))
            times[name].append(time.perf_counter() - begun)
    found = {}
    for name, seconds in times.items():
        setting, recipe = config.setting(name, data, preset), RECIPES[data][name]
        per_epoch = train.num_steps(recipe, setting, data) // setting.num_epochs
        found[name] = {
            "step": min(seconds),
            "median step": float(np.median(seconds)),
            "epoch": min(seconds) * per_epoch,
            "gradients": train.gradients(recipe),
        }
    return found


def _prepared(name: str, data: str, preset: str) -> tuple[Any, PyTree, Batch]:
    """A compiled step, what it starts from, and a batch."""
    setting, recipe = config.setting(name, data, preset), RECIPES[data][name]
    num, key = setting.batch_size, jax.random.key(0)
    shape = (num, *SHAPES[data])
    model, params, model_state = train.start(setting.model, recipe.widths, key, shape[1:])
    steps = train.num_steps(recipe, setting, data)
    objective = train.objective(recipe, setting, model, steps, shape)
    optimizer = train.optimizer(recipe, setting, steps)
    state = (params, model_state, optimizer.init(params), objective.init(params, key))

    @jax.jit
    def step(state: PyTree, batch: Batch) -> PyTree:
        params, model_state, moments, own = state
        out, grads = objective.value_and_grad(params, model_state, own, batch, key=key)
        updates, moments = optimizer.update(grads, moments, params)
        params = jax.tree.map(jnp.add, params, updates)
        return params, out.model_state, moments, out.state

    batch = Batch(jax.random.uniform(key, shape), jnp.arange(num) % 10, jnp.arange(num))
    jax.block_until_ready(step(state, batch))
    return step, state, batch
