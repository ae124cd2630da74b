"""The paper's figures, from the recorded numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.plots import finish, panels, save
from experiments.records import read

LABELS = {
    "mnist madry linf": "Madry linf",
    "mnist madry l2": "Madry l2",
}
DASHES = {"renyi": "-", "cohen": "--", "pixeldp": ":"}


def draw(folder: Path) -> None:
    """Every figure whose numbers the folder holds, as far as it holds them."""
    found = read(folder)
    _certified(found, folder)
    _attacked_mnist(found, folder)
    _curves(found, folder / "figure-3.svg", {
        f"CIFAR-10, {norm}": {
            kind: f"figure 3 {norm} S-O on {kind}"
            for kind in ("natural", f"madry {norm}", "stn 0.1", "stn 0.25", "gaussian 0.25")
        } | {
            f"{kind}, PGD": f"figure 3 {norm} PGD on {kind}"
            for kind in ("natural", f"madry {norm}")
        }
        for norm in ("l2", "linf")
    })  # fmt: skip
    _bounds(found, folder)
    _curves(found, folder / "figure-5.svg", {
        "Madry linf": {
            "S-O": "figure 2 S-O on mnist madry linf",
            "PGD": "figure 2 PGD on mnist madry linf",
            "Carlini-Wagner": "headline Carlini-Wagner",
            "DeepFool": "headline DeepFool",
            "Boundary": "headline Boundary",
        }
    })  # fmt: skip
    _curves(found, folder / "figure-6.svg", {
        "MNIST, linf": {
            f"{label}, {attack}": f"figure 6 {attack} on {network}"
            for network, label in LABELS.items() for attack in ("S-O", "PGD")
        }
    })  # fmt: skip
    _examples(found, folder)


def _certified(found: dict[str, Any], folder: Path) -> None:
    """Certified accuracy against the radius: a network a panel, the three bounds on equal draws."""
    names = [name for name in found if name.startswith("figure 1 ")]
    if not names:
        return
    names.sort(key=lambda name: "cifar10" in name)
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        content = found[name]["found"]
        few, many, _ = content["certified"]
        radii = np.asarray(content["radii"])
        reached = [0.0]
        for draws, bound, style in [*((many, b, f"C0{d}") for b, d in DASHES.items()),
            (few, "renyi", "C1")]:  # fmt: skip
            accuracy = np.asarray(content["certified"][draws][bound])
            axis.plot(radii, accuracy, style, label=f"{bound}, {draws}")
            reached.append(radii[accuracy > 0].max(initial=0))
        network = found[name]["network"]
        if network == "mnist stn 0.4":
            axis.plot(0.8, 0.5, "k*", label="paper 000")
            reached.append(0.8)
        finish(axis, _written(network), "l2 radius", "certified accuracy")
        axis.set_xlim(right=max(reached) + 0.1)
    save(figure, axes, folder / "figure-1.svg")


def _attacked_mnist(found: dict[str, Any], folder: Path) -> None:
    norms = [name for name in found if name.startswith("figure 2 norms ")]
    pairs = {
        "PGD against S-O": {
            "natural, PGD": "figure 2 PGD on mnist natural",
            "Madry linf, PGD": "figure 2 PGD on mnist madry linf",
            "Madry linf, S-O": "figure 2 S-O on mnist madry linf",
        },
        "S-O": {
            "natural": "figure 2 S-O on mnist natural",
            "Madry linf": "figure 2 S-O on mnist madry linf",
            "STN 0.2": "figure 2 S-O on mnist stn 0.2",
        },
    }
    if not norms:
        return
    figure, axes = panels(3)
    for name in norms:
        of = found[name]["found"]["gradient_norm"]
        axes[0].plot(of, label=name.removeprefix("figure 2 norms "))
    axes[0].set(title="gradients during the attack", xlabel="step", ylabel="mean l2 norm")
    axes[0].set_yscale("log")
    for axis, (title, series) in zip(axes[1:], pairs.items(), strict=True):
        _series(axis, found, title, series)
    save(figure, axes, folder / "figure-2.svg")


def _curves(found: dict[str, Any], path: Path, titles: dict[str, dict[str, str]]) -> None:
    if not any(name in found for series in titles.values() for name in series.values()):
        return
    figure, axes = panels(len(titles))
    for axis, (title, series) in zip(axes, titles.items(), strict=True):
        _series(axis, found, title, series)
    save(figure, axes, path)


def _series(axis: Any, found: dict[str, Any], title: str, series: dict[str, str]) -> None:
    """Accuracy against eps: a colour a network, PGD dashed; the number of images in brackets."""
    norm, colours = "l2", {}
    for label, name in series.items():
        if name in found:
            network = label.removesuffix(", PGD").removesuffix(", S-O")
            colour = colours.setdefault(network, f"C{len(colours)}")
            dash = "--" if label.endswith("PGD") else "-"
            norm = found[name]["settings"]["norm"]
            accuracy = found[name]["found"]["accuracy"]
            eps = [float(eps) for eps in accuracy]
            said = f"{label} ({found[name]['num_images']})"
            axis.plot(eps, list(accuracy.values()), dash, marker=".", color=colour, label=said)
    finish(axis, title, f"eps ({norm})", "accuracy")


def _written(network: str) -> str:
    for plain, written in {"mnist": "MNIST", "cifar10": "CIFAR-10", "stn": "STN"}.items():
        network = network.replace(plain, written)
    return network


def _bounds(found: dict[str, Any], folder: Path) -> None:
    if "figure 4" not in found:
        return
    content = found["figure 4"]["found"]
    figure, axes = panels(2)
    for axis, (case, radius) in zip(axes, content["radius"].items(), strict=True):
        for bound, values in radius.items():
            axis.plot(content["p1"], values, DASHES[bound], label=bound)
        axis.set(title=case, xlabel="p1", ylabel="l2 radius, sigma 1")
    save(figure, axes, folder / "figure-4.svg")


def _examples(found: dict[str, Any], folder: Path) -> None:
    path = folder / "figure-7.npz"
    if "figure 7" not in found or not path.exists():
        return
    content, images = found["figure 7"]["found"], np.load(path)
    num = len(content["label"])
    figure, axes = plt.subplots(2, num, figsize=(num, 2.5), layout="constrained")
    for row, which in zip(axes, ("clean", "adversarial"), strict=True):
        for axis, image, predicted in zip(
            row, images[which], content["predicted"][which], strict=True
        ):
            axis.imshow(image[..., 0], cmap="gray", vmin=0, vmax=255)
            axis.set_title(str(predicted), fontsize=9)
            axis.axis("off")
    figure.savefig(folder / "figure-7.png", dpi=80, metadata={"Software": None})
    plt.close(figure)
