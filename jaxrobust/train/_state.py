"""What a run of training carries from step to step, and whether it is still sound."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree


class Weights(NamedTuple):
    """What a model is called with: parameters, and a state (batch statistics and the like)."""

    params: PyTree
    model_state: PyTree


class Best(NamedTuple):
    """The weights of the epoch at whose end a validation metric was highest.

    Attributes:
        value: The metric; -inf before the first epoch ends.
        epoch: Which epoch that was, from 0; -1 before.
        weights: Those that were validated.
    """

    value: Array
    epoch: Array
    weights: Weights


class TrainState(NamedTuple):
    """Everything that changes during a run; the last two are None where nobody asked for them."""

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    objective_state: PyTree
    ema: Weights | None = None
    best: Best | None = None


def validated(state: TrainState) -> Weights:
    """The weights that count: averages where they are kept."""
    return Weights(state.params, state.model_state) if state.ema is None else state.ema


def averaged(ema: Weights, new: Weights, decay: float, step: Array) -> Weights:
    """The exponential average of weights after one more step.

    After t steps, those of step s count as `decay ** (t - s)` times those of step t, and the shares
    add up to 1: initial weights have none. Integers are taken as they come.

    Args:
        ema: The average so far.
        new: The weights after this step.
        decay: In (0, 1).
        step: Steps averaged so far.

    >>> ema = Weights(jnp.array(7.0), {})  # what is there before the first step has no share
    >>> ema = averaged(ema, Weights(jnp.array(1.0), {}), 0.5, jnp.array(0))
    >>> averaged(ema, Weights(jnp.array(4.0), {}), 0.5, jnp.array(1)).params
    Array(3., dtype=float32)
    """
    count = (step + 1).astype(jnp.float32)
    share = (1 - decay) / -jnp.expm1(count * math.log(decay))

    def mix(old: Array, leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        return old + share.astype(leaf.dtype) * (leaf - old)

    return jax.tree.map(mix, ema, new)


def no_best(weights: Weights) -> Best:
    """What stands for the best epoch before one has ended."""
    low = jnp.asarray(-jnp.inf, jnp.float32)
    return Best(low, jnp.asarray(-1, jnp.int32), jax.tree.map(jnp.copy, weights))


def better(state: TrainState, value: float, epoch: int) -> TrainState:
    """The state with this epoch's weights as the best, if its metric is higher than all before."""
    if state.best is None or not np.float32(value) > np.asarray(state.best.value):
        return state
    # Copies: the loop donates its state, and may not do so twice.
    kept = jax.tree.map(jnp.copy, validated(state))
    best = Best(jnp.asarray(value, jnp.float32), jnp.asarray(epoch, jnp.int32), kept)
    return state._replace(best=best)


def mean_metrics(pending: list[dict[str, Array]], step: int, doing: str) -> dict[str, float]:
    """Mean metrics of the last steps, or an error naming the first that is not finite.

    Args:
        pending: One dictionary a step.
        step: Steps taken.
        doing: Which objective, and the last good checkpoint, in words.
    """
    values = jax.device_get(pending)
    for i, metrics in enumerate(values):
        for name, value in metrics.items():
            if not np.isfinite(value):
                shown = ", ".join(f"{key} {float(v):.4g}" for key, v in metrics.items())
                at = step - len(values) + i + 1
                cause = "a lower learning rate or a warm-up of eps may help"
                if at == 1:
                    cause = (
                        "at the first step, look for labels beyond the model's classes, an "
                        "objective's num_examples below the number of images, and parameters that "
                        "are not finite"
                    )
                raise FloatingPointError(
                    f"{name} is {value} at step {at} {doing}; metrics of that step: {shown} "
                    f"({cause})"
                )
    return {name: float(np.mean([m[name] for m in values])) for name in values[0]}


@jax.jit
def _all_finite(tree: PyTree) -> PyTree:
    numbers = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact)
    return jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)) if numbers(leaf) else True, tree)


def check_finite(weights: Weights, step: int, doing: str) -> None:
    """Stop before a checkpoint is written of a model that is not finite, its state included."""
    finite: Any = jax.device_get(_all_finite(weights))
    for path, fine in jax.tree_util.tree_leaves_with_path(finite):
        if not fine:
            raise FloatingPointError(
                f"{jax.tree_util.keystr(path)} is not finite after step {step} {doing}"
            )
