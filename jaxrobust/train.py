"""Training: a Python loop over one compiled step, with checkpoints that resume exactly."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Key, PyTree

from jaxrobust import checks, files
from jaxrobust.identity import digest
from jaxrobust.threat import UNIT_BOX, Box
from jaxrobust.types import Batch, Examples, Objective, row_keys

LOG_EVERY = 50
"""Steps between two lines of metrics, at which NaNs are looked for and checkpoints written."""


class TrainState(NamedTuple):
    """Everything that a step changes."""

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    objective_state: PyTree


class Fit(NamedTuple):
    """The outcome of `fit`.

    Attributes:
        params: Trained parameters.
        model_state: The model's state (batch statistics and the like).
        objective_state: The objective's state.
        metrics: One dictionary a logged interval, with "step", "epoch" and the mean of each
            training metric over the interval, or "validation" metrics at the end of an epoch.
    """

    params: PyTree
    model_state: PyTree
    objective_state: PyTree
    metrics: list[dict[str, Any]]


def fit(
    objective: Objective,
    params: PyTree,
    optimizer: optax.GradientTransformation,
    data: Examples,
    *,
    key: Key[Array, ""],
    num_epochs: int,
    batch_size: int,
    model_state: PyTree = None,
    validate: Callable[[PyTree, PyTree], dict[str, Any]] | None = None,
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
        model_state: The model's state; an empty dictionary where None.
        validate: Called with `(params, model_state)` after each epoch; returns numbers to log.
        directory: Where checkpoints and metrics go; nothing is written where None.
        resume: Go on from the directory's last checkpoint, if it has one. That it is the same run
            is checked by the key, the data, the batch size, and the names, shapes and dtypes of all
            parameters and states. Numbers inside the objective, the optimizer and its schedule (an
            eps, a learning rate) cannot be seen: they are taken as given now.
        checkpoint_seconds: Least time between two checkpoints inside an epoch.
        progress: Show a progress bar.
        box: Legal pixel values.

    Returns:
        The trained parameters and states, and the metrics.

    Raises:
        ValueError: For data, counts or a key that cannot be meant; for a directory that holds a
            run which is not to be resumed, or that differs in what `resume` says is checked.
        FloatingPointError: As soon as a metric or a parameter is not finite, with its name and
            step; a label beyond the model's classes shows as a loss of NaN.
    """
    x, y = checks.images_and_labels(data)
    checks.check_images(x, box, "data[0]")
    checks.check_labels(y, x.shape[0], name="data[1]")
    checks.check_count(num_epochs, "num_epochs")
    checks.check_count(batch_size, "batch_size")
    if batch_size > x.shape[0]:
        raise ValueError(f"batch_size must be at most the {x.shape[0]} examples; got {batch_size}")
    row_keys(key, 1)
    if key.ndim:
        raise ValueError(f"key must be a single key for fit; got shape {key.shape}")
    steps_per_epoch = x.shape[0] // batch_size
    total = num_epochs * steps_per_epoch
    init_key, shuffle_key, step_key = (jax.random.fold_in(key, i) for i in range(3))
    # Copies: the loop donates its state, and the caller's arrays must live on.
    params, model_state = jax.tree.map(
        jnp.copy, (params, {} if model_state is None else model_state)
    )
    state = TrainState(
        jnp.zeros((), jnp.int32), params, model_state, optimizer.init(params),
        objective.init(params, init_key),
    )  # fmt: skip
    run = _Run(directory, resume, state, key, (x, y), batch_size)
    state, metrics = run.restore(state)

    @jax.jit
    def order_of(epoch: Array) -> Array:
        return jax.random.permutation(jax.random.fold_in(shuffle_key, epoch), x.shape[0])

    @jax.jit(donate_argnums=0)
    def take_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        out, grads = objective.value_and_grad(
            state.params, state.model_state, state.objective_state, batch,
            key=jax.random.fold_in(step_key, state.step),
        )  # fmt: skip
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = TrainState(state.step + 1, params, out.model_state, opt_state, out.state)
        return state, {"loss": out.loss, **out.metrics}

    step = int(state.step)
    pending: list[dict[str, Array]] = []
    saved_at = time.monotonic()
    with _progress(progress, total, step) as advance:
        order, ordered_epoch = np.empty(0, np.int64), -1
        while step < total:
            epoch, position = divmod(step, steps_per_epoch)
            if epoch != ordered_epoch:
                order, ordered_epoch = np.asarray(order_of(epoch)), epoch
            rows = order[position * batch_size : (position + 1) * batch_size]
            batch = Batch(jnp.asarray(x[rows]), jnp.asarray(y[rows]), jnp.asarray(rows))
            state, values = take_step(state, batch)
            pending.append(values)
            step += 1
            ends_epoch = position + 1 == steps_per_epoch
            if not (ends_epoch or step % LOG_EVERY == 0):
                continue
            means = _means(pending, step)
            _check_params(state.params, step)
            metrics.append(run.log(epoch, step, means))
            advance(len(pending), metrics[-1])
            pending.clear()
            if ends_epoch and validate is not None:
                found = validate(state.params, state.model_state)
                found = {name: float(value) for name, value in found.items()}
                metrics.append(run.log(epoch, step, {"validation": found}))
            if ends_epoch or time.monotonic() - saved_at >= checkpoint_seconds:
                run.save(state)
                saved_at = time.monotonic()
    run.close()
    return Fit(state.params, state.model_state, state.objective_state, metrics)


