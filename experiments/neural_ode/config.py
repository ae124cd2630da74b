"""The networks of the experiment, how each is trained, and how much is measured on them."""

from __future__ import annotations

import dataclasses
from typing import Literal

HELD_OUT = 5000
"""Last training images, on which accuracy is followed; nothing is chosen on them."""

BATCH, RATE, WEIGHT_DECAY = 128, 1e-3, 5e-4
"""Adam's, as in the released code, with the decay in the gradient; the rate falls to a fifth after
30, 60 and 90 % of the epochs."""

STEADY_WEIGHT = 0.01
STEADY = (0.75, 1.05)
"""Weight and interval of the steady loss, those of the released script."""

NOISY = ("cnn", "odenet", "tisode", "cnn-fdn", "tisode-fdn", "cnn-ird", "tisode-ird")
CLEAN = ("cnn clean", "odenet clean")
NETWORKS = (*NOISY, *CLEAN)
"""Trained on noise, rows of tables 2 to 4; and without, those of table 1."""

PADDING = {"mnist": 3, "svhn_cropped": 4, "cifar10": 4}
"""Of IRd: 32 of 299 pixels, rounded up; our choice, as that it is there in training too."""


@dataclasses.dataclass(frozen=True)
class Threats:
    """What a data set is attacked with, in pixel units.

    Attributes:
        trained: Deviations of the noise that every other training image gets.
        clean: Deviations of table 1's noise, and radii of its FGSM.
        noise: Deviation of the noise of tables 2 to 4.
        fgsm: Radii of FGSM there.
        pgd: Radii of PGD there, and of AutoAttack.
    """

    trained: tuple[float, ...]
    clean: tuple[tuple[float, ...], tuple[float, ...]]
    noise: float
    fgsm: tuple[float, ...]
    pgd: tuple[float, ...]


_MNIST = tuple(level / 255 for level in (50, 75, 100))
_SVHN = tuple(level / 255 for level in (15, 25, 35))
_COLOURS = Threats(
    _SVHN, (_SVHN, (3 / 255, 5 / 255, 8 / 255)), 35 / 255, (5 / 255, 8 / 255), (3 / 255, 5 / 255)
)
DATA = {
    "mnist": Threats(_MNIST, (_MNIST, (0.15, 0.3, 0.5)), 100 / 255, (0.3, 0.5), (0.2, 0.3)),
    "svhn_cropped": _COLOURS,
    "cifar10": _COLOURS,
}
"""The paper's, but for CIFAR-10, which it has not: those of SVHN. That training on SVHN is on the
noise of its table 1 is our choice, after MNIST's."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is trained and measured.

    Attributes:
        images: Training images; all but the held-out ones where None.
        epochs: Passes over them.
        steady_from: First epoch of the steady loss, counted from 0.
        width: Channels.
        seeds: Trainings of each network.
        tested: Test images under noise and without an attack.
        attacked: Test images under FGSM and PGD: the first ones.
        strong: Test images under AutoAttack, PGD through EOT and the adaptive solver.
    """

    images: int | None
    epochs: int
    steady_from: int
    width: int
    seeds: int
    tested: int
    attacked: int
    strong: int


PRESETS = {
    "paper": Sizes(None, 100, 5, 64, 3, 10_000, 1000, 1000),
    "cpu": Sizes(10_000, 15, 1, 16, 3, 10_000, 1000, 50),
    "smoke": Sizes(256, 1, 0, 4, 1, 20, 4, 2),
}
"""By name. "paper" is the released code's, not run here; of seeds it gives three checkpoints."""

Data = Literal["mnist", "svhn_cropped", "cifar10"]
