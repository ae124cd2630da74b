"""A report's page of a smoothed classifier: what is certified, and what an attack leaves."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import jax

import jaxrobust as jr
from experiments.second_order import measure
from experiments.second_order.config import CPU


def make(
    subject: Any, folder: Path, *, search: measure.Search, radii: list[float], draws: int, seed: int
) -> dict[str, Any]:
    """Attack at rising radii, certify with draws of the same noise, and write the page."""
    sigma = CPU[subject.name].sigma
    noisy = jr.transforms.gaussian_noise(subject.logits_fn, sigma)
    smoothing = functools.partial(jr.certify.smoothing, sigma=sigma, n=draws, n0=100)
    attack = measure.attack_of(search)
    report = jr.evaluate(
        noisy, (subject.x, subject.y), key=jax.random.key(seed), batch_size=measure.BATCH,
        attacks={f"S-O at {eps:g}": jr.attacks.at_eps(attack, eps) for eps in radii},
        ball=jr.Ball("l2", max(radii)), votes=10, keep_images=8,
        certificates={f"{draws} draws": jr.certify.on_model(smoothing, subject.logits_fn)},
    )  # fmt: skip
    about = f"madry_cnn on MNIST, stability training with noise of {sigma:g}, as smoothed by it"
    entry = jr.report.Entry(subject.name, about, {f"l2 {max(radii):g}": report}, {}, [])
    preset, data = folder.parts[-2:]
    notes = [
        f"{len(subject.y)} images ({data}). The classifier is the majority of ten noisy "
        "predictions; the certificate speaks of the true majority."
    ]
    command = f"python -m experiments.second_order --stage evaluate --data {data} --preset {preset}"
    created = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    document = jr.report.Document("A smoothed classifier", command, [entry], notes, created)
    jr.report.save(document, folder / "page")
    return {
        "clean": report.clean_accuracy,
        "accuracy": report.accuracy_after,
        "findings": [finding._asdict() for finding in report.findings],
    }
