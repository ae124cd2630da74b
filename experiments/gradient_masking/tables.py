"""The README's tables, from the recorded numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import records
from experiments.gradient_masking import zoo
from jaxrobust.diagnosis import SYMPTOMS

Seeds = list[dict[str, Any]]
"""What was found of one defence, a seed each."""


def tables(folder: Path) -> dict[str, str]:
    """Markdown tables by their names in the README, of a folder with one for each data set."""
    found = {data: _read(folder / data) for data in ("digits", "mnist")}
    return {
        **{f"defences {data}": _defences(of) for data, of in found.items()},
        "thresholds": _thresholds([*found.values()]),
    }


def _read(folder: Path) -> dict[str, Seeds]:
    found: dict[str, Seeds] = {name: [] for name in zoo.MASKED | zoo.CONTROLS}
    for name, content in records.read(folder).items():
        found.setdefault(name.rpartition(" ")[0], []).append(content["found"])
    return found


def _defences(found: dict[str, Seeds]) -> str:
    rows = []
    for name, seeds in found.items():
        cells = [name, *[""] * 6]
        if seeds:
            first = seeds[0]
            flagged = [set(_names(one)) & set(one["symptoms"]) for one in seeds]
            worse = [_names(one, "warning") for one in seeds]
            verdict = (
                f"{sum(map(bool, flagged))} of {len(seeds)} by {' or '.join(first['symptoms'])}"
                if name in zoo.MASKED
                else f"warnings in {sum(map(bool, worse))} of {len(seeds)}"
            )
            clean = [one["findings"]["clean_accuracy"] for one in seeds]
            seems, left = (_percent([one[which] for one in seeds]) for which in ("seems", "is"))
            cells = [name, first["row"], _percent(clean), seems, verdict, first["cure"], left]
        rows.append(cells)
    head = ["", "stands for", "clean, %", "seems, %", "diagnosed", "cure", "is, %"]
    return records.table(head, rows)


def _thresholds(found: Sequence[dict[str, Seeds]]) -> str:
    """Of both data sets: what a probe measures of honest networks and of the defences it is for.

    Those whose right symptom it is, flagged or not; and which others it flags.
    """
    honest = [one for of in found for name in zoo.CONTROLS for one in of[name]]
    masked = {name: [one for of in found for one in of[name]] for name in zoo.MASKED}
    rows = []
    for symptom, about in SYMPTOMS.items():
        meant = [one for seeds in masked.values() for one in seeds if symptom in one["symptoms"]]
        flagged = {
            name: sum(symptom in {each.partition(":")[0] for each in _names(one)} for one in seeds)
            for name, seeds in masked.items()
        }
        rows.append([
            symptom,
            _range([value for one in honest for value in _measured(one, symptom)]),
            f"{about.threshold:g}",
            _range([value for one in meant for value in _measured(one, symptom)]),
            ", ".join(f"{name} {n}/{len(masked[name])}" for name, n in flagged.items() if n)
            or "none",
        ])  # fmt: skip
    head = ["", "honest: median, range", "threshold", "meant for: median, range", "flags"]
    return records.table(head, rows)


def _measured(one: dict[str, Any], symptom: str) -> list[float]:
    """What was measured of a symptom: the largest, where it was of several models."""
    values = [
        value
        for name, value in one["findings"]["measured"].items()
        if name.partition(":")[0] == symptom
    ]
    return [max(values)] if values else []


def _names(one: dict[str, Any], severity: str = "") -> list[str]:
    found = one["findings"]["found"]
    return [each["name"] for each in found if severity in ("", each["severity"])]


def _percent(shares: list[float]) -> str:
    return f"{100 * np.mean(shares):.1f} ± {100 * np.std(shares, ddof=len(shares) > 1):.1f}"


def _range(values: list[float]) -> str:
    return f"{np.median(values):.3g}, {min(values):.3g} to {max(values):.3g}" if values else ""
