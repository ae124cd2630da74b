"""The networks of the experiment, how each is trained, and how much is measured on them."""

from __future__ import annotations

import dataclasses
from typing import Literal

HELD_OUT = 5000
"""Last training images, kept for every choice; the test set is used once, at the end."""

BATCH = 128
RATE = 1e-3


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One training, with Adam at 1e-3 falling to zero along a cosine.

    Attributes:
        data: Data set.
        method: "natural"; "madry", PGD with 7 steps of 2.5 eps / 7 from a random start; "stability"
            with gamma 1 (the paper's STN); "gaussian", noise added to every training image, as
            PixelDP's and Cohen's networks are trained.
        num_epochs: Passes over the training images in batches of 128.
        norm: Of the threat (madry).
        eps: Its radius, in [0, 1] pixels, rising linearly from 0 over the first quarter (madry).
        sigma: Of the training noise, in [0, 1] pixels (stability, gaussian).
    """

    data: Literal["mnist", "cifar10"]
    method: Literal["natural", "madry", "stability", "gaussian"]
    num_epochs: int
    norm: Literal["linf", "l2"] = "linf"
    eps: float = 0.0
    sigma: float = 0.0


SHARED = {"mnist natural": "natural", "mnist madry linf": "adversarial"}
"""Networks of `experiments.madry_mnist`, cpu preset, by their names there; not trained twice."""

CPU = {
    "mnist madry l2": Recipe("mnist", "madry", 8, "l2", eps=2.0),
    "mnist stn 0.2": Recipe("mnist", "stability", 6, sigma=0.2),
    "mnist stn 0.4": Recipe("mnist", "stability", 6, sigma=0.4),
    "mnist stn 0.6": Recipe("mnist", "stability", 6, sigma=0.6),
    "mnist gaussian 0.4": Recipe("mnist", "gaussian", 6, sigma=0.4),
    "cifar10 natural": Recipe("cifar10", "natural", 10),
    "cifar10 madry linf": Recipe("cifar10", "madry", 12, "linf", eps=8 / 255),
    "cifar10 madry l2": Recipe("cifar10", "madry", 12, "l2", eps=0.5),
    "cifar10 stn 0.1": Recipe("cifar10", "stability", 15, sigma=0.1),
    "cifar10 stn 0.25": Recipe("cifar10", "stability", 15, sigma=0.25),
    "cifar10 gaussian 0.25": Recipe("cifar10", "gaussian", 15, sigma=0.25),
}
"""Networks trained here, scaled down to two CPU cores: Madry's MNIST network, and on CIFAR-10 a
small convolutional network in place of the paper's wide ResNet. The numbers of epochs and the radii
of adversarial training are our choice, and so is every sigma but MNIST's 0.2 and 0.4."""

SPLITS = {
    "held-out": {"mnist": f"train[-{HELD_OUT}:]", "cifar10": f"train[-{HELD_OUT}:]"},
    "test": {"mnist": "test[4000:]", "cifar10": "test"},
}
"""What is looked at, the first images of each. `experiments.madry_mnist` has used the first 4,000
test images of MNIST for the two networks that are shared."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        headline: Images in an entry with error bars.
        seeds: Seeds of the attack in such an entry.
        variants: Images in the other entries at l2 1.5.
        sweep: Images in a curve over eps, or over steps.
        certified: Images in a certificate.
        draws: Noise draws an image of the stronger certificate.
        chosen: Held-out images on which an attack's settings are chosen.
        page: Images on the report's page.
    """

    headline: int
    seeds: int
    variants: int
    sweep: int
    certified: int
    draws: int
    chosen: int
    page: int


PRESETS = {
    "paper": Sizes(1000, 3, 1000, 500, 500, 10_000, 500, 500),
    "cpu": Sizes(1000, 3, 300, 150, 150, 2000, 200, 100),
    "smoke": Sizes(32, 2, 16, 16, 8, 200, 16, 16),
}
"""paper: as the issue of this experiment asks; cpu: scaled down to two CPU cores; smoke: only shows
that the code runs, and takes networks whose training is not finished."""
