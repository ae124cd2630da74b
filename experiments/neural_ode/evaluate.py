"""Every measurement of the experiment; see `experiments.records`."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrobust as jr
from experiments import records
from experiments.neural_ode import config, train
from experiments.neural_ode.config import DATA, PRESETS, Sizes
from jaxrobust.identity import digest
from jaxrobust.types import predicted_class

BATCH = 50
FEW = 10
"""Images at once under AutoAttack, which goes on with those that stand: soon few."""

DRAWS = 10
"""Of the random models, for each gradient through EOT, and for each of its judgements."""

QUERIES = 300
"""Of Square, behind an adaptive solver."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where everything lies, and what this run is of."""

    out: Path
    results: Path
    preset: str

    @property
    def folder(self) -> Path:
        """Where results go."""
        return self.results / self.preset

    @property
    def sizes(self) -> Sizes:
        """How much is measured."""
        return PRESETS[self.preset]


def record(place: Place, data: str, name: str, seed: int) -> None:
    """Make every measurement of one network."""
    subject = train.trained(data, name, place.preset, place.out, seed)
    if subject is None:
        print(f"{data} {name} {seed} is not trained", flush=True)
        return
    measurements: dict[str, Any] = {"published": published}
    if name in config.NOISY:
        measurements["strong"] = strong
        if not (train.randomises(name) or name.startswith("cnn")):
            measurements["adaptive"] = adaptive
    command = (
        f"python -m experiments.neural_ode --stage evaluate --data {data} --preset {place.preset}"
    )
    for title, measure in measurements.items():
        about = {
            "name": f"{data} {title} {name} {seed}", "network": name, "weights": digest(subject),
            "seed": seed, "sizes": place.sizes, "threats": DATA[data],
            "code": records.code(Path(__file__)),
        }  # fmt: skip
        make = functools.partial(measure, place, data, name, seed)
        path = place.folder / f"{about['name'].replace(' ', '-')}.json"
        records.keep(path, about, make, command)


