"""The README's tables, from the recorded numbers, beside the published ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import records
from experiments.adversarial_training import config, published, train
from experiments.adversarial_training.evaluate import COMBINED, METHODS

Found = dict[str, Any]

TABLE = {"mnist": METHODS, "cifar10": tuple(config.CIFAR10)}
"""Rows of the tables of methods."""
RADII = {"mnist": config.RADII["mnist"], "cifar10": (config.EPS["cifar10"],)}
AT = {"mnist": config.RADII["mnist"].index(0.3), "cifar10": 0}
"""Radii of its attacks of 20 steps, and which of them the others have."""
LONG = {"mnist": ("PGD-40", "CW-40", "PGD-100 x5"), "cifar10": ("PGD-7", "CW-20", "PGD-100 x5")}
"""Its other attacks."""


def tables(folder: Path) -> dict[str, str]:
    """Markdown tables by their names in the README, of a folder with one for each data set."""
    found = {
        data: {name: content["found"] for name, content in records.read(folder / data).items()}
        for data in ("mnist", "cifar10")
    }
    mnist, cifar10 = found["mnist"], found["cifar10"]
    held_out = records.read(folder.parent / "held-out" / "mnist")
    return {
        "choices": _choices(held_out),
        "methods mnist": _methods(mnist, "mnist"),
        "methods cifar10": _methods(cifar10, "cifar10"),
        "targets mnist": _targets(mnist),
        "yopo mnist": _yopo(mnist, "mnist", published.YOPO_MNIST, "PGD-40", "CW-40"),
        "yopo cifar10": _yopo(cifar10, "cifar10", published.YOPO_CIFAR10, "PGD-20", "CW-20"),
        "mma mnist": _mma(mnist, "mnist", {}),
        "mma cifar10": _mma(cifar10, "cifar10", published.MMA_CIFAR10),
        "bilateral cifar10": _bilateral(cifar10),
        "capacity mnist": _capacity(mnist),
    }


def percent(value: Any, digits: int = 1) -> str:
    """A share in percent, or nothing where it was not measured."""
    return "" if value is None else f"{100 * value:.{digits}f}"


def accuracy(found: Found, name: str, attack: str, kind: str = "table") -> Any:
    """Under an attack of a table; None where it was not measured."""
    return found.get(f"{kind} {name}", {}).get("accuracy", {}).get(attack)


def _choices(found: Found) -> str:
    """What each value left of held-out images; that of the cpu preset is bold."""
    rows = []
    for what, choice in config.CHOICES.items():
        setting = config.setting(choice.recipe, "mnist", "cpu")
        used = train.settings(config.MNIST[choice.recipe], setting)
        chosen = used["rate" if what.startswith("rate") else "weight"]
        for one in found.get(f"choice {what}", {}).get("found", []):
            value = f"{one['value']:g}"
            rows.append([
                what, f"**{value}**" if one["value"] == chosen else value,
                percent(one["clean"]), f"{choice.eps:g}", percent(one["PGD-20"]),
            ])  # fmt: skip
    return records.table(["", "value", "clean, %", "eps", "PGD-20"], rows)


def right(found: Found, name: str) -> np.ndarray | None:
    """Which images of `whole` stay right."""
    of = found.get(f"whole {name}")
    if of is None:
        return None
    bits = np.frombuffer(bytes.fromhex(of["right"]), np.uint8)
    return np.unpackbits(bits, count=of["num_images"]).astype(float)


def _marked(found: Found, name: str) -> str:
    """The name, with a mark where an attack's report warns of its own numbers."""
    findings = [
        finding
        for kind in ("table", "restarts", "autoattack")
        for finding in found.get(f"{kind} {name}", {}).get("findings", [])
    ]
    return f"{name} (!)" if any(one["severity"] == "warning" for one in findings) else name


