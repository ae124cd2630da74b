"""The other rows of Madry's two tables and the curves of Figure 6; see `experiments.records`."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.tree_util import Partial

import jaxrobust as jr
from experiments import records
from experiments.madry_mnist import config, train
from experiments.madry_mnist.config import Sizes
from experiments.second_order import train as second_order
from jaxrobust.identity import digest

BATCH = 100

ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "FGSM": ("fgsm", {}),
    "PGD-40": ("pgd", {"num_steps": 40, "step_size": 0.01}),
    "PGD-100": ("pgd", {"num_steps": 100}),
    "PGD-100 x5": ("pgd", {"num_steps": 100, "step_size": 0.01, "num_restarts": 5}),
    "Targeted": ("targeted", {"num_steps": 40, "step_size": 0.01}),
    "CW": ("pgd", {"num_steps": 40, "step_size": 0.01, "loss": "f6", "kappa": 0}),
    "CW+": ("pgd", {"num_steps": 40, "step_size": 0.01, "loss": "f6", "kappa": 50}),
    "PGD-7": ("pgd", {"num_steps": 7, "step_size": 2 / 255}),
    "PGD-20": ("pgd", {"num_steps": 20, "step_size": 2 / 255}),
    "CW-30": ("pgd", {"num_steps": 30, "step_size": 2 / 255, "loss": "f6", "kappa": 50}),
    "AutoAttack": ("autoattack", {}),
    "Boundary": ("boundary", {"num_steps": 2000}),
}
"""Function of `jaxrobust.attacks` and its settings, by the tables' names.

"Targeted" goes for each of the nine wrong classes in turn and keeps the worst, which is our reading
of a row that the paper does not explain. Steps of CIFAR-10's 20- and 30-step rows, and kappa of its
CW row, are our choice.
"""


MADRY_MNIST = {
    "A": "adversarial",
    "A'": "adversarial",
    "A natural": "natural",
    "B": "architecture-b",
}
"""Networks trained here, by the tables' names."""

SECOND_ORDER = {
    "A": "madry linf",
    "A'": "madry linf",
    "A natural": "natural",
    "A l2": "madry l2",
}
"""Networks trained by `experiments.second_order`, by the tables' names."""


class Row(NamedTuple):
    """One attack on one network.

    Attributes:
        name: Of the measurement.
        network: The victim.
        attack: A name of `ATTACKS`.
        source: The network whose gradients are used; the victim itself where empty.
        norm: Of the ball.
        radii: Rising.
        num_images: How many of the first images.
    """

    name: str
    network: str
    attack: str
    source: str
    norm: str
    radii: tuple[float, ...]
    num_images: int


MNIST_TABLE = {
    ("A", ""): ("Targeted", "CW", "CW+", "AutoAttack", "Boundary"),
    ("A", "A'"): ("FGSM", "PGD-40", "PGD-100 x5", "CW", "CW+"),
    ("A", "B"): ("FGSM", "PGD-40", "CW+"),
}
"""Rows by victim and source. The other white-box rows are those of `--stage evaluate`."""

CIFAR10_TABLE = {
    ("A", ""): ("FGSM", "PGD-7", "PGD-20", "CW-30", "AutoAttack"),
    ("A", "A'"): ("FGSM", "PGD-7", "CW-30"),
    ("A", "A natural"): ("FGSM", "PGD-7"),
}

FIGURE_6 = {
    ("mnist", "linf"): (("A", "A natural", "A l2"), (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)),
    ("mnist", "l2"): (("A", "A natural", "A l2"), (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)),
    ("cifar10", "linf"): (("A",), tuple(i / 255 for i in (2, 4, 6, 8, 12, 16, 20, 24, 30))),
    ("cifar10", "l2"): (("A",), tuple(i / 255 for i in (10, 20, 40, 60, 80, 100))),
}
"""Networks and radii of each panel: PGD-100 in all, the decision attack in MNIST's l2."""


