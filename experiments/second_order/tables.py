"""The README's tables, from the recorded numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from experiments.records import read
from experiments.second_order.evaluate import APGD, MINIMUM_NORM

SEEDED = ("FGSM", "PGD", "PGD, 40 steps x 5", *APGD, "S-O")
PAPER = {"FGSM": "96", "PGD": "~88", "S-O": "39.5", "DeepFool": "91", "Boundary": "37.0"}
"""Paper 000, Table 2: accuracy of Madry's network at l2 1.5, in percent."""


def tables(folder: Path) -> dict[str, str]:
    """Markdown tables by name; rows appear as their measurements do."""
    found = read(folder)
    return {
        "choices": _choices(read(folder.parent / "held-out")),
        "table 2": _table_2(found),
        "honest": _honest(found),
        "curves": _curves(found),
        "certified": _certified(found),
        "unanimous": _unanimous(found),
    }


def fill(readme: Path, folder: Path) -> None:
    """Put the tables between their marks in the README."""
    text = readme.read_text()
    for name, table in tables(folder).items():
        mark = f"(<!-- {name} -->\n).*?(<!-- end -->)"
        text = re.sub(mark, lambda at, table=table: f"{at[1]}{table}{at[2]}", text, flags=re.DOTALL)
    readme.write_text(text)


def _choices(found: dict[str, Any]) -> str:
    """What was tried on held-out images; the best in bold."""
    rows = []
    for name, content in found.items():
        if not name.startswith("choice "):
            continue
        best = content["found"]["best"]
        for one in content["found"]["tried"]:
            search = one["search"]
            names = ("sigma", "step", "random_start")
            said = ", ".join(f"{n} {search[n]:g}" for n in names if search[n] or n == "step")
            accuracy = f"{100 * list(one['accuracy'].values())[-1]:.1f}"
            shown = f"**{accuracy}**" if search == best else accuracy
            rows.append(f"| {name.removeprefix('choice ')} | {said} | {shown} |")
    return _table(["attack", "steps in eps", "accuracy, %"], rows)


def _table_2(found: dict[str, Any]) -> str:
    rows = []
    for attack in (*SEEDED, *MINIMUM_NORM):
        contents = _seeds(found, attack)
        if not contents:
            continue
        values = [content["found"]["accuracy"]["1.5"] for content in contents]
        num, spent = contents[0]["num_images"], contents[0]["found"]["gradients"]
        spread = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        rows.append(
            f"| {attack} | {num} | {100 * np.mean(values):.1f}{spread} | {_ends(values[0], num)} | "
            f"{'-' if spent is None else spent} | {PAPER.get(attack, '')} |"
        )
    head = ["attack", "images", "accuracy, %", "95 %, first seed", "gradients", "paper, %"]
    return _table(head, rows)


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
    for family, starts in {"PGD, APGD": ("PGD", "APGD"), "S-O": ("S-O",)}.items():
        of = [n for n in runs if n.startswith(starts)]
        if of:
            right = np.all([standing[n] for n in of], axis=0)
            total = sum(runs[n]["gradients"] for n in of)
            rows.append(_spent(f"worst case of all {len(of)}: {family}", right, total))
    return _table([f"attack (first {num} images)", "accuracy, %", "95 %", "gradients"], rows)


def _spent(name: str, right: np.ndarray, gradients: int) -> str:
    accuracy = float(right.mean())
    return f"| {name} | {100 * accuracy:.1f} | {_ends(accuracy, len(right))} | {gradients} |"


def _curves(found: dict[str, Any]) -> str:
    """Accuracy against eps of every sweep."""
    rows = []
    for name, content in found.items():
        if name.startswith(("figure 2", "figure 3", "figure 6")) and "norms" not in name:
            accuracy, num = content["found"]["accuracy"], content["num_images"]
            points = ", ".join(
                f"{float(e):.3g}: {100 * a:.0f} ({_ends(a, num, 0)})" for e, a in accuracy.items()
            )
            rows.append(f"| {name} | {num} | {points} |")
    return _table(["sweep", "images", "eps: accuracy, % (95 %)"], rows)


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
            shown = " | ".join(f"{100 * share:.1f} ({_ends(share, num, 0)})" for share in shares)
            right = f"{100 * at['majority_right']:.1f} | {100 * at['abstained'][few]:.1f}"
            rows.append(f"| {content['network']} | {right} | {radius:g} | {shown} |")
    draws = next((c["settings"]["draws"] for c in found.values() if "draws" in c["settings"]), 0)
    head = ["network", "majority right, %", "abstained, 100 draws, %", "l2", "Rényi, 100 draws",
        f"Rényi, {draws}", f"Cohen, {draws}", f"PixelDP, {draws}",
        f"Cohen, {draws}, 99.9 %"]  # fmt: skip
    return _table(head, rows)


def _unanimous(found: dict[str, Any]) -> str:
    if "figure 4" not in found:
        return ""
    most = found["figure 4"]["found"]["unanimous_sigma_0.4"]
    rows = [f"| {name} | {r['renyi']:.2f} | {r['cohen']:.2f} | {r['pixeldp']:.2f} |"
        for name, r in most.items()]  # fmt: skip
    return _table(["unanimous, sigma 0.4, 95 %", "Rényi", "Cohen", "PixelDP"], rows)


def _seeds(found: dict[str, Any], attack: str) -> list[dict[str, Any]]:
    pattern = re.compile(rf"headline {re.escape(attack)}( \d+)?")
    return [content for name, content in found.items() if pattern.fullmatch(name)]


def _ends(share: float, num: int, digits: int = 1) -> str:
    """Clopper-Pearson's 95 % interval of a share of so many images, in percent."""
    ends = binomtest(round(share * num), num).proportion_ci(0.95, method="exact")
    return f"{100 * ends.low:.{digits}f}-{100 * ends.high:.{digits}f}"


def _table(head: list[str], rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows]) + "\n"
