"""`python -m experiments.madry_mnist --help`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from experiments import records
from experiments.madry_mnist import config, evaluate, figures, rows, tables, train


@dataclasses.dataclass(frozen=True)
class Args:
    """Train the networks of the tables (a run that was stopped goes on), then attack them."""

    stage: Literal[
        "train-natural", "train-adversarial", "train-architecture-b", "evaluate", "rows", "figures"
    ]
    """What to do: "evaluate" makes the white-box rows and the page, "rows" all other rows; both
    then do what "figures" does: Figure 6 and the README's tables, from the recorded numbers."""
    only: tuple[str, ...] = ()
    """Parts of names of rows; all if empty."""
    preset: Literal["cpu", "paper", "smoke"] = "cpu"
    """Schedule; see config.py."""
    seed: int = 0
    """Of initial weights, batches and attacks; A' is A trained with seed 1."""
    out: Path = Path("runs/madry_mnist")
    """Where checkpoints and metrics go."""
    copies: Path = Path("runs/copies")
    """Where A' lie: `madry_mnist` and `second_order`, the `--out` of their trainings."""
    second_order: Path = Path("runs/second_order")
    """Where `experiments.second_order` keeps its networks, of which four are used here."""
    results: Path = Path("experiments/madry_mnist/results")
    """Where numbers, figures and page are recorded."""


def main(args: Args) -> None:
    """Run one stage."""
    chosen = dataclasses.replace(config.PRESETS[args.preset], seed=args.seed)
    folder = args.out / args.preset
    if args.stage == "evaluate":
        command = f"python -m experiments.madry_mnist --stage evaluate --preset {args.preset}"
        evaluate.table(chosen, folder, args.results / args.preset, command)
    if args.stage.startswith("train-"):
        train.network(args.stage.removeprefix("train-"), chosen, folder, resume=True)
        return
    place = rows.Place(
        args.out, args.copies, args.second_order, args.results, args.preset, args.seed
    )
    if args.stage == "rows":
        rows.record(place, args.only)
    figures.draw(place.folder)
    records.show(tables.tables(place.folder), args.results.parent / "README.md", args.preset)


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m experiments.madry_mnist"))
