"""`jaxrobust train`: a named network on named data with a named objective."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from jaxrobust import attacks, data, files, objectives, train
from jaxrobust.cli._common import ModelName, NormName, build, check_out, default_eps, key_of
from jaxrobust.threat import Ball

SCHEDULES = {
    "constant_schedule": lambda rate, steps: optax.constant_schedule(rate),
    "cosine_decay_schedule": optax.cosine_decay_schedule,
    "cosine_onecycle_schedule": lambda rate, steps: optax.cosine_onecycle_schedule(steps, rate),
    "linear_onecycle_schedule": lambda rate, steps: optax.linear_onecycle_schedule(steps, rate),
}
"""Learning rates over a run: from `learning_rate` on, or up to it and down again."""


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a classifier; writes checkpoints and metrics, and goes on from them with --resume."""

    out: Path
    """Folder of the run."""
    data: str = "digits"
    """digits, or any prepared TFDS image set such as mnist or cifar10 (see TFDS_DATA_DIR)."""
    model: ModelName = "mlp"
    """Network."""
    objective: Literal["cross_entropy", "hinge", "madry"] = "madry"
    """Training method; madry is adversarial training by PGD."""
    norm: NormName = "linf"
    """Norm of the threat that madry trains against."""
    eps: float | None = None
    """Radius of that threat, of [0, 1]; by the data set where not given."""
    num_steps: int = 7
    """PGD steps of madry."""
    num_epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 64
    """Images a step."""
    learning_rate: float = 1e-3
    """Adam's, at its highest."""
    schedule: Literal[
        "constant_schedule",
        "cosine_decay_schedule",
        "cosine_onecycle_schedule",
        "linear_onecycle_schedule",
    ] = "cosine_decay_schedule"
    """How the learning rate moves over the run, by its name in optax."""
    seed: int = 0
    """Seed of everything."""
    resume: bool = False
    """Go on from the folder's last checkpoint."""

    def run(self) -> None:
        """Train and say how it went."""
        from rich.console import Console

        fitted, _ = self.fit()
        last = next((m for m in reversed(fitted.metrics) if "validation" in m), None)
        shown = (
            "" if last is None else "  ".join(f"{k} {v:.3f}" for k, v in last["validation"].items())
        )
        Console().print(f"trained; on held-out training images: {shown}")
        Console().print(f"checkpoints: {self.out}", soft_wrap=True)

    def fit(self, progress: bool = True) -> tuple[train.Fit, nn.Module]:
        """Train; the last tenth of the training images is held out for validation."""
        check_out(self.out)
        training = data.load(self.data, "train")
        cut = len(training.y) - len(training.y) // 10
        held_x, held_y = training.x[cut:][:1000], training.y[cut:][:1000]
        module = build(self.model, training.num_classes)
        key = key_of(self.seed, f"train {self.objective}")
        init_key, fit_key = jax.random.split(key)
        forward = objectives.from_module(module.apply)
        ball = Ball(self.norm, default_eps(self.data, self.norm) if self.eps is None else self.eps)
        if self.objective == "madry":
            attack = functools.partial(attacks.pgd, num_steps=self.num_steps)
            objective = objectives.madry(forward, attack, ball=ball)
        else:
            objective = getattr(objectives, self.objective)(forward)
        steps = max(1, self.num_epochs * (cut // max(1, self.batch_size)))
        optimizer = optax.adam(SCHEDULES[self.schedule](self.learning_rate, steps))

        def validate(params: PyTree, model_state: PyTree) -> dict[str, Any]:
            del model_state
            logits_fn = jax.tree_util.Partial(module.apply, {"params": params})
            hits = jnp.argmax(logits_fn(held_x), -1) == held_y
            attacked = attacks.pgd(logits_fn, held_x, held_y, key=key, ball=ball, num_steps=10)
            robust = jnp.argmax(logits_fn(attacked), -1) == held_y
            return {"accuracy": jnp.mean(hits), f"pgd {ball.norm} {ball.eps:g}": jnp.mean(robust)}

        description = {
            "model": self.model, "num_classes": training.num_classes, "data": self.data,
            "image_shape": list(training.x.shape[1:]), "objective": self.objective,
            "norm": ball.norm, "eps": ball.eps, "seed": self.seed,
            "num_steps": self.num_steps, "num_epochs": self.num_epochs,
            "batch_size": self.batch_size, "learning_rate": self.learning_rate,
            "schedule": self.schedule,
        }  # fmt: skip
        path = self.out / "model.json"
        if path.exists():
            check_same(self.out, files.read_json(path), description)
        else:
            self.out.mkdir(parents=True, exist_ok=True)
            files.write_json(path, description)
        params = module.init(init_key, training.x[:1])["params"]
        fitted = train.fit(
            objective, params, optimizer, (training.x[:cut], training.y[:cut]), key=fit_key,
            num_epochs=self.num_epochs, batch_size=self.batch_size, validate=validate,
            directory=self.out, resume=self.resume, progress=progress,
        )  # fmt: skip
        return fitted, module


def check_same(folder: Path, stored: dict[str, Any], ours: dict[str, Any]) -> None:
    """Refuse to go on with a run that was started otherwise."""
    for name, value in ours.items():
        if stored.get(name) != value:
            raise ValueError(
                f"{folder} holds a run with {name} {stored.get(name)!r}; got {value!r}"
            )
