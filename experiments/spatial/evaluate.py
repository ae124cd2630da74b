"""The measurements, each kept in a JSON file of its own; see `experiments.records`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

import jaxrobust as jr
from experiments import records
from experiments.spatial import config, train
from experiments.spatial.config import RECIPES, Sizes
from jaxrobust.flow import FlowBall, largest_displacement, total_variation
from jaxrobust.identity import digest
from jaxrobust.threat import UNIT_BOX, Box

BATCH = 100
PAPER = Box(-1.0, 1.0)
"""What the paper's inputs lie in, which no image of [0, 1] need fill."""

PRINTED = ("frobenius", "spectral", "sdp")
BOUNDS = ("frobenius", "spectral", "sdp", "sdp_l2")
AFFINE = ("frobenius", "spectral", "sdp", "linear")
"""Bounds of networks of two layers, and of one."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where networks are found and numbers are kept, and what is looked at.

    Attributes:
        out: Checkpoints.
        results: Recorded numbers and figures.
        preset: Name of the preset.
        data: "held-out" or "test".
        seed: Of all draws.
    """

    out: Path
    results: Path
    preset: str
    data: Literal["held-out", "test"]
    seed: int

    @property
    def folder(self) -> Path:
        """Of this preset's numbers."""
        return self.results / self.preset / self.data

    @property
    def sizes(self) -> Sizes:
        """How much is measured."""
        return config.PRESETS[self.preset]

    @functools.cached_property
    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """All images that are looked at, and their classes."""
        held = f"train[-{config.HELD_OUT}:]"
        found = jr.data.load("mnist", "test" if self.data == "test" else held)
        return found.x, found.y

    def network(self, name: str) -> Partial | None:
        """A network as a function that returns logits."""
        return train.trained(name, self.preset, self.out, self.seed, self.results)


def record(place: Place, only: tuple[str, ...] = ()) -> None:
    """Make every measurement whose network is trained."""
    measurements: dict[str, Callable[[Place, str], Any]] = {
        **{f"lower {name}": lower for name in (*config.LOWER, *config.LINEAR)},
        **{f"clean {name}": clean for name in config.SIX},
        **{f"upper {name}": upper for name in (*config.UPPER, *config.LINEAR)},
        **{f"within {name}": within for name in (*config.SIX, "rd", *config.LINEAR)},
        **{f"stadv {name}": stadv for name in config.SIX},
        **{f"rotations {name}": rotations for name in config.SIX},
    }
    for title, measure in measurements.items():
        if only and not any(part in title for part in only):
            continue
        name = title.partition(" ")[2]
        subject = place.network(name)
        if subject is None:
            print(f"{title}: {name} is not trained", flush=True)
            continue
        about = {
            "name": title, "data": place.data, "weights": digest(subject), "seed": place.seed,
            "sizes": place.sizes,
        }  # fmt: skip
        if measure is stadv:
            about["sizes"] = config.STADV[place.preset]
        command = (
            f"python -m experiments.spatial --stage evaluate --data {place.data} "
            f"--preset {place.preset}"
        )
        make = functools.partial(measure, place, name)
        records.keep(place.folder / f"{title.replace(' ', '-')}.json", about, make, command)


def layers(place: Place, name: str) -> list[Any]:
    """A network's layers, on the host."""
    subject = place.network(name)
    assert subject is not None
    return jax.tree.map(np.asarray, train.layers(subject.args[0]["params"], RECIPES[name].kind))


def clean(place: Place, name: str) -> dict[str, float]:
    """Accuracy without an attack, and by how far the true logit leads where it does: the median."""
    x, y = place.images
    subject = place.network(name)
    assert subject is not None
    logits = np.concatenate(
        [np.asarray(subject(x[at : at + 1000])) for at in range(0, len(y), 1000)]
    )
    own = np.arange(logits.shape[1]) == y[:, None]
    lead = logits[own] - np.max(logits, axis=1, where=~own, initial=-np.inf)
    return {"accuracy": float(np.mean(lead > 0)), "lead": float(np.median(lead[lead > 0]))}


def lower(place: Place, name: str) -> dict[str, Any]:
    """What Algorithms 1 and 2 find for each class that is to lose, at each radius.

    In [-1, 1], as in the paper: the surrogate of the theorem, the loss measured at the theorem's
    own input and flow, and the algorithm's, with its trace; in [0, 1] the algorithm's alone.
    """
    network = layers(place, name)
    shape = (28, 28, 1)
    found: dict[str, Any] = {"eps": config.EPS_LOWER}
    radii = jnp.asarray(config.EPS_LOWER)

    def sweep(y: int, box: Box) -> Any:
        def at(eps: Any) -> Any:
            result = jr.attacks.spatial_lower_bound(network, shape, y, ball=FlowBall(eps, box=box))
            return {k: getattr(result, k) for k in ("loss", "surrogate", "trace")}

        return jax.tree.map(np.asarray, jax.vmap(at)(radii))

    for y in range(10):
        wide, images = sweep(y, PAPER), sweep(y, UNIT_BOX)
        for key, values in {
            "surrogate": wide["surrogate"], "theorem": wide["trace"][:, 0], "loss": wide["loss"],
            "loss on images": images["loss"], "trace": wide["trace"],
        }.items():  # fmt: skip
            found.setdefault(key, []).append(values.astype(float).round(5).tolist())
    return found


