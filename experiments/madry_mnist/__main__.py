"""`python -m experiments.madry_mnist --help`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from experiments.madry_mnist import config, evaluate, train


@dataclasses.dataclass(frozen=True)
class Args:
    """Train both networks of the table (a run that was stopped goes on), then evaluate them."""

    stage: Literal["train-natural", "train-adversarial", "evaluate"]
    """What to do."""
    preset: Literal["cpu", "paper", "smoke"] = "cpu"
    """Schedule; see config.py."""
    out: Path = Path("runs/madry_mnist")
    """Where checkpoints and metrics go."""
    results: Path = Path("experiments/madry_mnist/results")
    """Where evaluate records its numbers, figures and page."""


def main(args: Args) -> None:
    """Run one stage."""
    chosen = config.PRESETS[args.preset]
    folder = args.out / args.preset
    if args.stage == "evaluate":
        command = f"python -m experiments.madry_mnist --stage evaluate --preset {args.preset}"
        evaluate.table(chosen, folder, args.results / args.preset, command)
    else:
        train.network(args.stage.removeprefix("train-"), chosen, folder, resume=True)


if __name__ == "__main__":
    main(tyro.cli(Args))
