"""The README's tables, from the recorded numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments import records
from experiments.gradient_masking import zoo
from jaxrobust.diagnosis import SYMPTOMS


def tables(folder: Path) -> dict[str, str]:
    """Markdown tables by their names in the README."""
    found: dict[str, list[Any]] = {name: [] for name in zoo.MASKED | zoo.CONTROLS}
    for name, content in records.read(folder).items():
        found.setdefault(name.rpartition(" ")[0], []).append(content["found"])
    return {"defences": _defences(found), "thresholds": _thresholds(found)}


def _defences(found: dict[str, list[Any]]) -> str:
    rows = []
    for name, seeds in found.items():
        cells = [name, *[""] * 6]
        if seeds:
            flagged = [set(_names(one)) & set(one["symptoms"]) for one in seeds]
            worse = [_names(one, "warning") for one in seeds]
            verdict = (
                f"{sum(map(bool, flagged))} of {len(seeds)} by {', '.join(seeds[0]['symptoms'])}"
                if name in zoo.MASKED
                else f"warnings in {sum(map(bool, worse))} of {len(seeds)}"
            )
            clean = [one["findings"]["clean_accuracy"] for one in seeds]
            seems, left = (_percent([one[which] for one in seeds]) for which in ("seems", "is"))
            first = seeds[0]
            cells = [name, first["row"], _percent(clean), seems, verdict, first["cure"], left]
        rows.append(cells)
    head = ["", "stands for", "clean, %", "seems, %", "diagnosed", "cure", "is, %"]
    return records.table(head, rows)


def _thresholds(found: dict[str, list[Any]]) -> str:
    rows = []
    for symptom, about in SYMPTOMS.items():
        spread = [
            [
                one["findings"]["measured"][symptom]
                for name in names
                for one in found[name]
                if symptom in one["findings"]["measured"]
            ]
            for names in (zoo.CONTROLS, [n for n in zoo.MASKED if _stands_for(found[n], symptom)])
        ]
        rows.append([symptom, _range(spread[0]), f"{about.threshold:g}", _range(spread[1])])
    return records.table(
        ["", "honest: median, range", "threshold", "masked so: median, range"], rows
    )


def _stands_for(seeds: list[Any], symptom: str) -> bool:
    return any(symptom in one["symptoms"] for one in seeds)


def _names(one: Any, severity: str = "") -> list[str]:
    found = one["findings"]["found"]
    return [each["name"] for each in found if severity in ("", each["severity"])]


def _percent(shares: list[float]) -> str:
    return f"{100 * np.mean(shares):.1f} ± {100 * np.std(shares, ddof=len(shares) > 1):.1f}"


def _range(values: list[float]) -> str:
    return f"{np.median(values):.3g}, {min(values):.3g} to {max(values):.3g}" if values else ""
