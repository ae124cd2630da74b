"""Bound and attack the trained networks: a JSON file a network, its weights, and the figures."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

import jaxrobust as jr
from experiments.certified_mnist import figures
from experiments.certified_mnist.config import EPS, FRONTIER, HELD_OUT, RECIPES
from experiments.certified_mnist.train import MODEL, layers, network
from experiments.records import commit

GRID = (0.0, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)
"""Radii of the bounds that cost nothing to move."""

ATTACKED = (0.05, 0.1, 0.15)
"""Radii of attacks and of the LP bound."""

PUBLISHED = {
    "SDP-NN": {"clean": 4.2, "PGD": "15-16", "SDP bound": 35, "LP bound": 99},
    "LP-NN": {"PGD": 22, "SDP bound": 93, "LP bound": 26},
    "AT-NN": {"PGD": 11},
}
"""Paper 003, sec. 6 and Table 1: errors in percent at eps = 0.1."""

KEPT = ("NT", "SDP dual", "SDP mixing", "SDP robust", "LP")
"""Networks whose weights are recorded, in the form that `jaxrobust certify --layers` reads."""

SPLITS = {"held-out": f"train[-{HELD_OUT}:]", "test": "test"}


def record(names: Sequence[str], out: Path, results: Path, data: str, seed: int) -> None:
    """Evaluate networks one by one, each into its own file, then the figures of all there are."""
    loaded = jr.data.load("mnist", SPLITS[data])
    folder = results / data
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = folder / f"{name.replace(', ', '-').replace(' ', '-').lower()}.json"
        fit = network(name, out, seed)
        found = _evaluate(name, fit, (loaded.x, loaded.y), seed, out / f"judged-{data}")
        if name in KEPT and data == "test":
            weights = {f"{i}.{part}": getattr(layer, part)
                for i, layer in enumerate(layers(fit.params)) for part in ("kernel", "bias")
                if hasattr(layer, part)}  # fmt: skip
            jr.files.write_arrays(path.with_suffix(".npz"), weights)
        found |= {
            "command": f"python -m experiments.certified_mnist --stage evaluate --data {data}",
            "commit": commit(),
            "seed": seed,
            "recipe": dataclasses.asdict((RECIPES | FRONTIER)[name]),
            "environment": jr.evaluation.environment(),
            "num_images": len(loaded.y),
            "published_percent": PUBLISHED,
        }
        jr.files.write_json(path, found)
        print(name, json.dumps(found["at_eps"]), flush=True)
    figures.draw(folder)


def _evaluate(
    name: str, fit: jr.train.Fit, data: tuple[np.ndarray, np.ndarray], seed: int, out: Path
) -> dict[str, Any]:
    """Errors in percent against radius: every bound and every attack."""
    x, y = data
    network_layers = layers(fit.params)
    start = time.perf_counter()
    constants = jr.certify.sdp_constants(network_layers)
    seconds = time.perf_counter() - start
    bounds = {
        "sdp": functools.partial(jr.certify.sdp, constants=constants),
        "spectral": jr.certify.spectral,
        "frobenius": jr.certify.frobenius,
    }
    curves: dict[str, dict[float, float]] = {
        method: {eps: _error(bound(network_layers, x, y, eps=eps)) for eps in GRID}
        for method, bound in bounds.items()
    }
    solved = {eps: bounds["sdp"](network_layers, x, y, eps=eps) for eps in ATTACKED}
    if name in RECIPES:
        boxed = {eps: jr.certify.lp(network_layers, x, y, eps=eps) for eps in ATTACKED}
        curves["lp"] = {eps: _error(bound) for eps, bound in boxed.items()}
        free = jr.certify.lp(network_layers, x, y, eps=EPS, box=None)
        curves["lp, no box"] = {EPS: _error(free)}
        curves["best of sdp and lp"] = {
            eps: 100 * float(np.mean(~_either(solved[eps], boxed[eps]))) for eps in ATTACKED
        }
    if name == "SDP dual":
        c = np.exp(np.float64(fit.objective_state.solver.log_c))
        rows = 1 + MODEL.features[0]
        trained = jr.certify.sdp_constants(network_layers, duals=(c[:, :rows], c[:, rows:]))
        curves["trained duals"] = {
            eps: _error(jr.certify.sdp(network_layers, x, y, eps=eps, constants=trained))
            for eps in GRID
        }
    findings = []
    if name in RECIPES:
        logits_fn = Partial(MODEL.apply, {"params": fit.params})
        attacks = {
            "FGSM": jr.attacks.fgsm,
            "PGD": functools.partial(jr.attacks.pgd, num_steps=40, num_restarts=5),
        }
        certificates = {
            name: jr.certify.on_layers(bound, network_layers)
            for name, bound in (bounds | {"lp": jr.certify.lp}).items()
        }
        for eps in ATTACKED:
            report = jr.evaluate(
                logits_fn, (x, y), attacks=attacks, ball=jr.Ball("linf", eps), batch_size=1000,
                key=jax.random.key(seed + 1), certificates={"sdp": certificates["sdp"]},
                survivors_only=False, directory=out / f"{name}-{eps}",
            )  # fmt: skip
            findings += report.findings
            for attack in attacks:
                curves.setdefault(attack, {})[eps] = 100 * (1 - report.accuracy_under[attack])
        starts = jr.evaluate(
            logits_fn, (x[:1000], y[:1000]), ball=jr.Ball("linf", EPS), batch_size=500,
            attacks={"PGD x50": functools.partial(jr.attacks.pgd, num_steps=40, num_restarts=50)},
            key=jax.random.key(seed + 2), directory=out / f"{name}-starts",
            certificates=certificates,
        )  # fmt: skip
        findings += starts.findings
    if any(finding.name.startswith("certified and broken") for finding in findings):
        raise AssertionError(f"{name}: an example is both certified and broken: {findings}")
    return {
        "network": name,
        "error_percent": {k: {str(e): v for e, v in c.items()} for k, c in curves.items()},
        "at_eps": {k: c[EPS] for k, c in curves.items()} | {"clean": curves["sdp"][0.0]},
        "solve_seconds": seconds,
        "gap": constants.gap,
        "findings": [finding._asdict() for finding in findings],
    }


def _either(one: jr.MarginBound, other: jr.MarginBound) -> np.ndarray:
    """Certified by the larger of two bounds of each margin."""
    return np.all(np.maximum(one.margins, other.margins) > 0, axis=1)


def _error(bound: jr.MarginBound) -> float:
    return 100 * float(np.mean(~bound.certified))
