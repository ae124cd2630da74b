"""What a run consists of; the paper's values, and a schedule that fits two CPU cores."""

from __future__ import annotations

import dataclasses
from typing import Literal

HELD_OUT = 5000
"""Last training images, kept for every choice made; the test set is used once."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Schedule of one training and of its evaluation.

    Attributes:
        num_epochs: Passes over the 55,000 training images.
        batch_size: Images a step.
        learning_rate: Adam's; constant where `decay` is "constant".
        decay: "cosine" falls to zero over the run.
        num_steps: PGD steps of the training attack.
        step_size: Its step; 2.5 * eps / num_steps where None, which follows the warm-up.
        warmup_epochs: Epochs over which eps rises linearly from 0.
        eps: Radius, linf, of [0, 1].
        test: Test images evaluated, in TFDS syntax.
        seed: Seed of everything.
    """

    num_epochs: int
    batch_size: int
    learning_rate: float
    decay: Literal["cosine", "constant"]
    num_steps: int
    step_size: float | None
    warmup_epochs: int
    eps: float = 0.3
    test: str = "test"
    seed: int = 0


PAPER = Config(
    num_epochs=91, batch_size=50, learning_rate=1e-4, decay="constant", num_steps=40,
    step_size=0.01, warmup_epochs=0,
)  # fmt: skip
"""100,000 steps of 50 images, Adam 1e-4, 40 x 0.01."""

CPU = Config(
    num_epochs=10, batch_size=32, learning_rate=1e-3, decay="cosine", num_steps=5,
    step_size=None, warmup_epochs=2, test="test[4000:6000]",
)  # fmt: skip
"""Our choice on held-out images, scaled down: 17,180 steps of 32 images, 5 PGD steps of eps / 2,
warm-up of eps. Small batches count: as many images in batches of 128 leave far less."""

SMOKE = Config(
    num_epochs=1, batch_size=128, learning_rate=1e-3, decay="cosine", num_steps=1,
    step_size=None, warmup_epochs=0, test="test[:64]",
)  # fmt: skip
"""Only shows that the code runs; its numbers mean nothing."""

PRESETS = {"paper": PAPER, "cpu": CPU, "smoke": SMOKE}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How many images the rows of `rows.py` are measured on.

    Attributes:
        table: A row of a table.
        decision: The decision attack.
        curve: A curve of Figure 6.
    """

    table: int
    decision: int
    curve: int


SIZES = {"paper": Sizes(10_000, 1000, 1000), "cpu": Sizes(1000, 200, 500), "smoke": Sizes(16, 8, 8)}
"""By preset; the paper's tables are of the whole test sets."""