def samples(place: Place, name: str, y: int) -> dict[str, np.ndarray]:
    """Inputs, what flows make of them, and the flows, at each of `EPS_SAMPLES`, for one class."""
    found: dict[str, list[Any]] = {"x": [], "x_adv": [], "flow": []}
    for eps in config.EPS_SAMPLES:
        ball = FlowBall(eps, box=PAPER)
        one = jr.attacks.spatial_lower_bound(layers(place, name), (28, 28, 1), y, ball=ball)
        for key, value in (
            ("x", one.x), ("x_adv", jr.flow.warp(one.x, one.flow)), ("flow", one.flow),
        ):  # fmt: skip
            found[key].append(np.asarray(value, np.float16))
    return {key: np.stack(values) for key, values in found.items()}


def upper(place: Place, name: str) -> dict[str, Any]:
    """Share of images whose class is not proved, at each radius: as printed, and corrected.

    As printed: `eps |W| |v|`, and eps times the value of section 4.1's program (Eq. 16 has the eps
    that it lacks), found by mixing and not proved; the clean margin is added, without which nothing
    is ever proved; Eq. 16 of one layer. Corrected: `certify.spatial`. And which of the images that
    `within` attacks are proved.
    """
    network, affine = layers(place, name), name in config.LINEAR
    bounds = AFFINE if affine else BOUNDS
    x, y = (part[: place.sizes.bounded] for part in place.images)
    constants = {
        bound: jr.certify.spatial_constants(network, (28, 28), bound=bound)
        for bound in ("sdp", "sdp_l2")
        if bound in bounds
    }

    def proved(images: int, eps: float, bound: Any) -> np.ndarray:
        return jr.certify.spatial(
            network, x[:images], y[:images], ball=FlowBall(eps), bound=bound,
            constants=constants.get(bound),
        ).certified  # fmt: skip

    losses: dict[str, Any] = {
        bound: [float(np.mean(~proved(len(x), eps, bound))) for eps in config.EPS_UPPER]
        for bound in bounds
    }
    of_attacked = {
        bound: [_marks(proved(place.sizes.budget, eps, bound)) for eps in config.EPS_WITHIN]
        for bound in bounds
    }
    changes = {
        f"{bound} per eps": float(np.mean(_per_eps(network, x[:1], y[:1], bound, constants)))
        for bound in bounds
    }
    losses |= _losses_as_printed(network, x, y)
    return {"eps": config.EPS_UPPER, "loss": losses, "proved of attacked": of_attacked, **changes}


def _marks(flags: np.ndarray) -> str:
    """An image a character, 1 where it is so."""
    return "".join("01"[int(flag)] for flag in flags)


