"""`evaluate`: the worst case of each example over all attacks, beside what can be proved."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust import checks
from jaxrobust._version import __version__
from jaxrobust.attacks import is_minimum_norm, salted
from jaxrobust.evaluation import _findings as findings
from jaxrobust.evaluation._count import count
from jaxrobust.evaluation._judge import attack_program, clean_program, gradient_program
from jaxrobust.evaluation._report import AttackRecord, CertificateRecord, Report
from jaxrobust.evaluation._store import Store
from jaxrobust.identity import digest, fingerprint
from jaxrobust.threat import Ball, check_ball
from jaxrobust.types import (
    Attack,
    Examples,
    Keys,
    LogitsFn,
    MarginBound,
    Randomized,
    SmoothedRadius,
    as_partial,
    logits_of,
    per_example,
    row_keys,
)


def evaluate(
    logits_fn: LogitsFn,
    data: Examples,
    *,
    attacks: Mapping[str, Attack],
    ball: Ball,
    key: Keys,
    certificates: Mapping[str, Callable[..., MarginBound | SmoothedRadius]] | None = None,
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
    and strong attacks behind weak ones cost little. Batches are spread over all devices.

    An example's result depends on the key and its index alone: not on its neighbours, the batch
    size, the number of devices or the order of the attacks (each draws from the checksum of its
    name).

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`; as a `jax.tree_util.Partial` its weights
            stay out of the compiled program. `Randomized` models are judged with keys of their own.
        data: `(x, y)`: float images in the box and integer labels; memory-mapped arrays are read
            batch by batch. What `data.load` returns will do.
        attacks: By name, in the order in which they are run.
        ball: The threat; `eps` a scalar or one a row.
        key: Typed key of the whole evaluation.
        certificates: By name, `(x, y, *, key, ball) -> MarginBound | SmoothedRadius`; see
            `certify.on_layers` and `certify.on_model`. The two kinds are reported apart.
        batch_size: Rows at once on each device.
        survivors_only: False runs every attack on every example, for `accuracy_under`.
        votes: Predictions of a `Randomized` model that vote on each image.
        keep_images: Keep clean and adversarial images of this many first rows in the report.
        directory: Where finished batches go; an evaluation that was killed and started again with
            the same arguments ends with identical results.
        progress: Show progress bars.

    Returns:
        The report.

    Raises:
        ValueError: For data, labels, key, ball, counts or model outputs that cannot be meant, for
            a certificate that speaks of another threat, and for a directory of another evaluation.

    >>> from jaxrobust.attacks import fgsm
    >>> model = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> x, y = np.array([[0.8], [0.6]], np.float32), np.array([0, 0])
    >>> report = evaluate(model, (x, y), attacks={"fgsm": fgsm}, ball=Ball("linf", 0.2),
    ...                   key=jax.random.key(0), batch_size=2)
    >>> report.clean_accuracy, report.robust_accuracy
    (1.0, 0.5)
    """
    x, y = checks.images_and_labels(data)
    certificates = _certificates({} if certificates is None else certificates)
    devices = tuple(jax.devices())
    num_classes = _check(logits_fn, x, y, attacks, certificates, ball, key, batch_size, votes)
    logits_fn = as_partial(logits_fn)
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
    if directory is not None:  # reads the data once more, batch by batch
        identity |= {"images": digest([x]), "labels": digest([y])}
    bench = _Bench(
        logits_fn, x, y, ball, key, batch_size * len(devices), Store(directory, identity), progress
    )
    n = len(y)
    eps = np.broadcast_to(np.asarray(ball.eps, np.float64), (n,))

    clean = bench.predict(clean_program(votes, devices))
    correct = clean["prediction"] == y
    found = findings.probabilities(clean["like_probabilities"])
    found += findings.not_finite(clean["prediction"])
    found += findings.random_predictions(clean["changed"])
    examples: dict[str, np.ndarray] = {
        "label": np.asarray(y),
        "clean_prediction": clean["prediction"],
        "clean_correct": correct,
    }
    standing = correct.copy()
    broken_by = np.full(n, "", dtype=f"<U{max([1, *map(len, attacks)])}")
    distance = np.where(correct, np.inf, 0.0)
    kept = np.array(x[:keep_images], dtype=np.float32)
    images = {"clean": kept, "adversarial": kept.copy()} if keep_images else {}
    records, after, under = {}, {}, {}
    for name, attack in attacks.items():
        rows = np.flatnonzero(standing) if survivors_only else np.arange(n)
        judged = bench.attack(name, attack, rows, attack_program(votes, devices), keep_images)
        success = _spread(n, rows, judged["success"], False)
        newly = standing & success
        shown = rows[(rows < keep_images) & (standing[rows])]
        for row in shown:
            images["adversarial"][row] = judged["image"][np.searchsorted(rows, row)]
        standing &= ~success
        broken_by[newly] = name
        at = _spread(n, rows, judged["broken_at"], np.inf).astype(np.float64)
        distance = np.minimum(distance, at)
        examples[f"ran/{name}"] = _spread(n, rows, np.ones(len(rows), bool), False)
        examples[f"success/{name}"] = success
        examples[f"prediction/{name}"] = _spread(n, rows, judged["prediction"], -1)
        examples[f"distance/{name}"] = _spread(n, rows, judged["distance"], np.nan)
        median = {}
        for which in ("l0", "l2", "linf"):
            column = examples[f"{which}/{name}"] = _spread(n, rows, judged[which], np.nan)
            if np.any(broken := correct & ~np.isnan(column)):
                median[which] = float(np.median(column[broken]))
        after[name] = float(standing.mean())
        if not survivors_only:
            under[name] = float((correct & ~success).mean())
        cost = count(attack, logits_fn, x, num_classes, ball.norm, ball.box)
        off = _spread(n, rows, judged["outside"], False)
        if not is_minimum_norm(attack):
            found += findings.outside(name, off)
        found += findings.failed(name, _spread(n, rows, judged["not_finite"], False))
        if cost[0] == 0 and any(record.gradients != 0 for record in records.values()):
            found += findings.masking(name, newly)
        records[name] = AttackRecord(
            float(judged["seconds"]), len(rows), int(newly.sum()), *cost, int(off.sum()), median
        )
    if any(record.gradients != 0 for record in records.values()):  # None: in an unbounded loop
        slopes = bench.slopes(gradient_program(devices))
        found += findings.zero_gradients(slopes["zero"])
        found += findings.broken_gradients(slopes["not_finite"])
    examples |= {"robust": standing, "broken_by": broken_by, "distance": distance}

    claims, proved, likely = {}, {}, {}
    for name, certificate in certificates.items():
        columns, claims[name] = bench.certify(name, certificate)
        examples |= columns
        if (alpha := claims[name].alpha) is None:
            proved[name] = correct & examples[f"certified/{name}"]
            found += findings.contradiction(name, examples[f"certified/{name}"], ~standing)
        else:
            likely[name] = examples[f"smoothed/{name}"]
            found += findings.smoothed_contradiction(name, likely[name], correct & ~standing, alpha)

    counted = {"clean": correct, "robust": standing}
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
        environment=environment(), examples=examples, images=images,
    )  # fmt: skip


