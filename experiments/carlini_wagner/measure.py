"""The measurements: attacks towards targets, chunk by chunk, and how far they had to go."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxrobust as jr
from experiments import records

CHUNK = 20
"""Rows attacked at once, and kept on disk as they are finished."""

GRID = np.arange(1, 512) / 512
"""Radii among which one-step and iterative gradient sign find the smallest that succeeds."""


def rows(x: np.ndarray, y: np.ndarray, num_images: int, every: bool, seed: int) -> Any:
    """Images, labels and targets: one drawn at random for each image, or all nine of each."""
    x, y = x[:num_images], y[:num_images]
    if not every:
        shift = np.random.default_rng(seed).integers(1, 10, size=num_images)
        return x, y, ((y + shift) % 10).astype(np.int32)
    target = np.stack([[t for t in range(10) if t != label] for label in y]).astype(np.int32)
    return np.repeat(x, 9, axis=0), np.repeat(y, 9), target.ravel()


def attacked(
    attack: Callable[..., Any], logits_fn: Any, x: np.ndarray, y: np.ndarray,
    target: np.ndarray | None, *, seed: int, folder: Path, about: Any,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Attack all rows; a chunk that is on disk already is not attacked again.

    Args:
        attack: Minimum-norm form; called with `target` unless that is None.
        logits_fn: The network.
        x: Images.
        y: True classes.
        target: Wanted classes, or None for any wrong class.
        seed: Row i draws from `fold_in(key(seed), i)`.
        folder: Where chunks are kept.
        about: What the result depends on besides, as JSON: names the chunks' folder.
    """
    about = [about, code()]
    name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(len(x)))
    aim = jr.losses.margin if target is None else jr.losses.targeted(jr.losses.margin)
    judge = jax.jit(jax.vmap(functools.partial(jr.losses.success, aim)))
    parts = []
    for start in range(0, len(x), CHUNK):
        path = folder / name / f"{start:05d}.npz"
        if not path.exists():
            # The last chunk is filled with rows that are thrown away: one shape, one program.
            part = np.arange(start, start + CHUNK) % len(x)
            aimed = {} if target is None else {"target": target[part]}
            x_adv = np.asarray(attack(logits_fn, x[part], y[part], key=keys[part], **aimed))
            goal = y[part] if target is None else target[part]
            reached = np.asarray(judge(logits_fn(x_adv), goal))
            path.parent.mkdir(parents=True, exist_ok=True)
            jr.files.write_arrays(path, {"x_adv": x_adv, "success": reached})
        with np.load(path) as kept:
            parts.append(dict(kept))
    found = {k: np.concatenate([p[k] for p in parts])[: len(x)] for k in ("x_adv", "success")}
    return found | distances(found["x_adv"], x)


@functools.cache
def code() -> str:
    """A checksum of the attacks' sources: no measurement mixes chunks of two versions."""
    root = Path(jr.__file__).parent
    sources = [Path(__file__), *(root / part for part in ("threat.py", "loops.py"))]
    for part in ("attacks", "gradients", "losses"):
        sources += sorted(root.glob(f"{part}/*.py"))
    return records.code(*sources)


