"""`python -m experiments.spatial --help`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

import jaxrobust as jr
from experiments import records
from experiments.spatial import config, evaluate, figures, tables, train


@dataclasses.dataclass(frozen=True)
class Args:
    """Train networks (a run that was stopped goes on), then attack and bound them."""

    stage: Literal["train", "evaluate", "figures"]
    """What to do; "evaluate" draws figures and tables too, which "figures" does again."""
    only: tuple[str, ...] = ()
    """Names of networks to train, as in config.py, or parts of names of measurements; all if
    empty."""
    preset: Literal["cpu", "smoke"] = "cpu"
    """How much is trained and measured; see config.py."""
    data: Literal["held-out", "test"] = "held-out"
    """What evaluate looks at: held-out training images, or, once, the test set."""
    out: Path = Path("runs/spatial")
    """Where checkpoints and metrics go."""
    results: Path = Path("experiments/spatial/results")
    """Where numbers and figures are recorded."""
    seed: int = 0
    """Of initial weights, batches and attacks."""


def main(args: Args) -> None:
    """Run one stage."""
    if args.stage == "train":
        for name in args.only or config.RECIPES:
            print(name, flush=True)
            train.network(name, args.preset, args.out, args.seed)
        return
    place = evaluate.Place(args.out, args.results, args.preset, args.data, args.seed)
    if args.stage == "evaluate":
        evaluate.record(place, args.only)
        _images(place)
    figures.draw(place.folder)
    preset = args.preset if args.data == "test" else "held-out"  # the README is of the test set
    records.show(tables.tables(place.folder), args.results.parent / "README.md", preset)


def _images(place: evaluate.Place) -> None:
    """The images of the figures, where their networks are trained and they are not there yet."""
    for name in config.LOWER:
        path = place.folder / f"samples-{name}.npz"
        numbers = records.read(place.folder).get(f"lower {name}")
        if numbers and not path.exists():
            losing = int(np.argmax(np.max(numbers["found"]["loss"], axis=1)))
            jr.files.write_arrays(path, evaluate.samples(place, name, losing))
    path = place.folder / "pictures.npz"
    if place.network("nt") is not None and not path.exists():
        jr.files.write_arrays(path, evaluate.pictures(place, "nt"))


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m experiments.spatial"))