def _losses_as_printed(network: list[Any], x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    slopes = as_printed(network)
    logits = np.asarray(jr.layers.apply(network, x), np.float64)
    clean = logits[np.arange(len(y)), y][:, None] - logits
    others = np.arange(clean.shape[1]) != y[:, None]
    return {
        f"{kind}, as printed": [
            float(np.mean(~np.all((clean - eps * slopes[kind][y] > 0) | ~others, axis=1)))
            for eps in config.EPS_UPPER
        ]
        for kind in slopes
    }


def _per_eps(network: list[Any], x: Any, y: Any, bound: Any, constants: dict[str, Any]) -> Any:
    """By how much margins of the first image fall, for each unit of a small radius."""
    near, far = (
        jr.certify.spatial(
            network, x, y, ball=FlowBall(eps), bound=bound, constants=constants.get(bound)
        ).margins
        for eps in (0.0, 1e-3)
    )
    wrong = np.isfinite(near)
    return (near[wrong] - far[wrong]) / 1e-3


def as_printed(network: list[Any]) -> dict[str, np.ndarray]:
    """Eq. 16's, or section 4.1's and 6.8's bounds for `eps = 1`, of each pair of classes.

    Eq. 16's factor 2 is the width of the paper's inputs; images of [0, 1] have 1.
    """
    dense = [layer for layer in network if isinstance(layer, jr.layers.Dense)]
    kernel, out = (np.asarray(layer.kernel, np.float64) for layer in (dense[0], dense[-1]))
    if len(dense) == 1:
        v = np.abs(out[:, :, None] - out[:, None, :])
        return {"linear": np.einsum("p,pij->ij", largest_displacement((28, 28)).ravel(), v)}
    v = out[:, :, None] - out[:, None, :]
    lengths = np.linalg.norm(v, axis=0)
    scaled = kernel * largest_displacement((28, 28)).reshape(-1, 1)
    right = jax.random.normal(jax.random.key(0), (len(kernel), 52))  # sqrt(2 (784 + 512)) columns

    @jax.jit
    def program(v: Any) -> Any:
        matrix = jnp.asarray(v[:, None] * scaled.T, jnp.float32)
        return jr.linalg.mixing(lambda t: matrix @ t, right, 300).value

    sdp = np.zeros(v.shape[1:])
    for i, j in itertools.combinations(range(len(sdp)), 2):
        sdp[i, j] = sdp[j, i] = program(jnp.asarray(v[:, i, j]))
    return {
        "frobenius": np.linalg.norm(kernel) * lengths,
        "spectral": np.linalg.norm(kernel, 2) * lengths,
        "sdp": sdp,
    }


def within(place: Place, name: str) -> dict[str, Any]:
    """Share of images that `flow_pgd` breaks within each radius of the upper bounds."""
    subject = place.network(name)
    assert subject is not None
    x, y = (part[: place.sizes.budget] for part in place.images)
    attack = functools.partial(jr.attacks.flow_pgd, num_steps=place.sizes.steps // 4)
    found: dict[str, Any] = {"eps": config.EPS_WITHIN, "loss": [], "broken": []}
    for eps in config.EPS_WITHIN:
        x_adv = _batched(place, subject, attack, x, y, ball=FlowBall(eps))
        broken = np.asarray(np.argmax(subject(x_adv), -1) != y)
        found["loss"].append(float(np.mean(broken)))
        found["broken"].append(_marks(broken))
    return found


def stadv(place: Place, name: str) -> dict[str, Any]:
    """Success of stAdv on what the network gets right, and the accuracy left, at each tau."""
    subject = place.network(name)
    assert subject is not None
    num_images, num_steps = config.STADV[place.preset]
    x, y = (part[:num_images] for part in place.images)
    right = np.asarray(np.argmax(subject(x), -1) == y)
    found: dict[str, Any] = {"tau": config.TAUS, "clean": float(np.mean(right))}
    for tau in config.TAUS:
        attack = functools.partial(jr.attacks.flow_field, tau=tau, num_steps=num_steps)
        flows = _batched(place, subject, attack, x, y)
        x_adv = np.clip(jax.vmap(jr.flow.warp)(x, flows), 0, 1)
        broken = np.asarray(np.argmax(subject(x_adv), -1) != y)
        variation = np.asarray(jax.vmap(total_variation)(flows))[broken & right]
        for key, value in {
            "success": np.mean(broken[right]),
            "accuracy": np.mean(~broken),
            "variation": np.mean(variation) if len(variation) else np.nan,
            "median variation": np.median(variation) if len(variation) else np.nan,
        }.items():
            found.setdefault(key, []).append(float(value))
    return found


def rotations(place: Place, name: str) -> dict[str, float]:
    """Accuracy under the worst of a grid of rotations and translations."""
    subject = place.network(name)
    assert subject is not None
    x, y = (part[: place.sizes.attacked] for part in place.images)
    x_adv = _batched(place, subject, jr.attacks.rotation_translation, x, y)
    return {"accuracy": float(np.mean(np.argmax(subject(x_adv), -1) == y))}


def _batched(
    place: Place, subject: Partial, attack: Callable[..., Any], x: Any, y: Any, **settings: Any
) -> np.ndarray:
    """An attack on so many images at once; row i draws from a key of its own."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(place.seed), jnp.arange(len(x)))
    size = min(BATCH, len(x))
    parts = [
        np.asarray(attack(subject, x[at], y[at], key=keys[at], **settings))
        for at in (slice(start, start + size) for start in range(0, len(x), size))
    ]
    return np.concatenate(parts)


def pictures(place: Place, name: str) -> dict[str, np.ndarray]:
    """Figure 1: an image that the network gets right, moved in value and moved in space."""
    subject = place.network(name)
    assert subject is not None
    x, y = (part[:20] for part in place.images)
    key = jax.random.key(place.seed)
    changed = jr.attacks.pgd(subject, x, y, key=key, ball=jr.Ball("linf", 0.1), num_steps=40)
    flows = jr.attacks.flow_field(subject, x, y, key=key, num_steps=place.sizes.steps)
    moved = jnp.clip(jax.vmap(jr.flow.warp)(x, flows), 0, 1)
    right, by_value, by_flow = (
        np.asarray(np.argmax(subject(images), -1) == y) for images in (x, changed, moved)
    )
    both = np.flatnonzero(right & ~by_value & ~by_flow)
    which = both[np.argsort(np.asarray(jax.vmap(total_variation)(flows))[both])[len(both) // 2]]
    arrays = {"x": x, "pixels": changed, "moved": moved, "flow": flows}
    return {key: np.asarray(array[which], np.float16) for key, array in arrays.items()}
