"""The README's tables, from the recorded numbers, beside the paper's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from experiments import records
from experiments.neural_ode.config import CLEAN, DATA, NOISY
from experiments.neural_ode.evaluate import shown

TABLE_1 = {
    "mnist": {
        "cnn": ("98.1 ± 0.7", "85.8 ± 4.3", "56.4 ± 5.6", "63.4 ± 2.3", "24.0 ± 8.9", "8.3 ± 3.2"),
        "odenet": (
            "98.7 ± 0.6", "90.6 ± 5.4", "73.2 ± 8.6", "83.5 ± 0.9", "42.1 ± 2.4", "14.3 ± 2.1",
        ),
    },
    "svhn_cropped": {
        "cnn": ("90.0 ± 1.2", "76.3 ± 2.7", "60.9 ± 3.9", "29.2 ± 2.9", "13.7 ± 1.9", "5.4 ± 1.5"),
        "odenet": (
            "95.7 ± 0.7", "88.1 ± 1.5", "78.2 ± 2.1", "58.2 ± 2.3", "43.0 ± 1.3", "30.9 ± 1.4",
        ),
    },
    "imgnet10": {
        "cnn": ("80.1 ± 1.8", "63.3 ± 2.0", "40.8 ± 2.7", "28.5 ± 0.5", "18.1 ± 0.7", "9.4 ± 1.2"),
        "odenet": (
            "81.9 ± 2.0", "67.5 ± 2.0", "48.7 ± 2.6", "36.2 ± 1.0", "27.2 ± 1.1", "14.4 ± 1.7",
        ),
    },
}  # fmt: skip
"""Paper 001, table 1: accuracy in percent under noise and FGSM of three sizes."""

TABLES_2_TO_4 = {
    "mnist": {
        "cnn": ("98.7 ± 0.1", "54.2 ± 1.1", "15.8 ± 1.3", "32.9 ± 3.7", "0.0 ± 0.0"),
        "odenet": ("99.4 ± 0.1", "71.5 ± 1.1", "19.9 ± 1.2", "64.7 ± 1.8", "13.0 ± 0.2"),
        "tisode": ("99.6 ± 0.0", "75.7 ± 1.4", "26.5 ± 3.8", "67.4 ± 1.5", "13.2 ± 1.0"),
        "cnn-fdn": ("99.0 ± 0.1", "74.0 ± 4.1", "32.6 ± 5.3", "58.9 ± 4.0", "8.2 ± 2.6"),
        "tisode-fdn": ("99.4 ± 0.0", "80.6 ± 2.3", "40.4 ± 5.7", "72.6 ± 2.4", "28.2 ± 3.6"),
        "cnn-ird": ("95.3 ± 0.9", "78.1 ± 2.2", "36.7 ± 2.1", "79.6 ± 1.9", "55.5 ± 2.9"),
        "tisode-ird": ("97.6 ± 0.1", "86.8 ± 2.3", "49.1 ± 0.2", "88.8 ± 0.9", "66.0 ± 0.9"),
    },
    "svhn_cropped": {
        "cnn": ("90.6 ± 0.2", "25.3 ± 0.6", "12.3 ± 0.7", "32.4 ± 0.4", "14.0 ± 0.5"),
        "odenet": ("95.1 ± 0.1", "49.4 ± 1.0", "34.7 ± 0.5", "50.9 ± 1.3", "27.2 ± 1.4"),
        "tisode": ("94.9 ± 0.1", "51.6 ± 1.2", "38.2 ± 1.9", "52.0 ± 0.9", "28.2 ± 0.3"),
        "cnn-fdn": ("92.4 ± 0.1", "43.8 ± 1.4", "31.5 ± 3.0", "40.0 ± 2.6", "19.6 ± 3.4"),
        "tisode-fdn": ("95.2 ± 0.1", "57.8 ± 1.7", "48.2 ± 2.0", "53.4 ± 2.9", "32.3 ± 1.0"),
        "cnn-ird": ("84.9 ± 1.2", "65.8 ± 0.4", "54.7 ± 1.2", "74.0 ± 0.5", "64.5 ± 0.8"),
        "tisode-ird": ("91.7 ± 0.5", "74.4 ± 1.2", "61.9 ± 1.8", "81.6 ± 0.8", "71.0 ± 0.5"),
    },
    "imgnet10": {
        "cnn": ("92.6 ± 0.6", "40.9 ± 1.8", "26.7 ± 1.7", "28.6 ± 1.5", "11.2 ± 1.2"),
        "odenet": ("92.6 ± 0.5", "42.0 ± 0.4", "29.0 ± 1.0", "29.8 ± 0.4", "12.3 ± 0.6"),
        "tisode": ("92.8 ± 0.4", "44.3 ± 0.7", "31.4 ± 1.1", "31.1 ± 1.2", "14.5 ± 1.1"),
    },
}
"""Paper 001, tables 2 to 4: under noise, FGSM and PGD of two sizes each."""

ADAPTIVE = (
    "clean", "PGD, own gradients", "PGD, adjoint ODE's gradients", "Square", "PGD, Euler's",
    "PGD on Euler",
)  # fmt: skip
DIFFERENCES = ("finite differences", "finite differences, Euler")


def tables(folder: Path) -> dict[str, str]:
    """Markdown tables by their names in the README."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, content in records.read(folder).items():
        found.setdefault(re.sub(r" \d+$", "", name), []).append(content["found"])
    made = {}
    for data in DATA:
        if data in TABLE_1:
            made[f"table 1 {data}"] = _table_1(found, data)
        made[f"tables 2 to 4 {data}"] = _tables_2_to_4(found, data)
    return made | {"stronger": _stronger(found, "mnist"), "adaptive": _adaptive(found, "mnist")}