def _methods(found: Found, data: str) -> str:
    """All methods under the same attacks, and what they cost."""
    costs, radii = found.get("speed", {}), RADII[data]
    long, margin, strong = LONG[data]
    rows = []
    for name in TABLE[data]:
        of, cost = found.get(f"table {name}", {}), costs.get(config.TWINS.get(name, name), {})
        rows.append([
            _marked(found, name),
            percent(of.get("clean")),
            ", ".join(percent(accuracy(found, name, f"PGD-20 at {r:.4g}")) for r in radii)
            if of else "",
            percent(accuracy(found, name, f"{long} at {radii[AT[data]]:.4g}")),
            percent(accuracy(found, name, f"{margin} at {radii[AT[data]]:.4g}")),
            percent(accuracy(found, name, f"{strong} at {radii[AT[data]]:.4g}", "restarts")),
            _autoattack(found, data, name),
            published.AUTOATTACK.get((data, name), ""),
            f"{cost['epoch']:.1f}" if cost else "",
            f"{cost['gradients']}" if cost else "",
        ])  # fmt: skip
    head = ["", "clean, %", f"PGD-20 at {', '.join(f'{r:.3g}' for r in radii)}", long, margin,
            strong, "AutoAttack (95 %; PGD)", "published", "seconds an epoch",
            "gradients an image"]  # fmt: skip
    return records.table(head, rows)


def _autoattack(found: Found, data: str, name: str) -> str:
    """Accuracy under AutoAttack, the ends of its interval, and the same images under PGD."""
    of, under_pgd = found.get(f"autoattack {name}", {}), right(found, name)
    left = of.get("worst case", {}).get(f"{config.EPS[data]:.4g}")
    if left is None:
        return ""
    pgd = "" if under_pgd is None else f"; {percent(under_pgd[: of['num_images']].mean())}"
    return f"{percent(left)} ({records.ends(left, of['num_images'], 0)}{pgd})"


def _targets(found: Found) -> str:
    """What the project set itself, and what came out; with 95 % intervals."""
    costs = found.get("speed", {})
    under = {name: right(found, name) for name in METHODS}

    def behind(name: str, leader: str = "pgd-40") -> str:
        best, other = under[leader], under[name]
        if best is None or other is None:
            return ""
        lost = 100 * (best - other)  # image by image
        return f"{lost.mean():.1f} ± {196 * (best - other).std() / len(lost) ** 0.5:.1f} points"

    def least(name: str) -> str:
        of = under[name]
        return "" if of is None else f"{percent(of.mean())} % ({records.ends(of.mean(), len(of))})"

    def margin(name: str) -> str:
        of = found.get(f"margins {name}")
        return "?" if of is None else f"{of['mean']:.3f} ± {1.96 * of['standard error']:.3f}"

    share = ""
    if {"yopo-5-10", "pgd-40"} <= costs.keys():
        share = f"{100 * costs['yopo-5-10']['step'] / costs['pgd-40']['step']:.0f} %"
    rows = [
        ["YOPO-5-10 behind PGD-40 training, under PGD-40", "at most 2 points", behind("yopo-5-10")],
        ["the same, both at a rate of 0.004", "", behind("yopo-5-10 at 0.004")],
        ["the same, both at a rate of 0.008", "", behind("yopo-5-10", "pgd-40 at 0.008")],
        ["its time, of PGD-40 training's", "at most 45 %", share],
        ["PGD-5 behind PGD-40 training, under PGD-40", "at least 5 points", behind("pgd-5")],
        ["TRADES under PGD-40", "at least 85 %", least("trades")],
        ["PGD-40 training under PGD-40", "at least 85 %", least("pgd-40")],
        ["average margin, MMA and PGD-40 training", "the first above the second",
         f"{margin('mma')} and {margin('pgd-40')}"],
    ]  # fmt: skip
    return records.table(["", "target", "measured"], rows)


