"""What is measured of one network, each as a function of the place and the network's name."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import jaxrobust as jr
from experiments.adversarial_training import config, train
from experiments.adversarial_training.config import RECIPES
from experiments.adversarial_training.place import Place

BATCH = 100
MARGIN_RADII = {"mnist": (0.05, 0.1, 0.2, 0.3, 0.4), "cifar10": tuple(k / 255 for k in (2, 8, 20))}
"""From each of which AN-PGD seeks an image's margin."""
MARGIN_STEPS = {"mnist": 40, "cifar10": 10}
STEP = {"mnist": 0.01, "cifar10": 2 / 255}
"""Of the attacks of the table."""
SOURCES = {"mnist": ("pgd-40", "trades", "mma"), "cifar10": ("madry 8", "trades", "mma 20")}
"""Networks whose images are transferred to all others in MMA's table."""


def history(place: Place, name: str) -> dict[str, Any]:
    """Training metrics every 50 steps, and held-out accuracies after each epoch."""
    folder = train.folder_of(name, place.data, place.preset, place.out)
    recipe, setting = RECIPES[place.data][name], config.setting(name, place.data, place.preset)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "epochs": setting.num_epochs,
        "steps": lines[-1]["step"],
        "rises": setting.rises if recipe.rises is None else recipe.rises,
        "training": [line for line in lines if "validation" not in line],
        "validation": [
            {"step": line["step"], **line["validation"]} for line in lines if "validation" in line
        ],
    }


@functools.cache  # the same functions for all networks, so that they share compiled programs
def attacks_of(data: str, kind: str, num_steps: int = 40) -> dict[str, Any]:
    """The attacks of a measurement; "CW" climbs the logit margin at confidence 50 (Madry's CW+).

    `num_steps` is that of the combined attacks.
    """
    step = STEP[data]
    margin = jr.losses.confident(jr.losses.f6, 50.0)
    pgd = functools.partial(jr.attacks.pgd, step_size=step)
    relative = functools.partial(jr.attacks.pgd, step_size=None)
    match data, kind:
        case "mnist", "table":
            return {
                "FGSM": jr.attacks.fgsm,
                "PGD-20": functools.partial(relative, num_steps=20),
                "PGD-40": functools.partial(pgd, num_steps=40),
                "CW-40": functools.partial(pgd, num_steps=40, loss=margin),
            }
        case "mnist", "whole":
            return {"PGD-40": functools.partial(pgd, num_steps=40)}
        case "cifar10", "whole":
            return {"PGD-20": functools.partial(pgd, num_steps=20)}
        case "mnist", "restarts":
            return {"PGD-100 x5": functools.partial(pgd, num_steps=100, num_restarts=5)}
        case "cifar10", "table":
            return {
                "FGSM": jr.attacks.fgsm,
                **{f"PGD-{k}": functools.partial(pgd, num_steps=k) for k in (7, 20)},
                "CW-20": functools.partial(pgd, num_steps=20, loss=margin),
            }
        case "cifar10", "restarts":
            return {
                "PGD-100": functools.partial(pgd, num_steps=100),
                "PGD-100 x5": functools.partial(pgd, num_steps=100, num_restarts=5),
                **{f"CW-{k}": functools.partial(pgd, num_steps=k, loss=margin) for k in (100, 200)},
            }
        case _:  # combined: against the network itself, and one run against each source
            one = functools.partial(relative, num_steps=num_steps)
            own = functools.partial(one, num_restarts=5)
            return {
                "CE x5": own,
                "CW x5": functools.partial(own, loss=jr.losses.margin),  # ends at a success
                "CE": one,
                "CW": functools.partial(one, loss=margin),
            }


def sources(place: Place) -> tuple[str, ...]:
    """Networks whose images are transferred to all others in MMA's table."""
    return SOURCES[place.data] if place.sizes.few_sources else COMBINED[place.data]


