"""The networks of the experiment, how each is trained, and how much is measured on them."""

from __future__ import annotations

import dataclasses
from typing import Literal

HELD_OUT = 5000
"""Last training images, kept for every choice; the test set is used once, at the end."""

HIDDEN = 512
"""Hidden units, as in the paper's section 3; its section 4 has 500."""

BATCH = 100
RATE = 1e-3
"""Adam's, falling to zero as half a cosine; our choice, as are the numbers of epochs."""

TAU = 0.05
"""Weight of the total variation in stAdv, the paper's; also in the training of f_at."""

Kind = Literal[
    "random", "natural", "adversarial", "sdp", "transformer", "frobenius", "spectral", "linear",
    "linear adversarial", "linear random",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One training.

    Attributes:
        kind: Model and objective.
        num_epochs: Passes over 55,000 images; 0 where nothing is trained.
        strength: Lambda of the regularisers, lambda_r of the adversarial loss.
    """

    kind: Kind
    num_epochs: int
    strength: float = 0.0


RECIPES = {
    "nt": Recipe("natural", 20),
    "rd": Recipe("random", 0),
    "at": Recipe("adversarial", 12, 0.3),
    "fro": Recipe("frobenius", 20, 0.08),
    "spe": Recipe("spectral", 20, 0.09),
    "stn": Recipe("transformer", 20),
    "sdp": Recipe("sdp", 30, 0.01),
    "linear nt": Recipe("linear", 10),
    "linear rd": Recipe("linear random", 0),
    "linear at": Recipe("linear adversarial", 9, 0.3),
}
"""By the paper's names. Strengths are the paper's, but that of sdp, which it does not give: it is
paper 003's number, and our scale is another (`objectives.spatial_sdp`)."""

KEPT = ("at", "sdp", "linear at")
"""Networks whose training takes minutes: kept beside the results."""

POOL_STEPS = 20
"""Steps of stAdv when f_at's pool is renewed; our choice, for the time it takes."""

DUAL_RATE = 2e-2
"""Adam's rate of the duals' logarithms, falling to zero, as in `experiments.certified_mnist`."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        epochs: Numbers of epochs are multiplied by this and rounded up.
        attacked: Images under rotations and translations.
        steps: Steps of stAdv for Figure 1, four times those of the attack within a ball.
        bounded: Images whose margins the upper bounds are held against.
        budget: Images under the attack within a ball of flows.
    """

    epochs: float
    attacked: int
    steps: int
    bounded: int
    budget: int


PRESETS = {
    "cpu": Sizes(1.0, 1000, 200, 10_000, 500),
    "smoke": Sizes(0.02, 10, 10, 50, 10),
}
"""The paper gives no number of images, steps or epochs; "cpu" is of its networks' size."""

STADV = {"cpu": (200, 1000), "smoke": (10, 10)}
"""Images under stAdv at each tau, by preset, and its steps: at the default 200 many flows are
missed."""

LOWER = ("nt", "rd", "at")
LINEAR = ("linear nt", "linear rd", "linear at")
UPPER = ("nt", "at", "fro", "spe", "sdp", "rd")
SIX = ("nt", "at", "sdp", "stn", "fro", "spe")
"""The networks of Figures 2 and 4, of Figure 8, of Figures 5 and 11, and of Figure 6."""

EPS_LOWER = (0.0, 0.05, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 7.84)
EPS_UPPER = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1,
             0.12, 0.15)  # fmt: skip
EPS_SAMPLES = (0.05, 0.5, 5.0)
TAUS = (0.0, 0.0125, 0.025, 0.05, 0.075, 0.1)
EPS_WITHIN = (0.02, 0.05, 0.1, 0.15, 0.5, 1.0, 2.0)
