"""The paper's figures, from the recorded numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

FIVE = ("NT", "Fro", "Spe", "AT", "SDP dual")
NAMES = (*FIVE[:4], "SDP dual", "SDP mixing", "SDP mixing, unweighted", "SDP robust", "LP")
COLOURS = dict(zip(NAMES, mpl.color_sequences["tab10"], strict=False))
ATTACKS = ("PGD", "FGSM")
STYLES = {"sdp": "-", "spectral": "--", "frobenius": ":", "lp": "-.", "PGD": (0, (1, 1))}


def draw(folder: Path) -> None:
    """Every figure for which the folder holds the networks."""
    files = sorted(folder.glob("*.json"))
    found = {content["network"]: content for content in map(_read, files)}
    if set(FIVE) <= set(found):
        figure, axes = plt.subplots(1, 5, figsize=(15, 3.2), sharey=True, layout="constrained")
        for axis, name in zip(axes, FIVE, strict=True):
            for method in ("frobenius", "spectral", "sdp", "PGD"):
                _curve(axis, found[name], method, label=method, style=STYLES[method])
            _finish(axis, name)
        axes[0].legend()
        _save(figure, folder / "figure-2.svg")
        _lines(folder / "figure-3a.svg", found, FIVE, ("sdp", "PGD"), "SDP bound and PGD")
    if "SDP dual" in found:
        one = {"SDP dual": found["SDP dual"]}
        _lines(folder / "figure-3b.svg", one, one, ("PGD", "FGSM"), "attacks on SDP dual")
        _lines(
            folder / "figure-4b.svg", one, one, ("trained duals", "sdp"), "duals: trained, solved"
        )
    pair = ("SDP mixing", "SDP mixing, unweighted")
    if set(pair) <= set(found):
        _lines(folder / "figure-4a.svg", found, pair, ("sdp", "PGD"), "weighted and unweighted")
    figure, axis = plt.subplots(figsize=(5.5, 4), layout="constrained")
    for family, style in (("mixing", "-"), ("robust", "--")):
        members = [c["at_eps"] for name, c in found.items() if name.startswith(f"{family}, ")]
        points = sorted((at["clean"], at["sdp"]) for at in members)
        if points:
            clean, certified = zip(*points, strict=True)
            axis.plot(clean, certified, f".{style}", color="0.6", label=f"{family}, 20 epochs")
    for name in NAMES:
        if name in found and found[name]["at_eps"]["sdp"] < 60:
            at = found[name]["at_eps"]
            axis.plot(at["clean"], at["sdp"], "o", color=COLOURS[name], label=name)
    axis.plot(4.2, 35, "k*", label="paper 003, SDP-NN")
    axis.set(xlabel="clean error, %", ylabel="SDP-certified error at 0.1, %", ylim=(20, 100))
    axis.legend(fontsize=7)
    _save(figure, folder / "frontier.svg")


def _lines(
    path: Path, found: Mapping[str, Any], names: Iterable[str], methods: Iterable[str], title: str
) -> None:
    figure, axis = plt.subplots(figsize=(5.5, 4), layout="constrained")
    for name in names:
        for method, style in zip(methods, ("-", "--"), strict=True):
            _curve(axis, found[name], method, label=f"{name}: {method}", style=style,
                color=COLOURS[name])  # fmt: skip
    _finish(axis, title)
    axis.legend(fontsize=7)
    _save(figure, path)


def _curve(
    axis: Any, content: Any, method: str, *, label: str, style: Any, color: Any = None
) -> None:
    curve = {float(eps): error for eps, error in content["error_percent"][method].items()}
    curve = {0.0: content["at_eps"]["clean"]} | curve
    # Between two radii the larger one's bound is proved, and the smaller one's attack works.
    step = "steps-post" if method in ATTACKS else "steps-pre"
    axis.plot(
        list(curve), list(curve.values()), linestyle=style, color=color, label=label, drawstyle=step
    )


def _finish(axis: Any, title: str) -> None:
    axis.axhline(100, color="0.8", linewidth=0.5)
    axis.set(title=title, xlabel="eps (linf)", ylabel="error, %", ylim=(0, 103), xlim=(0, 0.2))


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _read(path: Path) -> Any:
    return json.loads(path.read_text())