def test_images(data: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ones of the test set, right or wrong, as the paper counts them."""
    test = train.load(data, DATA[data].test)
    return test.x[:number], test.y[:number]


def attack(
    logits_fn: Any, data: str, number: int, attacks: Any, radii: tuple[float, ...], seed: int,
    votes: int = 1, batch: int = BATCH,
) -> list[float]:  # fmt: skip
    """Accuracy within linf balls of rising radii, each attack at each on what stands so far."""
    x, y = test_images(data, number)
    rising = {
        f"{name} {eps:g}": jr.attacks.at_eps(one, eps)
        for eps in radii
        for name, one in attacks.items()
    }
    report = jr.evaluate(
        logits_fn, (x, y), attacks=rising, ball=jr.Ball("linf", max(radii)),
        key=jax.random.key(seed), batch_size=min(batch, number), votes=votes,
    )  # fmt: skip
    return report.accuracy_at(np.asarray(radii)).tolist()


def published_pgd(eps: float) -> Any:
    """The released attack: 9 sign steps of a fifth of the radius from the image.

    Its loss is the difference of the log-probabilities, which is that of the logits, cut off where
    the class is wrong: `losses.f6`. (That log is cut off below probabilities of 1e-30, too.)
    """
    return functools.partial(
        jr.attacks.pgd, num_steps=9, step_size=eps / 5, random_start=False, loss=jr.losses.f6
    )


def published(place: Place, data: str, name: str, seed: int) -> dict[str, float]:
    """Accuracy on clean and noisy images, and under the paper's attacks."""
    subject = train.trained(data, name, place.preset, place.out, seed)
    assert subject is not None
    judged, threats = train.defended(data, name, subject), DATA[data]
    clean = name in config.CLEAN
    x, y = test_images(data, place.sizes.tested)
    sigmas = threats.clean[0] if clean else (threats.noise,)
    found = {"clean": _noisy_accuracy(judged, x, y, 0.0, seed)}
    for sigma in sigmas:
        found[f"noise {_of_255(sigma)}"] = _noisy_accuracy(judged, x, y, sigma, seed)
    fgsm = functools.partial(jr.attacks.fgsm, loss=jr.losses.f6)
    alone = functools.partial(attack, judged, data, place.sizes.attacked, seed=seed)
    for eps in threats.clean[1] if clean else threats.fgsm:
        (found[f"FGSM {shown(data, eps)}"],) = alone({"fgsm": fgsm}, radii=(eps,))
    for eps in () if clean else threats.pgd:
        (found[f"PGD {shown(data, eps)}"],) = alone({"pgd": published_pgd(eps)}, radii=(eps,))
    return found


def strong(place: Place, data: str, name: str, seed: int) -> dict[str, float]:
    """What the paper's PGD misses: more steps, EOT where the network draws, AutoAttack."""
    subject = train.trained(data, name, place.preset, place.out, seed)
    assert subject is not None
    judged = train.defended(data, name, subject)
    random = train.randomises(name)
    radii, found = DATA[data].pgd, {}
    at = functools.partial(
        attack, judged, data, place.sizes.strong, seed=seed,
        votes=DRAWS if random else 1, batch=FEW,
    )  # fmt: skip
    for eps in radii:
        published = at({"pgd": published_pgd(eps)}, radii=(eps,))
        (found[f"PGD as published {shown(data, eps)}"],) = published
    pgd = functools.partial(
        jr.attacks.pgd, num_steps=40, loss=jr.losses.margin,
        gradient=jr.gradients.eot(DRAWS) if random else jr.gradients.exact,
    )  # fmt: skip
    members = jr.attacks.autoattack_members("rand" if random else "standard")
    for title, attacks in (("PGD, 40 steps", {"pgd": pgd}), ("AutoAttack", members)):
        for eps, accuracy in zip(radii, at(attacks, radii=radii), strict=True):
            found[f"{title} {shown(data, eps)}"] = accuracy
    return found


def adaptive(place: Place, data: str, name: str, seed: int) -> dict[str, float]:
    """The same weights behind an adaptive solver: does it only hide gradients?

    Accuracy under PGD as published through the solver's own steps and through the adjoint ODE, when
    the images come from Euler's steps, and under Square, which asks for values alone; how far
    derivatives of the margin along its gradient are from differences, behind Euler's steps, too;
    the cosine between the solver's two gradients.
    """
    euler, own, adjoint = (
        train.trained(data, name, place.preset, place.out, seed, solver)
        for solver in ("euler", "adaptive", "backsolve")
    )
    assert euler is not None
    assert own is not None
    assert adjoint is not None
    number, eps = place.sizes.strong, DATA[data].pgd[-1]
    x, y = test_images(data, number)
    pgd, key, ball = published_pgd(eps), jax.random.key(seed), jr.Ball("linf", eps)
    square = functools.partial(jr.attacks.square, num_queries=QUERIES)
    found = {"clean": _accuracy(own, x, y)}
    for title, source, one in (
        ("PGD, own gradients", own, pgd), ("PGD, adjoint ODE's gradients", adjoint, pgd),
        ("Square", own, square), ("PGD, Euler's", euler, pgd),
    ):  # fmt: skip
        x_adv = one(source, x, y, key=key, ball=ball)
        found[title] = _accuracy(own, x_adv, y)
    found["PGD on Euler"] = _accuracy(euler, x_adv, y)  # its images are the last

    g, h = (_slopes(model, x, y) for model in (own, adjoint))
    lengths = [np.linalg.norm(part, axis=1) for part in (g, h)]
    moving = np.min(lengths, axis=0) > 0
    cosines = np.sum(g * h, axis=1)[moving] / np.prod(lengths, axis=0)[moving]
    found["cosine"] = float(np.median(cosines)) if moving.any() else float("nan")
    for title, model in (("finite differences", own), ("finite differences, Euler", euler)):
        found[title] = _off(model, x, y)
    return found


def _accuracy(logits_fn: Any, x: Any, y: np.ndarray) -> float:
    """A row that took the solver too many steps has no class, and is wrong."""
    return float(np.mean(np.asarray(predicted_class(logits_fn(jnp.asarray(x)))) == y))


def _margin(logits_fn: Any, one: Any, label: Any) -> Any:
    return jr.losses.margin(logits_fn(one[None])[0], label)


def _slopes(logits_fn: Any, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    slope = jax.jit(jax.vmap(jax.grad(functools.partial(_margin, logits_fn))))
    return np.asarray(slope(x, y)).reshape(len(x), -1)


def _off(logits_fn: Any, x: np.ndarray, y: np.ndarray) -> float:
    """By how much of itself the slope along the gradient misses a difference; of the median image.

    Images without a gradient are left out.
    """
    g = _slopes(logits_fn, x, y)
    lengths = np.linalg.norm(g, axis=1)
    moving = lengths > 0
    if not moving.any():
        return float("nan")
    way = (g / lengths.clip(1e-30)[:, None]).reshape(x.shape)
    value = jax.jit(jax.vmap(functools.partial(_margin, logits_fn)))
    difference = (np.asarray(value(x + 0.01 * way, y)) - value(x - 0.01 * way, y)) / 0.02
    return float(np.median(abs(difference - lengths)[moving] / lengths[moving]))


def shown(data: str, eps: float) -> str:
    """A radius as the paper writes it."""
    return f"{eps:g}" if data == "mnist" else f"{_of_255(eps)}/255"


def _of_255(value: float) -> str:
    return f"{round(255 * value)}"


def _noisy_accuracy(logits_fn: Any, x: np.ndarray, y: np.ndarray, sigma: float, seed: int) -> float:
    """With Gaussian noise, clipped to [0, 1]."""
    random, right = isinstance(logits_fn, jr.Randomized), 0
    apply = jax.jit(lambda model, x, key: model(x, key) if random else model(x))
    size = min(500, len(x))
    for at in range(0, len(x), size):
        key = jax.random.fold_in(jax.random.key(seed), at)
        noise_key, model_key = jax.random.split(key)
        part = x[at : at + size]
        noisy = jnp.clip(part + sigma * jax.random.normal(noise_key, part.shape), 0, 1)
        predicted = predicted_class(apply(logits_fn, noisy, model_key))
        right += np.sum(np.asarray(predicted) == y[at : at + size])
    return float(right / len(x))
