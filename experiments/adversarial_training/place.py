"""Where an evaluation finds networks, what it looks at, and where numbers go."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jax.tree_util import Partial

import jaxrobust as jr
from experiments.adversarial_training import config, train
from experiments.adversarial_training.config import Sizes


@dataclasses.dataclass(frozen=True)
class Place:
    """Where networks are found and numbers are kept, and what is looked at.

    Attributes:
        out: Checkpoints.
        results: Recorded numbers and figures.
        preset: Name of the preset.
        data: "mnist" or "cifar10".
        split: "held-out" or "test".
        seed: Of all draws.
    """

    out: Path
    results: Path
    preset: str
    data: config.Data
    split: Literal["held-out", "test"]
    seed: int

    @property
    def folder(self) -> Path:
        """Of this preset's numbers, of this data set and split."""
        return self.results / self.preset / self.split / self.data

    @property
    def sizes(self) -> Sizes:
        """How much is measured."""
        return config.SIZES[self.preset]

    @functools.cached_property
    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """All images that are looked at, and their classes."""
        held = f"train[-{config.HELD_OUT}:]"
        found = jr.data.load(self.data, "test" if self.split == "test" else held)
        return found.x, found.y

    def network(self, name: str) -> Partial | None:
        """A network as a function that returns logits."""
        return train.trained(name, self.data, self.preset, self.out, self.seed)

    def training(self, name: str) -> dict[str, Any]:
        """How a network was trained, or each member of an ensemble: settings and commit."""
        if name in config.ENSEMBLES[self.data]:
            return {one: self.training(one) for one in config.ENSEMBLES[self.data][name]}
        folder = train.folder_of(name, self.data, self.preset, self.out)
        return jr.files.read_json(folder / "training.json")

    def subject(self, name: str) -> Partial:
        """The same, of one whose training is over."""
        found = self.network(name)
        assert found is not None
        return found