def rows(sizes: Sizes) -> Iterator[Row]:
    """All of them, the important ones first."""
    tables = (("mnist", MNIST_TABLE, 0.3), ("cifar10", CIFAR10_TABLE, 8 / 255))
    for data, table, eps in tables:
        for (victim, source), names in table.items():
            for name in names:
                of = sizes.decision if name == "Boundary" else sizes.table
                at = (f"{data} {victim}", name, f"{data} {source}" if source else "")
                suffix = f" from {source}" if source else ""
                yield Row(f"table {data} {name}{suffix}", *at, "linf", (eps,), of)
    for (data, norm), (networks, radii) in FIGURE_6.items():
        for network in networks:
            at = (f"{data} {network}", "PGD-100", "", norm, radii)
            yield Row(f"figure 6 {data} {norm} {network} PGD", *at, sizes.curve)
            if (data, norm) == ("mnist", "l2"):
                at = (f"{data} {network}", "Boundary", "", norm, radii)
                yield Row(f"figure 6 {data} {norm} {network} decision", *at, sizes.decision)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the networks lie, and what this run is of.

    Attributes:
        out: A, B and the natural network of MNIST.
        copies: A' of both tables: the trainings of A with seed 1.
        second_order: The l2-trained network and those of CIFAR-10.
        results: Where numbers go.
        preset: Of schedules and sizes.
        seed: Of the attacks.
    """

    out: Path
    copies: Path
    second_order: Path
    results: Path
    preset: str
    seed: int

    @property
    def folder(self) -> Path:
        """Where results of the preset go."""
        return self.results / self.preset / "rows"

    def test(self, data: str) -> str:
        """Of which images the first are looked at; MNIST: those of the white-box rows."""
        return "test" if data == "cifar10" else config.PRESETS[self.preset].test

    def network(self, name: str) -> tuple[Path, int]:
        """The folder of a trained network, and how many steps it is trained for."""
        schedule, preset = config.PRESETS[self.preset], self.preset
        data, _, kind = name.partition(" ")
        if data == "cifar10" or kind == "A l2":
            recipe = f"{data} {SECOND_ORDER[kind]}"
            folder = self.copies / "second_order" if kind == "A'" else self.second_order
            path = second_order.folder_of(recipe, preset, folder, self.out)
            return path, second_order.steps(recipe, preset)
        which = MADRY_MNIST[kind]
        folder = self.copies / "madry_mnist" if kind == "A'" else self.out
        return folder / preset / which, train.steps(which, schedule)


def record(place: Place, only: tuple[str, ...] = ()) -> None:
    """Make every measurement that is not there, and say which networks are missing."""
    for row in rows(config.SIZES[place.preset]):
        if only and not any(part in row.name for part in only):
            continue
        logits_fn = _restored(row.network, place)
        source = _restored(row.source, place) if row.source else None
        missing = [
            name
            for name, found in ((row.network, logits_fn), (row.source, source))
            if name and found is None
        ]
        if missing:
            print(f"{row.name}: {', '.join(missing)} is not trained", flush=True)
            continue
        used = {row.network: digest(logits_fn)}
        _forget_other_weights(
            place.folder, used | ({} if source is None else {row.source: digest(source)})
        )
        about = row._asdict() | {
            "settings": ATTACKS[row.attack],
            "weights": digest(logits_fn),
            "source_weights": None if source is None else digest(source),
            "seed": place.seed,
            "test": place.test(row.network.split()[0]),
        }
        slug = re.sub(r"[^a-z0-9.'+]+", "-", row.name.lower())
        records.keep(
            place.folder / f"{slug}.json", about,
            functools.partial(measured, row, logits_fn, source, place),
            f"python -m experiments.madry_mnist --stage rows --preset {place.preset}",
        )  # fmt: skip


def _forget_other_weights(folder: Path, used: dict[str, str]) -> None:
    """Remove what is recorded of networks before they were trained again: tables hold no mixture.

    Args:
        folder: Of the records.
        used: Checksums of the weights that networks have now, by name.
    """
    for path in folder.glob("*.json"):
        content = jr.files.read_json(path)
        of = {content["network"]: content["weights"], content["source"]: content["source_weights"]}
        if any(of.get(network, weights) != weights for network, weights in used.items()):
            path.unlink()


def measured(row: Row, logits_fn: Any, source: Any, place: Place) -> dict[str, Any]:
    """Accuracy at each radius; an image counts as broken from the first that breaks it."""
    data = row.network.split()[0]
    images = jr.data.load(data, place.test(data))
    x, y = images.x[: row.num_images], images.y[: row.num_images]
    attacks = attacks_of(*ATTACKS[row.attack], row.norm)
    if source is not None:
        attacks = {k: jr.attacks.transfer(source, attack) for k, attack in attacks.items()}
    if row.attack != "Boundary":  # which is run once, for all distances
        attacks = {
            f"{name} {eps:g}": jr.attacks.at_eps(attack, eps)
            for eps in row.radii
            for name, attack in attacks.items()
        }
    report = jr.evaluate(
        logits_fn, (x, y), attacks=attacks, key=jax.random.key(place.seed), batch_size=BATCH,
        ball=jr.Ball(row.norm, max(row.radii)),  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    at = report.accuracy_at(np.asarray(row.radii))
    return {
        "clean": report.clean_accuracy,
        "accuracy": {f"{eps:g}": float(a) for eps, a in zip(row.radii, at, strict=True)},
        "interval": report.intervals["robust"],
        "accuracy_after": report.accuracy_after,
        "gradients": {k: record.gradients for k, record in report.attacks.items()},
        "findings": [finding._asdict() for finding in report.findings],
    }


def attacks_of(name: str, settings: dict[str, Any], norm: str) -> dict[str, Any]:
    """The attacks whose worst case an entry of `ATTACKS` is."""
    settings = dict(settings)
    if "loss" in settings:
        loss = getattr(jr.losses, settings.pop("loss"))
        settings["loss"] = jr.losses.confident(loss, settings.pop("kappa"))
    if name == "autoattack":
        return jr.attacks.autoattack_members("standard", norm)  # pyright: ignore
    if name == "boundary":
        return {name: jr.attacks.against(functools.partial(jr.attacks.boundary, **settings))}
    if name == "targeted":
        towards = functools.partial(_towards, settings)
        return {f"y + {k}": Partial(towards, k) for k in range(1, 10)}  # one compiled program
    return {name: functools.partial(getattr(jr.attacks, name), **settings)}


def _towards(
    settings: dict[str, Any], shift: Any, logits_fn: Any, x: Any, y: Any, *, key: Any, ball: jr.Ball
) -> Any:
    loss = jr.losses.targeted(jr.losses.cross_entropy)
    return jr.attacks.pgd(logits_fn, x, (y + shift) % 10, key=key, ball=ball, loss=loss, **settings)


def _restored(name: str, place: Place) -> Partial | None:
    return records.restored(_apply(_architecture(name)), *place.network(name))


def _architecture(name: str) -> str:
    if name == "mnist B":
        return "architecture_b"
    return "madry_cnn" if name.startswith("mnist") else "small_cnn"


@functools.cache  # one function for each architecture, so that networks share compiled programs
def _apply(architecture: str) -> Callable[..., Any]:
    if architecture == "architecture_b":
        return train.ArchitectureB().apply
    return getattr(jr.models, architecture)().apply