def _table_1(found: dict[str, Any], data: str) -> str:
    sigmas, radii = DATA[data].clean
    columns = [f"noise {round(255 * sigma)}" for sigma in sigmas]
    columns += [f"FGSM {shown(data, eps)}" for eps in radii]
    return _beside(found, data, CLEAN, columns, TABLE_1.get(data, {}))


def _tables_2_to_4(found: dict[str, Any], data: str) -> str:
    threats = DATA[data]
    columns = [f"noise {round(255 * threats.noise)}"]
    columns += [f"FGSM {shown(data, eps)}" for eps in threats.fgsm]
    columns += [f"PGD {shown(data, eps)}" for eps in threats.pgd]
    return _beside(found, data, NOISY, columns, TABLES_2_TO_4.get(data, {}))


def _beside(
    found: dict[str, Any], data: str, names: tuple[str, ...], columns: list[str], paper: Any
) -> str:
    """Ours in one row, the paper's in the next."""
    rows = []
    for name in names:
        kind = name.removesuffix(" clean")
        at = found.get(f"{data} published {name}", [])
        if not (at or paper):
            continue
        rows.append([kind, *(cell(at, column) for column in ("clean", *columns))])
        if kind in paper:
            rows.append(["paper", "", *paper[kind]])
    return records.table(["", "clean", *columns], rows)


def _stronger(found: dict[str, Any], data: str) -> str:
    columns = [
        f"{attack} {shown(data, eps)}"
        for eps in DATA[data].pgd
        for attack in ("PGD as published", "PGD, 40 steps", "AutoAttack")
    ]
    rows = [
        [name, *(cell(found.get(f"{data} strong {name}", []), column) for column in columns)]
        for name in NOISY
    ]
    return records.table(["", *columns], rows)


def _adaptive(found: dict[str, Any], data: str) -> str:
    rows = []
    for name in ("odenet", "tisode", "tisode-fdn"):
        at = found.get(f"{data} adaptive {name}", [])
        cells = [cell(at, column) for column in ADAPTIVE]
        off = [cell(at, key, 100.0, 2) for key in DIFFERENCES]
        rows.append([name, *cells, *off, cell(at, "cosine", 1.0, 3)])
    head = ["", *ADAPTIVE, *[f"off {key} by, %" for key in DIFFERENCES]]
    head.append("cosine of the two gradients")
    return records.table(head, rows)


def cell(found: list[dict[str, Any]], key: str, factor: float = 100.0, digits: int = 1) -> str:
    """Mean and standard deviation over seeds; the deviation where there are several.

    >>> cell([{"a": 0.5}, {"a": 0.7}], "a"), cell([{"a": 0.5}], "a"), cell([], "a")
    ('60.0 ± 14.1', '50.0', '')
    """
    values = factor * np.array([one[key] for one in found if key in one])
    if not len(values):
        return ""
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{digits}f}"
