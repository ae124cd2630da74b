"""The networks of the experiment, how each is trained, and how much is measured on them."""

from __future__ import annotations

import dataclasses
from typing import Literal

HELD_OUT = 5000
"""Last training images, kept for every choice, as in the paper's code."""

TEMPERATURE = 100.0
"""Of defensive distillation: the paper's."""

WIDTHS = {"mnist": (32, 64, 200), "cifar10": (64, 128, 256)}
"""Channels of the two pairs of convolutions, and width of the two dense layers."""

NETWORKS = ("natural", "initial", "teacher", "distilled")
"""In the order in which they are trained. Teacher and student start from "initial", one epoch with
no temperature, as in the released code; the attacks see "natural" and "distilled"."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the parameters move: SGD, Nesterov momentum 0.9, batches of 128.

    Attributes:
        num_epochs: Passes over the training images; "initial" is one.
        rate: Learning rate.
        cosine: Whether it falls to zero over the run; constant otherwise (the released code's decay
            of 1e-6 a step changes it by 2 % over the run).
    """

    num_epochs: int
    rate: float
    cosine: bool


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        average: Images in the average case: each towards one target drawn at random.
        slow: The same of the l0 and linf attacks, whose every search for c ends in failure.
        every: Images in best and worst case: each towards all nine.
        table_3: Images in each entry of Table III (average case), and searches: so many that c may
            reach 1e10, where the released code's range ends. Objectives of probabilities (f2 to f4)
            have gradients of almost nothing on a confident network, and ask for such a c.
        l2: Iterations and searches of the l2 attack.
        initial_c: First c of the l2 attack; with few searches it cannot be far from the right one.
        others: Iterations of the l0 and linf attacks, for each value of c.
        transfer: Images in the transfer from natural to distilled, for each kappa.
    """

    average: int
    slow: int
    every: int
    table_3: tuple[int, int]
    l2: tuple[int, int]
    initial_c: float
    others: int
    transfer: int


@dataclasses.dataclass(frozen=True)
class Preset:
    """Schedules and sizes by data set."""

    schedule: dict[str, Schedule]
    sizes: dict[str, Sizes]


PAPER = Preset(
    {"mnist": Schedule(50, 0.01, False), "cifar10": Schedule(50, 0.01, False)},
    dict.fromkeys(
        ("mnist", "cifar10"), Sizes(1000, 1000, 1000, (1000, 14), (10_000, 9), 1e-3, 1000, 1000)
    ),
)
"""The released code's training (the paper's table has other rates), the paper's
numbers of images, the published iterations. Not run here."""

CPU = Preset(
    {"mnist": Schedule(15, 0.05, True), "cifar10": Schedule(8, 0.02, True)},
    {
        "mnist": Sizes(200, 60, 20, (20, 12), (1000, 5), 0.1, 1000, 20),
        "cifar10": Sizes(20, 20, 0, (0, 0), (500, 5), 0.1, 500, 0),
    },
)
"""Scaled down to two CPU cores; the schedules are our choice."""

SMOKE = Preset(
    CPU.schedule, dict.fromkeys(("mnist", "cifar10"), Sizes(4, 2, 1, (2, 2), (50, 2), 0.1, 20, 2))
)
"""Only shows that the code runs."""

PRESETS = {"paper": PAPER, "cpu": CPU, "smoke": SMOKE}
"""By name."""

DATA = ("mnist", "cifar10")
Data = Literal["mnist", "cifar10"]


def steps(data: str, network: str, preset: Preset) -> int:
    """Steps of a finished training: whole batches of 128."""
    batches = {"mnist": 55_000, "cifar10": 45_000}[data] // 128
    return batches * (1 if network == "initial" else preset.schedule[data].num_epochs)
