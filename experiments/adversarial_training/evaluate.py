"""All measurements, each kept in a JSON file of its own; see `experiments.records`."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from experiments import records
from experiments.adversarial_training import config, measure, speed, train
from experiments.adversarial_training.config import RECIPES
from experiments.adversarial_training.place import Place
from jaxrobust.identity import digest

COMBINED = {
    "mnist": ("natural", "madry 0.2", "madry 0.3", "madry 0.4", "pgdls 0.3", "pgdls 0.4", "mma",
              "madry ensemble", "trades", "pgd-40"),
    "cifar10": ("madry 8", "madry 16", "madry 24", "pgdls 8", "pgdls 16", "pgdls 24", "mma 12",
                "mma 20", "mma 32", "madry ensemble", "pgdls ensemble", "trades"),
}  # fmt: skip
"""Rows of MMA's table."""
METHODS = tuple(name for name in config.MNIST if not re.search(r" x\d$", name))
CAPACITY = tuple(name for name in config.MNIST if re.search(r" x\d$", name))
TABLE = {
    "mnist": (*METHODS, *config.ENSEMBLES["mnist"]),
    "cifar10": (*config.CIFAR10, *config.ENSEMBLES["cifar10"]),
}
"""Networks under the common attacks."""
STARTS = ("natural", "pgd-40")
"""Of the losses that PGD reaches from many starts."""


def measurements(data: str) -> dict[str, tuple[Callable[[Place, str], Any], str]]:
    """Function and network of each measurement, by its name; the cheap ones first."""
    of = {
        "history": (measure.history, tuple(RECIPES[data])),
        "table": (measure.table, TABLE[data]),
        "margins": (measure.margins, TABLE[data]),
        "whole": (measure.whole, TABLE[data]),
        "capacity": (measure.capacity, CAPACITY if data == "mnist" else ()),
        "starts": (measure.starts, STARTS if data == "mnist" else ()),
        "combined": (measure.combined, COMBINED[data]),
        "restarts": (measure.restarts, TABLE[data]),
        "autoattack": (measure.autoattack, TABLE[data]),
    }
    return {
        f"{kind} {name}": (taken, name) for kind, (taken, names) in of.items() for name in names
    }


def command(place: Place, stage: str) -> str:
    """What makes the numbers of a stage."""
    return (
        f"python -m experiments.adversarial_training --stage {stage} --data {place.data} "
        f"--split {place.split} --preset {place.preset}"
    )


def record(place: Place, only: tuple[str, ...] = ()) -> None:
    """Make the measurements named, or all: first what trainings cost, and then of each network.

    Args:
        place: What is measured.
        only: Whole names ("speed", "table madry 0.3"), kinds ("margins") or networks.

    Raises:
        ValueError: For a name that is none of these.
    """
    of = measurements(place.data)
    kinds = {title.removesuffix(f" {name}") for title, (_, name) in of.items()}
    known = {"speed", *of, *kinds, *(name for _, name in of.values())}
    if unknown := set(only) - known:
        raise ValueError(
            f"--only must name measurements, kinds of them ({', '.join(sorted(kinds))}) or "
            f"networks; got {', '.join(sorted(unknown))}"
        )
    if not only or "speed" in only:
        about = {
            "name": "speed", "data": place.data, "preset": place.preset, "sizes": place.sizes,
            "settings": {
                name: train.settings(recipe, config.setting(name, place.data, place.preset))
                for name, recipe in RECIPES[place.data].items()
                if name not in config.TWINS
            },
        }  # fmt: skip
        make = functools.partial(speed.costs, place.data, place.preset)
        records.keep(place.folder / "speed.json", about, make, command(place, "evaluate"))
    for title, (taken, name) in of.items():
        if only and not {title, name, title.removesuffix(f" {name}")} & set(only):
            continue
        networks = {name: place.network(name)}
        if taken is measure.combined:
            networks |= {one: place.network(one) for one in measure.sources(place)}
        missing = [one for one, found in networks.items() if found is None]
        if missing:
            print(f"{title}: {', '.join(missing)} is not trained", flush=True)
            continue
        about = {
            "name": title, "data": place.data, "split": place.split, "seed": place.seed,
            "weights": {one: digest(found) for one, found in networks.items()},
            "training": {one: place.training(one) for one in networks},
            "sizes": place.sizes, "settings": _settings(place, taken),
        }  # fmt: skip
        slug = re.sub(r"[^a-z0-9.*+]+", "-", title.lower()).replace("*", "-star")
        make = functools.partial(taken, place, name)
        records.keep(place.folder / f"{slug}.json", about, make, command(place, "evaluate"))


def _settings(place: Place, taken: Callable[..., Any]) -> dict[str, Any]:
    """What a measurement depends on besides weights, their training, sizes and seed."""
    radii = config.RADII[place.data]
    found: dict[str, Any] = {
        measure.history: {},
        measure.whole: {
            "eps": config.EPS[place.data],
            "attacks": measure.attacks_of(place.data, "whole"),
        },
        measure.table: {
            "radii": measure.table_radii(place),
            "attacks": measure.attacks_of(place.data, "table"),
        },
        measure.restarts: {
            "radii": measure.table_radii(place),
            "attacks": measure.attacks_of(place.data, "restarts"),
        },
        measure.autoattack: {"eps": config.EPS[place.data]},
        measure.combined: {
            "radii": radii,
            "attacks": measure.attacks_of(place.data, "combined", place.sizes.combined_steps),
        },
        measure.capacity: {
            "eps": config.EPS[place.data],
            "attacks": measure.attacks_of(place.data, "table"),
        },
        measure.margins: {
            "radii": measure.MARGIN_RADII[place.data],
            "num_steps": measure.MARGIN_STEPS[place.data],
        },
        measure.starts: {"eps": config.EPS[place.data], "step_size": measure.STEP[place.data]},
    }[taken]
    if "attacks" in found:  # a partial's own words, without addresses
        spelled = {key: re.sub(r" at 0x\w+", "", repr(of)) for key, of in found["attacks"].items()}
        found |= {"attacks": spelled}
    return found
