"""Contenders timed in turn, and what else a number needs to be believed."""

from __future__ import annotations

import dataclasses
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxrobust.evaluation import environment

ROOT = Path(__file__).resolve().parent.parent
RIVALS = ("torch", "foolbox", "torchattacks", "adversarial-robustness-toolbox")
"""Packages whose versions a record names, beside those of jaxrobust."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender.

    Attributes:
        name: Who.
        first_s: Seconds of the warm-up call, compilation included.
        median_s: Median seconds of the timed calls.
        ratio: Median over that of the table's first row.
        times_s: Every timed call.
        quality: How good its answer was.
    """

    name: str
    first_s: float
    median_s: float
    ratio: float
    times_s: list[float]
    quality: dict[str, float]


def round_robin(
    contenders: Mapping[str, Callable[[], Any]],
    quality: Callable[[Any], dict[str, float]],
    rounds: int,
) -> list[Row]:
    """Time contenders in turn (A, B, C, A, B, C, ...), so that a busy minute hits them all.

    Args:
        contenders: By name; the first is what the others are compared with. Each is called once
            before the clock starts.
        quality: Measures an answer, off the clock; it is given the last round's.
        rounds: Timed calls of each.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    answers = {}
    first = {name: _seconds(run)[0] for name, run in contenders.items()}
    for _ in range(rounds):
        for name, run in contenders.items():
            seconds, answers[name] = _seconds(run)
            times[name].append(seconds)
    median = {name: statistics.median(values) for name, values in times.items()}
    base = median[next(iter(contenders))]
    return [
        Row(name, first[name], median[name], median[name] / base, times[name], quality(answer))
        for name, answer in answers.items()
    ]


def _seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    answer = jax.block_until_ready(run())
    return time.perf_counter() - start, answer


def provenance(seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Command, commit, versions, device and seed of a run."""
    arguments = [os.path.relpath(a) if os.path.isabs(a) else a for a in sys.argv[1:]]
    command = shlex.join(["python", "-m", "benchmarks.run", *arguments])
    return {
        "command": command,
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "environment": environment() | {name: metadata.version(name) for name in RIVALS},
        "processor": _processor(),
        "seed": seed,
        "settings": dict(settings),
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = {line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")}
    return {
        "model": ", ".join(sorted(models)) or "unknown",
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
    }
