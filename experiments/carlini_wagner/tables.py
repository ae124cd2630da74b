"""The README's tables, from the recorded numbers, beside the paper's."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

from experiments import records
from experiments.carlini_wagner import measure
from experiments.carlini_wagner.evaluate import METHODS, OBJECTIVES, Place, logits_of
from jaxrobust.identity import digest

TABLE_3 = {
    "f1": ("4.35, 100", "5.21, 100", "4.11, 100"),
    "f2": ("3.22, 44", "8.99, 63", "15.06, 74"),
    "f3": ("3.47, 44", "9.55, 63", "15.84, 74"),
    "f4": ("4.03, 55", "7.49, 71", "7.60, 71"),
    "f5": ("3.58, 100", "4.20, 100", "3.47, 100"),
    "f6": ("3.47, 100", "4.11, 100", "3.41, 100"),
    "f7": ("3.53, 100", "4.14, 100", "3.43, 100"),
}
"""Paper 001, Table III, average case: mean l2 and success in percent, by box method."""

TABLE_4 = {
    "mnist": {
        "l0": ("8.5, 100", "16, 100", "33, 100"),
        "JSMA-Z": ("20, 100", "56, 100", "180, 98"),
        "JSMA-F": ("17, 100", "45, 100", "100, 100"),
        "l2": ("1.36, 100", "1.76, 100", "2.60, 100"),
        "DeepFool": ("2.11, 100", "", ""),
        "linf": ("0.13, 100", "0.16, 100", "0.23, 100"),
        "FGS": ("0.22, 100", "0.26, 42", "-, 0"),
        "IGS": ("0.14, 100", "0.19, 100", "0.26, 100"),
    },
    "cifar10": {
        "l0": ("5.9, 100", "13, 100", "24, 100"),
        "JSMA-Z": ("20, 100", "58, 100", "150, 100"),
        "JSMA-F": ("25, 100", "110, 100", "240, 100"),
        "l2": ("0.17, 100", "0.33, 100", "0.51, 100"),
        "DeepFool": ("0.85, 100", "", ""),
        "linf": ("0.0092, 100", "0.013, 100", "0.019, 100"),
        "FGS": ("0.015, 99", "0.029, 51", "0.34, 1"),
        "IGS": ("0.0078, 100", "0.014, 100", "0.023, 100"),
    },
}
"""Paper 001, Table IV: best, average and worst case; mean distance and success in percent."""

TABLE_6 = {
    "mnist": {
        "l0": ("10, 100", "19, 100", "36, 100"),
        "l2": ("1.7, 100", "2.2, 100", "2.9, 100"),
        "linf": ("0.14, 100", "0.18, 100", "0.25, 100"),
    },
    "cifar10": {
        "l0": ("7.4, 100", "15, 100", "29, 100"),
        "l2": ("0.36, 100", "0.60, 100", "0.92, 100"),
        "linf": ("0.002 (a typo?), 100", "0.023, 100", "0.038, 100"),
    },
}
"""Paper 001, Table VI: the distilled networks."""

CASES = ("best", "average", "worst")


def tables(folder: Path) -> dict[str, str]:
    """Markdown tables by their names in the README."""
    found = _current(folder)
    return {
        "accuracy": _accuracy(found),
        "table 3": _table_3(found),
        "table 4 mnist": _cases(found, "mnist", "table 4", TABLE_4["mnist"]),
        "table 6 mnist": _cases(found, "mnist", "table 6", TABLE_6["mnist"]),
        "table 4 cifar10": _cases(found, "cifar10", "table 4", TABLE_4["cifar10"]),
        "table 6 cifar10": _cases(found, "cifar10", "table 6", TABLE_6["cifar10"]),
        "transfer": _transfer(found),
        "targets": _targets(found),
    }


def _current(folder: Path) -> dict[str, Any]:
    """What is recorded of the networks kept beside the results, and of no other weights."""
    place = Place(folder / "none", folder.parent, folder.name, 0)
    found = records.read(folder)
    of = {name: digest(net) for name in ("mnist natural", "mnist distilled")
          if (net := logits_of(*name.split(), place)) is not None}  # fmt: skip
    return {
        name: content
        for name, content in found.items()
        if content["weights"] == of.get(content["network"], content["weights"])
        and content.get("victim") in (None, of.get("mnist distilled"))
    }


def _table_3(found: dict[str, Any]) -> str:
    rows = []
    for objective in OBJECTIVES:
        cells = [objective]
        for method, paper in zip(METHODS, TABLE_3[objective], strict=True):
            one = found.get(f"mnist table 3 {objective} {method}")
            cells += [_squared(one["found"]) if one else "", paper]
        rows.append(cells)
    head = ["", *(part for method in METHODS for part in (method.replace("_", " "), "paper"))]
    return records.table(head, rows)


def _cases(found: dict[str, Any], data: str, table: str, paper: dict[str, Any]) -> str:
    rows = []
    for attack, published in paper.items():
        at = _at(found, data, table, attack)
        cells = [attack]
        for case, number in zip(CASES, published, strict=True):
            cells += [_shown(at[case]) if case in at else "", number]
        rows.append(cells)
    return records.table(["", *(part for case in CASES for part in (case, "paper"))], rows)


def _at(found: dict[str, Any], data: str, table: str, attack: str) -> dict[str, Any]:
    """What is recorded of an attack, by case."""
    at: dict[str, Any] = {}
    for kind in ("average ", "every ", ""):
        at |= found.get(f"{data} {table} {kind}{attack}", {}).get("found", {})
    return at


AIMS = {"l2": (1.76, 0.15), "linf": (0.16, 0.15), "l0": (16, 0.25)}
"""Average distances of Table IV, and how near ours are to come."""

ORDER = (("l0", "JSMA-F", "JSMA-Z"), ("l2", "DeepFool"), ("linf", "IGS", "FGS"))
"""Attacks of one norm, the best first. A case in which one has no mean is left out."""


def _targets(found: dict[str, Any]) -> str:
    """What the project set itself on MNIST, and what came out."""
    rows = []
    for norm, (paper, share) in AIMS.items():
        of = _at(found, "mnist", "table 4", norm).get("average")
        shown = "" if of is None else f"{_shown(of)}; {of['mean'] / paper - 1:+.0%}"
        rows.append([f"{norm}, average case", f"{paper:g} within {share:.0%}, always found", shown])
    for attacks in ORDER:
        held, seen = [], []
        for case in CASES:
            far = [_distances(found, "table 4", a, attacks[0]).get(case) for a in attacks]
            if (common := _common(far)) is not None:
                seen.append(f"{case}: {_means(common)}")
                held += [case] if _in_order(common) else []
        shown = f"{', '.join(held) or 'never'} ({'; '.join(seen)})" if seen else ""
        rows.append([" < ".join(attacks), "in each case", shown])
    for norm in AIMS:
        gains = []
        for case, printed, distilled in zip(
            CASES, TABLE_4["mnist"][norm], TABLE_6["mnist"][norm], strict=True
        ):
            tables = ("table 4", "table 6")
            two = _common([_distances(found, table, norm, norm).get(case) for table in tables])
            if two is not None:
                (before, after), both = two, ~np.isnan(two).any(0)
                paper = float(distilled.split(",")[0]) / float(printed.split(",")[0])
                gain = after[both].mean() / before[both].mean()
                gains.append(f"{case} x{gain:.2f} ({both.sum()}; paper: x{paper:.2f})")
        rows.append([f"distillation, {norm}", "gains at most the paper's", "; ".join(gains)])
    return records.table(["", "target", "measured"], rows)


def _distances(found: dict[str, Any], table: str, attack: str, norm: str) -> dict[str, Any]:
    """Of an attack in a norm: the distance of each image by case, NaN where it failed."""
    at: dict[str, Any] = {}
    for kind in ("average ", "every ", ""):
        content = found.get(f"mnist {table} {kind}{attack}")
        if content is not None:
            far = np.asarray(content["found"]["all"][norm])
            rows = {"success": far >= 0, norm: far}
            of = measure.cases(rows, norm, 9 if content["targets"] == "every" else 1)
            at |= {"best": of["average"]} if content["targets"] == "any" else of
    return at


def _common(far: list[np.ndarray | None]) -> np.ndarray | None:
    """The first images, on which all of several attacks were run; None where one was not."""
    if any(one is None for one in far):
        return None
    least = min(len(one) for one in far if one is not None)
    return np.stack([one[:least] for one in far if one is not None])


def _in_order(far: np.ndarray) -> bool:
    """Whether each attack succeeds at least as often as the next, and is nearer where both do."""

    def better(first: np.ndarray, second: np.ndarray) -> bool:
        both = ~np.isnan(first) & ~np.isnan(second)
        as_often = np.isnan(first).sum() <= np.isnan(second).sum()
        return bool(as_often and first[both].sum() <= second[both].sum())

    return all(better(first, second) for first, second in itertools.pairwise(far))


def _means(far: np.ndarray) -> str:
    """Means over the rows in which all succeed, in the order of the attacks."""
    every = ~np.isnan(far).any(0)
    shown = ", ".join(f"{mean:.3g}" for mean in far[:, every].mean(1)) if every.any() else "-"
    return f"{shown} on {every.sum()}"


def _transfer(found: dict[str, Any]) -> str:
    rows = []
    for name, content in found.items():
        if name.startswith("mnist transfer"):
            at = content["found"]
            share = [f"{100 * at['transferred'][k]:.0f}" for k in ("targeted", "untargeted")]
            rows.append([f"{content['settings']['kappa']:g}", _shown(at["average"]), *share])
    rows.sort(key=lambda row: float(row[0]))
    return records.table(["kappa", "on the natural network", "targeted, %", "untargeted, %"], rows)


def _shown(case: dict[str, Any]) -> str:
    mean = "-" if case["mean"] is None else f"{case['mean']:.3g}"
    return f"{mean}, {100 * case['probability']:.3g} ({case['num']})"


def _squared(found: dict[str, Any]) -> str:
    """As the average case, but of squared l2."""
    far = np.asarray(found["all"]["l2"])
    squares = far[far >= 0] ** 2
    return _shown(found["average"] | {"mean": squares.mean() if len(squares) else None})


def _accuracy(found: dict[str, Any]) -> str:
    rows = []
    for data in ("mnist", "cifar10"):
        for network in ("natural", "distilled"):
            one = found.get(f"{data} clean {network}", {}).get("found", {})
            cells = [f"{100 * one[of]:.2f}" if of in one else "" for of in ("held-out", "test")]
            rows.append([f"{data}, {network}", *cells])
    return records.table(["", "held-out images, %", "test images, %"], rows)