def table(place: Place, name: str, kind: str = "table") -> dict[str, Any]:
    """Accuracy under each of the common attacks alone, and under all of them.

    MNIST: at all radii. CIFAR-10: at 8/255, with steps of 2/255, the rows of the paper's tables.
    """
    radii = table_radii(place)
    num = place.sizes.table if kind == "table" else place.sizes.restarts
    return _under(place, name, attacks_of(place.data, kind), radii, num, alone=True)


def table_radii(place: Place) -> tuple[float, ...]:
    """Of the table of methods."""
    return config.RADII["mnist"] if place.data == "mnist" else (config.EPS["cifar10"],)


def whole(place: Place, name: str) -> dict[str, Any]:
    """Accuracy of many images under one attack, for comparisons of networks in pairs of images.

    `right` is a bit for each image, packed, in hexadecimal digits.
    """
    (attack,) = attacks_of(place.data, "whole").values()
    x, y = (part[: place.sizes.whole] for part in place.images)
    subject, ball = place.subject(name), jr.Ball("linf", config.EPS[place.data])
    x_adv = _batched(place, subject, attack, x, y, ball=ball)
    right = np.concatenate([
        np.argmax(subject(x_adv[at : at + BATCH]), -1) == y[at : at + BATCH]
        for at in range(0, len(y), BATCH)
    ])  # fmt: skip
    return {
        "accuracy": float(right.mean()),
        "num_images": len(y),
        "right": np.packbits(right).tobytes().hex(),
    }


def restarts(place: Place, name: str) -> dict[str, Any]:
    """The same under the dear ones: MNIST's PGD of 5 restarts, CIFAR-10's of more steps."""
    return table(place, name, "restarts")


def autoattack(place: Place, name: str) -> dict[str, Any]:
    """Accuracy after each of AutoAttack's members, at the table's radius."""
    members = jr.attacks.autoattack_members("standard", "linf")
    radii = (config.EPS[place.data],)
    return _under(place, name, members, radii, place.sizes.autoattack, alone=False)


def combined(place: Place, name: str) -> dict[str, Any]:
    """Accuracy at rising radii, the worst case of white-box and transferred attacks.

    Each is PGD on the cross-entropy and on the margin, 5 restarts against the network itself, and
    one each against the sources; n steps of 2.5 eps / n. (Published: 5 restarts of 100 steps each.)
    """
    of = attacks_of(place.data, "combined", place.sizes.combined_steps)
    attacks = {kind: of[kind] for kind in ("CE x5", "CW x5")}
    for source in sources(place):
        if source != name:
            attacks |= {
                f"{kind} from {source}": jr.attacks.transfer(place.subject(source), of[kind])
                for kind in ("CE", "CW")
            }
    found = _under(
        place, name, attacks, config.RADII[place.data], place.sizes.combined, alone=False
    )
    robust = [*found["worst case"].values()]
    return found | {
        "average": float(np.mean([found["clean"], *robust])),
        "average robust": float(np.mean(robust)),
    }


def capacity(place: Place, name: str) -> dict[str, Any]:
    """Accuracies and losses of a width: clean, under FGSM and PGD-40."""
    subject, ball = place.subject(name), jr.Ball("linf", config.EPS["mnist"])
    x, y = (part[: place.sizes.table] for part in place.images)
    attacks = {kind: attacks_of("mnist", "table")[kind] for kind in ("FGSM", "PGD-40")}
    images = {"clean": x} | {
        key: _batched(place, subject, attack, x, y, ball=ball) for key, attack in attacks.items()
    }
    logits = {key: subject(x_adv) for key, x_adv in images.items()}
    return {
        "accuracy": {k: float(np.mean(np.argmax(z, -1) == y)) for k, z in logits.items()},
        "loss": {
            k: float(jnp.mean(jax.vmap(jr.losses.cross_entropy)(z, jnp.asarray(y))))
            for k, z in logits.items()
        },
    }


