"""`python -m experiments.gradient_masking --help`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from experiments import records
from experiments.gradient_masking import config, evaluate, tables


@dataclasses.dataclass(frozen=True)
class Args:
    """Train, diagnose and break the zoo; what is recorded already is kept."""

    data: config.Data = "digits"
    """What images."""
    only: tuple[str, ...] = ()
    """Parts of names of measurements ("pruned", "madry 0"); all if empty."""
    preset: Literal["cpu", "smoke"] = "cpu"
    """How much is trained and measured; see config.py."""
    results: Path = Path("experiments/gradient_masking/results")
    """Where numbers and the page are recorded."""


def main(args: Args) -> None:
    """Measure, then write tables and the page."""
    place = evaluate.Place(args.results, args.preset, args.data)
    evaluate.record(place, args.only)
    evaluate.page(place)
    readme = args.results.parent / "README.md"
    records.show(tables.tables(place.folder.parent), readme, args.preset)


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m experiments.gradient_masking"))
