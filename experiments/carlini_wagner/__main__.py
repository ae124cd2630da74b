"""`python -m experiments.carlini_wagner --help`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from experiments import records
from experiments.carlini_wagner import config, evaluate, tables
from experiments.carlini_wagner.train import train


@dataclasses.dataclass(frozen=True)
class Args:
    """Train the networks (a run that was stopped goes on), attack them, fill the tables."""

    stage: Literal["train", "evaluate", "tables"]
    """What to do. "evaluate" fills the tables too, which "tables" does again from the numbers."""
    data: Literal["mnist", "cifar10"] = "mnist"
    """Whose networks."""
    only: tuple[str, ...] = ()
    """Networks to train, or parts of names of measurements; all if empty."""
    preset: Literal["cpu", "paper", "smoke"] = "cpu"
    """How networks are trained and how much is measured; see config.py."""
    out: Path = Path("runs/carlini_wagner")
    """Where checkpoints, metrics and finished chunks of measurements go."""
    results: Path = Path("experiments/carlini_wagner/results")
    """Where numbers are recorded."""
    seed: int = 0
    """Of initial weights, batches, targets and attacks."""


def main(args: Args) -> None:
    """Run one stage."""
    if args.stage == "train":
        for network in args.only or config.NETWORKS:
            print(args.data, network, flush=True)
            train(args.data, network, args.preset, args.out, args.seed)
        return
    place = evaluate.Place(args.out, args.results, args.preset, args.seed)
    if args.stage == "evaluate":
        evaluate.record(place, args.data, args.only)
    records.show(tables.tables(place.folder), args.results.parent / "README.md", args.preset)


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m experiments.carlini_wagner"))
