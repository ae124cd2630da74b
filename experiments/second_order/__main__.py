"""`python -m experiments.second_order --help`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from experiments.second_order import config, train


@dataclasses.dataclass(frozen=True)
class Args:
    """Train networks (a run that was stopped goes on), then attack and certify them."""

    stage: Literal["train"]
    """What to do."""
    only: tuple[str, ...] = ()
    """Names of networks, as in config.py; all if empty."""
    out: Path = Path("runs/second_order")
    """Where checkpoints, metrics and the judged batches go."""
    madry: Path = Path("runs/madry_mnist")
    """Where `experiments.madry_mnist` keeps its networks, two of which are used here."""
    seed: int = 0
    """Of initial weights, batches and attacks."""


def main(args: Args) -> None:
    """Run one stage."""
    for name in args.only or (*config.SHARED, *config.CPU):
        print(name, flush=True)
        train.network(name, args.out, args.madry, args.seed)


if __name__ == "__main__":
    main(tyro.cli(Args))
