"""Every measurement of the experiment, each into a file of its own; what is there is kept."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxrobust as jr
from experiments import records
from experiments.second_order import config, measure, page, train
from experiments.second_order.config import CPU, RECIPES, SHARED, Sizes
from experiments.second_order.measure import Other, Search
from jaxrobust.identity import digest

EPS = 1.5
L2 = [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0]
LINF = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4]
CIFAR = {
    "l2": [0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4],
    "linf": [i / 255 for i in (1, 2, 4, 6, 8, 12, 16, 20)],
}
MADRY, NATURAL = "mnist madry linf", "mnist natural"

so = functools.partial(Search, "smoothed", draws=10, num_steps=20)

APGD = {
    "APGD, cross-entropy": Other("apgd", (("num_steps", 199),)),
    "APGD, DLR": Other("apgd", (("num_steps", 199), ("loss", "dlr"))),
}
"""As many gradients: a run of n steps takes n + 1."""

MINIMUM_NORM = {
    "DeepFool": Other("deepfool", minimum_norm=True),
    "Carlini-Wagner": Other(
        "carlini_wagner_l2", (("num_steps", 200), ("num_searches", 5)), minimum_norm=True
    ),
    "Boundary": Other("boundary", minimum_norm=True),
}
"""In their own currency: published steps of DeepFool and Boundary (25,000, on half as many images);
Carlini-Wagner is scaled down."""


class Choice(NamedTuple):
    """Settings among which held-out images choose, by the accuracy that they leave."""

    network: str
    norm: str
    eps: float
    candidates: list[Search]


def _pgd(*steps: float) -> list[Search]:
    return [Search(step=s, random_start=start) for s in steps for start in (True, False)]


def _so(sigmas: tuple[float, ...], *steps: float) -> list[Search]:
    return [so(sigma=s, step=step) for s in sigmas for step in steps]


def _eot(*steps: float) -> list[Search]:
    """S-O on a network that makes its own noise: the draws are the network's."""
    return [Search("eot", draws=10, num_steps=20, step=step) for step in steps]


FINE = (0.0125, 0.05, 0.125, 0.25, 0.5)
CHOICES = {
    "pgd": Choice(MADRY, "l2", EPS, _pgd(*FINE)),
    "pgd x5": Choice(MADRY, "l2", EPS, [
        Search(step=s, num_steps=40, num_restarts=5, random_start=True)
        for s in (0.0625, 0.125, 0.25, 0.5, 1.0)]),
    "so": Choice(MADRY, "l2", EPS,
        [so(sigma=0.05, step=0.125), *_so((0.1, 0.2, 0.4), 0.125, 0.5, 1.0)]),
    "natural pgd": Choice(NATURAL, "l2", 1.0, _pgd(0.0125, 0.05, 0.125)),
    "natural so": Choice(NATURAL, "l2", 1.0, _so((0.02, 0.05, 0.1), 0.125, 0.5)),
    "stn so": Choice("mnist stn 0.2", "l2", EPS, _eot(0.125, 0.25, 0.5, 1.0)),
    "linf pgd": Choice(MADRY, "linf", 0.3, _pgd(0.0125, 0.05, 0.125)),
    "linf so": Choice(MADRY, "linf", 0.3, _so((0.05, 0.1, 0.2), 0.1, 0.25)),
    "l2-trained linf pgd": Choice("mnist madry l2", "linf", 0.15, _pgd(0.0125, 0.05, 0.125)),
    "l2-trained linf so": Choice("mnist madry l2", "linf", 0.15, _so((0.05, 0.1, 0.2), 0.1, 0.25)),
} | {
    f"cifar10 {norm} {kind} {attack}": Choice(f"cifar10 {kind}", norm, eps, candidates)
    for norm, kind, eps in (
        ("l2", "natural", 0.1), ("l2", "madry l2", 0.5),
        ("linf", "natural", 1 / 255), ("linf", "madry linf", 8 / 255),
    )
    for attack, candidates in (
        ("pgd", _pgd(0.0125, 0.05, 0.125)), ("so", _so((0.01, 0.02, 0.05, 0.1), 0.125, 0.5)),
    )
} | {
    f"cifar10 {norm} noise so": Choice("cifar10 stn 0.25", norm, eps, _eot(0.125, 0.25, 0.5, 1.0))
    for norm, eps in (("l2", 0.5), ("linf", 4 / 255))
}  # fmt: skip
"""By name. 200 gradients each; networks trained on noise share the choice made on one of them."""


