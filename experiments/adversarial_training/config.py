"""The networks of the experiment, how each is trained, and how much is measured on them."""

from __future__ import annotations

import dataclasses
from typing import Literal

HELD_OUT = 5000
"""Last training images, kept for every choice; the test set is used once, at the end."""

Data = Literal["mnist", "cifar10"]
SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
IMAGES = {"mnist": 60_000 - HELD_OUT, "cifar10": 50_000 - HELD_OUT}
"""Training images."""

Family = Literal["madry", "pgd", "yopo", "trades", "mma", "bilateral"]
"""Whose published network and schedule a recipe has in the paper preset. "pgd" are the baselines of
YOPO."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One training method; steps are in units of the radius, so that they follow its warm-up.

    Attributes:
        method: The objective.
        eps: Radius, linf, of [0, 1] pixels; d_max of MMA.
        attack: Of "madry": "fgsm" from the image itself, "pgd" from a random start, or "most
            confusing", PGD towards the likeliest wrong class.
        num_steps: Of the attack.
        step: Its step, in units of eps.
        labels: What the loss is of ("madry").
        regulariser: What is added, at the clean images.
        weight: Its weight.
        rises: Share of the run over which eps rises linearly from 0; the preset's where None.
        passes: m of YOPO, and how often "free" repeats a batch.
        inner: n of YOPO.
        beta: Of TRADES.
        eps_min: Of MMA.
        widths: Of the network, where it is not the preset's.
        family: Of the paper preset.
    """

    method: Literal["natural", "madry", "free", "yopo", "trades", "mma"]
    eps: float = 0.0
    attack: Literal["fgsm", "pgd", "most confusing"] = "pgd"
    num_steps: int = 0
    step: float = 0.0
    labels: Literal["true", "smoothed", "adversarial"] = "true"
    regulariser: Literal["none", "jacobian", "input gradient", "cross-Lipschitz"] = "none"
    weight: float = 0.0
    rises: float | None = None
    passes: int = 1
    inner: int = 0
    beta: float = 0.0
    eps_min: float = 0.0
    widths: tuple[int, int, int] | None = None
    family: Family = "madry"


NATURAL = Recipe("natural")
STEP = 0.01 / 0.3
"""Of Madry's and YOPO's MNIST attacks: 0.01."""
LONG = Recipe("madry", 0.3, num_steps=10, step=0.25)
"""PGD-10 with steps of 2.5 eps / 10."""
LARGE = Recipe("madry", 8 / 255, num_steps=10, step=0.25)
"""The same of CIFAR-10: steps of 2 / 255."""
ONE = Recipe("madry", 8 / 255, num_steps=1, step=1.0, family="bilateral")
"""R-FGSM: one step of eps from a random start."""
PLAIN = {
    "jacobian": ("jacobian", 0.1),
    "input gradient": ("input gradient", 110.0),
    "cross-Lipschitz": ("cross-Lipschitz", 0.1),
}
"""The regularisers, with the weights of their released code."""
SCALES = (1, 2, 4, 8)
"""Of Madry's capacity study, which goes on to 16: 2 and 4 channels and 64 units, times that."""

replace = dataclasses.replace