def environment() -> dict[str, Any]:
    """Versions and device, for a report."""
    from importlib.metadata import version

    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "numpy", "flax", "optax")
    return {
        "jaxrobust": __version__,
        **{package: version(package) for package in packages},
        "python": platform.python_version(),
        "device": f"{device.platform}: {device.device_kind}",
        "num_devices": jax.device_count(),
    }


class _Bench:
    """Runs stages of an evaluation batch by batch."""

    def __init__(
        self, logits_fn: LogitsFn, x: Any, y: Any, ball: Ball, key: Any, size: int, store: Store,
        progress: bool,
    ) -> None:  # fmt: skip
        self.logits_fn, self.x, self.y, self.ball, self.key = logits_fn, x, y, ball, key
        self.size, self.store, self.progress = size, store, progress

    def predict(self, program: Any) -> dict[str, Any]:
        """Judge the clean images."""

        def compute(part: np.ndarray) -> dict[str, np.ndarray]:
            x, keys, _ = self._padded(part)
            out = program(self.logits_fn, x, salted(keys, "judge clean"))
            return {k: np.asarray(v)[: len(part)] for k, v in out._asdict().items()}

        return self._stage("clean", np.arange(len(self.y)), compute)

    def slopes(self, program: Any) -> dict[str, Any]:
        """Look at the gradients of the first batch's clean images."""

        def compute(part: np.ndarray) -> dict[str, np.ndarray]:
            x, keys, padded = self._padded(part)
            y = jnp.asarray(np.asarray(self.y[padded]))
            out = program(self.logits_fn, x, y, salted(keys, "gradients"))
            return {k: np.asarray(v)[: len(part)] for k, v in out._asdict().items()}

        return self._stage("gradients", np.arange(min(self.size, len(self.y))), compute)

    def attack(
        self, name: str, attack: Attack, rows: np.ndarray, program: Any, keep: int
    ) -> dict[str, Any]:
        """Attack some rows and judge what comes back; images of the first `keep` rows only."""
        functions = (as_partial(attack), self.logits_fn)

        def judged(part: np.ndarray) -> Any:
            x, keys, padded = self._padded(part)
            eps = np.broadcast_to(np.asarray(self.ball.eps), (len(self.y),))[padded]
            ball = dataclasses.replace(self.ball, eps=jnp.asarray(eps, x.dtype))
            y = jnp.asarray(np.asarray(self.y[padded]))
            judge_keys = salted(keys, f"judge {name}")
            return program(functions, x, y, salted(keys, name), judge_keys, ball)

        def compute(part: np.ndarray) -> dict[str, np.ndarray]:
            try:
                out = judged(part)
            except ValueError as error:
                raise ValueError(f"attack {name!r}: {error}") from error
            arrays = {k: np.asarray(v)[: len(part)] for k, v in out._asdict().items()}
            return arrays | {"image": arrays["image"][part < keep]}

        if len(rows):
            return self._stage(f"attack {name}", rows, compute)
        nobody = jax.eval_shape(lambda: judged(np.zeros(1, int)))._asdict()
        return {k: np.empty((0, *v.shape[1:]), v.dtype) for k, v in nobody.items()} | {
            "seconds": 0.0
        }

    def certify(
        self, name: str, certificate: Callable[..., MarginBound | SmoothedRadius]
    ) -> tuple[dict[str, np.ndarray], CertificateRecord]:
        """Certify all rows: columns for the examples, and what is claimed."""
        radius = float(np.max(np.asarray(self.ball.eps)))

        def compute(part: np.ndarray) -> dict[str, np.ndarray]:
            keys = salted(_fold_rows(self.key, jnp.asarray(part)), "certificates")
            y = self.y[part]
            bound = certificate(self.x[part], y, key=keys, ball=self.ball)
            spoken = radius if isinstance(bound, SmoothedRadius) else bound.eps  # has all radii
            close = radius <= spoken <= radius * (1 + 1e-6)  # never of a smaller ball
            if bound.norm != self.ball.norm or not close:
                raise ValueError(
                    f"certificate {name!r} must speak of {self.ball.norm} {radius:g}, the threat "
                    f"evaluated; its bound is for {bound.norm} {spoken:g}"
                )
            box = getattr(bound, "box", None)
            if box is not None and not (
                box[0] <= self.ball.box.low and self.ball.box.high <= box[1]
            ):
                raise ValueError(
                    f"certificate {name!r} must hold for all of the box {tuple(self.ball.box)} "
                    f"evaluated; its bound takes {tuple(box)} for granted"
                )
            columns, claim = _columns(name, bound, y, radius)
            claim = {k: np.full(len(part), v) for k, v in claim.items()}
            return columns | {f"claim {k}": v for k, v in claim.items()}

        out = self._stage(f"certificate {name}", np.arange(len(self.y)), compute)
        seconds = float(out.pop("seconds"))
        claim = {k: _same(name, k, v) for k, v in out.items() if k.startswith("claim ")}
        columns = {k: v for k, v in out.items() if k not in claim}
        record = {k.removeprefix("claim "): v for k, v in claim.items()}
        return columns, CertificateRecord(seconds, norm=self.ball.norm, eps=radius, **record)

    def _stage(
        self, stage: str, rows: np.ndarray, compute: Callable[[np.ndarray], dict[str, Any]]
    ) -> dict[str, Any]:
        parts, seconds = [], 0.0
        starts = range(0, len(rows), self.size)
        with _bar(self.progress, stage, len(starts)) as advance:
            for number, start in enumerate(starts):
                part = rows[start : start + self.size]
                arrays = self.store.load(stage, number, part)
                if arrays is None:
                    began = time.perf_counter()
                    arrays = compute(part)
                    arrays["seconds"] = np.array([time.perf_counter() - began])
                    self.store.save(stage, number, part, arrays)
                seconds += float(arrays.pop("seconds")[0])
                parts.append(arrays)
                advance()
        joined = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
        return joined | {"seconds": seconds}

    def _padded(self, part: np.ndarray) -> tuple[Any, Any, np.ndarray]:
        """Images and keys of some rows, repeated to fill the one shape that is compiled."""
        padded = part[np.arange(self.size) % len(part)]
        x = jnp.asarray(np.asarray(self.x[padded]))
        return x, _fold_rows(self.key, jnp.asarray(padded)), padded


