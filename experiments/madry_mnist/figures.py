"""Figure 6: accuracy against eps, past what the networks were trained for."""

from __future__ import annotations

from pathlib import Path

from experiments import plots, records
from experiments.madry_mnist.rows import FIGURE_6

TRAINED = {("mnist", "linf"): 0.3, ("cifar10", "linf"): 8 / 255}
"""Radius of A's training, by panel."""


def draw(folder: Path) -> None:
    """The panels whose numbers the folder holds."""
    found = records.read(folder)
    if not any(name.startswith("figure 6") for name in found):
        return
    figure, axes = plots.panels(len(FIGURE_6))
    for axis, ((data, norm), (networks, _)) in zip(axes, FIGURE_6.items(), strict=True):
        for number, network in enumerate(networks):
            for attack, dash in (("PGD", "-"), ("decision", "--")):
                name = f"figure 6 {data} {norm} {network} {attack}"
                if name not in found:
                    continue
                accuracy = found[name]["found"]["accuracy"]
                eps = [0.0, *map(float, accuracy)]
                right = [found[name]["found"]["clean"], *accuracy.values()]
                axis.plot(eps, right, dash, marker=".", color=f"C{number}",
                    label=f"{network}, {attack}")  # fmt: skip
        if (data, norm) in TRAINED:
            axis.axvline(TRAINED[data, norm], color="0.6", linestyle=":")
        plots.finish(axis, f"{data}, {norm}", "eps", "accuracy")
    plots.save(figure, axes, folder.parent / "figure-6.svg")
