"""The measurements: one network, one attack or certificate, some images."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array

import jaxrobust as jr
from jaxrobust.gradients import Gradient

BATCH = 25
GRID = [i / 20 for i in range(41)]
"""Radii at which certified accuracy is recorded."""


@dataclasses.dataclass(frozen=True)
class Search:
    """A projected gradient ascent, `attacks.pgd`.

    Attributes:
        gradient: "exact"; "smoothed", over Gaussian noise, which is the second-order attack
            (`attacks.second_order`); "shared", the same with one set of draws for all steps;
            "jvp", towards the top eigenvector of the Hessian; "perturbed", at a random step of
            l2 length sigma sqrt(pixels); "eot", over the noise of the model itself.
        sigma: Of the noise, in [0, 1] pixels (smoothed, shared, perturbed).
        draws: Averaged in a step (smoothed, shared, eot), or products with the Hessian (jvp).
        num_steps: Steps.
        step: Their length, as a share of eps; 2.5 / num_steps where None.
        num_restarts: Runs at most.
        random_start: Start anywhere in the ball.
        loss: What is climbed.
    """

    gradient: Literal["exact", "smoothed", "shared", "jvp", "perturbed", "eot"] = "exact"
    sigma: float = 0.0
    draws: int = 1
    num_steps: int = 200
    step: float | None = None
    num_restarts: int = 1
    random_start: bool = False
    loss: Literal["cross-entropy", "margin"] = "cross-entropy"


@dataclasses.dataclass(frozen=True)
class Other:
    """Another attack of the library.

    Attributes:
        attack: Its name in `jaxrobust.attacks`.
        settings: Its arguments by name; "loss" by name too.
        minimum_norm: Whether it seeks the smallest distance instead of a ball.
    """

    attack: str
    settings: tuple[tuple[str, Any], ...] = ()
    minimum_norm: bool = False


@functools.cache
def other(search: Other) -> Any:
    """The attack, in the form that `evaluate` takes."""
    settings = dict(search.settings)
    if "loss" in settings:
        settings["loss"] = getattr(jr.losses, settings["loss"])
    attack = functools.partial(getattr(jr.attacks, search.attack), **settings)
    return jr.attacks.against(attack) if search.minimum_norm else attack


@functools.cache  # one function for each search, so that it is compiled once for a model's shape
def attack_of(search: Search) -> Any:
    """The attack, in the form that `evaluate` takes."""

    def attack(logits_fn: Any, x: Any, y: Any, *, key: Any, ball: jr.Ball) -> Array:
        return jr.attacks.pgd(logits_fn, x, y, **_arguments(search, x, ball), key=key, ball=ball)

    return attack


def _arguments(search: Search, x: Any, ball: jr.Ball) -> dict[str, Any]:
    share = 2.5 / search.num_steps if search.step is None else search.step
    losses = {"cross-entropy": jr.losses.cross_entropy, "margin": jr.losses.margin}
    return {
        "num_steps": search.num_steps,
        "step_size": share * ball.eps,
        "num_restarts": search.num_restarts,
        "random_start": search.random_start,
        "loss": losses[search.loss],
        "gradient": _gradient(search, math.prod(x.shape[1:])),
    }


def _gradient(search: Search, pixels: int) -> Gradient:
    g = jr.gradients
    match search.gradient:
        case "exact":
            return g.exact
        case "smoothed" | "shared":
            return g.smoothed(search.sigma, search.draws, fresh=search.gradient == "smoothed")
        case "jvp":
            return g.hessian_direction(search.draws)
        case "perturbed":
            return g.perturbed(search.sigma * math.sqrt(pixels))
        case "eot":
            return g.eot(search.draws)


def attacked(
    logits_fn: Any, x: np.ndarray, y: np.ndarray, search: Search | Other, norm: str,
    radii: Sequence[float], *, seed: int, votes: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Accuracy against rising radii; an image counts as broken from the first that breaks it.

    Each radius is only tried on the images that are still right, and judged by `evaluate`; a
    minimum-norm attack is run once, and its distances give the curve.
    """
    if isinstance(search, Other):
        return _by_another(logits_fn, x, y, search, norm, radii, seed)
    attack = attack_of(search)
    report = jr.evaluate(
        logits_fn, (x, y), key=jax.random.key(seed), batch_size=BATCH, votes=votes,
        attacks={f"{eps:g}": jr.attacks.at_eps(attack, eps) for eps in radii},
        ball=jr.Ball(norm, max(radii)),  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    return {
        "accuracy": {"0": report.clean_accuracy, **report.accuracy_after},
        "interval": report.intervals["robust"],
        "standing": "".join("01"[int(right)] for right in report.examples["robust"]),
        "gradients": cost(search),
        "forwards": max(record.forwards or 0 for record in report.attacks.values()),
        "outside": sum(record.outside for record in report.attacks.values()),
        "findings": [finding._asdict() for finding in report.findings],
    }


def _by_another(
    logits_fn: Any, x: np.ndarray, y: np.ndarray, search: Other, norm: str,
    radii: Sequence[float], seed: int,
) -> dict[str, Any]:  # fmt: skip
    attack, name = other(search), search.attack
    pinned = {f"{eps:g}": jr.attacks.at_eps(attack, eps) for eps in radii}
    report = jr.evaluate(
        logits_fn, (x, y), key=jax.random.key(seed), batch_size=BATCH,
        attacks={name: attack} if search.minimum_norm else pinned,
        ball=jr.Ball(norm, max(radii)),  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    record = next(iter(report.attacks.values()))
    at = report.accuracy_at(np.asarray(radii))
    return {
        "accuracy": {"0": report.clean_accuracy}
        | {f"{eps:g}": float(a) for eps, a in zip(radii, at, strict=True)},
        "interval": report.intervals["robust"],
        "standing": "".join("01"[int(right)] for right in report.examples["robust"]),
        "gradients": record.gradients,
        "forwards": record.forwards,
        "median": record.median,
        "outside": 0,
        "findings": [finding._asdict() for finding in report.findings],
    }


def cost(search: Search) -> int:
    """Gradients an image at most; a product with the Hessian counts as one."""
    a_step = search.draws + 1 if search.gradient == "jvp" else search.draws
    return search.num_restarts * search.num_steps * a_step


def gradient_norms(
    logits_fn: Any, x: np.ndarray, y: np.ndarray, search: Search, eps: float, *, seed: int
) -> dict[str, Any]:
    """What an l2 attack meets at each of its steps, averaged over the images."""
    ball = jr.Ball("l2", eps)
    arguments = _arguments(search, x, ball)
    arguments["gradient"] = monitored(arguments["gradient"])
    _, trace = jr.attacks.pgd_trace(
        logits_fn, x, y, **arguments, key=jax.random.key(seed), ball=ball
    )
    mean = lambda values: np.asarray(values, np.float64).mean(0).tolist()
    return {
        "gradient_norm": mean(trace.loss),
        "estimate_norm": mean(trace.gradient_norm),
        "success": mean(trace.success),
    }


def monitored(gradient: Gradient) -> Gradient:
    """The same derivative, but for a value the l2 norm of the exact gradient.

    So `pgd_trace` records, as its loss, what the paper's Figure 2 shows at the points that another
    gradient leads to.
    """

    def transformed(f: Any) -> Any:
        estimate = gradient(f)

        def value(x: Array, key: Array) -> Array:
            estimated = estimate(x, key)
            out, pullback = jr.gradients.vjp(f, jax.lax.stop_gradient(x), key)
            length = jr.threat.norm(pullback(jax.numpy.ones_like(out)), "l2")
            return estimated + jax.lax.stop_gradient(length - estimated)

        return value

    if getattr(gradient, "same_draws", False):
        transformed.same_draws = True  # pyright: ignore[reportFunctionMemberAccess]
    return transformed


def curvature(logits_fn: Any, x: np.ndarray, y: np.ndarray, *, seed: int) -> dict[str, Any]:
    """Gradient and Hessian of two losses at the images: medians over them, in the spectral norm.

    ReLU networks are piecewise linear: of the margin's Hessian nothing is left, of the
    cross-entropy's the softmax's curvature. 20 turns of power iteration, from below.
    """
    single = jr.types.per_example(logits_fn)
    starts = np.asarray(jax.random.normal(jax.random.key(seed), x.shape))
    found = {}
    for name in ("cross_entropy", "margin"):
        loss = getattr(jr.losses, name)

        def one(x: Array, y: Array, start: Array, loss: Any = loss) -> tuple[Array, Array]:
            slope = jax.grad(lambda x: loss(single(x, jax.random.key(seed)), y))
            gradient, push = jax.linearize(slope, x)
            return jr.threat.norm(gradient, "l2"), jr.linalg.power_iteration(push, start, 20).value

        gradient, hessian = jax.lax.map(lambda at, one=one: one(*at), (x, y, starts), batch_size=25)
        found[name] = {
            "gradient": float(np.median(gradient)),
            "hessian": float(np.median(hessian)),
            "largest_hessian": float(np.max(hessian)),
        }
    return found


def certified(
    logits_fn: Any, x: np.ndarray, y: np.ndarray, *, sigma: float, draws: int, seed: int
) -> dict[str, Any]:
    """Certified accuracy against the l2 radius: Algorithm 1 with few draws and with many.

    Few: the paper's 100 draws, its 95 % ends made exact (Bonferroni). Many: the same with more
    draws, at 95 % and at 99.9 %. Each time the three bounds share their draws.
    """
    counted = {}
    for n in (100, draws):
        smoothing = jr.certify.smoothing(
            logits_fn, x, key=jax.random.key(seed), sigma=sigma, n0=0, n=n, alpha=0.05,
            bound="renyi", interval="bonferroni",
        )  # fmt: skip
        counted[n] = smoothing.counts
    curves, abstained = {}, {}
    for n, alpha in ((100, 0.05), (draws, 0.05), (draws, 0.001)):
        found = jr.certify.smoothed_radius(
            counted[n], n=n, sigma=sigma, alpha=alpha, bound="renyi", interval="bonferroni"
        )
        right = found.prediction == y
        name = f"{n} draws, alpha {alpha:g}"
        abstained[name] = float(found.abstain.mean())
        curves[name] = {
            bound: [float(np.mean(right & (radius > r))) for r in GRID]
            for bound, radius in found.radii.items()
        }
    return {
        "radii": GRID,
        "certified": curves,
        "abstained": abstained,
        "majority_right": float(np.mean(counted[draws].argmax(1) == y)),
        "votes_right": float(np.mean(counted[draws][np.arange(len(y)), y] / draws)),
    }


def bounds() -> dict[str, Any]:
    """Radii by simulation (sigma 1), and what unanimous draws can certify at most (sigma 0.4)."""
    radius = {
        "renyi": jr.certify.renyi_radius,
        "cohen": jr.certify.cohen_radius,
        "pixeldp": jr.certify.pixeldp_radius,
    }
    p = np.linspace(0.505, 0.995, 99)
    cases = {"p2 = 1 - p1": 1 - p, "p2 = min(0.1, 1 - p1)": np.minimum(0.1, 1 - p)}
    unanimous = {}
    for interval in ("bonferroni", "goodman"):
        for n in (100, 1000, 2000, 10_000):
            votes = np.eye(1, 10, dtype=np.int64) * n
            found = jr.certify.smoothed_radius(
                votes, n=n, sigma=0.4, alpha=0.05, bound="renyi", interval=interval
            )
            unanimous[f"{interval}, {n} draws"] = {k: float(v[0]) for k, v in found.radii.items()}
    return {
        "p1": p.tolist(),
        "radius": {
            case: {name: of(p, p2, 1.0).tolist() for name, of in radius.items()}
            for case, p2 in cases.items()
        },
        "unanimous_sigma_0.4": unanimous,
    }