def _columns(
    name: str, bound: MarginBound | SmoothedRadius, y: Any, eps: float
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What a certificate says of each row, and what it says of itself."""
    claim = {"method": bound.method, "proof": bound.proof}
    if isinstance(bound, MarginBound):
        margin = np.min(bound.margins, axis=1)
        return {f"certified/{name}": bound.certified, f"margin/{name}": margin}, claim
    columns = {
        f"smoothed/{name}": bound.certified(y, eps),
        f"smoothed_prediction/{name}": bound.prediction,
        f"radius/{name}": bound.radius,
        f"p1_low/{name}": bound.p1_low,
        f"p2_high/{name}": bound.p2_high,
        **{f"{which}_radius/{name}": radius for which, radius in bound.radii.items()},
    }
    return columns, claim | {"alpha": bound.alpha, "n": bound.n, "sigma": bound.sigma}


def _same(name: str, what: str, values: np.ndarray) -> Any:
    """The one value that all batches give, or an error: a report makes one claim."""
    if len(found := np.unique(values)) > 1:
        raise ValueError(
            f"certificate {name!r} must make one {what} for all images; got {found.tolist()[:5]}"
        )
    return values[0].item()


@jax.jit
def _fold_rows(key: Any, rows: Any) -> Any:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows)


def _spread(n: int, rows: np.ndarray, values: np.ndarray, default: Any) -> np.ndarray:
    """Values of some rows among all n."""
    column = np.full(n, default, dtype=np.result_type(values.dtype, type(default)))
    column[rows] = values
    return column


def _one(x: Any) -> np.ndarray:
    return np.asarray(x[:1])


def _check(
    logits_fn: LogitsFn, x: Any, y: Any, attacks: Any, certificates: Any, ball: Ball, key: Any,
    batch_size: int, votes: int,
) -> int:  # fmt: skip
    """Refuse what cannot be meant; returns the number of classes."""
    if not isinstance(attacks, Mapping) or not (attacks or certificates):
        raise ValueError(
            "attacks must be a dictionary of attacks by name, and hold one unless there are "
            f"certificates; got {attacks!r}"
        )
    checks.check_count(batch_size, "batch_size")
    checks.check_count(votes, "votes")
    if votes > 1 and not isinstance(logits_fn, Randomized):
        raise ValueError(f"votes must be 1 for a model that is not Randomized; got {votes}")
    if not hasattr(x, "shape") or x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(
            f"data[0] must be a non-empty batch of images; got {getattr(x, 'shape', type(x))}"
        )
    if x.dtype not in (np.float32, np.float64) and jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"data[0] must be float32 or float64, so that distances can be judged; got {x.dtype}"
        )
    check_ball(ball, len(x))
    if certificates and np.ndim(ball.eps):
        raise ValueError("eps must be a scalar where certificates are asked for; got one a row")
    for start in range(0, len(x), 1024):
        checks.check_images(np.asarray(x[start : start + 1024]), ball.box, "data[0]")
    keys = row_keys(key, 1)
    if key.ndim:
        raise ValueError(f"key must be a single key for evaluate; got shape {key.shape}")
    model = jax.vmap(per_example(logits_fn))
    one = _one(x)
    shape = jax.eval_shape(model, jax.ShapeDtypeStruct(one.shape, one.dtype), keys)
    num_classes = checks.check_logits(logits_of(shape), 1)
    checks.check_labels(y, len(x), num_classes, "data[1]")
    return num_classes


def _certificates(certificates: Any) -> dict[str, Any]:
    """Refuse what is no dictionary of functions of `(x, y, *, key, ball)`."""
    if not isinstance(certificates, Mapping):
        raise ValueError(
            f"certificates must be a dictionary by name; got {type(certificates).__name__}"
        )
    for name, certificate in certificates.items():
        takes = inspect.signature(certificate).parameters if callable(certificate) else {}
        if "ball" not in takes and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
            raise ValueError(
                f"certificate {name!r} must be a function of (x, y, *, key, ball), as "
                f"certify.on_layers(bound, layers) makes them; got {certificate!r:.60}"
            )
    return dict(certificates)


def _clopper_pearson(successes: int, n: int) -> tuple[float, float]:
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(0.95, method="exact")
    return float(interval.low), float(interval.high)


@contextlib.contextmanager
def _bar(show: bool, stage: str, total: int) -> Iterator[Callable[[], None]]:
    if not show or total == 0:
        yield lambda: None
        return
    from rich import get_console
    from rich.progress import Progress

    with Progress(transient=True, disable=not get_console().is_terminal) as bar:
        task = bar.add_task(stage, total=total)
        yield lambda: bar.advance(task)
