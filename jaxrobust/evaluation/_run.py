"""`evaluate`: the worst case of each example over all attacks, beside what can be proved."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrobust import checks
from jaxrobust._version import __version__
from jaxrobust.attacks import faces_all, is_minimum_norm, is_transfer, minimised_norm
from jaxrobust.evaluation import _findings as findings
from jaxrobust.evaluation._arguments import check, check_certificates
from jaxrobust.evaluation._bench import Bench, spread
from jaxrobust.evaluation._count import count
from jaxrobust.evaluation._detection import (
    Detector,
    check_detectors,
    score_columns,
    score_program,
    summarised,
)
from jaxrobust.evaluation._judge import (
    attack_program,
    clean_program,
    gradient_program,
    no_derivative,
)
from jaxrobust.evaluation._report import AttackRecord, Report
from jaxrobust.evaluation._store import Store
from jaxrobust.identity import digest, fingerprint
from jaxrobust.threat import Threat
from jaxrobust.types import (
    Attack,
    Examples,
    Finding,
    Keys,
    LogitsFn,
    MarginBound,
    SmoothedRadius,
    as_partial,
)


def evaluate(
    logits_fn: LogitsFn,
    data: Examples,
    *,
    attacks: Mapping[str, Attack],
    ball: Threat,
    key: Keys,
    certificates: Mapping[str, Callable[..., MarginBound | SmoothedRadius]] | None = None,
    detectors: Mapping[str, Detector] | None = None,
    batch_size: int = 256,
    survivors_only: bool = True,
    votes: int = 1,
    keep_images: int = 0,
    directory: str | Path | None = None,
    progress: bool = False,
) -> Report:
    """Attack and certify a classifier, and judge the outcome independently of the attacks.

    Every image that an attack returns is checked for finiteness, measured, brought into ball and
    box, and classified anew; only that counts. After each attack only the examples that are still
    right go to the next, gathered into full batches of one shape, so each attack is traced once
    and strong attacks behind weak ones cost little. Only minimum-norm attacks (`attacks.against`)
    run on all that the clean model gets right, so that `Report.accuracy_at` holds what they find
    whatever stands before them. Batches of attacks are spread over all devices, as the votes of
    smoothed certificates are.

    With detectors, every attack runs on all that the clean model gets right, since an image that
    breaks the model and is rejected does not settle its row. Each image that is judged is scored,
    too: `Report.detectors` says how often clean and attacked ones are rejected and what accuracy
    remains where a rejection counts as right under attack, and as wrong without. Accuracies
    elsewhere in the report know no detector. Attacks that do not know it say little about it:
    `detect.exposed` makes those that do.

    An example's result depends on the key and its index alone: not on its neighbours, the batch
    size, the number of devices or the order of the attacks (each draws from the checksum of its
    name).

    A `flow.FlowBall` is a threat that no image shows: attacks and certificates are called with it,
    their images are classified anew and checked for finiteness and box, but not for the budget; the
    report says so, and records no distances.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`; as a `jax.tree_util.Partial` its weights
            stay out of the compiled program. `Randomized` models are judged with keys of their own.
        data: `(x, y)`: float images in the box and integer labels; memory-mapped arrays are read
            batch by batch. What `data.load` returns will do.
        attacks: By name, in the order in which they are run.
        ball: The threat, a `Ball` or a `flow.FlowBall`; `eps` a scalar or one a row.
        key: Typed key of the whole evaluation.
        certificates: By name, `(x, y, *, key, ball) -> MarginBound | SmoothedRadius`; see
            `certify.on_layers` and `certify.on_model`. The two kinds are reported apart.
        detectors: By name, `detector(outputs) -> (batch,)` of a batch of what the model returns,
            `(logits, embedding)` as a rule; negative rejects. See `jaxrobust.detect`.
        batch_size: Rows at once on each device.
        survivors_only: False runs every attack on every example, for `accuracy_under`; True leaves
            out those already wrong or broken, but see above for minimum-norm attacks and detectors.
        votes: Predictions of a `Randomized` model that vote on each image; the score of a detector
            is their mean.
        keep_images: Keep clean and adversarial images of this many first rows in the report.
        directory: Where finished batches go; an evaluation that was killed and started again with
            the same arguments ends with identical results.
        progress: Show progress bars.

    Returns:
        The report.

    Raises:
        ValueError: For data, labels, key, ball, counts or model outputs that cannot be meant, for
            a certificate that speaks of another threat, for a detector without a score for each
            row, and for a directory of another evaluation.

    >>> import jax.numpy as jnp
    >>> from jaxrobust import Ball
    >>> from jaxrobust.attacks import fgsm
    >>> model = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> x, y = np.array([[0.8], [0.6]], np.float32), np.array([0, 0])
    >>> report = evaluate(model, (x, y), attacks={"fgsm": fgsm}, ball=Ball("linf", 0.2),
    ...                   key=jax.random.key(0), batch_size=2)
    >>> report.clean_accuracy, report.robust_accuracy
    (1.0, 0.5)
    """
    x, y = checks.images_and_labels(data)
    certificates = check_certificates({} if certificates is None else certificates)
    devices = tuple(jax.local_devices())
    num_classes = check(logits_fn, x, y, attacks, certificates, ball, key, batch_size, votes)
    logits_fn = as_partial(logits_fn)
    watched = check_detectors({} if detectors is None else detectors, logits_fn, x)
    settings = {
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "batch_size": batch_size,
        "num_devices": len(devices),
        "survivors_only": survivors_only,
        "votes": votes,
    }
    identity = {
        **settings,
        "jaxrobust": __version__,
        "norm": ball.norm,
        "box": list(ball.box),
        "eps": np.asarray(ball.eps, np.float64).tolist(),
        "keep_images": keep_images,
        "model": fingerprint(logits_fn),
        "attacks": {name: fingerprint(attack) for name, attack in attacks.items()},
        "certificates": {name: fingerprint(bound) for name, bound in certificates.items()},
    }
    # None where there are none, so that a directory of an earlier version stays good.
    identity["detectors"] = {name: fingerprint(d) for name, d in watched.items()} or None
    if directory is not None:  # reads the data once more, batch by batch
        identity |= {"images": digest([x]), "labels": digest([y])}
    scores = functools.partial(_scores, score_program(votes, devices), watched) if watched else None
    bench = Bench(
        logits_fn, x, y, ball, key, batch_size * len(devices), Store(directory, identity), progress,
        scores,
    )  # fmt: skip
    n = len(y)
    eps = np.broadcast_to(np.asarray(ball.eps, np.float64), (n,))

    clean = bench.predict(clean_program(votes, devices))
    correct = clean["prediction"] == np.asarray(y)
    found = findings.probabilities(clean["like_probabilities"])
    found += findings.not_finite(clean["prediction"])
    found += findings.random_predictions(clean["changed"], votes)
    examples: dict[str, np.ndarray] = {
        "label": np.asarray(y),
        "clean_prediction": clean["prediction"],
        "clean_correct": correct,
        **score_columns(watched, clean),
    }
    standing, proof_broken = correct.copy(), ~correct
    broken_by = np.full(n, "", dtype=f"<U{max([1, *map(len, attacks)])}")
    distance = np.where(correct, np.inf, 0.0)
    kept = np.array(x[:keep_images], dtype=np.float32)
    images = {"clean": kept, "adversarial": kept.copy()} if keep_images else {}
    records, after, under = {}, {}, {}
    differentiated = False
    for name, attack in attacks.items():
        all_right = bool(watched) or (faces_all(attack) and ball.measured)
        facing = correct if all_right else standing
        rows = np.flatnonzero(facing) if survivors_only else np.arange(n)
        judged = bench.attack(name, attack, rows, attack_program(votes, devices), keep_images)
        success = spread(n, rows, judged["success"], False)
        newly = standing & success
        shown = rows[(rows < keep_images) & (standing[rows])]
        for row in shown:
            images["adversarial"][row] = judged["image"][np.searchsorted(rows, row)]
        standing &= ~success
        broken_by[newly] = name
        at = spread(n, rows, judged["broken_at"], np.inf).astype(np.float64)
        distance = np.where(correct, np.minimum(distance, at), 0.0)
        examples[f"ran/{name}"] = spread(n, rows, np.ones(len(rows), bool), False)
        examples[f"success/{name}"] = success
        examples[f"prediction/{name}"] = spread(n, rows, judged["prediction"], -1)
        examples[f"distance/{name}"] = spread(n, rows, judged["distance"], np.nan)
        for column, seen in score_columns(watched, judged, f"/{name}").items():
            examples[column] = spread(n, rows, seen, np.nan)
        median = {}
        for which in ("l0", "l2", "linf"):
            column = examples[f"{which}/{name}"] = spread(n, rows, judged[which], np.nan)
            if np.any(broken := correct & ~np.isnan(column)):
                median[which] = float(np.median(column[broken]))
        after[name] = float(standing.mean())
        if not survivors_only:
            under[name] = float((correct & ~success).mean())
        cost = count(attack, logits_fn, x, ball)
        off = spread(n, rows, judged["outside"], False)
        if not is_minimum_norm(attack):
            found += findings.outside(name, off)
        minimised = minimised_norm(attack)
        if minimised is not None and minimised != ball.norm and ball.measured:
            found += findings.other_norm(name, minimised, ball.norm, after[name])
        loose = is_minimum_norm(attack) and not ball.measured
        found += findings.no_budget(name, newly) if loose else []
        proof_broken |= newly & (not loose)
        found += findings.failed(name, spread(n, rows, judged["not_finite"], False))
        found += findings.broken_logits(name, newly & (examples[f"prediction/{name}"] < 0))
        blind = cost[0] == 0 or is_transfer(attack)
        if blind and differentiated:
            found += findings.masking(name, newly)
        differentiated |= not blind
        records[name] = AttackRecord(
            float(judged["seconds"]), len(rows), int(newly.sum()), *cost, int(off.sum()), median
        )
    if attacks and not ball.measured:
        found += findings.not_measured(f"{ball.norm} {eps.max():g}", correct & ~standing)
    if differentiated:
        found += _slopes(bench, devices)
    examples |= {"robust": standing, "broken_by": broken_by, "distance": distance}

    claims, proved, likely = {}, {}, {}
    for name, certificate in certificates.items():
        columns, claims[name] = bench.certify(name, certificate)
        examples |= columns
        if (alpha := claims[name].alpha) is None:
            proved[name] = correct & examples[f"certified/{name}"]
            found += findings.contradiction(name, examples[f"certified/{name}"], proof_broken)
        else:
            likely[name] = examples[f"smoothed/{name}"]
            found += findings.smoothed_contradiction(name, likely[name], correct & ~standing, alpha)

    detected, more, joint = summarised(watched, attacks, examples)
    examples |= more
    counted = {"clean": correct, "robust": standing} | joint
    counted |= {f"certified {k}": v for k, v in proved.items()}
    counted |= {f"smoothed {k}": v for k, v in likely.items()}
    fractions = {k: float(v.mean()) for k, v in counted.items()}
    fractions |= {f"after {k}": v for k, v in after.items()}
    fractions |= {f"under {k}": v for k, v in under.items()}
    return Report(
        norm=ball.norm, eps=float(eps.max()), num_examples=n, num_classes=num_classes,
        clean_accuracy=fractions["clean"], robust_accuracy=fractions["robust"],
        accuracy_after=after, accuracy_under=under,
        certified_accuracy={k: fractions[f"certified {k}"] for k in proved},
        smoothed_accuracy={k: fractions[f"smoothed {k}"] for k in likely},
        intervals={k: _clopper_pearson(round(v * n), n) for k, v in fractions.items()},
        attacks=records, certificates=claims, findings=found, settings=settings,
        environment=environment(), examples=examples, images=images, measured=ball.measured,
        detectors=detected,
    )  # fmt: skip


def _scores(program: Any, detectors: Any, logits_fn: LogitsFn, x: Any, keys: Any) -> Any:
    return program((detectors, logits_fn), x, keys)


def _slopes(bench: Bench, devices: tuple[Any, ...]) -> list[Finding]:
    """What is to be said of the model's gradients."""
    try:
        rows = np.arange(min(bench.size, len(bench.y)))  # the first batch
        slopes = bench.measure("gradients", gradient_program(devices), bench.logits_fn, rows)
    except Exception:
        error = no_derivative(bench.logits_fn, bench.x, bench.y, bench.key)
        if error is None:  # something else went wrong
            raise
        return findings.no_gradients(error, bench.size)
    zero, broken = slopes["zero"], slopes["not_finite"]
    return findings.zero_gradients(zero) + findings.broken_gradients(broken)


def environment() -> dict[str, Any]:
    """Versions, device and compiler flags, for a report."""
    from importlib.metadata import PackageNotFoundError, version

    def version_of(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "numpy", "scipy", "scikit-learn", "flax", "optax")
    return {
        "jaxrobust": __version__,
        **{package: version_of(package) for package in packages},
        "python": platform.python_version(),
        "device": f"{device.platform}: {device.device_kind}",
        "num_devices": jax.device_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _clopper_pearson(successes: int, n: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)
