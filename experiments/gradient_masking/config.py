"""The data of the experiment, and how much is trained and measured."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is trained and measured.

    Attributes:
        data: Name of the data set, as `jaxrobust.data.load` knows it.
        eps: Radius in linf that the defences are put to.
        hidden: Units of each of the two hidden layers.
        num_steps: Steps of a training.
        batch: Images in one.
        num_images: Images that are diagnosed and attacked.
        attack_steps: Of plain PGD and of the cures.
        seeds: Of weights and draws.
    """

    data: str
    eps: float
    hidden: int
    num_steps: int
    batch: int
    num_images: int
    attack_steps: int
    seeds: tuple[int, ...]


PRESETS = {
    "cpu": Sizes("mnist", 0.3, 256, 3000, 128, 500, 100, (0, 1, 2, 3, 4)),
    "digits": Sizes("digits", 0.2, 128, 800, 128, 200, 100, (0, 1, 2, 3, 4)),
    "smoke": Sizes("digits", 0.3, 32, 40, 64, 16, 5, (0,)),
}
"""MNIST at Madry's radius; its two-layer networks are our choice, small enough for five seeds."""