MNIST: dict[str, Recipe] = {
    "natural": NATURAL,
    "fgsm": Recipe("madry", 0.3, "fgsm"),
    "fast": Recipe("madry", 0.3, num_steps=1, step=1.25),
    "free": Recipe("free", 0.3, passes=8),
    "pgd-5": Recipe("madry", 0.3, num_steps=5, step=STEP, family="pgd"),
    "pgd-10": Recipe("madry", 0.3, num_steps=10, step=STEP, family="pgd"),
    "pgd-40": Recipe("madry", 0.3, num_steps=40, step=STEP, family="pgd"),
    "yopo-5-10": Recipe("yopo", 0.3, step=STEP, passes=5, inner=10, family="yopo"),
    "trades": Recipe("trades", 0.3, num_steps=40, step=STEP, beta=1.0, family="trades"),
    "mma": Recipe("mma", 0.45, num_steps=40, eps_min=0.1, family="mma"),
    "madry 0.3": LONG,
    "pgdls 0.3": replace(LONG, rises=1.0),
    "bilateral": Recipe(
        "madry", 0.3, "most confusing", 1, 1.0, labels="adversarial", family="bilateral"
    ),
    **{name: replace(NATURAL, regulariser=r, weight=w) for name, (r, w) in PLAIN.items()},
    **{
        f"madry 0.3 + {name}": replace(LONG, regulariser=r, weight=w)
        for name, (r, w) in PLAIN.items()
    },
    "madry 0.2": replace(LONG, eps=0.2),
    "madry 0.4": replace(LONG, eps=0.4),
    "pgdls 0.4": replace(LONG, eps=0.4, rises=1.0),
    **{
        f"{name} x{scale}": replace(recipe, widths=(2 * scale, 4 * scale, 64 * scale))
        for scale in SCALES
        for name, recipe in (
            ("natural", NATURAL), ("fgsm", Recipe("madry", 0.3, "fgsm")), ("madry", LONG),
        )
    },
    "pgd-5 long": replace(LONG, num_steps=5, step=0.5, family="pgd"),
    "pgd-40 at 0.008": Recipe("madry", 0.3, num_steps=40, step=STEP, family="pgd"),
    "madry 0.3 at 0.008": LONG,
    "yopo-5-10 at 0.004": Recipe("yopo", 0.3, step=STEP, passes=5, inner=10, family="yopo"),
}  # fmt: skip
"""By our names: the table of methods, more radii for MMA's table, the capacity study, and twins."""

TWINS = {
    "pgd-5 long": "pgd-5",
    "pgd-40 at 0.008": "pgd-40",
    "madry 0.3 at 0.008": "madry 0.3",
    "yopo-5-10 at 0.004": "yopo-5-10",
}
"""Networks of the cpu preset alone that cost what another does: PGD-5 with steps of 2.5 eps / 5,
and the learning rates that the others have not."""

CIFAR10: dict[str, Recipe] = {
    "natural": NATURAL,
    **{f"pgd-{k}": replace(LARGE, num_steps=k, family="pgd") for k in (3, 5, 10)},
    "yopo-3-5": Recipe("yopo", 8 / 255, step=0.25, passes=3, inner=5, family="yopo"),
    "yopo-5-3": Recipe("yopo", 8 / 255, step=0.25, passes=5, inner=3, family="yopo"),
    "trades": Recipe(
        "trades", 0.031, num_steps=10, step=0.007 / 0.031, beta=6.0, family="trades"
    ),
    **{
        f"mma {k}": Recipe("mma", k / 255, num_steps=10, eps_min=0.005, family="mma")
        for k in (12, 20, 32)
    },
    **{f"madry {k}": replace(LARGE, eps=k / 255, family="mma") for k in (8, 16, 24)},
    **{f"pgdls {k}": replace(LARGE, eps=k / 255, rises=1.0, family="mma") for k in (8, 16, 24)},
    "r-fgsm": ONE,
    "r-fgsm-ls": replace(ONE, labels="smoothed"),
    "r-mc": replace(ONE, attack="most confusing"),
    "r-mc-ls": replace(ONE, attack="most confusing", labels="smoothed"),
    "r-mc-la": replace(ONE, attack="most confusing", labels="adversarial"),
    "r-mc-la 4": replace(ONE, eps=4 / 255, attack="most confusing", labels="adversarial"),
    "madry*": replace(LARGE, num_steps=7, family="bilateral"),
    "madry-la": replace(LARGE, num_steps=7, labels="adversarial", family="bilateral"),
}  # fmt: skip
"""By our names: YOPO's Table 2, MMA's table, and bilateral training's Tables 5 and 6."""

RECIPES = {"mnist": MNIST, "cifar10": CIFAR10}

ENSEMBLES = {
    "mnist": {"madry ensemble": ("madry 0.2", "madry 0.3", "madry 0.4")},
    "cifar10": {
        "madry ensemble": ("madry 8", "madry 16", "madry 24"),
        "pgdls ensemble": ("pgdls 8", "pgdls 16", "pgdls 24"),
    },
}
"""PGD-ens and PGDLS-ens, models of models."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Network and schedule of a training.

    Attributes:
        model: A function of `jaxrobust.models`.
        num_epochs: Passes over the training images.
        batch_size: Images a step.
        optimizer: "adam", or "momentum": SGD with momentum 0.9.
        rate: Learning rate at the start.
        drops: `(share of the run, factor)` of each change of the rate; a cosine to zero if None.
        weight_decay: Of kernels.
        rises: Share of the run over which eps rises from 0.
        augment: Whether images are cropped (padding 4) and flipped.
        weights: Of regularisers, by their names, where they are not the recipes'.
        rates: Of networks with a rate of their own, by name.
        images: How many training images there are; all where None.
    """

    model: str
    num_epochs: int
    batch_size: int
    optimizer: Literal["adam", "momentum"]
    rate: float
    drops: tuple[tuple[float, float], ...] | None = None
    weight_decay: float = 0.0
    rises: float = 0.0
    augment: bool = False
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    images: int | None = None


