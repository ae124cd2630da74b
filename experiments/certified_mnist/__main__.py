"""`python -m experiments.certified_mnist --help`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from experiments.certified_mnist import config, evaluate, train


@dataclasses.dataclass(frozen=True)
class Args:
    """Train networks (a run that was stopped goes on), then bound and attack them."""

    stage: Literal["train", "evaluate"]
    """What to do."""
    only: tuple[str, ...] = ()
    """Names of networks, as in config.py; those of the table, then the frontier's, if empty."""
    out: Path = Path("runs/certified_mnist")
    """Where checkpoints, metrics and the judged batches go."""
    results: Path = Path("experiments/certified_mnist/results")
    """Where evaluate records its numbers, figures and networks."""
    data: Literal["held-out", "test"] = "held-out"
    """What evaluate looks at: the 5,000 held-out training images, or, once, the test set."""
    seed: int = 0
    """Of initial weights, batches and attacks."""


def main(args: Args) -> None:
    """Run one stage."""
    names = args.only or (*config.RECIPES, *config.FRONTIER)
    if args.stage == "train":
        for name in names:
            print(name, flush=True)
            train.network(name, args.out, args.seed)
    else:
        evaluate.record(names, args.out, args.results, args.data, args.seed)


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m experiments.certified_mnist"))
