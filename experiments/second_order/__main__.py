"""`python -m experiments.second_order --help`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from experiments import records
from experiments.second_order import config, evaluate, figures, tables, train


@dataclasses.dataclass(frozen=True)
class Args:
    """Train networks (a run that was stopped goes on), choose the attacks' settings, measure."""

    stage: Literal["train", "choose", "evaluate", "figures"]
    """What to do. "choose" looks at held-out images only; "evaluate" draws figures and tables too,
    which "figures" does again from the recorded numbers."""
    only: tuple[str, ...] = ()
    """Names of networks to train, as in config.py, or parts of names of measurements; all if
    empty."""
    preset: Literal["cpu", "paper", "smoke"] = "cpu"
    """How networks are trained and how much is measured; see config.py."""
    data: Literal["held-out", "test"] = "held-out"
    """What evaluate looks at: held-out training images, or, once, the test set."""
    out: Path = Path("runs/second_order")
    """Where checkpoints and metrics go."""
    madry: Path = Path("runs/madry_mnist")
    """Where `experiments.madry_mnist` keeps its networks, two of which are used here."""
    results: Path = Path("experiments/second_order/results")
    """Where numbers, figures and page are recorded."""
    seed: int = 0
    """Of initial weights, batches and attacks."""


def main(args: Args) -> None:
    """Run one stage."""
    if args.stage == "train":
        for name in args.only or (*config.SHARED, *config.CPU):
            print(name, flush=True)
            train.network(name, args.preset, args.out, args.madry, args.seed)
        return
    place = evaluate.Place(args.out, args.madry, args.results, args.preset, args.seed)
    if args.stage == "choose":
        evaluate.choose(place, args.only)
        return
    if args.stage == "evaluate":
        evaluate.record(place, args.data, args.only)
    figures.draw(place.folder(args.data))
    found = tables.tables(place.folder(args.data))
    preset = args.preset if args.data == "test" else "held-out"  # the README is of the test set
    records.show(found, args.results.parent / "README.md", preset)


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m experiments.second_order"))
