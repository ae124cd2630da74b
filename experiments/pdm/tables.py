"""The README's tables, from the recorded numbers, beside the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments import records
from experiments.pdm.config import DEFENCES, NETWORKS

TABLE_1 = {
    "mnist": {"baseline": "99.33", "rce": "99.32", "siamese rvl": "99.37", "pdm": "99.52"},
    "cifar10": {"baseline": "93.62", "rce": "93.3", "siamese rvl": "94.37", "pdm": "93.81"},
}
"""Paper 004, accuracy in percent on clean images."""

TABLE_2 = {
    "mnist": {
        "FGSM-0.05": (0.981, 0.983, 0.988),
        "FGSM-0.1": (0.988, 0.99, 0.995),
        "BIM-0.05": (0.983, 0.967, 0.987),
        "BIM-0.1": (0.945, 0.92, 0.99),
        "C&W": (0.994, 1.0, 1.0),
        "C&W-hc": (0.88, 0.98, 1.0),
        "JSMA": (0.995, 1.0, 1.0),
    },
    "cifar10": {
        "FGSM-0.05": (0.958, 0.898, 0.967),
        "FGSM-0.1": (0.971, 0.926, 0.983),
        "BIM-0.05": (1.0, 0.99, 0.95),
        "BIM-0.1": (1.0, 0.996, 0.962),
        "C&W": (0.874, 0.918, 0.933),
        "C&W-hc": (0.637, 0.94, 1.0),
        "JSMA": (0.952, 0.96, 0.973),
    },
}
"""Areas under the curve of the baseline, RCE and PDM."""

TABLE_3 = {"mnist": (0.087, 0.104, 0.162), "cifar10": (0.008, 0.019, 0.026)}
TABLE_4 = {"mnist": (0.88, 0.94, 0.99), "cifar10": (0.93, 0.933, 0.952)}


def tables(folder: Path) -> dict[str, str]:
    """Markdown tables by their names in the README, of a preset's folder."""
    shown = {}
    for data in ("mnist", "cifar10"):
        found = {name: content["found"] for name, content in records.read(folder / data).items()}
        shown |= {
            f"table 1 {data}": _clean(found, data),
            f"table 2 {data}": _gray_box(found, data),
            f"table 3 {data}": _white_box(found, data),
            f"table 4 {data}": _black_box(found, data),
            f"adaptive {data}": _adaptive(found),
        }
    return shown


def _clean(found: dict[str, Any], data: str) -> str:
    rows = []
    for name in NETWORKS:
        cells = [name, "", TABLE_1[data].get(name, ""), *[""] * 5]
        if of := found.get(f"clean {name}"):
            cells[1] = f"{100 * of['accuracy']:.2f}"
            keys = ("davies_bouldin", "variance", "distance", "margin", "jacobian")
            cells[3:] = [f"{of[key]:.3g}" for key in keys]
        rows.append(cells)
    head = ["", "accuracy, %", "paper", "Davies-Bouldin", "cluster variance", "cluster distance",
            "embedding margin", "Jacobian norm"]  # fmt: skip
    return records.table(head, rows)


def _gray_box(found: dict[str, Any], data: str) -> str:
    rows = []
    for attack, published in TABLE_2[data].items():
        cells = [attack]
        for name, paper in zip(DEFENCES, published, strict=True):
            of = found.get(f"{attack} {name}")
            cells += [_area(of), f"{paper:g}", f"{100 * of['success']:.0f}" if of else ""]
        rows.append(cells)
    head = ["", *(part for name in DEFENCES for part in (name, "paper", "broken, %"))]
    return records.table(head, rows)


def _area(of: dict[str, Any] | None, kind: str = "density") -> str:
    if of is None:
        return ""
    pairs = of[kind]["auc"]
    return f"{'-' if pairs is None else f'{pairs:.3f}'} ({of[kind]['auc, all']:.3f})"


def _white_box(found: dict[str, Any], data: str) -> str:
    rows = []
    for name, paper in zip(DEFENCES, TABLE_3[data], strict=True):
        cells = [name, "", f"{paper:g}", "", ""]
        if of := found.get(f"white-box {name}"):
            cells[1] = f"{of['distortion']:.3f}" if "distortion" in of else "-"
            cells[3:] = [f"{100 * of['success']:.0f} of {of['num']}", _area(of)]
        rows.append(cells)
    head = ["", "distortion", "paper", "broken, %", "area left"]
    return records.table(head, rows)


def _black_box(found: dict[str, Any], data: str) -> str:
    rows = []
    for name, paper in zip(DEFENCES, TABLE_4[data], strict=True):
        of = found.get(f"black-box {name}")
        broken = f"{100 * of['success']:.0f} of {of['num']}" if of else ""
        rows.append([name, _area(of), f"{paper:g}", broken])
    return records.table(["", "area", "paper", "transferred, %"], rows)


def _adaptive(found: dict[str, Any]) -> str:
    rows = []
    for name in DEFENCES:
        cells = [name, *[""] * 5]
        if of := found.get(f"within {name}"):
            cells[1] = f"{of['budget']:g}"
            cells[2] = f"{100 * of['success']:.0f} of {of['num']}"
            cells[3:5] = [_area(of), f"{100 * of['density']['undetected']:.0f}"]
            cells[5] = f"{100 * of['density']['joint']:.0f}"
        rows.append(cells)
    head = ["", "l2 budget", "broken, %", "area left", "broken and accepted, %",
            "right or rejected, %"]  # fmt: skip
    return records.table(head, rows)
