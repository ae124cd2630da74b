"""Every measurement of the experiment; see `experiments.records`."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import jaxrobust as jr
from experiments import records
from experiments.carlini_wagner import config, measure
from experiments.carlini_wagner.config import Sizes
from experiments.carlini_wagner.train import folder_of, model_of
from jaxrobust.identity import digest

OBJECTIVES = ("f1", "f2", "f3", "f4", "f5", "f6", "f7")
METHODS = ("change_of_variable", "clipped", "projected")
KAPPAS = (0.0, 5.0, 10.0, 20.0, 30.0, 40.0)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where everything lies, and what this run is of."""

    out: Path
    results: Path
    preset: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where results go."""
        return self.results / self.preset


class Entry(NamedTuple):
    """One attack on one network: in how many rows of what kind, judged in which norm."""

    name: str
    data: str
    network: str
    attack: Callable[..., Any]
    settings: dict[str, Any]
    norm: str
    num_images: int
    targets: str = "one"  # a random one, "every", or "any": untargeted


def record(place: Place, data: str, only: tuple[str, ...] = ()) -> None:
    """Make every measurement of one data set, and say which networks are missing."""
    for network in ("natural", "distilled"):
        if not only or any(part in f"clean {network}" for part in only):
            _record_accuracy(place, data, network)
    for entry in entries(data, config.PRESETS[place.preset].sizes[data]):
        if entry.num_images and (not only or any(part in entry.name for part in only)):
            _record(place, entry)


def entries(data: str, sizes: Sizes) -> Iterator[Entry]:
    """All of them, the important ones first."""
    steps, searches = sizes.l2
    l2 = {"num_steps": steps, "num_searches": searches, "initial_c": sizes.initial_c}
    others = {"num_steps": sizes.others}
    a = jr.attacks
    ours = {
        "l2": (a.carlini_wagner_l2, l2, "l2"),
        "linf": (a.carlini_wagner_linf, others, "linf"),
        "l0": (a.carlini_wagner_l0, others, "l0"),
    }
    pgd = functools.partial(a.pgd, num_steps=20, random_start=False)
    rivals = {
        "JSMA-F": (a.jsma, {"on": "softmax"}, "l0"),
        "JSMA-Z": (a.jsma, {"on": "logits"}, "l0"),
        "FGS": (measure.smallest_radius(a.fgsm, False), {}, "linf"),
        "IGS": (measure.smallest_radius(pgd, True), {}, "linf"),
    }
    yield Entry("table 4 DeepFool", data, "natural", a.deepfool, {}, "l2", sizes.average, "any")
    tables = [("table 4", "natural", rivals), ("table 4", "natural", ours)]
    tables += [("table 6", "distilled", ours)]
    for targets in ("one", "every"):
        for table, network, attacks in tables:
            for name, (attack, settings, norm) in attacks.items():
                average = sizes.slow if name in ("l0", "linf") else sizes.average
                case, of = ("average", average) if targets == "one" else ("every", sizes.every)
                at = (data, network, attack, settings, norm, of, targets)
                yield Entry(f"{table} {case} {name}", *at)
    for kappa in KAPPAS:
        at = l2 | {"kappa": kappa}
        name = f"transfer kappa {kappa:g}"
        yield Entry(name, data, "natural", a.carlini_wagner_l2, at, "l2", sizes.transfer)
    for objective in OBJECTIVES:
        for method in METHODS:
            images, searches = sizes.table_3
            at = l2 | {"loss": objective, "method": method, "num_searches": searches}
            name = f"table 3 {objective} {method}"
            yield Entry(name, data, "natural", a.carlini_wagner_l2, at, "l2", images)


def _record(place: Place, entry: Entry) -> None:
    subject = logits_of(entry.data, entry.network, place)
    victim = logits_of(entry.data, "distilled", place)
    if subject is None or (victim is None and entry.name.startswith("transfer")):
        print(f"{entry.name}: {entry.data} {entry.network} is not trained", flush=True)
        return
    about = {
        "name": f"{entry.data} {entry.name}",
        "network": f"{entry.data} {entry.network}",
        "weights": digest(subject),
        "num_images": entry.num_images,
        "targets": entry.targets,
        "norm": entry.norm,
        "settings": entry.settings,
        "seed": place.seed,
    }
    if entry.name.startswith("transfer"):
        about["victim"] = digest(victim)
    command = _command(place, entry.data)
    slug = re.sub(r"[^a-z0-9.]+", "-", f"{entry.data} {entry.name}".lower())
    records.keep(
        place.folder / f"{slug}.json", about, lambda: _measure(place, entry, about), command
    )


def _record_accuracy(place: Place, data: str, network: str) -> None:
    subject = logits_of(data, network, place)
    if subject is None:
        return
    name = f"{data} clean {network}"
    about = {"name": name, "network": f"{data} {network}", "weights": digest(subject)}
    splits = {"held-out": f"train[-{config.HELD_OUT}:]", "test": "test"}

    def accuracies() -> dict[str, float]:
        images = {of: jr.data.load(data, split) for of, split in splits.items()}
        return {of: measure.accuracy(subject, one.x, one.y) for of, one in images.items()}

    command = _command(place, data)
    records.keep(place.folder / f"{name.replace(' ', '-')}.json", about, accuracies, command)


def _command(place: Place, data: str) -> str:
    how = f"--data {data} --preset {place.preset}"
    return f"python -m experiments.carlini_wagner --stage evaluate {how}"


def _measure(place: Place, entry: Entry, about: dict[str, Any]) -> dict[str, Any]:
    logits_fn = logits_of(entry.data, entry.network, place)
    test = jr.data.load(entry.data, "test")
    every = entry.targets == "every"
    x, y, target = measure.rows(test.x, test.y, entry.num_images, every, place.seed)
    settings = dict(entry.settings)
    if "loss" in settings:
        settings["loss"] = getattr(jr.losses, settings["loss"])
    attack = functools.partial(entry.attack, **settings) if settings else entry.attack
    found = measure.attacked(
        attack, logits_fn, x, y, None if entry.targets == "any" else target, seed=place.seed,
        folder=place.out / place.preset / "chunks", about=about,
    )  # fmt: skip
    numbers = measure.summary(measure.cases(found, entry.norm, 9 if every else 1))
    if entry.targets == "any":
        numbers = {"best": numbers["average"]}
    if entry.name.startswith("transfer"):
        victim = logits_of(entry.data, "distilled", place)
        predicted = np.asarray(jnp.argmax(victim(found["x_adv"]), -1))
        numbers["transferred"] = {
            "targeted": float(np.mean((predicted == target)[found["success"]])),
            "untargeted": float(np.mean((predicted != y)[found["success"]])),
        }
    numbers["all"] = {
        k: np.where(found["success"], found[k], -1).round(5).tolist() for k in ("l0", "l2", "linf")
    }  # -1: failed
    return numbers


@functools.cache
def logits_of(data: str, network: str, place: Place) -> Partial | None:
    """A trained network, or its kept copy; None where it is not trained to its end."""
    folder = folder_of(data, network, place.preset, place.out)
    steps = config.steps(data, network, config.PRESETS[place.preset])
    small = data == "mnist"  # CIFAR-10's are too large to keep beside results
    kept = place.folder / f"{data}-{network}.npz" if small else None
    return records.restored(_apply(data), folder, steps, kept)


@functools.cache  # one function a data set, so that networks share compiled programs
def _apply(data: str) -> Callable[..., Any]:
    return model_of(data).apply