def accuracy(logits_fn: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Share of the images that a network classifies rightly."""
    predicted = jax.jit(lambda model, x: jnp.argmax(model(x), -1))
    right = [
        predicted(logits_fn, x[at : at + 500]) == y[at : at + 500] for at in range(0, len(x), 500)
    ]
    return float(np.mean(np.concatenate(right)))


def distances(x_adv: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
    """l0 (a pixel of several colours counts once, as in the paper), l2 and linf of each row."""
    delta = jnp.asarray(x_adv) - x
    t = jr.threat
    each = {
        "l0": t.num_pixels_changed,
        "l2": lambda d: t.norm(d, "l2"),
        "linf": lambda d: t.norm(d, "linf"),
    }
    return {name: np.asarray(jax.vmap(of)(delta), np.float64) for name, of in each.items()}


def cases(found: dict[str, np.ndarray], norm: str, targets: int) -> dict[str, np.ndarray]:
    """Distance of each image, NaN where it failed: in the average case, or the best and the worst.

    Args:
        found: "success" and distances of each row.
        norm: The distance.
        targets: Rows an image: 1 (the average case) or 9, of which the best case is the nearest
            that was reached, and the worst the farthest, which fails where any target is missed.
    """
    reached = np.asarray(found["success"]).reshape(-1, targets)
    distance = np.where(reached, np.asarray(found[norm]).reshape(-1, targets), np.nan)
    if targets == 1:
        return {"average": distance[:, 0]}
    least = np.min(np.where(reached, distance, np.inf), axis=1)
    return {
        "best": np.where(reached.any(1), least, np.nan),
        "worst": np.where(reached.all(1), np.max(distance, axis=1), np.nan),
    }


def summary(of: dict[str, np.ndarray]) -> dict[str, Any]:
    """Mean distance over successes and share of successes, of each case."""
    return {case: _case(distance) for case, distance in of.items()}


def _case(distance: np.ndarray) -> dict[str, Any]:
    """Mean over what is no NaN, standard error, and share."""
    reached = distance[~np.isnan(distance)]
    error = reached.std(ddof=1) / np.sqrt(len(reached)) if len(reached) > 1 else None
    return {
        "mean": float(reached.mean()) if len(reached) else None,
        "standard_error": None if error is None else float(error),
        "probability": len(reached) / len(distance),
        "num": len(distance),
    }


def smallest_radius(attack: Any, bisect: bool) -> Callable[..., Any]:
    """A targeted attack within a ball as one of minimum norm: the smallest of `GRID` that succeeds.

    Args:
        attack: Of the common form.
        bisect: Whether success is taken to hold from some radius on. One step's is not: it is
            taken once, as far as the grid goes, and looked at at every radius on the way.
    """

    @jax.jit
    def run(logits_fn: Any, x: Any, target: Any, key: Any) -> Any:
        aim = jr.losses.targeted(jr.losses.cross_entropy)
        radii = jnp.asarray(GRID, x.dtype)

        def at(which: Any) -> tuple[Any, Any]:
            ball = jr.Ball("linf", jnp.broadcast_to(radii[which], len(x)))
            x_adv = attack(logits_fn, x, target, key=key, ball=ball, loss=aim)
            return x_adv, succeeds(x_adv)

        def succeeds(x_adv: Any) -> Any:
            judge = functools.partial(jr.losses.success, aim)
            return jax.vmap(judge)(logits_fn(x_adv), target)

        def keep(hit: Any, new: Any, old: Any) -> Any:
            return jnp.where(hit.reshape(-1, *[1] * (x.ndim - 1)), new, old)

        def look(state: tuple[Any, Any], which: Any) -> tuple[tuple[Any, Any], None]:
            image, done = state
            x_adv = x + jnp.clip(farthest - x, -radii[which], radii[which])
            hit = succeeds(x_adv)
            return (keep(hit & ~done, x_adv, image), done | hit), None

        def halve(state: tuple[Any, Any], step: Any) -> tuple[tuple[Any, Any], None]:
            image, reach = state  # the least index that succeeded, or the number of radii
            x_adv, hit = at(reach - step)
            return (keep(hit, x_adv, image), jnp.where(hit, reach - step, reach)), None

        if not bisect:
            farthest, _ = at(jnp.full(len(x), len(GRID) - 1))
            start = (x, jnp.zeros(len(x), bool))
            return jax.lax.scan(look, start, jnp.arange(len(GRID)))[0][0]
        steps = 2 ** jnp.arange(GRID.size.bit_length() - 1, -1, -1)
        return jax.lax.scan(halve, (x, jnp.full(len(x), len(GRID))), steps)[0][0]

    def named(logits_fn: Any, x: Any, y: Any, *, key: Any, target: Any) -> Any:
        del y
        return run(logits_fn, jnp.asarray(x), jnp.asarray(target), key)

    return named
