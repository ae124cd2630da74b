"""The networks of the experiment, how each is trained, and how much is measured on them."""

from __future__ import annotations

import dataclasses
from typing import Literal

WEIGHT_DECAY = 5e-4
"""Adam's, in the gradient as in the released code; the rate falls to a fifth after 30, 60 and 90 %
of the epochs."""

STEADY_WEIGHT = 0.01
STEADY = (0.75, 1.05)
"""Weight and interval of the steady loss, those of the released script."""

NOISY = ("cnn", "odenet", "tisode", "cnn-fdn", "tisode-fdn", "cnn-ird", "tisode-ird")
CLEAN = ("cnn clean", "odenet clean")
NETWORKS = (*NOISY, *CLEAN)
"""Trained on noise, rows of tables 2 to 4; and without, those of table 1."""


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Where images come from, and what networks of them are attacked with, in pixel units.

    Attributes:
        trained: Deviations of the noise that every other training image gets.
        clean: Deviations of table 1's noise, and radii of its FGSM.
        noise: Deviation of the noise of tables 2 to 4.
        fgsm: Radii of FGSM there.
        pgd: Radii of PGD there, and of AutoAttack.
        source: Name in TFDS.
        images: Training images there.
        test: Split that is measured on.
        held_out: Last training images, on which accuracy is followed; nothing is chosen on them.
        size: Side that images are resized to; None where all are alike.
        padding: Of IRd: 32 of 299 pixels, rounded up; our choice, as that it is there in training
            too.
    """

    trained: tuple[float, ...]
    clean: tuple[tuple[float, ...], tuple[float, ...]]
    noise: float
    fgsm: tuple[float, ...]
    pgd: tuple[float, ...]
    source: str
    images: int
    test: str = "test"
    held_out: int = 5000
    size: int | None = None
    padding: int = 4


def _of_255(*levels: int) -> tuple[float, ...]:
    return tuple(level / 255 for level in levels)


_SVHN = ImageSet(
    _of_255(15, 25, 35), (_of_255(15, 25, 35), _of_255(3, 5, 8)), 35 / 255, _of_255(5, 8),
    _of_255(3, 5), "svhn_cropped", 73_257,
)  # fmt: skip
DATA = {
    "mnist": ImageSet(
        _of_255(50, 75, 100), (_of_255(50, 75, 100), (0.15, 0.3, 0.5)), 100 / 255, (0.3, 0.5),
        (0.2, 0.3), "mnist", 60_000, padding=3,
    ),
    "svhn_cropped": _SVHN,
    "imgnet10": ImageSet(
        _of_255(10, 15, 25), (_of_255(10, 15, 25), _of_255(5, 8, 16)), 25 / 255, _of_255(5, 8),
        _of_255(3, 5), "imagenette/160px-v2", 9469, "validation", 500, 64, 7,
    ),
    "cifar10": dataclasses.replace(_SVHN, source="cifar10", images=50_000),
}  # fmt: skip
"""The paper's threats, but for CIFAR-10, which it has not: those of SVHN. Which ten classes of
ImageNet make ImgNet10 is not in the paper; Imagenette's are ours. That training on colour images is
on the noise of their table 1 is our choice, after MNIST's."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is trained and measured.

    Attributes:
        images: Training images; all but the held-out ones where None.
        epochs: Passes over them.
        batch: Images a step.
        rate: Adam's at the beginning.
        steady_from: First epoch of the steady loss, counted from 0.
        width: Channels.
        seeds: Trainings of each network.
        tested: Test images under noise and without an attack.
        attacked: Test images under FGSM and PGD: the first ones.
        strong: Test images under AutoAttack, PGD through EOT and the adaptive solver.
    """

    images: int | None
    epochs: int
    batch: int
    rate: float
    steady_from: int
    width: int
    seeds: int
    tested: int
    attacked: int
    strong: int


PRESETS = {
    "paper": Sizes(None, 100, 128, 1e-3, 5, 64, 3, 10_000, 1000, 1000),
    "cpu": Sizes(10_000, 8, 16, 1e-2, 1, 16, 3, 10_000, 1000, 50),
    "smoke": Sizes(256, 1, 128, 1e-3, 0, 4, 1, 20, 4, 2),
}
"""By name. "paper" is the released code's, not run here; of seeds it gives three checkpoints."""

Data = Literal["mnist", "svhn_cropped", "imgnet10", "cifar10"]
