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


FEW = 30
"""Pairs below which an area is not worth showing."""


def tables(folder: Path) -> dict[str, str]:
    """Markdown tables by their names in the README, of a preset's folder."""
    shown = {}
    for data in ("mnist", "cifar10"):
        found = {name: content["found"] for name, content in records.read(folder / data).items()}
        shown |= {
            f"table 1 {data}": _clean(found, data),
            f"detectors {data}": _detectors(found),
            f"climb {data}": _climbing(found),
            f"table 2 {data}": _gray_box(found, data),
            f"mahalanobis {data}": _mahalanobis(found, data),
            f"table 3 {data}": _white_box(found, data),
            f"table 4 {data}": _black_box(found, data),
            f"adaptive {data}": _adaptive(found),
        }
    return shown


def _clean(found: dict[str, Any], data: str) -> str:
    keys = ("davies_bouldin", "variance", "distance", "margin", "jacobian", "penetration")
    rows = []
    for name in NETWORKS:
        cells = [name, "", TABLE_1[data].get(name, ""), *[""] * (1 + len(keys))]
        if of := found.get(f"clean {name}"):
            gap = of["logit margin"]
            cells[1] = f"{100 * of['accuracy']:.2f}"
            cells[3:] = [f"{gap['median']:.3g} ({gap['largest']:.3g})"]
            cells += [f"{of[key]:.3g}" for key in keys]
        rows.append(cells)
    head = ["", "accuracy, %", "paper", "logit margin, median (largest)", "Davies-Bouldin",
            "cluster variance", "cluster distance", "embedding margin", "Jacobian norm",
            "margin / norm"]  # fmt: skip
    return records.table(head, rows)


def _detectors(found: dict[str, Any]) -> str:
    rows = []
    for name in DEFENCES:
        cells = [name, *[""] * 4]
        if of := found.get(f"clean {name}"):
            shares = [of["rejected"][kind] for kind in ("density", "mahalanobis", "median")]
            cells[1:] = [f"{of['bandwidth']:.3g}", *(f"{100 * share:.1f}" for share in shares)]
        rows.append(cells)
    head = ["", "bandwidth", "rejected by density, %", "by Mahalanobis, %",
            "below the median density, %"]  # fmt: skip
    return records.table(head, rows)


def _climbing(found: dict[str, Any]) -> str:
    """Slopes at the clean image and at the last step of BIM."""
    rows = []
    for name in DEFENCES:
        cells = [name, *[""] * 3]
        if of := found.get(f"climb {name}"):
            slopes = (of["jacobian"], of["layers"]["embedding"], of["layers"]["Conv_0"])
            cells[1:] = [f"{s[0]:.3g} to {s[-1]:.3g} (x{s[-1] / s[0]:.1f})" for s in slopes]
        rows.append(cells)
    head = ["", "embedding in the image", "loss in the embedding", "loss in the first layer"]
    return records.table(head, rows)


def _gray_box(found: dict[str, Any], data: str) -> str:
    rows = []
    for attack, published in TABLE_2[data].items():
        cells = [attack]
        for name, paper in zip(DEFENCES, published, strict=True):
            of = found.get(f"{attack} {name}")
            cells += [_area(of), f"{paper:g}", _pairs(of)]
        rows.append(cells)
    head = ["", *(part for name in DEFENCES for part in (name, "paper", "pairs"))]
    return records.table(head, rows)


def _mahalanobis(found: dict[str, Any], data: str) -> str:
    rows = [
        [attack, *(_area(found.get(f"{attack} {name}"), "mahalanobis") for name in DEFENCES)]
        for attack in TABLE_2[data]
    ]
    last = [_area(found.get(f"within {name}"), "mahalanobis") for name in DEFENCES]
    return records.table(["", *DEFENCES], [*rows, ["against density, within the budget", *last]])


def _area(of: dict[str, Any] | None, kind: str = "density") -> str:
    if of is None:
        return ""
    pairs = f"{of[kind]['auc']:.3f}" if of["pairs"] >= FEW else "-"
    return f"{pairs} ({of[kind]['auc, all']:.3f})"


def _interval(of: dict[str, Any] | None) -> str:
    if of is None or of["pairs"] < FEW:
        return ""
    low, high = of["density"]["interval"]
    return f"{low:.3f}-{high:.3f}"


def _pairs(of: dict[str, Any] | None) -> str:
    return f"{of['pairs']} of {of['right']}" if of else ""


def _white_box(found: dict[str, Any], data: str) -> str:
    rows = []
    for name, paper in zip(DEFENCES, TABLE_3[data], strict=True):
        of = found.get(f"white-box {name}")
        cells = [name, "", f"{paper:g}", "", _pairs(of), _area(of), _interval(of)]
        if of is not None:
            cells[1] = f"{of['distortion']:.3f}" if of["pairs"] else "-"
            median = of["median distortion"]
            cells[3] = "infinite" if median is None else f"{median:.3f}"
        rows.append(cells)
    head = ["", "mean distortion", "paper", "median, failures infinite", "pairs", "area left",
            "95 %"]  # fmt: skip
    return records.table(head, rows)


def _black_box(found: dict[str, Any], data: str) -> str:
    rows = []
    for name, paper in zip(DEFENCES, TABLE_4[data], strict=True):
        plain, sure = (found.get(f"black-box{kind} {name}") for kind in ("", " sure"))
        rows.append([name, _area(plain), f"{paper:g}", _pairs(plain), _area(sure), _pairs(sure)])
    head = ["", "area", "paper", "pairs", "area, confident", "pairs"]
    return records.table(head, rows)


def _adaptive(found: dict[str, Any]) -> str:
    rows = []
    for name in DEFENCES:
        of = found.get(f"within {name}")
        cells = [name, _pairs(of), _area(of), _interval(of), "", ""]
        if of is not None:
            safe = of["right"] - of["density"]["accepted"]
            cells[4] = f"{safe} of {of['right']}"
            best = sorted(of["won"].items(), key=lambda item: -item[1])[:3]
            cells[5] = ", ".join(f"{label}: {count}" for label, count in best if count)
        rows.append(cells)
    head = ["", "pairs", "area left", "95 %", "right or rejected", "found by"]
    return records.table(head, rows)
