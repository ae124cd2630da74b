"""The README's tables, from the recorded numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from experiments.second_order.figures import read

PAPER = {"FGSM": "96", "PGD": "~88", "S-O": "39.5"}
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
    for attack in ("FGSM", "PGD", "PGD, 40 steps x 5", "S-O"):
        runs = _seeds(found, attack)
        if runs:
            ends = [100 * end for end in runs[0]["interval"]]
            shown = f"{_mean(runs)} | {ends[0]:.1f}-{ends[1]:.1f} | {runs[0]['gradients']}"
            rows.append(f"| {attack} | {shown} | {PAPER.get(attack, '')} |")
    rows += [f"| {a} | when the attack lands | | | {p} |"
        for a, p in (("DeepFool", "91"), ("Boundary", "37.0"), ("Carlini-Wagner", ""))]  # fmt: skip
    head = ["attack", "accuracy, %", "95 %, first seed", "gradients", "paper, %"]
    return _table(head, rows)


def _honest(found: dict[str, Any]) -> str:
    """Every way to spend the gradients, on the same images."""
    variants = {n.removeprefix("variant "): c for n, c in found.items() if n.startswith("variant ")}
    if not variants:
        return ""
    num = next(iter(variants.values()))["num_images"]
    headline = ("FGSM", "PGD", "PGD, 40 steps x 5", "S-O")
    runs = {n: at[0] for n in headline if (at := _seeds(found, n))}
    runs |= {name: content["found"] for name, content in variants.items()}
    standing = {n: np.array(list(run["standing"][:num])) == "1" for n, run in runs.items()}
    order = sorted(runs, key=lambda n: standing[n].mean())
    rows = [f"| {n} | {100 * standing[n].mean():.1f} | {runs[n]['gradients']} |" for n in order]
    for kind in ("PGD", "S-O"):
        of = [right for n, right in standing.items() if n.startswith(kind)]
        rows.append(f"| worst case of all {kind} | {100 * np.all(of, axis=0).mean():.1f} | |")
    worst = np.all(list(standing.values()), axis=0)
    rows.append(f"| worst case of all | {100 * worst.mean():.1f} | |")
    return _table([f"attack (first {num} images)", "accuracy, %", "gradients"], rows)


def _curves(found: dict[str, Any]) -> str:
    """Accuracy against eps of every sweep."""
    rows = []
    for name, content in found.items():
        if name.startswith(("figure 2", "figure 3", "figure 6")) and "norms" not in name:
            accuracy = content["found"]["accuracy"]
            points = ", ".join(f"{float(e):.3g}: {100 * a:.0f}" for e, a in accuracy.items())
            rows.append(f"| {name} | {points} |")
    return _table(["sweep", "eps: accuracy, %"], rows)


def _certified(found: dict[str, Any]) -> str:
    rows = []
    for name, content in found.items():
        if not name.startswith("figure 1 "):
            continue
        at = content["found"]
        few, many, strict = at["certified"]
        columns = [(few, "renyi"), (many, "renyi"), (many, "cohen"), (many, "pixeldp"),
            (strict, "cohen")]  # fmt: skip
        for radius in (0.4, 0.8) if content["network"].startswith("mnist") else (0.1, 0.25):
            i = at["radii"].index(radius)
            shown = " | ".join(f"{100 * at['certified'][n][b][i]:.1f}" for n, b in columns)
            right = f"{100 * at['majority_right']:.1f}"
            rows.append(f"| {content['network']} | {right} | {radius:g} | {shown} |")
    draws = next((c["settings"]["draws"] for c in found.values() if "draws" in c["settings"]), 0)
    head = ["network", "majority right, %", "l2", "Rényi, 100 draws", f"Rényi, {draws}",
        f"Cohen, {draws}", f"PixelDP, {draws}", f"Cohen, {draws}, 99.9 %"]  # fmt: skip
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
    return [content["found"] for name, content in found.items() if pattern.fullmatch(name)]


def _mean(runs: list[dict[str, Any]]) -> str:
    values = [100 * list(run["accuracy"].values())[-1] for run in runs]
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"


def _table(head: list[str], rows: list[str]) -> str:
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows]) + "\n"
