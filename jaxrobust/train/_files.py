"""The files of a run: what it is of, its metrics, its checkpoints."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxrobust import checks, files
from jaxrobust.identity import digest
from jaxrobust.train._state import TrainState


def restore(
    directory: str | Path, which: Literal["last", "ema", "best"] = "last"
) -> tuple[PyTree, PyTree]:
    """Parameters and model state of a run's last checkpoint, as nested dictionaries.

    Args:
        directory: A directory written by `fit`.
        which: "last", those of the last step; "ema", their exponential average; "best", those of
            the epoch with the highest value of the metric that `fit` was told to select by.

    Raises:
        ValueError: If there is no checkpoint in it, or the run kept no such weights.
    """
    import orbax.checkpoint as ocp

    checks.check_choice(which, "which", ("last", "ema", "best"))
    path = Path(directory).absolute() / "checkpoints"
    if not path.is_dir():
        raise ValueError(f"directory must hold a run of fit; {directory} has no checkpoints")
    with ocp.CheckpointManager(path) as manager:
        for step in sorted(manager.all_steps(), reverse=True):
            try:
                stored: Any = manager.restore(step, args=ocp.args.StandardRestore())
            except Exception:  # a damaged checkpoint, in whichever way: the one before it will do
                continue
            kept = {"last": stored, "ema": stored.get("ema"), "best": stored.get("best")}[which]
            if kept is None:
                wanted = {"ema": "ema_decay", "best": "select"}[which]
                raise ValueError(
                    f"which must be last for {directory}, a run of fit without {wanted}; got "
                    f"{which!r}"
                )
            kept = kept["weights"] if which == "best" else kept
            return kept["params"], kept.get("model_state") or {}
    raise ValueError(f"{directory} holds no checkpoint that is whole")


NOT_SAID = {"repeats": 1}
"""What a run that does not say so was started with."""


class Run:
    """The files of a run, or nothing at all where there is no directory."""

    def __init__(
        self,
        directory: str | Path | None,
        resume: bool,
        state: TrainState,
        key: Array,
        data: tuple[Any, Any],
        batch_size: int,
        repeats: int,
        objective: str,
    ) -> None:
        self.manager: Any = None
        self.saved: Path | None = None
        if directory is None:
            if resume:
                raise ValueError("resume=True needs the directory of the run to go on with")
            return
        import orbax.checkpoint as ocp

        self.ocp = ocp
        folder = Path(directory).absolute()
        self.lines, self.checkpoints = folder / "metrics.jsonl", folder / "checkpoints"
        identity = {
            "key": np.asarray(jax.random.key_data(key)).tolist(),
            "num_examples": len(data[1]),
            "data": digest(list(data)),
            "batch_size": batch_size,
            "repeats": repeats,
            "objective": objective,
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
                theirs = stored.get(name, NOT_SAID.get(name))
                if name == "objective" and theirs is None:  # of a run that does not say
                    continue
                if theirs != ours:
                    raise ValueError(_mismatch(directory, name, theirs, ours))
        else:
            files.write_json(path, identity)
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        self.manager = ocp.CheckpointManager(self.checkpoints, options=options)

    def restore(self, state: TrainState) -> tuple[TrainState, list[dict[str, Any]]]:
        """The last checkpoint, and the metrics logged up to it."""
        if self.manager is None:
            return state, []
        last, unread = None, {}
        abstract = jax.tree.map(_abstract, _asked_for(state))
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                args = self.ocp.args.StandardRestore(abstract)
                state = TrainState(**self.manager.restore(step, args=args))
                last, self.saved = step, self.checkpoints / str(step)
                break
            except Exception as error:  # damaged, in whichever way: the one before it will do
                unread[step] = f"{type(error).__name__}: {error}".splitlines()[0]
        self._set_aside(unread, last)
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

    def _set_aside(self, unread: dict[int, str], last: int | None) -> None:
        """Move checkpoints that cannot be read out of the way, and say so; never delete one."""
        if not unread:
            return
        words = "; ".join(f"step {step}: {error}" for step, error in unread.items())
        if last is None:
            raise ValueError(
                f"directory must hold a checkpoint that can be read; in {self.checkpoints} none "
                f"can ({words}). Nothing was changed: try again, or begin in another directory"
            )
        aside = self.checkpoints.parent / "unreadable-checkpoints"
        aside.mkdir(exist_ok=True)
        for step in unread:
            shutil.rmtree(aside / str(step), ignore_errors=True)
            (self.checkpoints / str(step)).rename(aside / str(step))
        self.manager.reload()
        warnings.warn(
            f"going on from step {last}: checkpoints that cannot be read were moved to {aside} "
            f"({words})",
            stacklevel=4,
        )

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
            saved = _asked_for(state)
            self.manager.save(int(state.step), args=self.ocp.args.StandardSave(saved))
            self.saved = self.checkpoints / str(int(state.step))

    def doing(self, objective: str) -> str:
        """For the message of a run that fails: of which objective, and what is there to go on."""
        if self.saved is None:
            return f"of {objective}; there is no good checkpoint"
        return f"of {objective}; the last good checkpoint is {self.saved}"

    def close(self) -> None:
        """Let go of the directory."""
        if self.manager is not None:
            self.manager.close()


def _asked_for(state: TrainState) -> dict[str, PyTree]:
    """What goes into a checkpoint: averages and best weights only where there are any."""
    return {name: part for name, part in state._asdict().items() if part is not None}


def _abstract(leaf: Any) -> Any:
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
