"""The data of the experiment, and how much is trained and measured."""

from __future__ import annotations

import dataclasses
from typing import Literal

Data = Literal["digits", "mnist"]
"""scikit-learn's digits, which come with the library; or MNIST."""


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


SIZES = {
    "cpu": {
        "digits": Sizes("digits", 0.2, 128, 800, 128, 200, 100, (0, 1, 2, 3, 4)),
        "mnist": Sizes("mnist", 0.15, 256, 3000, 128, 200, 100, (0, 1, 2)),
    },
    "smoke": {
        "digits": Sizes("digits", 0.3, 32, 40, 64, 16, 5, (0,)),
        "mnist": Sizes("mnist", 0.3, 32, 40, 64, 16, 5, (0,)),
    },
}
"""By preset and data. Radii are our choice: just large enough to leave next to nothing of the
natural network, so that what seems robust there has its masking to thank."""