class Measurement(NamedTuple):
    """What is measured, on how many of the first images; `settings` goes to `make`."""

    name: str
    network: str
    num_images: int
    make: Callable[..., dict[str, Any]]
    settings: dict[str, Any]


class Subject(NamedTuple):
    """A trained network and the images it is measured on."""

    name: str
    logits_fn: Any
    step: int
    x: np.ndarray
    y: np.ndarray


@dataclasses.dataclass(frozen=True)
class Place:
    """Where everything lies, and what this run is of."""

    out: Path
    madry: Path
    results: Path
    preset: str
    seed: int

    def folder(self, data: str) -> Path:
        """Where results go."""
        return self.results / self.preset / data


def choose(place: Place, only: Sequence[str] = ()) -> None:
    """Try every candidate setting on held-out images, and record the one that leaves least."""
    sizes = config.SIZES[place.preset]
    for kind, choice in CHOICES.items():
        at = (choice.network, sizes.chosen, _choice, _among(kind))
        measurement = Measurement(f"choice {kind}", *at)
        if _wanted(measurement, only):
            _record(place, "held-out", measurement)


def record(place: Place, data: str, only: Sequence[str] = ()) -> None:
    """Make every measurement, and say which networks are missing."""
    for measurement in measurements(config.SIZES[place.preset], place):
        if _wanted(measurement, only):
            _record(place, data, measurement)


def _wanted(measurement: Measurement, only: Sequence[str]) -> bool:
    return not only or any(part in measurement.name for part in only)


def measurements(sizes: Sizes, place: Place) -> Iterator[Measurement]:
    """All of them, the important ones first."""
    pgd, restarted, second = (_chosen(place, kind) for kind in ("pgd", "pgd x5", "so"))
    yield Measurement("figure 4", "", 0, _bounds, {})
    headline = {"S-O": second, "PGD": pgd, "PGD, 40 steps x 5": restarted}
    for name, search in headline.items():
        for seed in range(place.seed, place.seed + sizes.seeds):
            at = {"search": search, "norm": "l2", "radii": [EPS], "seed": seed}
            yield Measurement(f"headline {name} {seed}", MADRY, sizes.headline, _attack, at)
    fgsm = {"search": Search(num_steps=1, step=1.0), "norm": "l2", "radii": [EPS]}
    yield Measurement("headline FGSM", MADRY, sizes.headline, _attack, fgsm)
    for name, search in APGD.items():
        for seed in range(place.seed, place.seed + sizes.seeds):
            at = {"search": search, "norm": "l2", "radii": [EPS], "seed": seed}
            yield Measurement(f"headline {name} {seed}", MADRY, sizes.headline, _attack, at)
    for name, search in MINIMUM_NORM.items():
        at = {"search": search, "norm": "l2", "radii": L2}
        num = sizes.distances // (2 if name == "Boundary" else 1)
        yield Measurement(f"headline {name}", MADRY, num, _attack, at)
    for name, search in variants(pgd, second).items():
        at = {"search": search, "norm": "l2", "radii": [EPS]}
        yield Measurement(f"variant {name}", MADRY, sizes.variants, _attack, at)

    monitored = {
        "natural PGD": (NATURAL, dataclasses.replace(pgd, num_steps=20, step=None)),
        "Madry PGD": (MADRY, dataclasses.replace(pgd, num_steps=20, step=None)),
        "Madry S-O": (MADRY, second),
    }
    for name, (network, search) in monitored.items():
        at = {"search": search, "eps": EPS}
        yield Measurement(f"figure 2 norms {name}", network, sizes.sweep, _norms, at)
    for name, network, kind in (
        ("PGD", NATURAL, "natural pgd"), ("PGD", MADRY, "pgd"), ("S-O", MADRY, "so"),
        ("S-O", NATURAL, "natural so"), ("S-O", "mnist stn 0.2", "stn so"),
    ):  # fmt: skip
        at = {"search": _chosen(place, kind), "norm": "l2", "radii": L2}
        yield Measurement(f"figure 2 {name} on {network}", network, sizes.sweep, _attack, at)

    for network in (NATURAL, MADRY):
        yield Measurement(f"curvature {network}", network, sizes.page, _curvature, {})
    for network, recipe in CPU.items():
        if recipe.sigma:
            at = {"sigma": recipe.sigma, "draws": sizes.draws}
            yield Measurement(f"figure 1 {network}", network, sizes.certified, _certificate, at)

    for network, kind in ((MADRY, "linf"), ("mnist madry l2", "l2-trained linf")):
        for name in ("S-O", "PGD"):
            search = _chosen(place, f"{kind} {'so' if name == 'S-O' else 'pgd'}")
            at = {"search": search, "norm": "linf", "radii": LINF}
            yield Measurement(f"figure 6 {name} on {network}", network, sizes.sweep, _attack, at)
    at = {"search": second, "eps": 2.0}
    yield Measurement("figure 7", MADRY, 8, _examples, at)

    at = {"search": _chosen(place, "stn so"), "radii": [0.25, 0.5, 0.75, 1.0, 1.5], "draws": 1000}
    yield Measurement("page", "mnist stn 0.4", sizes.page, page.make, at)
    yield from _cifar10(sizes, place)