def _divided(*shares: float) -> tuple[tuple[float, float], ...]:
    return tuple((share, 0.1) for share in shares)


PAPER: dict[tuple[str, str], Setting] = {
    ("mnist", "madry"): Setting("madry_cnn", 91, 50, "adam", 1e-4, ()),
    ("mnist", "mma"): Setting("madry_cnn", 91, 50, "adam", 1e-4, ()),
    ("mnist", "bilateral"): Setting("madry_cnn", 91, 50, "adam", 1e-4, ()),
    ("mnist", "pgd"): Setting(
        "carlini_wagner_cnn", 56, 256, "momentum", 0.1, _divided(50 / 56, 55 / 56), 5e-4
    ),
    ("mnist", "yopo"): Setting(
        "carlini_wagner_cnn", 40, 256, "momentum", 0.01, _divided(30 / 40, 35 / 40, 39 / 40), 5e-4
    ),
    ("mnist", "trades"): Setting(
        "carlini_wagner_cnn", 100, 128, "momentum", 0.01, _divided(0.55, 0.75, 0.9)
    ),
    ("cifar10", "madry"): Setting(
        "preact_resnet18", 200, 128, "momentum", 0.1, _divided(0.5, 0.75), 2e-4, augment=True
    ),
    ("cifar10", "bilateral"): Setting(
        "preact_resnet18", 200, 128, "momentum", 0.1, _divided(0.5, 0.75), 2e-4, augment=True
    ),
    ("cifar10", "pgd"): Setting(
        "preact_resnet18", 105, 256, "momentum", 0.05, _divided(75 / 105, 90 / 105, 100 / 105),
        5e-4, augment=True,
    ),
    ("cifar10", "yopo"): Setting(
        "preact_resnet18", 36, 256, "momentum", 0.2, _divided(30 / 36, 34 / 36), 5e-4, augment=True
    ),
    ("cifar10", "trades"): Setting(
        "preact_resnet18", 76, 128, "momentum", 0.1, _divided(75 / 76), 2e-4, augment=True
    ),
    ("cifar10", "mma"): Setting(
        "preact_resnet18", 142, 128, "momentum", 0.3, ((0.4, 0.3), (0.6, 1 / 3), (0.8, 0.3)), 2e-4,
        augment=True,
    ),
}  # fmt: skip
"""Published schedules, on the networks of Madry and YOPO. YOPO's rates are
for the mean of m gradients: 0.01 and 5 times 0.04. MNIST's bilateral training and CIFAR-10's
natural one are our choice, and TRADES' batch on MNIST."""

CPU: dict[str, Setting] = {
    "mnist": Setting(
        "conv_small", 5, 128, "adam", 4e-3, rises=0.3,
        weights={"jacobian": 0.01, "input gradient": 5.0, "cross-Lipschitz": 0.1},
        rates=dict.fromkeys(("yopo-5-10", "pgd-40 at 0.008", "madry 0.3 at 0.008"), 8e-3),
    ),
    "cifar10": Setting("conv_small", 3, 128, "adam", 4e-3, rises=0.3, augment=True),
}  # fmt: skip
"""Our choice, one budget for all methods, scaled down to two CPU cores: the same network, epochs
and warm-up of eps for all, and one rate, but for YOPO on MNIST, which makes one step for m
gradients. The rates and the weights of regularisers are chosen among those of `CHOICES` on held-out
images: the weights and YOPO's rate that left most of them right, and of the other rates the smaller
of the two best, which differ by little."""


