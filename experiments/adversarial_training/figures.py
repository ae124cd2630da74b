"""The figures, from the recorded numbers of one data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments import plots, records
from experiments.adversarial_training import config

METHODS = ("fgsm", "fast", "free", "pgd-5", "pgd-10", "pgd-40", "yopo-5-10", "yopo-5-3",
           "yopo-3-5", "trades", "mma", "mma 20", "madry 0.3", "madry 8", "pgd-3", "bilateral",
           "r-mc-la")  # fmt: skip
"""Of the accuracy-time curves."""
CURVES = ("natural", "pgd-5", "pgd-40", "yopo-5-10", "trades", "mma", "pgdls 0.3", "bilateral")
"""Of accuracy against the radius."""


def draw(folder: Path) -> None:
    """Every figure for which the folder holds the numbers."""
    found = {name: content["found"] for name, content in records.read(folder).items()}
    if "speed" in found and any(f"history {name}" in found for name in METHODS):
        _against_time(folder / "accuracy-time.svg", found)
    if any(f"history {name}" in found for name in ("pgd-40", "pgd-10")):
        _training_loss(folder / "training-loss.svg", found)
    have = [name for name in ("natural", "pgd-40") if f"starts {name}" in found]
    if have:
        _starts(folder / "starts.svg", found, have)
    if any(f"capacity madry x{scale}" in found for scale in config.SCALES):
        _capacity(folder / "capacity.svg", found)
    have = [name for name in CURVES if f"restarts {name}" in found and folder.name == "mnist"]
    if have:
        _radii(folder / "radii.svg", found, have)


def _against_time(path: Path, found: dict[str, Any]) -> None:
    """YOPO's Figure 3: held-out accuracy under PGD after each epoch, against seconds of training.

    Seconds are the measured ones of a step, times the steps so far.
    """
    figure, axes = plots.panels(1)
    for number, name in enumerate(METHODS):
        history = found.get(f"history {name}")
        if history is None:
            continue
        step = found["speed"][name]["step"]
        seconds = [step * line["step"] for line in history["validation"]]
        right = [line["pgd_accuracy"] for line in history["validation"]]
        style = "--" if number >= 10 else "-"
        axes[0].plot(seconds, right, style, marker=".", label=name, color=f"C{number % 10}")
    plots.finish(axes[0], "held-out images", "seconds of training", "accuracy under PGD")
    plots.save(figure, axes, path)


def _training_loss(path: Path, found: dict[str, Any]) -> None:
    """Madry's Figure 5: loss of the training batches' adversarial images.

    Up to the dotted line the radius still rises, and losses with it.
    """
    figure, axes = plots.panels(1)
    top = 0.0
    for name in ("pgd-10", "pgd-40", "fgsm"):
        history = found.get(f"history {name}")
        if history is not None:
            steps, losses = zip(
                *((line["step"], line["loss"]) for line in history["training"]), strict=True
            )
            axes[0].plot(steps, losses, label=name)
            top = max(top, *losses)
            risen = history["rises"] * history["steps"]
            axes[0].axvline(risen, color="0.6", linestyle=":", linewidth=0.8)
    plots.finish(axes[0], "training", "step", "adversarial cross-entropy")
    axes[0].set_ylim(0, 1.05 * top)
    plots.save(figure, axes, path)


def _starts(path: Path, found: dict[str, Any], names: list[str]) -> None:
    """Madry's Figures 1 and 2: loss along PGD from 20 starts, and where all starts end."""
    images = len(found[f"starts {names[0]}"]["images"])
    figure, axes = plots.panels(2 * 4 * len(names))
    for row, name in enumerate(names):
        for column in range(4):
            curve, ends = axes[8 * row + column], axes[8 * row + 4 + column]
            if column >= images:
                continue
            of = found[f"starts {name}"]["images"][column]
            for losses in of["curves"]:
                curve.plot(losses, color="C0", linewidth=0.7)
            curve.set(title=f"{name}, image {of['image']}", xlabel="step", ylabel="loss")
            ends.hist(np.asarray(of["last"]), bins=30, color="C0")
            ends.set(xlabel="loss at the end", ylabel="starts")
    plots.save(figure, axes, path)


def _capacity(path: Path, found: dict[str, Any]) -> None:
    """Madry's Figure 4."""
    figure, axes = plots.panels(4)
    trained_on = {"natural": "clean", "fgsm": "FGSM", "madry": "PGD-40"}
    for axis, (method, own) in zip(axes, trained_on.items(), strict=False):
        have = [s for s in config.SCALES if f"capacity {method} x{s}" in found]
        of = [found[f"capacity {method} x{s}"] for s in have]
        for attack in trained_on.values():
            axis.plot(have, [one["accuracy"][attack] for one in of], marker=".", label=attack)
        axes[3].plot(have, [one["loss"][own] for one in of], marker=".", label=method)
        plots.finish(axis, f"{method} training", "capacity", "accuracy")
    axes[3].set(title="loss it was trained on", xlabel="capacity", ylabel="cross-entropy")
    axes[3].set_yscale("log")
    plots.save(figure, axes, path)


def _radii(path: Path, found: dict[str, Any], names: list[str]) -> None:
    """Accuracy against the radius, worst of five restarts of PGD-100."""
    figure, axes = plots.panels(1)
    for number, name in enumerate(names):
        of = found[f"restarts {name}"]
        eps = [0.0, *map(float, of["worst case"])]
        right = [of["clean"], *of["worst case"].values()]
        axes[0].plot(eps, right, marker=".", label=name, color=f"C{number}")
    plots.finish(axes[0], "PGD-100, 5 restarts", "eps", "accuracy")
    plots.save(figure, axes, path)