def _cifar10(sizes: Sizes, place: Place) -> Iterator[Measurement]:
    """Figure 3: S-O on all networks, PGD on those that do not draw."""
    for norm, radii in CIFAR.items():
        for kind in ("natural", f"madry {norm}", "stn 0.1", "stn 0.25", "gaussian 0.25"):
            drawn = CPU[f"cifar10 {kind}"].sigma > 0
            for name in ("S-O",) if drawn else ("S-O", "PGD"):
                chosen = f"cifar10 {norm} {'noise' if drawn else kind} "
                if not _path(place, "held-out", f"choice {chosen}so").exists():
                    print(
                        "figure 3: no settings chosen, run --stage choose once CIFAR-10 is trained"
                    )
                    return
                search = _chosen(place, chosen + ("so" if name == "S-O" else "pgd"))
                at = {"search": search, "norm": norm, "radii": radii}
                what = f"figure 3 {norm} {name} on {kind}"
                yield Measurement(what, f"cifar10 {kind}", sizes.cifar10, _attack, at)


def variants(pgd: Search, second: Search) -> dict[str, Search]:
    """What else 200 gradients can be spent on, and two cheaper ones."""
    change = dataclasses.replace
    return {
        "PGD, 20 steps": change(pgd, num_steps=20, step=None),
        "PGD, 2.5 eps per steps": change(pgd, step=None),
        f"PGD, {'no' if pgd.random_start else 'a'} random start": change(
            pgd, random_start=not pgd.random_start
        ),
        "PGD, margin": change(pgd, loss="margin"),
        "S-O, shared noise": change(second, gradient="shared"),
        "S-O, margin": change(second, loss="margin"),
        "S-O, one shared draw": Search("shared", second.sigma, 1, 200, second.step),
        "S-O, as released": Search("shared", second.sigma, 1, 20, loss="margin"),
        "one fresh perturbation": Search("perturbed", second.sigma, 1, 200, second.step),
        "Hessian, 1 product": Search("jvp", draws=1, num_steps=100, step=pgd.step),
        "Hessian, 9 products": Search("jvp", draws=9, num_steps=20, step=second.step),
    }


def _chosen(place: Place, kind: str) -> Search:
    path = _path(place, "held-out", f"choice {kind}")
    if not path.exists():
        raise ValueError(f"{path} is missing: run --stage choose first")
    content = jr.files.read_json(path)
    if content["settings"] != records.plain(_among(kind) | {"seed": place.seed}):
        raise ValueError(f"{path} is of other settings than evaluate.py has: run --stage choose")
    return Search(**content["found"]["best"])


def _among(kind: str) -> dict[str, Any]:
    """What a choice is made among, and at which radius."""
    _, norm, eps, candidates = CHOICES[kind]
    return {"candidates": candidates, "norm": norm, "eps": eps}


def _path(place: Place, data: str, name: str) -> Path:
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    return place.folder(data) / f"{slug}.json"


