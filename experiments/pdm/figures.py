"""The paper's figures, from the recorded numbers and positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D

from experiments import records
from experiments.pdm.config import DEFENCES, NETWORKS
from experiments.plots import finish, panels, save


def draw(folder: Path) -> None:
    """Every figure for which the folder holds the numbers."""
    found = {name: content["found"] for name, content in records.read(folder).items()}
    planes = {}
    for name in NETWORKS:
        path = folder / f"t-sne-{name.replace(' ', '-')}.npz"
        if path.exists():
            with np.load(path) as arrays:
                planes[name] = dict(arrays)
    if "baseline" in planes and "confusion" in found.get("C&W baseline", {}):
        _confusion(folder / "figure-1.svg", planes["baseline"], found["C&W baseline"])
    if planes:
        _clusters(folder / "figure-2.svg", planes, found)
    have = [name for name in DEFENCES if f"curves {name}" in found]
    if have:
        _curves(folder / "figure-3.svg", {name: found[f"curves {name}"] for name in have})
    have = [name for name in DEFENCES if f"climb {name}" in found]
    if have:
        _climb(folder / "climb.svg", {name: found[f"climb {name}"] for name in have})


def _confusion(path: Path, plane: dict[str, Any], of: dict[str, Any]) -> None:
    """Figure 1: the baseline's clusters, and into which classes the attack moves which."""
    figure, axes = panels(2)
    _scatter(axes[0], plane, "baseline, t-SNE")
    image = axes[1].imshow(of["confusion"], cmap="Reds")
    axes[1].set(title="C&W: from class to class", xlabel="adversarial", ylabel="true",
                xticks=range(10), yticks=range(10))  # fmt: skip
    figure.colorbar(image, ax=axes[1], label="images", shrink=0.8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _clusters(path: Path, planes: dict[str, Any], found: dict[str, Any]) -> None:
    """Figure 2."""
    figure, axes = panels(len(planes))
    for axis, (name, plane) in zip(axes, planes.items(), strict=True):
        of = found.get(f"clean {name}")
        index = f"; DBI {of['davies_bouldin']:.2f}" if of else ""
        _scatter(axis, plane, f"{name}{index}")
    handles = [
        Line2D([], [], marker="o", linestyle="", color=f"C{c}", label=str(c)) for c in range(10)
    ]
    figure.legend(handles=handles, loc="outside right center", fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _scatter(axis: Any, plane: dict[str, Any], title: str) -> None:
    for c in range(10):
        of = plane["plane"][plane["y"] == c]
        axis.scatter(*of.T, s=2, color=f"C{c}", rasterized=True)
    axis.set(title=title, xticks=[], yticks=[])


def _curves(path: Path, found: dict[str, Any]) -> None:
    """Figure 3."""
    figure, axes = panels(2)
    for axis, attack in zip(axes, ("FGSM", "BIM"), strict=True):
        for name, of in found.items():
            axis.plot(of["eps"], of[attack], ".-", label=name)
        finish(axis, attack, "eps", "accuracy")
    save(figure, axes, path)


def _climb(path: Path, found: dict[str, Any]) -> None:
    """Section 4.2, in words only there: slopes along the steps of BIM."""
    figure, axes = panels(1 + len(found))
    for name, of in found.items():
        axes[0].plot(of["jacobian"], ".-", label=name)
    axes[0].set(title="embedding's Jacobian", xlabel="step", ylabel="mean norm", yscale="log")
    for axis, (name, of) in zip(axes[1:], found.items(), strict=True):
        for layer, norms in of["layers"].items():
            axis.plot(norms, label=layer)
        axis.set(title=f"{name}, loss in each layer", xlabel="step", yscale="log")
    for axis in axes:
        axis.grid(color="0.92")
    save(figure, axes, path)
