"""The networks of the experiment, how each is trained, and how much is measured on them."""

from __future__ import annotations

import dataclasses
from typing import Literal

HELD_OUT = 5000
"""Last training images, kept for every choice; the test set is used once, at the end."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the parameters move.

    Attributes:
        batch_size: Images a step.
        optimizer: "adam", or "momentum": SGD with momentum 0.9 and weight decay 2e-4.
        rate: Learning rate.
        decay: "cosine" falls to zero over the run; "steps" divides by ten after its half and its
            three quarters; or "constant".
        num_steps: PGD steps of adversarial training, of 2.5 eps / num_steps.
        warm_up: Whether its eps rises linearly from 0 over the first quarter.
    """

    batch_size: int
    optimizer: Literal["adam", "momentum"]
    rate: float
    decay: Literal["cosine", "steps", "constant"]
    num_steps: int
    warm_up: bool


SMALL = Schedule(128, "adam", 1e-3, "cosine", 7, True)
"""Our choice."""

MADRY_MNIST = Schedule(50, "adam", 1e-4, "constant", 40, False)
MADRY_CIFAR = Schedule(128, "momentum", 0.1, "steps", 7, False)
"""Of the challenges, whose optimisers the paper takes: 100,000 steps, and 80,000."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One training.

    Attributes:
        data: Data set.
        method: "natural"; "madry", PGD from a random start; "stability" with gamma 1 (the paper's
            STN); "gaussian", noise added to every training image, as PixelDP's and Cohen's networks
            are trained.
        num_epochs: Passes over the training images.
        norm: Of the threat (madry).
        eps: Its radius, in [0, 1] pixels (madry).
        sigma: Of the training noise, in [0, 1] pixels (stability, gaussian).
        model: Architecture, a function of `jaxrobust.models`.
        schedule: How the parameters move.
    """

    data: Literal["mnist", "cifar10"]
    method: Literal["natural", "madry", "stability", "gaussian"]
    num_epochs: int
    norm: Literal["linf", "l2"] = "linf"
    eps: float = 0.0
    sigma: float = 0.0
    model: Literal["madry_cnn", "small_cnn", "wide_resnet"] = "madry_cnn"
    schedule: Schedule = SMALL

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of the training images."""
        return {"mnist": 55_000, "cifar10": 45_000}[self.data] // self.schedule.batch_size


SHARED = {"mnist natural": "natural", "mnist madry linf": "adversarial"}
"""Networks of `experiments.madry_mnist`, same preset, by their names there; not trained twice."""

CPU = {
    "mnist madry l2": Recipe("mnist", "madry", 8, "l2", eps=2.0),
    "mnist stn 0.2": Recipe("mnist", "stability", 6, sigma=0.2),
    "mnist stn 0.4": Recipe("mnist", "stability", 6, sigma=0.4),
    "mnist stn 0.6": Recipe("mnist", "stability", 6, sigma=0.6),
    "mnist gaussian 0.4": Recipe("mnist", "gaussian", 6, sigma=0.4),
    "cifar10 natural": Recipe("cifar10", "natural", 10, model="small_cnn"),
    "cifar10 madry linf": Recipe("cifar10", "madry", 12, "linf", eps=8 / 255, model="small_cnn"),
    "cifar10 madry l2": Recipe("cifar10", "madry", 12, "l2", eps=0.5, model="small_cnn"),
    "cifar10 stn 0.1": Recipe("cifar10", "stability", 15, sigma=0.1, model="small_cnn"),
    "cifar10 stn 0.25": Recipe("cifar10", "stability", 15, sigma=0.25, model="small_cnn"),
    "cifar10 gaussian 0.25": Recipe("cifar10", "gaussian", 15, sigma=0.25, model="small_cnn"),
}
"""Networks trained here, scaled down to two CPU cores: Madry's MNIST network, and on CIFAR-10 a
small convolutional network in place of the paper's wide ResNet. The numbers of epochs and the radii
of adversarial training are our choice, and so is every sigma but MNIST's 0.2 and 0.4."""

PAPER = {
    name: dataclasses.replace(recipe, num_epochs=91, schedule=MADRY_MNIST)
    if recipe.data == "mnist"
    else dataclasses.replace(recipe, num_epochs=228, model="wide_resnet", schedule=MADRY_CIFAR)
    for name, recipe in CPU.items()
}
"""The paper's networks and the challenges' schedules, for a GPU. Not run yet; images are not
cropped and flipped at random, as the CIFAR-10 challenge does."""

RECIPES = {"paper": PAPER, "cpu": CPU, "smoke": CPU}
"""By preset."""

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
        distances: Images for the attacks that seek the smallest distance.
        sweep: MNIST images in a curve over eps, or over steps.
        cifar10: CIFAR-10 images in a curve.
        certified: Images in a certificate.
        draws: Noise draws an image of the stronger certificate.
        chosen: Held-out images on which an attack's settings are chosen.
        page: Images on the report's page.
    """

    headline: int
    seeds: int
    variants: int
    distances: int
    sweep: int
    cifar10: int
    certified: int
    draws: int
    chosen: int
    page: int


SIZES = {
    "paper": Sizes(1000, 3, 1000, 1000, 500, 500, 500, 10_000, 500, 500),
    "cpu": Sizes(1000, 3, 1000, 200, 500, 200, 250, 2000, 200, 100),
    "smoke": Sizes(32, 2, 16, 8, 16, 16, 8, 200, 16, 16),
}
"""By preset. paper: full size; cpu: MNIST's attacks in full, certificates and CIFAR-10 scaled down
to two CPU cores; smoke: only shows that the code runs, and takes networks that are half trained."""
