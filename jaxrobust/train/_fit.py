"""The one training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from jaxrobust import checks
from jaxrobust.threat import UNIT_BOX, Box
from jaxrobust.train._files import Run
from jaxrobust.train._progress import progress_bar
from jaxrobust.train._state import (
    Best,
    TrainState,
    Weights,
    averaged,
    better,
    check_finite,
    mean_metrics,
    no_best,
    validated,
)
from jaxrobust.types import Batch, Examples, Objective, row_keys

LOG_EVERY = 50
"""Steps between two lines of metrics, at which NaNs are looked for and checkpoints written."""


class Fit(NamedTuple):
    """The outcome of `fit`.

    Attributes:
        params: Trained parameters.
        model_state: The model's state (batch statistics and the like).
        objective_state: The objective's state.
        metrics: One dictionary a logged interval, with "step", "epoch" and the mean of each
            training metric over the interval, or "validation" metrics at the end of an epoch.
        ema: Exponential average of the weights, where `ema_decay` was given.
        best: The best epoch's weights, where `select` was given.
    """

    params: PyTree
    model_state: PyTree
    objective_state: PyTree
    metrics: list[dict[str, Any]]
    ema: Weights | None = None
    best: Best | None = None


def fit(
    objective: Objective,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    data: Examples,
    *,
    key: Key[Array, ""],
    num_epochs: int,
    batch_size: int,
    repeats: int = 1,
    augment: Callable[[Array, Array], Array] | None = None,
    model_state: PyTree = None,
    ema_decay: float | None = None,
    validate: Callable[[PyTree, PyTree], dict[str, Any]] | None = None,
    select: str | None = None,
    patience: int | None = None,
    directory: str | Path | None = None,
    resume: bool = False,
    checkpoint_seconds: float = 60.0,
    progress: bool = False,
    box: Box = UNIT_BOX,
) -> Fit:
    """Minimise an objective by stochastic gradient descent.

    Epoch e visits the rows in the order that `fold_in(key, e)` shuffles them to, in whole batches
    (a remainder is left out); step t draws from a key of its own. With a directory, metrics go to
    `metrics.jsonl` and orbax checkpoints to `checkpoints/`; a run that was killed at any point and
    resumed ends in the same parameters, bit for bit on one backend.

    Args:
        objective: The training method.
        params: Initial parameters.
        optimizer: An optax transformation, its learning-rate schedule included.
        data: `(x, y)`: images `(n, *dims)` in the box and integer labels `(n,)`, on the host. What
            `data.load` returns will do.
        key: Typed key of the whole run.
        num_epochs: Passes over the data.
        batch_size: Rows a step.
        repeats: Steps in a row on each batch (m of free adversarial training, see
            `objectives.free`, whose runs have 1 / m of the epochs).
        augment: `augment(x, key)` of one image, such as `transforms.crop_and_flip`, inside the
            compiled step. Its key is of the row and the epoch alone: the same image in whatever
            batch, and in each of its repeats.
        model_state: The model's state; an empty dictionary where None.
        ema_decay: Keep an exponential average of the weights, the model's state included, with this
            decay a step (0.995, say); without bias to the initial ones.
        validate: Called with `(params, model_state)` after each epoch, averages where they are
            kept; returns numbers to log.
        select: Name of one of these numbers, to be as high as possible: the weights of the best
            epoch are kept. For a training against attacks it should be a robust accuracy: that
            falls in late epochs, while the clean one still rises (Rice et al. 2020).
        patience: Stop after so many epochs in a row that did not raise `select`.
        directory: Where checkpoints and metrics go; nothing is written where None.
        resume: Go on from the directory's last checkpoint, if it has one. That it is the same run
            is checked by the key, the data, the batch size, the repeats, the objective's name, and
            the names, shapes and dtypes of all parameters and states. Numbers inside the objective,
            the optimizer and its schedule (an eps, a learning rate) cannot be seen, nor can what
            `augment` and `validate` do: they are taken as given now, as are `ema_decay`, `select`
            and `patience`.
        checkpoint_seconds: Least time between two checkpoints inside an epoch.
        progress: Show a progress bar.
        box: Legal pixel values.

    Returns:
        The trained parameters and states, and the metrics.

    Raises:
        ValueError: For data, counts, a decay or a key that cannot be meant; for a directory that
            holds a run which is not to be resumed, or that differs in what `resume` says is
            checked; for a `select` that `validate` does not return.
        FloatingPointError: Where a metric, a parameter or the model's state is not finite, at most
            50 steps later, with its name, its step, the objective, that step's metrics and the last
            good checkpoint; a label beyond the model's classes shows as a loss of NaN.
    """
    if not isinstance(objective, Objective):
        raise ValueError(
            f"objective must be one of jaxrobust.objectives; got {type(objective).__name__}"
        )
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(
            "optimizer must be one of optax, such as optax.adam(1e-3); got "
            f"{type(optimizer).__name__}"
        )
    x, y = checks.images_and_labels(data)
    checks.check_images(x, box, "data[0]")
    checks.check_labels(y, x.shape[0], name="data[1]")
    for name, count in (
        ("num_epochs", num_epochs), ("batch_size", batch_size), ("repeats", repeats)
    ):  # fmt: skip
        checks.check_count(count, name)
    if batch_size > x.shape[0]:
        raise ValueError(f"batch_size must be at most the {x.shape[0]} examples; got {batch_size}")
    row_keys(key, 1)
    if key.ndim:
        raise ValueError(f"key must be a single key for fit; got shape {key.shape}")
    _check_options(ema_decay, validate, select, patience)
    steps_per_epoch = repeats * (x.shape[0] // batch_size)
    total = num_epochs * steps_per_epoch
    init_key, shuffle_key, step_key, augment_key = (jax.random.fold_in(key, i) for i in range(4))
    # Copies: the loop donates its state, and the caller's arrays must live on.
    weights = jax.tree.map(jnp.copy, Weights(params, {} if model_state is None else model_state))
    state = TrainState(
        jnp.zeros((), jnp.int32), weights.params, weights.model_state,
        optimizer.init(weights.params), objective.init(weights.params, init_key),
        None if ema_decay is None else jax.tree.map(jnp.copy, weights),
        None if select is None else no_best(weights),
    )  # fmt: skip
    run = Run(directory, resume, state, key, (x, y), batch_size, repeats, objective.name)
    state, metrics = run.restore(state)

    @jax.jit
    def order_of(epoch: Array) -> Array:
        return jax.random.permutation(jax.random.fold_in(shuffle_key, epoch), x.shape[0])

    @jax.jit(donate_argnums=0)
    def take_step(
        state: TrainState, batch: Batch, epoch: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        if augment is not None:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(
                jax.random.fold_in(augment_key, epoch), batch.index
            )
            batch = batch._replace(x=jax.vmap(augment)(batch.x, keys))
        out, grads = objective.value_and_grad(
            state.params, state.model_state, state.objective_state, batch,
            key=jax.random.fold_in(step_key, state.step),
        )  # fmt: skip
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        new = Weights(optax.apply_updates(state.params, updates), out.model_state)
        ema = state.ema
        if ema is not None and ema_decay is not None:
            ema = averaged(ema, new, ema_decay, state.step)
        state = TrainState(
            state.step + 1, new.params, new.model_state, opt_state, out.state, ema, state.best
        )
        return state, {"loss": out.loss, **out.metrics}

    def in_vain(state: TrainState) -> int:
        """Epochs that ended since the best one did."""
        ended = int(state.step) // steps_per_epoch
        return 0 if state.best is None else ended - 1 - int(state.best.epoch)

    step = int(state.step)
    stop = patience is not None and in_vain(state) >= patience
    pending: list[dict[str, Array]] = []
    saved_at = time.monotonic()
    with progress_bar(progress, total, step) as advance:
        order, ordered_epoch = np.empty(0, np.int64), -1
        while step < total and not stop:
            epoch, position = divmod(step, steps_per_epoch)
            if epoch != ordered_epoch:
                order, ordered_epoch = np.asarray(order_of(epoch)), epoch
            start = position // repeats * batch_size
            rows = order[start : start + batch_size]
            batch = Batch(jnp.asarray(x[rows]), jnp.asarray(y[rows]), jnp.asarray(rows))
            state, values = take_step(state, batch, np.int32(epoch))
            pending.append(values)
            step += 1
            ends_epoch = position + 1 == steps_per_epoch
            if not (ends_epoch or step % LOG_EVERY == 0):
                continue
            doing = run.doing(objective.name)
            means = mean_metrics(pending, step, doing)
            check_finite(Weights(state.params, state.model_state), step, doing)
            metrics.append(run.log(epoch, step, means))
            advance(len(pending), metrics[-1])
            pending.clear()
            if ends_epoch and validate is not None:
                found = validate(*validated(state))
                found = {name: float(value) for name, value in found.items()}
                if select is not None:
                    state = better(state, _chosen(found, select), epoch)
                metrics.append(run.log(epoch, step, {"validation": found}))
                stop = patience is not None and in_vain(state) >= patience
            if ends_epoch or time.monotonic() - saved_at >= checkpoint_seconds:
                run.save(state)
                saved_at = time.monotonic()
    run.close()
    return Fit(
        state.params, state.model_state, state.objective_state, metrics, state.ema, state.best
    )


def _check_options(ema_decay: Any, validate: Any, select: Any, patience: Any) -> None:
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(f"ema_decay must lie between 0 and 1; got {ema_decay}")
    if select is not None and validate is None:
        raise ValueError(f"select needs validate, which returns that number; got {select!r} alone")
    if patience is not None:
        checks.check_count(patience, "patience")
        if select is None:
            raise ValueError(f"patience needs select, a name; got {patience} alone")


def _chosen(found: dict[str, float], select: str) -> float:
    if select not in found:
        raise ValueError(
            f"select must be one of what validate returns, {list(found)}; got {select!r}"
        )
    return found[select]