def _record(place: Place, data: str, measurement: Measurement) -> None:
    """Make one measurement, unless its file is there with the same settings and weights."""
    path = _path(place, data, measurement.name)
    subject = None
    about: dict[str, Any] = {
        "name": measurement.name,
        "network": measurement.network,
        "data": data,
        "num_images": measurement.num_images,
        "settings": {"seed": place.seed} | measurement.settings,
        "recipe": RECIPES[place.preset].get(measurement.network),
    }
    if measurement.network:
        subject = _subject(measurement.network, measurement.num_images, place, data)
        if subject is None:
            print(f"{measurement.name}: {measurement.network} is not trained", flush=True)
            return
        about |= {"weights": digest(subject.logits_fn), "trained_steps": subject.step}
    stage = "choose" if measurement.make is _choice else f"evaluate --data {data}"
    settings = {"seed": place.seed} | measurement.settings
    records.keep(
        path, about, lambda: measurement.make(subject, path.parent, **settings),
        f"python -m experiments.second_order --stage {stage} --preset {place.preset}",
    )  # fmt: skip


@functools.cache
def _subject(name: str, num_images: int, place: Place, data: str) -> Subject | None:
    """A trained network with its images; None where its training is not finished."""
    folder = train.folder_of(name, place.preset, place.out, place.madry)
    architecture = "madry_cnn" if name in SHARED else RECIPES[place.preset][name].model
    logits_fn = records.restored(_apply(architecture), folder, train.steps(name, place.preset))
    if logits_fn is None:
        return None
    which = name.split()[0]
    images = jr.data.load(which, config.SPLITS[data][which])
    steps = records.trained_steps(folder)
    return Subject(name, logits_fn, steps, images.x[:num_images], images.y[:num_images])


@functools.cache  # one function for each architecture, so that networks share compiled programs
def _apply(architecture: str) -> Callable[..., Any]:
    return getattr(jr.models, architecture)().apply


def _choice(
    subject: Subject, folder: Path, *, candidates: list[Search], norm: str, eps: float, seed: int
) -> dict[str, Any]:
    tried = []
    for search in candidates:
        found = _attack(subject, folder, search=search, norm=norm, radii=[eps], seed=seed)
        tried.append({"search": dataclasses.asdict(search), "accuracy": found["accuracy"]})
    best = min(tried, key=lambda one: one["accuracy"][f"{eps:g}"])
    return {"tried": tried, "best": best["search"]}


def _attack(
    subject: Subject, folder: Path, *, search: Search | Other, **settings: Any
) -> dict[str, Any]:
    """Attack the network; one trained on noise is the majority of ten noisy predictions."""
    del folder
    logits_fn, votes = subject.logits_fn, 1
    if isinstance(search, Search) and search.gradient == "eot":
        logits_fn = jr.transforms.gaussian_noise(logits_fn, CPU[subject.name].sigma)
        votes = 10
    return measure.attacked(
        logits_fn, subject.x, subject.y, search, settings["norm"], settings["radii"],
        seed=settings["seed"], votes=votes,
    )  # fmt: skip


def _norms(subject: Subject, folder: Path, **settings: Any) -> dict[str, Any]:
    del folder
    return measure.gradient_norms(subject.logits_fn, subject.x, subject.y, **settings)


def _curvature(subject: Subject, folder: Path, *, seed: int) -> dict[str, Any]:
    del folder
    return measure.curvature(subject.logits_fn, subject.x, subject.y, seed=seed)


def _certificate(subject: Subject, folder: Path, **settings: Any) -> dict[str, Any]:
    del folder
    return measure.certified(subject.logits_fn, subject.x, subject.y, **settings)


def _bounds(subject: None, folder: Path, **settings: Any) -> dict[str, Any]:
    del subject, folder, settings
    return measure.bounds()


def _examples(
    subject: Subject, folder: Path, *, search: Search, eps: float, seed: int
) -> dict[str, Any]:
    """The first images as they are and as the attack leaves them, successful or not."""
    x_adv = measure.attack_of(search)(
        subject.logits_fn, subject.x, subject.y, key=jax.random.key(seed), ball=jr.Ball("l2", eps)
    )
    shown = {"clean": subject.x, "adversarial": np.asarray(x_adv)}
    grey = {name: np.uint8(np.round(255 * images)) for name, images in shown.items()}
    jr.files.write_arrays(folder / "figure-7.npz", grey, compress=True)
    predicted = {k: np.argmax(subject.logits_fn(v), -1).tolist() for k, v in shown.items()}
    length = np.linalg.norm((shown["adversarial"] - shown["clean"]).reshape(len(x_adv), -1), axis=1)
    return {"label": subject.y.tolist(), "predicted": predicted, "l2": length.tolist()}