def restore(directory: str | Path) -> tuple[PyTree, PyTree]:
    """Parameters and model state of a run's last checkpoint, as nested dictionaries.

    Args:
        directory: A directory written by `fit`.

    Raises:
        ValueError: If there is no checkpoint in it.
    """
    import orbax.checkpoint as ocp

    path = Path(directory).absolute() / "checkpoints"
    if not path.is_dir():
        raise ValueError(f"directory must hold a run of fit; {directory} has no checkpoints")
    with ocp.CheckpointManager(path) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                stored: Any = manager.restore(step, args=ocp.args.StandardRestore())
                return stored["params"], stored.get("model_state") or {}
            except Exception:  # a damaged checkpoint, in whichever way: the one before it will do
                continue
    raise ValueError(f"{directory} holds no checkpoint that is whole")


def _means(pending: list[dict[str, Array]], step: int) -> dict[str, float]:
    """Mean metrics of the last steps, or an error naming the first that is not finite."""
    values = jax.device_get(pending)
    for i, metrics in enumerate(values):
        for name, value in metrics.items():
            if not np.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value} at step {step - len(values) + i + 1}; the last checkpoint "
                    "is from before it (a lower learning rate or a warm-up of eps may help)"
                )
    return {name: float(np.mean([m[name] for m in values])) for name in values[0]}


@jax.jit
def _all_finite(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.all(jnp.isfinite(leaf)), tree)


def _check_params(params: PyTree, step: int) -> None:
    """Stop before a checkpoint is written of parameters that are not finite."""
    for path, finite in jax.tree_util.tree_leaves_with_path(jax.device_get(_all_finite(params))):
        if not finite:
            raise FloatingPointError(
                f"parameter {jax.tree_util.keystr(path)} is not finite after step {step}; the last "
                "checkpoint is from before it"
            )


class _Run:
    """The files of a run, or nothing at all where there is no directory."""

    def __init__(
        self,
        directory: str | Path | None,
        resume: bool,
        state: TrainState,
        key: Array,
        data: tuple[Any, Any],
        batch_size: int,
    ) -> None:
        self.manager: Any = None
        if directory is None:
            if resume:
                raise ValueError("resume=True needs the directory of the run to go on with")
            return
        import orbax.checkpoint as ocp

        self.ocp = ocp
        folder = Path(directory).absolute()
        self.lines = folder / "metrics.jsonl"
        identity = {
            "key": np.asarray(jax.random.key_data(key)).tolist(),
            "num_examples": len(data[1]),
            "data": digest(list(data)),
            "batch_size": batch_size,
            "state": _shapes(state),
        }
        path = folder / "run.json"
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            if not resume:
                raise ValueError(
                    f"directory {directory} already holds a run; resume it or choose another"
                )
            stored = files.read_json(path)
            for name, ours in identity.items():
                if stored.get(name) != ours:
                    raise ValueError(_mismatch(directory, name, stored.get(name), ours))
        else:
            files.write_json(path, identity)
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager(folder / "checkpoints", options=options)

    def restore(self, state: TrainState) -> tuple[TrainState, list[dict[str, Any]]]:
        """The last checkpoint, and the metrics logged up to it."""
        if self.manager is None:
            return state, []
        last = None
        abstract = jax.tree.map(ocp_abstract, state)
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                args = self.ocp.args.StandardRestore(abstract)
                state = self.manager.restore(step, args=args)
                last = step
                break
            except Exception:  # a damaged checkpoint, in whichever way: the one before it will do
                self.manager.delete(step)
        # Lines after the checkpoint, and a half-written last one, will be written again.
        kept = []
        for line in self.lines.read_text().splitlines() if self.lines.exists() else []:
            try:
                entry = json.loads(line)
                if entry["step"] > (last or 0):
                    break
            except (json.JSONDecodeError, KeyError, TypeError):
                break
            kept.append(entry)
        partial = self.lines.with_suffix(".partial")
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        partial.replace(self.lines)
        return state, kept

    def log(self, epoch: int, step: int, values: dict[str, Any]) -> dict[str, Any]:
        """Append one line of metrics."""
        entry = {"step": step, "epoch": epoch, **values}
        if self.manager is not None:
            with self.lines.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        return entry

    def save(self, state: TrainState) -> None:
        """Write a checkpoint; it appears whole or not at all."""
        if self.manager is not None:
            self.manager.save(int(state.step), args=self.ocp.args.StandardSave(state))

    def close(self) -> None:
        """Let go of the directory."""
        if self.manager is not None:
            self.manager.close()


def ocp_abstract(leaf: Any) -> Any:
    """The form in which orbax wants to be told what to restore."""
    leaf = jnp.asarray(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _shapes(tree: PyTree) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(k): f"{jnp.shape(v)} {jnp.result_type(v)}" for k, v in leaves}


def _mismatch(directory: Any, name: str, stored: Any, ours: Any) -> str:
    if name == "state" and isinstance(stored, dict):
        differing = [k for k in {**stored, **ours} if stored.get(k) != ours.get(k)]
        first = differing[0]
        return (
            f"the checkpoint in {directory} is of another model or optimizer: {first} is "
            f"{stored.get(first, 'absent')} there and {ours.get(first, 'absent')} here"
        )
    return f"the run in {directory} was started with {name} {stored}; got {ours}"


@contextlib.contextmanager
def _progress(show: bool, total: int, done: int) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    if not show:
        yield lambda steps, metrics: None
        return
    from rich import get_console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )  # fmt: skip
    with Progress(*columns, disable=not get_console().is_terminal) as bar:
        task = bar.add_task("", total=total, completed=done)

        def advance(steps: int, metrics: dict[str, Any]) -> None:
            shown = "  ".join(
                f"{name} {value:.3f}" for name, value in metrics.items()
                if isinstance(value, float)
            )  # fmt: skip
            bar.update(task, advance=steps, description=shown)

        yield advance
