"""`python -m experiments.neural_ode --help`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from experiments import records
from experiments.neural_ode import config, evaluate, tables, train


@dataclasses.dataclass(frozen=True)
class Args:
    """Train the networks (a run that was stopped goes on), attack them, fill the tables."""

    stage: Literal["train", "evaluate", "tables"]
    """What to do. "evaluate" fills the tables too, which "tables" does again from the numbers."""
    data: config.Data = "mnist"
    """Image set."""
    only: tuple[str, ...] = ()
    """Names of networks ("tisode", "cnn clean" for table 1's; config.NETWORKS); all if empty."""
    preset: Literal["cpu", "paper", "smoke"] = "cpu"
    """How much is trained and measured; see config.py."""
    seeds: tuple[int, ...] = ()
    """Which; those of the preset if empty."""
    out: Path = Path("runs/neural_ode")
    """Where checkpoints and metrics go."""
    results: Path = Path("experiments/neural_ode/results")
    """Where numbers are recorded."""


def main(args: Args) -> None:
    """Run one stage."""
    unknown = set(args.only) - set(config.NETWORKS)
    if unknown:
        raise ValueError(f"only must be names of {sorted(config.NETWORKS)}; got {sorted(unknown)}")
    seeds = args.seeds or tuple(range(config.PRESETS[args.preset].seeds))
    runs = [(name, seed) for seed in seeds for name in args.only or config.NETWORKS]
    if args.stage == "train":
        for name, seed in runs:
            print(args.data, name, seed, flush=True)
            train.network(args.data, name, args.preset, args.out, seed)
        return
    place = evaluate.Place(args.out, args.results, args.preset)
    if args.stage == "evaluate":
        for name, seed in runs:
            evaluate.record(place, args.data, name, seed)
    records.show(tables.tables(place.folder), args.results.parent / "README.md", args.preset)


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m experiments.neural_ode"))