@dataclasses.dataclass(frozen=True)
class Choice:
    """A number of the cpu preset that is chosen on held-out images of MNIST.

    Attributes:
        recipe: Whose training is looked at.
        values: Among which it is chosen.
        eps: Radius of the PGD under which most images must stay right.
    """

    recipe: str
    values: tuple[float, ...]
    eps: float


CHOICES = {
    "rate": Choice("madry 0.3", (1e-3, 2e-3, 4e-3, 8e-3), 0.3),
    "rate of yopo": Choice("yopo-5-10", (4e-3, 8e-3, 1.6e-2), 0.3),
    "jacobian": Choice("jacobian", (0.01, 0.1, 1.0), 0.1),
    "input gradient": Choice("input gradient", (1.0, 5.0, 25.0), 0.1),
    "cross-Lipschitz": Choice("cross-Lipschitz", (0.01, 0.1), 0.1),
}
"""The learning rate (YOPO, one step for m gradients, has one of its own in the paper, too), and the
weight of each regulariser alone."""


def names(data: str, preset: str) -> tuple[str, ...]:
    """The networks of a preset."""
    if preset == "smoke":
        return SMOKE[data]
    return tuple(name for name in RECIPES[data] if name not in TWINS or preset == "cpu")


def setting(name: str, data: str, preset: str) -> Setting:
    """Network and schedule of a recipe.

    "short" is the paper's with an eighth of the epochs, for a GPU and an afternoon; "smoke" the
    cpu preset's on 256 images.
    """
    recipe = RECIPES[data][name]
    if preset in ("cpu", "smoke"):
        chosen = replace(CPU[data], rate=CPU[data].rates.get(name, CPU[data].rate))
        return chosen if preset == "cpu" else replace(chosen, num_epochs=1, images=256)
    chosen = PAPER[data, recipe.family]
    if recipe.widths is not None:
        chosen = replace(chosen, model="conv_small")
    if recipe.method == "yopo":  # whose update is m times that of the released code, but for decay
        chosen = replace(chosen, weight_decay=chosen.weight_decay / recipe.passes)
    epochs = chosen.num_epochs if preset == "paper" else -(-chosen.num_epochs // 8)
    if recipe.method == "free":  # which sees each batch so often
        epochs = -(-epochs // recipe.passes)
    return replace(chosen, num_epochs=epochs)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How many images are measured on, the first of the split.

    Attributes:
        validated: Held-out images attacked after each epoch.
        table: Under PGD.
        restarts: Under PGD of 100 steps and 5 restarts, and of 200 steps.
        autoattack: Under AutoAttack.
        combined: Under white-box and transferred attacks, at each radius.
        combined_steps: Steps of these.
        few_sources: Whether images are transferred from three networks only, and not from all.
        whole: Under PGD at the table's radius alone.
        margins: Whose margins are estimated.
        starts: Random starts of PGD, on each of `START_IMAGES` images.
        timed: Steps timed of each training.
    """

    validated: int
    table: int
    restarts: int
    autoattack: int
    combined: int
    combined_steps: int
    few_sources: bool
    whole: int
    margins: int
    starts: int
    timed: int


SMOKE = {
    "mnist": ("natural", "fgsm", "free", "pgd-40", "yopo-5-10", "trades", "mma", "bilateral",
              "madry 0.3 + jacobian"),
    "cifar10": ("natural", "yopo-5-3", "r-mc-ls", "madry 8", "mma 20", "trades"),
}  # fmt: skip
"""The networks of the smoke preset, of each kind one."""

SIZES = {
    "paper": Sizes(1000, 10_000, 10_000, 1000, 10_000, 100, False, 10_000, 10_000, 1000, 20),
    "short": Sizes(1000, 10_000, 1000, 1000, 1000, 100, False, 10_000, 1000, 1000, 20),
    "cpu": Sizes(500, 1000, 500, 200, 500, 40, True, 10_000, 500, 200, 10),
    "smoke": Sizes(16, 16, 8, 4, 8, 4, True, 16, 8, 10, 1),
}

START_IMAGES = 5
EPS = {"mnist": 0.3, "cifar10": 8 / 255}
"""Radius of the table of methods."""
RADII = {
    "mnist": (0.1, 0.2, 0.3, 0.35, 0.4),
    "cifar10": tuple(k / 255 for k in (4, 8, 12, 16, 20, 24, 28, 32)),
}
"""Of the table of methods (MNIST) and of MMA's table."""
