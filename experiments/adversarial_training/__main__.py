"""`python -m experiments.adversarial_training --help`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from experiments import records
from experiments.adversarial_training import config, evaluate, figures, tables, train


@dataclasses.dataclass(frozen=True)
class Args:
    """Train networks (a run that was stopped goes on), attack them, fill the tables."""

    stage: Literal["train", "evaluate", "figures", "all"] = "all"
    """What to do; "evaluate" draws figures and tables too, which "figures" does again."""
    data: config.Data = "mnist"
    """Whose networks."""
    only: tuple[str, ...] = ()
    """Names of networks to train, as in config.py, or parts of names of measurements; all if empty
    (of the smoke preset a network of each kind). "speed" wants an idle machine."""
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
    if args.stage in ("train", "all"):
        every = config.SMOKE if args.preset == "smoke" else config.RECIPES
        for name in args.only or every[args.data]:
            print(args.data, name, flush=True)
            train.network(name, args.data, args.preset, args.out, args.seed)
    if args.stage == "train":
        return
    place = evaluate.Place(args.out, args.results, args.preset, args.data, args.split, args.seed)
    if args.stage != "figures":
        evaluate.record(place, args.only)
    figures.draw(place.folder)
    preset = args.preset if args.split == "test" else "held-out"  # the README is of the test set
    shown = tables.tables(place.folder.parent)
    records.show(shown, args.results.parent / "README.md", preset)


if __name__ == "__main__":
    main(tyro.cli(Args))
