"""The stages of an evaluation, batch by batch, each batch kept as it is finished."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrobust.attacks import salted
from jaxrobust.evaluation._report import CertificateRecord
from jaxrobust.evaluation._store import Store
from jaxrobust.threat import Threat
from jaxrobust.types import Attack, LogitsFn, MarginBound, SmoothedRadius, as_partial


class Bench:
    """Runs stages of an evaluation batch by batch."""

    def __init__(
        self, logits_fn: LogitsFn, x: Any, y: Any, ball: Threat, key: Any, size: int, store: Store,
        progress: bool, scores: Callable[..., dict[str, Any]] | None = None,
    ) -> None:  # fmt: skip
        self.logits_fn, self.x, self.y, self.ball, self.key = logits_fn, x, y, ball, key
        self.size, self.store, self.progress = size, store, progress
        self.scores = scores or (lambda *_: {})  # of detectors: (logits_fn, x, keys) -> by name

    def predict(self, program: Any) -> dict[str, Any]:
        """Judge the clean images."""

        def compute(part: np.ndarray) -> dict[str, np.ndarray]:
            x, keys, _ = self._padded(part)
            keys = salted(keys, "judge clean")
            out = program(self.logits_fn, x, keys)._asdict() | self._scored(x, keys)
            return {k: np.asarray(v)[: len(part)] for k, v in out.items()}

        return self._stage("clean", np.arange(len(self.y)), compute)

    def measure(
        self, stage: str, program: Any, functions: Any, rows: np.ndarray, images: Any = None
    ) -> dict[str, Any]:
        """Hand some rows to a program `(functions, x, y, keys)` that returns a named tuple.

        Args:
            stage: Its name, which salts the keys.
            program: What `sharded` makes.
            functions: Its first argument: the model, and whatever else is the same for all rows.
            rows: Of the data.
            images: One for each of the rows, in place of the data's.
        """

        def compute(part: np.ndarray) -> dict[str, np.ndarray]:
            x, keys, padded = self._padded(part)
            if images is not None:
                x = jnp.asarray(np.asarray(images)[np.searchsorted(rows, padded)], x.dtype)
            y = jnp.asarray(np.asarray(self.y[padded]))
            out = program(functions, x, y, salted(keys, stage))
            return {k: np.asarray(v)[: len(part)] for k, v in out._asdict().items()}

        return self._stage(stage, rows, compute)

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
            out = program(functions, x, y, salted(keys, name), judge_keys, ball)
            return out._asdict() | self._scored(out.image, judge_keys)

        def compute(part: np.ndarray) -> dict[str, np.ndarray]:
            try:
                out = judged(part)
            except ValueError as error:
                raise ValueError(f"attack {name!r}: {error}") from error
            arrays = {k: np.asarray(v)[: len(part)] for k, v in out.items()}
            return arrays | {"image": arrays["image"][part < keep]}

        if len(rows):
            return self._stage(f"attack {name}", rows, compute)
        nobody = jax.eval_shape(lambda: judged(np.zeros(1, int)))
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

    def _scored(self, x: Any, keys: Any) -> dict[str, Any]:
        return {f"score {k}": v for k, v in self.scores(self.logits_fn, x, keys).items()}

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


def spread(n: int, rows: np.ndarray, values: np.ndarray, default: Any) -> np.ndarray:
    """Values of some rows among all n."""
    column = np.full(n, default, dtype=np.result_type(values.dtype, type(default)))
    column[rows] = values
    return column
