"""The README's tables, from the recorded numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from experiments import records
from experiments.second_order.evaluate import APGD, MINIMUM_NORM

SEEDED = ("FGSM", "PGD", "PGD, 40 steps x 5", *APGD, "S-O")
PAPER = {"FGSM": "96", "PGD": "~88", "S-O": "39.5", "DeepFool": "91", "Boundary": "37.0"}
"""Paper 000, Table 2: accuracy of Madry's network at l2 1.5, in percent."""


def tables(folder: Path) -> dict[str, str]:
    """Markdown tables by name; rows appear as their measurements do."""
    found = records.read(folder)
    return {
        "choices": _choices(records.read(folder.parent / "held-out")),
        "table 2": _table_2(found),
        "honest": _honest(found),
        "curves": _curves(found),
        "curvature": _curvature(found),
        "certified": _certified(found),
        "unanimous": _unanimous(found),
    }


def _choices(found: dict[str, Any]) -> str:
    """What held-out images chose, and among what."""
    rows = []
    for name, content in found.items():
        if not name.startswith("choice "):
            continue
        best, tried = content["found"]["best"], content["found"]["tried"]
        cells = [name.removeprefix("choice "), content["network"]]
        for setting in ("sigma", "step"):
            values = sorted({one["search"][setting] for one in tried})
            shown = [f"**{v:g}**" if v == best[setting] else f"{v:g}" for v in values]
            cells.append(", ".join(shown) if any(values) else "")
        cells.append("yes" if best["random_start"] else "no")
        accuracies = [100 * list(one["accuracy"].values())[-1] for one in tried]
        rows.append([*cells, f"{min(accuracies):.1f}-{max(accuracies):.1f}"])
    head = ["attack", "on", "sigma", "step, in eps", "random start", "accuracy left, %"]
    return records.table(head, rows)


def _table_2(found: dict[str, Any]) -> str:
    rows = []
    for attack in (*SEEDED, *MINIMUM_NORM):
        contents = _seeds(found, attack)
        if not contents:
            continue
        values = [content["found"]["accuracy"]["1.5"] for content in contents]
        num, spent = contents[0]["num_images"], contents[0]["found"]["gradients"]
        spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        mean = float(np.mean(values))
        rows.append([
            attack, f"{num}", f"{len(values)}", f"{100 * mean:.1f}{spread}",
            records.ends(mean, num), "-" if spent is None else f"{spent}", PAPER.get(attack, ""),
        ])  # fmt: skip
    head = ["attack", "images", "seeds", "accuracy, %", "95 %", "gradients", "paper, %"]
    return records.table(head, rows)


def _honest(found: dict[str, Any]) -> str:
    """Every way to spend the gradients, on the same images."""
    contents = {n.removeprefix("variant "): c for n, c in found.items() if n.startswith("variant ")}
    contents |= {n: at[0] for n in SEEDED if (at := _seeds(found, n))}
    if not contents:
        return ""
    num = min(content["num_images"] for content in contents.values())
    runs = {name: content["found"] for name, content in contents.items()}
    standing = {n: np.array(list(run["standing"][:num])) == "1" for n, run in runs.items()}
    order = sorted(runs, key=lambda n: standing[n].mean())
    rows = [_spent(n, standing[n], runs[n]["gradients"]) for n in order]
    for family, starts in {"PGD and APGD": ("PGD", "APGD"), "S-O": ("S-O",)}.items():
        of = [n for n in runs if n.startswith(starts)]
        if len(of) > 1:
            right = np.all([standing[n] for n in of], axis=0)
            total = sum(runs[n]["gradients"] for n in of)
            rows.append(_spent(f"worst case of the {len(of)} runs of {family}", right, total))
    return records.table([f"attack (first {num} images)", "accuracy, %", "95 %", "gradients"], rows)


def _spent(name: str, right: np.ndarray, gradients: int) -> list[str]:
    accuracy = float(right.mean())
    return [name, f"{100 * accuracy:.1f}", records.ends(accuracy, len(right)), f"{gradients}"]


def _curves(found: dict[str, Any]) -> str:
    """Accuracy against eps of every sweep."""
    rows = []
    for name, content in found.items():
        if name.startswith(("figure 2", "figure 3", "figure 6")) and "norms" not in name:
            accuracy, num = content["found"]["accuracy"], content["num_images"]
            points = ", ".join(
                f"{float(e):.3g}: {100 * a:.0f} ({records.ends(a, num, 0)})"
                for e, a in accuracy.items()
            )
            rows.append([name, f"{num}", points])
    return records.table(["sweep", "images", "eps: accuracy, % (95 %)"], rows)


def _curvature(found: dict[str, Any]) -> str:
    rows = [
        [content["network"], loss.replace("_", "-"),
            *(f"{at[k]:.2g}" for k in ("gradient", "hessian", "largest_hessian"))]
        for name, content in found.items() if name.startswith("curvature ")
        for loss, at in content["found"].items()
    ]  # fmt: skip
    head = ["network", "loss", "median |gradient|", "median |Hessian|", "largest"]
    return records.table(head, rows)


def _certified(found: dict[str, Any]) -> str:
    rows = []
    for name, content in found.items():
        if not name.startswith("figure 1 "):
            continue
        at, num = content["found"], content["num_images"]
        few, many, strict = at["certified"]
        columns = [(few, "renyi"), (many, "renyi"), (many, "cohen"), (many, "pixeldp"),
            (strict, "cohen")]  # fmt: skip
        for radius in (0.4, 0.8) if content["network"].startswith("mnist") else (0.1, 0.25):
            i = at["radii"].index(radius)
            shares = [at["certified"][n][b][i] for n, b in columns]
            rows.append([
                content["network"], f"{100 * at['majority_right']:.1f}",
                f"{100 * at['abstained'][few]:.1f}", f"{radius:g}",
                *(f"{100 * share:.1f} ({records.ends(share, num, 0)})" for share in shares),
            ])  # fmt: skip
    if not rows:
        return ""
    draws = next(c["settings"]["draws"] for c in found.values() if "draws" in c["settings"])
    head = ["network", "majority right, %", "abstained, 100 draws, %", "l2", "Rényi, 100 draws",
        f"Rényi, {draws}", f"Cohen, {draws}", f"PixelDP, {draws}",
        f"Cohen, {draws}, 99.9 %"]  # fmt: skip
    return records.table(head, rows)


def _unanimous(found: dict[str, Any]) -> str:
    if "figure 4" not in found:
        return ""
    most = found["figure 4"]["found"]["unanimous_sigma_0.4"]
    bounds = ("renyi", "cohen", "pixeldp")
    rows = [[name, *(f"{r[bound]:.2f}" for bound in bounds)] for name, r in most.items()]
    return records.table(["unanimous, sigma 0.4, 95 %", "Rényi", "Cohen", "PixelDP"], rows)


def _seeds(found: dict[str, Any], attack: str) -> list[dict[str, Any]]:
    pattern = re.compile(rf"headline {re.escape(attack)}( \d+)?")
    return [content for name, content in found.items() if pattern.fullmatch(name)]
