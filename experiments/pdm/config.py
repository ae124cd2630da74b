"""The networks of the experiment, how each is trained, and how much is measured on them."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

HELD_OUT = 5000
"""Last training images, kept for every choice: the first half of them for bandwidths (and
schedules), the other for thresholds."""

SAME_CLASS = 0.5
"""Q, the probability of a pair of one class: our choice, the paper does not say."""

POINTS = 1000
"""Training embeddings a class under the density, the paper's."""

FALSE_POSITIVES = 0.05
"""Share of held-out images that detectors may reject. The white-box attack of least distance goes
for the median of each class, as published, but over held-out images, not over reference points."""

BUDGET = {"mnist": 2.0, "cifar10": 0.5}
"""l2 radius of the attacks that know the detector, the same for all defences; our choice."""

DEFENCES = ("baseline", "rce", "pdm")
"""Of Tables 2 to 4."""

NETWORKS = (*DEFENCES, "siamese rvl", "rvl", "siamese")
"""Those and the ablations of Table 1 and Figure 2, which keep the cross-entropy."""

PROXIES = tuple(f"proxy {name}" for name in DEFENCES)
"""Students of the defences' outputs, for the black-box attack."""

GRAY_BOX: dict[str, tuple[str, dict[str, Any]]] = {
    "FGSM-0.05": ("fgsm", {"eps": 0.05}),
    "FGSM-0.1": ("fgsm", {"eps": 0.1}),
    "BIM-0.05": ("bim", {"eps": 0.05}),
    "BIM-0.1": ("bim", {"eps": 0.1}),
    "C&W": (
        "carlini_wagner_l2",
        {"num_steps": 10, "num_searches": 9, "initial_c": 1.0, "learning_rate": 0.5},
    ),
    "C&W-hc": ("carlini_wagner_l2", {"kappa": 10.0}),
    "JSMA": ("jsma", {"on": "softmax", "pairs": False}),
}
"""Table 2's attacks on the classifier alone, untargeted: functions of `jaxrobust.attacks` and their
settings. BIM takes ten steps of a tenth of eps, JSMA up to 100 single features. The learning rate
of ten iterations is our choice on held-out images, few of which the usual 0.01 breaks."""

WHITE_BOX = {"initial_c": 0.03, "learning_rate": 0.2}
"""First c and learning rate of C&W-wb, our choice on held-out images: within 500 iterations the
usual 0.01 breaks far fewer, and a first c of 1 goes farther."""

SURE = 5.0
"""Confidence of the second black-box row, that of RCE's white-box attack; the paper's is 0."""

RADII = (0.02, 0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2)
"""Of Figure 3."""

Data = Literal["mnist", "cifar10"]


@dataclasses.dataclass(frozen=True)
class Preset:
    """How networks are trained, and how much is measured.

    Attributes:
        depth: Of the residual networks.
        proxy_depth: Of the proxies.
        epochs: By data set; a proxy takes half as many.
        weight_decay: What kernels lose a step, times the learning rate.
        cheap: Test images under FGSM, BIM, JSMA and the Carlini-Wagner attack of 10 iterations.
        dear: Test images under those of thousands.
        confident: Iterations and searches of C&W-hc.
        white_box: Iterations and searches of C&W-wb.
        adaptive: Steps of the attacks within the budget.
        clusters: Test images whose embeddings are looked at: t-SNE, Jacobians, margins.
    """

    depth: int
    proxy_depth: int
    epochs: dict[str, int]
    weight_decay: float
    cheap: int
    dear: int
    confident: tuple[int, int]
    white_box: tuple[int, int]
    adaptive: int
    clusters: int


PAPER = Preset(
    56, 32, {"mnist": 80, "cifar10": 400}, 2e-3, 1000, 1000, (1000, 9), (5000, 3), 1000, 1000
)
"""As published, as far as it is published. Not run here."""

CPU = Preset(
    8, 8, {"mnist": 12, "cifar10": 12}, 2e-4, 1000, 100, (1000, 9), (500, 3), 200, 1000
)  # fmt: skip
"""Scaled down to two CPU cores; depth, epochs and weight decay (RCE's) are our choice."""

SMOKE = Preset(8, 8, {"mnist": 1, "cifar10": 1}, 2e-4, 20, 4, (10, 2), (10, 2), 5, 50)
"""Only shows that the code runs; it takes the cpu preset's networks where they are trained."""

PRESETS = {"paper": PAPER, "cpu": CPU, "smoke": SMOKE}

PROTOCOL = {
    "held_out": HELD_OUT, "points": POINTS, "false_positives": FALSE_POSITIVES, "budget": BUDGET,
    "gray_box": GRAY_BOX, "sure": SURE, "radii": RADII,
}  # fmt: skip
"""What numbers depend on besides networks and sizes."""

BATCH = 128
RATE = 0.1
"""SGD with momentum 0.9 (the paper names no momentum); a tenth of it after one half of the steps
and again after three quarters, as in RCE's code for MNIST."""
