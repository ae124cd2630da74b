"""The README's tables, beside the paper's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jaxrobust as jr
from experiments import records
from experiments.madry_mnist.evaluate import PUBLISHED
from experiments.madry_mnist.rows import CIFAR10_TABLE, FIGURE_6, MNIST_TABLE

PAPER = {
    "mnist Targeted": 92.7, "mnist CW": 94.0, "mnist CW+": 93.9,
    "mnist FGSM from A'": 96.8, "mnist PGD-40 from A'": 96.0, "mnist PGD-100 x5 from A'": 95.7,
    "mnist CW from A'": 97.0, "mnist CW+ from A'": 96.4,
    "mnist FGSM from B": 95.4, "mnist PGD-40 from B": 96.4, "mnist CW+ from B": 95.7,
    "mnist AutoAttack": 88.5,
    "cifar10 FGSM": 56.1, "cifar10 PGD-7": 50.0, "cifar10 PGD-20": 45.8, "cifar10 CW-30": 46.8,
    "cifar10 FGSM from A'": 67.0, "cifar10 PGD-7 from A'": 64.2, "cifar10 CW-30 from A'": 78.7,
    "cifar10 FGSM from A natural": 85.6, "cifar10 PGD-7 from A natural": 86.0,
    "cifar10 AutoAttack": 44.04,
}  # fmt: skip
"""Paper 001 (Madry et al. 2018), Tables 1 and 2, in percent; AutoAttack: its authors' on Madry's
secret MNIST network and on the CIFAR-10 one. PGD-100 from A' has 20 restarts there.
"""


def tables(folder: Path) -> dict[str, str]:
    """Markdown tables by their names in the README; beside the folder lie the white-box rows."""
    found, path = records.read(folder), folder.parent / "results.json"
    white_box = jr.files.read_json(path) if path.exists() else {}
    weights = {name: one["weights"] for name, one in white_box.get("measured", {}).items()}
    if any(
        one["network"] == name and one["weights"] != weights.get(of, one["weights"])
        for one in found.values()
        for name, of in (("mnist A", "adversarial"), ("mnist A natural", "natural"))
    ):
        white_box = {}  # of networks that were trained again since
    return {
        "white box": _white_box(white_box),
        "table mnist": _table(found, "mnist", MNIST_TABLE),
        "table cifar10": _table(found, "cifar10", CIFAR10_TABLE),
        "figure 6": _curves(found),
    }


def _white_box(found: dict[str, Any]) -> str:
    """Both networks under the attacks that `evaluate.py` makes."""
    measured, num, rows = found.get("measured", {}), found.get("num_test", 0), []
    for attack in ("clean", "FGSM", "PGD-40", "PGD-100 x5", "worst case") if measured else ():
        shares = [measured[network][attack] for network in ("natural", "adversarial")]
        paper = {"PGD-100 x5": "PGD-100 x20"}.get(attack, attack)
        rows.append([
            attack, *(f"{100 * share:.2f} ({records.ends(share, num)})" for share in shares),
            f"{PUBLISHED[paper]}{' (20 restarts)' * (paper != attack)}" if paper in PUBLISHED
            else "-",
        ])  # fmt: skip
    return records.table(["attack", "natural, %", "adversarial, %", "paper, adversarial, %"], rows)


def _table(found: dict[str, Any], data: str, table: dict[tuple[str, str], Any]) -> str:
    rows = []
    for (_, source), attacks in table.items():
        for attack in attacks:
            name = f"{data} {attack}" + (f" from {source}" if source else "")
            content = found.get(f"table {name}")
            if content is None:
                continue
            (accuracy,) = content["found"]["accuracy"].values()
            num, paper = content["num_images"], PAPER.get(name)
            rows.append([
                attack, source or "A", f"{num}", f"{100 * accuracy:.1f}",
                records.ends(accuracy, num), "-" if paper is None else f"{paper}",
            ])  # fmt: skip
    return records.table(["attack", "source", "images", "accuracy, %", "95 %", "paper, %"], rows)


def _curves(found: dict[str, Any]) -> str:
    rows = []
    for (data, norm), (networks, _) in FIGURE_6.items():
        for network in networks:
            for attack in ("PGD", "decision"):
                content = found.get(f"figure 6 {data} {norm} {network} {attack}")
                if content is None:
                    continue
                accuracy = {"0": content["found"]["clean"], **content["found"]["accuracy"]}
                points = ", ".join(f"{float(e):.3g}: {100 * a:.1f}" for e, a in accuracy.items())
                rows.append([f"{data} {norm}", network, attack, f"{content['num_images']}", points])
    return records.table(["panel", "network", "attack", "images", "eps: accuracy, %"], rows)
