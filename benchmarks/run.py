"""`python -m benchmarks.run WHICH`: one capability as a table, in JSON and on the terminal."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import (
    _clock,
    test_attack_strength,
    test_detect_speed,
    test_diagnose_speed,
    test_evaluate_speed,
    test_flow_speed,
    test_parity,
    test_pgd_speed,
    test_sdp_speed,
    test_smoothing_speed,
    test_training_speed,
)

README = Path(__file__).with_name("README.md")


@dataclasses.dataclass(frozen=True)
class Args:
    """Measure one capability against its rivals; want a quiet machine."""

    which: tyro.conf.Positional[
        Literal[
            "speed",
            "smoothing",
            "evaluate",
            "parity",
            "sdp",
            "attacks",
            "flow",
            "detect",
            "diagnose",
            "training",
        ]
    ]
    """speed: PGD; smoothing: gradients averaged over noise, on 32 images; evaluate: survivors only;
    parity: the same images as Foolbox; sdp: paper 003; attacks: strength and time of the others;
    flow: stAdv; detect: densities of embeddings; diagnose: masked gradients looked for; training: a
    step of each method."""
    checkpoints: Path | None = None
    """Folder with the runs natural and adversarial of experiments.madry_mnist."""
    network: Path | None = None
    """For sdp: weights recorded by experiments.certified_mnist."""
    json: Path | None = None
    """Where the numbers go; runs/benchmarks/WHICH.json by default."""
    readme: bool = False
    """Put the table into benchmarks/README.md as well."""
    rounds: int = 5
    """Timed calls of each contender."""
    batch_size: int = 256
    """Images at once."""
    num_images: int = 2000
    """Images evaluated."""
    num_steps: int = 40
    """PGD steps."""
    only: tuple[str, ...] = ()
    """For attacks: parts of names of the pairs wanted; all if empty. Others keep their last row."""
    seed: int = 0
    """Of attacks and fresh weights."""


def main(args: Args) -> None:
    """Measure, write, show."""
    record = _clock.provenance(args.seed, _settings(args))
    tables = {
        title: [row if isinstance(row, dict) else dataclasses.asdict(row) for row in rows]
        for title, rows in _measure(args).items()
    }
    record |= {
        "benchmark": args.which, "torch_threads": torch.get_num_threads(), "tables": tables,
    }  # fmt: skip
    out = args.json or Path("runs/benchmarks") / f"{args.which}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    show(record)
    if args.readme:
        README.write_text(rendered(README.read_text(), record))


def _measure(args: Args) -> Mapping[str, Sequence[Any]]:
    if args.which == "parity":
        return test_parity.measure(args.seed)
    if args.which == "sdp":
        return test_sdp_speed.measure(test_sdp_speed.Setting(args.network), args.rounds)
    if args.which == "flow":
        return test_flow_speed.measure(test_flow_speed.Setting(seed=args.seed), args.rounds)
    if args.which == "detect":
        return test_detect_speed.measure(test_detect_speed.Setting(seed=args.seed), args.rounds)
    if args.which == "training":
        training = test_training_speed.Setting(args.checkpoints, seed=args.seed)
        return test_training_speed.measure(training, args.rounds)
    if args.which == "smoothing":
        smoothing = test_smoothing_speed.Setting(args.checkpoints, seed=args.seed)
        return test_smoothing_speed.measure(smoothing, args.rounds)
    if args.which == "speed":
        speed = test_pgd_speed.Setting(
            args.checkpoints, args.batch_size, args.num_steps, seed=args.seed
        )
        return test_pgd_speed.measure(speed, args.rounds)
    if args.checkpoints is None:
        raise SystemExit(f"{args.which} needs trained networks: --checkpoints DIR")
    if args.which == "diagnose":
        return test_diagnose_speed.measure(
            test_diagnose_speed.Setting(args.checkpoints, seed=args.seed)
        )
    if args.which == "attacks":
        strength = test_attack_strength.Setting(args.checkpoints, args.num_images, only=args.only)
        return test_attack_strength.measure(strength, Path("runs/benchmarks/attacks"))
    setting = test_evaluate_speed.Setting(
        args.checkpoints, args.num_images, args.batch_size, args.num_steps, args.seed
    )
    return test_evaluate_speed.measure(setting, args.rounds)


def _settings(args: Args) -> dict[str, Any]:
    used = {
        "speed": ("rounds", "batch_size", "num_steps"),
        "smoothing": ("rounds",),
        "evaluate": ("rounds", "batch_size", "num_images", "num_steps"),
        "parity": (),
        "sdp": ("rounds",),
        "flow": ("rounds",),
        "detect": ("rounds",),
        "diagnose": (),
        "training": ("rounds",),
        "attacks": ("num_images", "only"),
    }
    trained = "trained" if args.checkpoints or args.network or args.which == "flow" else "fresh"
    chosen: dict[str, Any] = {name: getattr(args, name) for name in used[args.which]}
    return chosen if args.which in ("parity", "detect") else chosen | {"weights": trained}


def columns(row: Mapping[str, Any]) -> dict[str, str]:
    """A row's cells by heading; the list of single times stays in the JSON."""
    flat = {name: value for name, value in row.items() if not isinstance(value, (list, dict))}
    flat |= row.get("quality", {})
    return {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in flat.items()
    }


def show(record: Mapping[str, Any]) -> None:
    """Print the tables."""
    console = Console()
    for title, rows in record["tables"].items():
        table = Table(title=f"{record['benchmark']}: {title}")
        for heading in columns(rows[0]):
            table.add_column(heading)
        for row in rows:
            table.add_row(*columns(row).values())
        console.print(table)
    versions = record["environment"]
    console.print(
        f"{record['command']}\n{record['processor']['model']}, {record['processor']['cores']} "
        f"cores ({record['torch_threads']} for torch), jax {versions['jax']}, "
        f"torch {versions['torch']}, commit {record['commit'][:10]}",
        highlight=False,
    )


def rendered(text: str, record: Mapping[str, Any]) -> str:
    """The README with this benchmark's tables between its markers.

    Args:
        text: A document that holds `<!-- NAME -->` and `<!-- /NAME -->`.
        record: What was measured.
    """
    name, processor, versions = record["benchmark"], record["processor"], record["environment"]
    lines = [f"<!-- {name} -->", "", f"`{record['command']}`", ""]
    for title, rows in record["tables"].items():
        headings = list(columns(rows[0]))
        lines += [f"**{title}**", "", f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
        lines += [f"| {' | '.join(columns(row).values())} |" for row in rows] + [""]
    packages = ("jaxrobust", "jax", *_clock.RIVALS)
    lines += [
        f"{processor['model']}, {processor['cores']} cores ({record['torch_threads']} for torch); "
        + ", ".join(f"{package} {versions[package]}" for package in packages)
        + f"; seed {record['seed']}; commit {record['commit'][:10]}"
        + (", with uncommitted changes." if record["uncommitted_changes"] else "."),
        "",
        f"<!-- /{name} -->",
    ]
    pattern = re.compile(f"<!-- {name} -->.*<!-- /{name} -->", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the text must hold <!-- {name} --> and <!-- /{name} -->")
    return pattern.sub(lambda _: "\n".join(lines), text)


if __name__ == "__main__":
    main(tyro.cli(Args, prog="python -m benchmarks.run"))
