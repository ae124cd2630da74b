"""`python -m experiments.adversarial_training --help`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from experiments import records
from experiments.adversarial_training import choose, config, evaluate, figures, tables, train
from experiments.adversarial_training.place import Place


@dataclasses.dataclass(frozen=True)
class Args:
    """Train networks (a run that was stopped goes on), attack them, fill the tables."""

    stage: Literal["choose", "train", "evaluate", "figures", "all"] = "all"
    """What to do; "evaluate" draws figures and tables too, which "figures" does again. "choose"
    shows how rate and weights of the cpu preset were chosen, and is no part of "all"."""
    data: config.Data = "mnist"
    """Whose networks."""
    only: tuple[str, ...] = ()
    """Networks by their names in config.py; to measure, also kinds of measurements and "speed",
    which wants an idle machine; to choose, choices. All if empty (of the smoke preset a network of
    each kind)."""
    preset: Literal["cpu", "paper", "short", "smoke"] = "cpu"
    """How networks are trained and how much is measured; see config.py."""
    split: Literal["held-out", "test"] = "held-out"
    """What evaluate looks at: held-out training images, or, once, the test set."""
    out: Path = Path("runs/adversarial_training")
    """Where checkpoints and metrics go."""
    results: Path = Path("experiments/adversarial_training/results")
    """Where numbers and figures are recorded."""
    seed: int = 0
    """Of initial weights, batches and attacks."""


def main(args: Args) -> None:
    """Run one stage, or all."""
    place = Place(args.out, args.results, args.preset, args.data, args.split, args.seed)
    if args.stage == "choose":
        choose.record(dataclasses.replace(place, data="mnist", split="held-out"), args.only)
    if args.stage in ("train", "all"):
        if unknown := set(args.only) - config.RECIPES[args.data].keys():
            raise ValueError(
                f"--only must name networks to train: {', '.join(config.RECIPES[args.data])}; "
                f"got {', '.join(sorted(unknown))}"
            )
        for name in args.only or config.names(args.data, args.preset):
            print(args.data, name, flush=True)
            train.network(name, args.data, args.preset, args.out, args.seed)
    if args.stage == "train":
        return
    if args.stage in ("evaluate", "all"):
        evaluate.record(place, args.only)
    figures.draw(place.folder)
    preset = args.preset if args.split == "test" else "held-out"  # the README is of the test set
    shown = tables.tables(place.folder.parent)
    records.show(shown, args.results.parent / "README.md", preset)


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m experiments.adversarial_training"))