def _yopo(
    found: Found, data: str, paper: dict[str, tuple[float, ...]], pgd: str, margin: str
) -> str:
    """Ours, and in brackets the paper's."""
    costs, rows, eps = found.get("speed", {}), [], f"{config.EPS[data]:.4g}"
    for name, printed in paper.items():
        ours = (
            found.get(f"table {name}", {}).get("clean"),
            accuracy(found, name, f"{pgd} at {eps}"),
            accuracy(found, name, f"{margin} at {eps}"),
        )
        cost = costs.get(name, {})
        rows.append([
            name, *_beside(ours, printed), _autoattack(found, data, name),
            published.AUTOATTACK.get((data, name), ""),
            f"{cost['epoch']:.1f}" if cost else "", f"{cost['gradients']}" if cost else "",
        ])  # fmt: skip
    head = ["", "clean, % (paper)", f"{pgd} (paper)", "CW (paper)", "AutoAttack (95 %; PGD)",
            "published", "seconds an epoch", "gradients an image"]  # fmt: skip
    return records.table(head, rows)


def _mma(found: Found, data: str, paper: dict[str, tuple[float, ...]]) -> str:
    """Combined attacks at rising radii; the paper's in brackets."""
    radii, rows = config.RADII[data], []
    for name in COMBINED[data]:
        of, margin = found.get(f"combined {name}", {}), found.get(f"margins {name}", {})
        ours = (
            of.get("clean"), of.get("average"), of.get("average robust"),
            *(of.get("worst case", {}).get(f"{eps:.4g}") for eps in radii),
        )  # fmt: skip
        rows.append([
            name, f"{margin['mean']:.4f}" if margin else "",
            *_beside(ours, paper.get(name, [None] * len(ours))),
            _autoattack(found, data, name), published.AUTOATTACK.get((data, name), ""),
        ])  # fmt: skip
    shown = [f"{eps:g}" if data == "mnist" else f"{round(eps * 255)}" for eps in radii]
    head = ["", "average margin", "clean, %", "AvgAcc", "AvgRobAcc", *shown, "AutoAttack",
            "published"]  # fmt: skip
    return records.table(head, rows)


def _bilateral(found: Found) -> str:
    """Ours, and in brackets Table 5's and 6's."""
    rows, at = [], f"{config.EPS['cifar10']:.4g}"
    for name, printed in published.BILATERAL.items():
        ours = (
            found.get(f"table {name}", {}).get("clean"),
            *(accuracy(found, name, f"{a} at {at}") for a in ("FGSM", "PGD-7", "PGD-20")),
            accuracy(found, name, f"PGD-100 at {at}", "restarts"),
            accuracy(found, name, f"CW-20 at {at}"),
            *(accuracy(found, name, f"{a} at {at}", "restarts") for a in ("CW-100", "CW-200")),
        )
        rows.append([
            name, *_beside(ours, printed), _autoattack(found, "cifar10", name),
            published.AUTOATTACK.get(("cifar10", name), ""),
        ])  # fmt: skip
    head = ["", "clean, % (paper)", "FGSM", "CE-7", "CE-20", "CE-100", "CW-20", "CW-100", "CW-200",
            "AutoAttack", "published"]  # fmt: skip
    return records.table(head, rows)


def _capacity(found: Found) -> str:
    """Accuracies by width and training, and the loss on test images attacked as in training."""
    rows = []
    like_its = {"natural": "clean", "fgsm": "FGSM", "madry": "PGD-40"}
    for method, attack in like_its.items():
        for scale in config.SCALES:
            of = found.get(f"capacity {method} x{scale}", {})
            shown = [percent(of["accuracy"][k]) if of else "" for k in like_its.values()]
            loss = f"{of['loss'][attack]:.3f}" if of else ""
            rows.append([method, f"{scale}", *shown, loss])
    head = ["training", "scale", "clean, %", "FGSM", "PGD-40", "loss under its attack"]
    return records.table(head, rows)


def _beside(ours: Sequence[Any], paper: Sequence[Any]) -> list[str]:
    """Each share in percent, with the paper's percentage in brackets where there is one."""
    return [
        f"{percent(mine)} ({theirs:g})".strip() if theirs is not None else percent(mine)
        for mine, theirs in zip(ours, paper, strict=True)
    ]
