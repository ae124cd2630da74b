"""The paper's figures, from the recorded numbers and images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Ellipse, Rectangle

from experiments import records
from experiments.plots import panels, save
from experiments.spatial.config import EPS_SAMPLES, LINEAR, LOWER, SIX, UPPER

COLOURS = dict(zip(SIX, mpl.color_sequences["tab10"], strict=False))
STYLES = {"frobenius": ":", "spectral": "--", "sdp": "-", "sdp_l2": "-."}


def draw(folder: Path) -> None:
    """Every figure for which the folder holds the numbers."""
    found = {name: content["found"] for name, content in records.read(folder).items()}
    _ellipse(folder / "figure-7.svg")
    for number, names in ((2, LOWER), (8, LINEAR)):
        have = [name for name in names if f"lower {name}" in found]
        if have:
            _lower(folder / f"figure-{number}.svg", found, have)
    have = [name for name in LOWER if f"lower {name}" in found]
    if have:
        _convergence(folder / "figure-4.svg", found, have)
    have = [name for name in UPPER if f"upper {name}" in found]
    if have:
        _upper(folder / "figure-5.svg", found, have)
    have = [name for name in SIX if f"stadv {name}" in found]
    if have:
        _taus(folder / "figure-6.svg", found, have)
    for number, name in ((3, "nt"), (9, "rd"), (10, "at")):
        path = folder / f"samples-{name}.npz"
        if path.exists():
            with np.load(path) as arrays:
                _samples(folder / f"figure-{number}.svg", dict(arrays))
    if (folder / "pictures.npz").exists():
        with np.load(folder / "pictures.npz") as arrays:
            _pictures(folder / "figure-1.svg", dict(arrays))


def _lower(path: Path, found: dict[str, Any], names: Sequence[str]) -> None:
    """Figures 2 and 8: the largest over the classes."""
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        of = found[f"lower {name}"]
        for key, label, style in (
            ("loss", "algorithm, inputs in [-1, 1]", "-"),
            ("loss on images", "algorithm, inputs in [0, 1]", "--"),
            ("theorem", "theorem's input and flow, measured", "-."),
            ("surrogate", "theorem, as printed (bounds no loss)", ":"),
        ):
            axis.plot(of["eps"], np.max(of[key], axis=0), style, label=label)
        axis.set(title=name, xlabel="eps", ylabel="adversarial loss")
        axis.grid(color="0.92")
    save(figure, axes, path)


def _convergence(path: Path, found: dict[str, Any], names: Sequence[str]) -> None:
    """Figure 4: the best so far, for the class of the largest loss."""
    figure, axes = panels(len(names))
    for axis, name in zip(axes, names, strict=True):
        of = found[f"lower {name}"]
        for eps in EPS_SAMPLES:
            at = of["eps"].index(eps)
            which = int(np.argmax(np.asarray(of["loss"])[:, at]))
            trace = np.maximum.accumulate(of["trace"][which][at])
            axis.plot(trace / trace[-1], label=f"eps {eps:g}: {trace[-1]:.3g}")
        axis.set(title=name, xlabel="turns", ylabel="loss, of the last one's", ylim=(0, 1.05))
        axis.grid(color="0.92")
        axis.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _upper(path: Path, found: dict[str, Any], names: Sequence[str]) -> None:
    """Figures 5 and 11: above as printed, below corrected, with the attack that stays below."""
    figure, axes = plt.subplots(
        2, len(names), figsize=(3.4 * len(names), 6), sharey=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for column, name in enumerate(names):
        of = found[f"upper {name}"]
        for row, suffix in enumerate((", as printed", "")):
            axis = axes[row, column]
            for bound, style in STYLES.items():
                if f"{bound}{suffix}" in of["loss"]:
                    losses = of["loss"][f"{bound}{suffix}"]
                    axis.plot(of["eps"], losses, style, label=bound, drawstyle="steps-pre")
            attack = found.get(f"within {name}")
            if attack:
                inside = [i for i, eps in enumerate(attack["eps"]) if eps <= of["eps"][-1]]
                axis.plot(
                    [attack["eps"][i] for i in inside], [attack["loss"][i] for i in inside], "k.",
                    label="flow_pgd",
                )  # fmt: skip
            title = f"{name}, {'corrected' if row else 'as printed'}"
            axis.set(title=title, xlabel="eps", ylim=(0, 1.03), xlim=(0, of["eps"][-1]))
            axis.grid(color="0.92")
    for row in axes:
        row[0].set_ylabel("0/1 adversarial loss")
        row[-1].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _taus(path: Path, found: dict[str, Any], names: Sequence[str]) -> None:
    """Figure 6; tau of infinity is no attack."""
    figure, axes = panels(2)
    for name in names:
        of = found[f"stadv {name}"]
        places = [*of["tau"], 0.125]
        colour = COLOURS[name]
        axes[0].plot(places, [*of["success"], 0.0], ".-", label=name, color=colour)
        axes[1].plot(places, [*of["accuracy"], of["clean"]], ".-", label=name, color=colour)
    for axis, label in zip(axes, ("attack success", "accuracy under attack"), strict=True):
        ticks = [0, 0.025, 0.05, 0.075, 0.1, 0.125]
        axis.set(xlabel="tau", ylabel=label, ylim=(-0.02, 1.02))
        axis.set_xticks(ticks, [*map(str, ticks[:-1]), "\N{INFINITY}"])
        axis.grid(color="0.92")
    save(figure, axes[:1], path)


def _ellipse(path: Path) -> None:
    """Figure 7: all flows of two pixels, mirrored, and their box, for eps 2 and as printed."""
    figure, axes = panels(2)
    matrix = np.array([[5.0, -2.0], [-2.0, 5.0]])  # Dirichlet
    values, vectors = np.linalg.eigh(matrix)
    lambdas = np.sqrt(np.diag(np.linalg.inv(matrix)))
    eps = 2.0
    for axis, factor, title in zip(
        axes, (eps, 1.0), ("corrected: eps lambda", "as printed: lambda"), strict=True
    ):
        for sign in (1, -1):
            angle = sign * np.degrees(np.arctan2(*vectors[::-1, 0]))
            width, height = 2 * eps / np.sqrt(values)
            axis.add_patch(
                Ellipse((0, 0), width, height, angle=angle, alpha=0.3, facecolor="tab:blue")
            )
        corner, sides = -factor * lambdas, 2 * factor * lambdas
        axis.add_patch(Rectangle(tuple(corner), *sides, fill=False, edgecolor="tab:red"))
        axis.set(title=title, xlabel="pixel 1", ylabel="pixel 2", xlim=(-1.6, 1.6),
                 ylim=(-1.6, 1.6), aspect="equal")  # fmt: skip
    figure.suptitle(
        "$\\|M r\\| \\leq 2$ on an image of 1 x 2, Dirichlet, and its mirror image", fontsize=9
    )
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _samples(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Figures 3, 9 and 10: input, what the flow makes of it, and the flow."""
    rows = len(arrays["x"])
    figure, axes = plt.subplots(rows, 3, figsize=(7.5, 2.6 * rows), layout="constrained")
    for row, eps in enumerate(EPS_SAMPLES):
        of = {key: np.asarray(array[row], float) for key, array in arrays.items()}
        _image(axes[row, 0], of["x"], "input", (-1, 1))
        _image(axes[row, 1], of["x_adv"], "moved", (-1, 1))
        _arrows(axes[row, 2], of["flow"])
        axes[row, 0].set_ylabel(f"eps {eps:g}")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _pictures(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Figure 1."""
    figure, axes = plt.subplots(1, 4, figsize=(10, 2.7), layout="constrained")
    titles = {"x": "benign", "pixels": "pixels changed, linf 0.1", "moved": "pixels moved"}
    for axis, (key, title) in zip(axes, titles.items(), strict=False):
        _image(axis, np.asarray(arrays[key], float), title, (0, 1))
    _arrows(axes[3], np.asarray(arrays["flow"], float))
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _image(axis: Any, image: np.ndarray, title: str, limits: Iterable[float]) -> None:
    low, high = limits
    axis.imshow(image.reshape(28, 28), cmap="gray", vmin=low, vmax=high)
    axis.set(title=title, xticks=[], yticks=[])


def _arrows(axis: Any, flow: np.ndarray) -> None:
    """A flow, drawn from where a pixel looks to the pixel; every second one."""
    some = slice(None, None, 2)
    down, right = flow[some, some, 0], flow[some, some, 1]
    at = np.arange(0, flow.shape[0], 2)
    longest = max(float(np.hypot(down, right).max()), 1e-9)
    axis.quiver(at, at, right, down, angles="xy", scale_units="xy", scale=longest / 2, width=0.005)
    axis.set(title=f"flow, longest {longest:.2g} pixels", xlim=(-1, 28), ylim=(28, -1), xticks=[],
             yticks=[], aspect="equal")  # fmt: skip