def margins(place: Place, name: str) -> dict[str, Any]:
    """Least distances at which another class is found: 0 where the network is wrong anyway.

    By AN-PGD from several radii, which is how MMA trains, and by FMN, which is not; the distance to
    the farthest corner where neither finds one.
    """
    subject = place.subject(name)
    x, y = (part[: place.sizes.margins] for part in place.images)
    wrong = np.asarray(np.argmax(subject(x), -1) != y)
    farthest = np.max(np.maximum(x, 1 - x).reshape(len(x), -1), axis=1)
    least, steps = farthest, MARGIN_STEPS[place.data]
    attacks = [
        functools.partial(jr.attacks.adaptive_norm_pgd, radius=radius, num_steps=steps)
        for radius in MARGIN_RADII[place.data]
    ]
    for attack in (*attacks, functools.partial(jr.attacks.fmn, norm="linf")):
        x_adv = _batched(place, subject, attack, x, y)
        distance = np.max(np.abs(x_adv - x).reshape(len(x), -1), axis=1)
        least = np.where(distance > 0, np.minimum(least, distance), least)
    least = np.where(wrong, 0.0, least)
    error = least.std(ddof=1) / np.sqrt(len(least)) if len(least) > 1 else 0.0
    return {
        "mean": float(least.mean()),
        "standard error": float(error),
        "not found": float(np.mean(least == farthest)),
        "quantiles": np.quantile(least, np.linspace(0, 1, 21)).round(5).tolist(),
    }


def starts(place: Place, name: str) -> dict[str, Any]:
    """Loss along 40 steps of PGD from many random starts, of the first images that are right."""
    subject = place.subject(name)
    x, y = (part[:100] for part in place.images)
    which = np.flatnonzero(np.argmax(subject(x), -1) == y)[: config.START_IMAGES]
    ball, num = jr.Ball("linf", config.EPS[place.data]), place.sizes.starts
    found = []
    for row in which:
        same = np.repeat(x[row : row + 1], num, axis=0), np.repeat(y[row : row + 1], num)
        x_adv, trace = jr.attacks.pgd_trace(
            subject, *same, key=jax.random.fold_in(jax.random.key(place.seed), row), ball=ball,
            num_steps=40, step_size=STEP[place.data],
        )  # fmt: skip
        last = jax.vmap(jr.losses.cross_entropy)(subject(x_adv), jnp.asarray(same[1]))
        found.append({
            "image": int(row),
            "curves": np.asarray(trace.loss[:20], float).round(4).tolist(),
            "last": np.asarray(last, float).round(4).tolist(),
        })  # fmt: skip
    return {"images": found}


def _under(
    place: Place, name: str, attacks: dict[str, Any], radii: tuple[float, ...], num: int, *,
    alone: bool,
) -> dict[str, Any]:  # fmt: skip
    """Accuracies, by attack and radius where `alone`, and the worst case of all by radius."""
    x, y = (part[:num] for part in place.images)
    pinned = {
        f"{key} at {eps:.4g}": jr.attacks.at_eps(attack, eps)
        for eps in radii
        for key, attack in attacks.items()
    }
    report = jr.evaluate(
        place.subject(name), (x, y), attacks=pinned, ball=jr.Ball("linf", max(radii)),
        key=jax.random.key(place.seed), batch_size=BATCH, survivors_only=not alone,
    )  # fmt: skip
    worst = report.accuracy_at(np.asarray(radii))
    return {
        "clean": report.clean_accuracy,
        "num_images": len(y),
        "accuracy": report.accuracy_under if alone else report.accuracy_after,
        "worst case": {f"{eps:.4g}": float(a) for eps, a in zip(radii, worst, strict=True)},
        "findings": [finding._asdict() for finding in report.findings],
    }


def _batched(
    place: Place, subject: Partial, attack: Callable[..., Any], x: Any, y: Any, **settings: Any
) -> np.ndarray:
    """An attack on so many images at once; row i draws from a key of its own."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(place.seed), jnp.arange(len(x)))
    parts = [
        np.asarray(attack(subject, x[at], y[at], key=keys[at], **settings))
        for at in (slice(begin, begin + BATCH) for begin in range(0, len(x), BATCH))
    ]
    return np.concatenate(parts)
