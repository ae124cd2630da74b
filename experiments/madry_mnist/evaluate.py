"""Attack both trained networks and set the numbers beside the paper's table."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax

import jaxrobust as jr
from experiments import records
from experiments.madry_mnist import train
from experiments.madry_mnist.config import Config
from jaxrobust.identity import digest

PUBLISHED = {"clean": 98.8, "FGSM": 95.6, "PGD-40": 93.2, "PGD-100 x20": 89.3}
"""Paper 001, Table 1 (MNIST, source A), of the adversarially trained network, in percent."""


def attacks() -> dict[str, Any]:
    """The table's white-box rows; steps of 0.01 as published."""
    pgd = functools.partial(jr.attacks.pgd, step_size=0.01)
    return {
        "FGSM": jr.attacks.fgsm,
        "PGD-40": functools.partial(pgd, num_steps=40),
        "PGD-100 x5": functools.partial(pgd, num_steps=100, num_restarts=5),
    }


def table(config: Config, folder: Path, results: Path, command: str) -> None:
    """Evaluate on the test set, once, and write results, figures and page."""
    test = jr.data.load("mnist", config.test)
    model = jr.models.madry_cnn()
    ball = jr.Ball("linf", config.eps)
    entries, numbers = [], {}
    for which in ("natural", "adversarial"):
        trained = folder / which
        logits_fn = records.restored(model.apply, trained, train.steps(which, config))
        if logits_fn is None:
            raise ValueError(f"the {which} network must be trained to its end; see {trained}")
        report = jr.evaluate(
            logits_fn, (test.x, test.y), attacks=attacks(), ball=ball, survivors_only=False,
            key=jax.random.key(config.seed + 1), keep_images=64, progress=True,
            directory=folder / f"{which}-evaluation",
        )  # fmt: skip
        lines = (trained / "metrics.jsonl").read_text().splitlines()
        history = [json.loads(line) for line in lines]
        description = f"madry_cnn on MNIST, trained: {which}"
        reports = {f"linf {config.eps:g}": report}
        entries.append(jr.report.Entry(which, description, reports, {}, history))
        numbers[which] = {
            "clean": report.clean_accuracy,
            **report.accuracy_under,
            "worst case": report.robust_accuracy,
            "weights": digest(logits_fn),
            "intervals": report.intervals,
            "attacks": {k: vars(v) for k, v in report.attacks.items()},
            "last_validation": next(m for m in reversed(history) if "validation" in m),
        }
    notes = ["Trained on 55,000 images; every choice was made on the other 5,000."]
    created = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    document = jr.report.Document("Madry's MNIST table", command, entries, notes, created)
    jr.report.save(document, results / "page")
    record = {
        "command": command,
        "commit": records.commit(),
        "config": dataclasses.asdict(config),
        "environment": jr.evaluation.environment(),
        "num_test": len(test.y),
        "published_percent": PUBLISHED,
        "measured": numbers,
    }
    jr.files.write_json(results / "results.json", record)
