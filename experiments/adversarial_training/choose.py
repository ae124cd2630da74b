"""Numbers of the cpu preset, chosen on held-out images of MNIST."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

import jaxrobust as jr
from experiments import records
from experiments.adversarial_training import config, train
from experiments.adversarial_training.config import CHOICES, RECIPES, Recipe, Setting
from experiments.adversarial_training.evaluate import command
from experiments.adversarial_training.place import Place

NUM_IMAGES = 1000
"""Held-out images looked at."""


def record(place: Place, only: tuple[str, ...] = ()) -> None:
    """Train with each value of the choices named, or all; keep what it leaves of held-out images.

    Raises:
        ValueError: For a name that is no choice.
    """
    if unknown := set(only) - CHOICES.keys():
        raise ValueError(
            f"--only must name choices: {', '.join(CHOICES)}; got {', '.join(sorted(unknown))}"
        )
    for what, choice in CHOICES.items():
        if only and what not in only:
            continue
        about = {
            "name": f"choice {what}", "data": place.data, "seed": place.seed, "choice": choice,
            "settings": [
                train.settings(*replaced(place, what, value)) for value in choice.values
            ],
        }  # fmt: skip
        path = place.folder / f"choice-{what.lower().replace(' ', '-')}.json"
        make = functools.partial(measure, place, what)
        records.keep(path, about, make, command(place, "choose"))


def replaced(place: Place, what: str, value: float) -> tuple[Recipe, Setting]:
    """Recipe and setting with a value in its place, and no other weight of a regulariser."""
    name = CHOICES[what].recipe
    recipe, setting = RECIPES["mnist"][name], config.setting(name, "mnist", place.preset)
    setting = dataclasses.replace(setting, weights={}, rates={})
    if what in ("rate", "rate of yopo"):
        return recipe, dataclasses.replace(setting, rate=value)
    return recipe, dataclasses.replace(setting, weights={what: value})


def measure(place: Place, what: str) -> list[dict[str, float]]:
    """Accuracy on held-out images, clean and under PGD of 20 steps, of each value."""
    choice = CHOICES[what]
    held = jr.data.load("mnist", f"train[-{config.HELD_OUT}:]")
    x, y = held.x[:NUM_IMAGES], held.y[:NUM_IMAGES]
    found = []
    for value in choice.values:
        folder = place.out / place.preset / "choices" / f"{what} {value:g}".replace(" ", "-")
        recipe, setting = replaced(place, what, value)
        subject = train.run(recipe, setting, "mnist", place.preset, folder, place.seed)
        found.append({"value": value, **accuracies(subject, x, y, choice.eps, place.seed)})
        print(what, found[-1], flush=True)
    return found


def accuracies(subject: Partial, x: Any, y: Any, eps: float, seed: int) -> dict[str, float]:
    """Shares that are right, clean and under PGD-20."""
    pgd = functools.partial(jr.attacks.pgd, num_steps=20)
    x_adv = pgd(subject, x, y, key=jax.random.key(seed), ball=jr.Ball("linf", eps))
    of = {"clean": x, "PGD-20": x_adv}
    return {k: float(np.mean(np.argmax(subject(z), -1) == y)) for k, z in of.items()}
