"""`python -m experiments.pdm --help`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from experiments import records
from experiments.pdm import config, evaluate, figures, tables, train


@dataclasses.dataclass(frozen=True)
class Args:
    """Train the networks (a run that was stopped goes on), attack and detect, fill the tables."""

    stage: Literal["train", "evaluate", "figures"]
    """What to do; "evaluate" draws figures and tables too, which "figures" does again."""
    data: config.Data = "mnist"
    """Whose networks."""
    only: tuple[str, ...] = ()
    """Networks to train, or parts of names of measurements; all if empty."""
    preset: Literal["cpu", "paper", "smoke"] = "cpu"
    """How networks are trained and how much is measured; see config.py."""
    out: Path = Path("runs/pdm")
    """Where checkpoints and metrics go."""
    results: Path = Path("experiments/pdm/results")
    """Where numbers and figures are recorded."""
    seed: int = 0
    """Of initial weights, batches, reference points and attacks."""


def main(args: Args) -> None:
    """Run one stage."""
    if args.stage == "train":
        for name in args.only or (*config.NETWORKS, *config.PROXIES):
            print(args.data, name, flush=True)
            train.network(args.data, name, args.preset, args.out, args.seed)
        return
    place = evaluate.Place(args.out, args.results, args.preset, args.data, args.seed)
    if args.stage == "evaluate":
        evaluate.record(place, args.only)
        evaluate.keep_positions(place)
    figures.draw(place.folder)
    shown = tables.tables(place.folder.parent)
    records.show(shown, args.results.parent / "README.md", args.preset)


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m experiments.pdm"))
