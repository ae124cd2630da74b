"""`python -m experiments.madry_mnist --help`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from experiments.madry_mnist import config, train


@dataclasses.dataclass(frozen=True)
class Args:
    """Train both networks of the table (a run that was stopped goes on), then evaluate them."""

    stage: Literal["train-natural", "train-adversarial"]
    """What to do."""
    preset: Literal["cpu", "paper", "smoke"] = "cpu"
    """Schedule; see config.py."""
    out: Path = Path("runs/madry_mnist")
    """Where checkpoints and metrics go."""


def main(args: Args) -> None:
    """Run one stage."""
    chosen = config.PRESETS[args.preset]
    train.network(args.stage.removeprefix("train-"), chosen, args.out / args.preset, resume=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
