"""Detectors in an evaluation: the scores of what is judged, and what they are worth."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array

from jaxrobust.detect import auc
from jaxrobust.evaluation._judge import sharded
from jaxrobust.evaluation._report import DetectorRecord
from jaxrobust.types import LogitsFn, Randomized, per_example

Detector = Callable[[Any], Array]
"""`detector(outputs) -> (batch,)` of a batch of the model's outputs; negative is "rejected"."""


def check_detectors(detectors: Any, logits_fn: LogitsFn, x: Any) -> dict[str, Any]:
    """Refuse what is no dictionary of functions of outputs that give a score a row.

    Returns:
        The detectors as pytrees.
    """
    if not isinstance(detectors, Mapping):
        raise ValueError(
            f"detectors must be a dictionary by name; got {type(detectors).__name__}"
        )  # fmt: skip
    one = jax.ShapeDtypeStruct((3, *x.shape[1:]), np.asarray(x[:1]).dtype)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 3))
    model = jax.vmap(per_example(logits_fn))
    found = {}
    for name, detector in detectors.items():
        if not callable(detector):
            raise ValueError(
                f"detector {name!r} must be a function of outputs; got {detector!r:.60}"
            )
        # A function is no tree of arrays: it becomes a static part of the program.
        bare = jax.tree_util.all_leaves([detector])
        found[name] = Partial(detector) if bare else detector
        try:
            shape = jax.eval_shape(lambda x, keys, d=found[name]: d(model(x, keys)), one, keys)
        except ValueError as error:
            raise ValueError(f"detector {name!r}: {error}") from error
        if getattr(shape, "shape", None) != (3,):
            raise ValueError(
                f"detector {name!r} must return a score for each row, of shape (3,) for a batch of "
                f"3; got {getattr(shape, 'shape', type(shape).__name__)}"
            )
        if not jnp.issubdtype(shape.dtype, jnp.floating):
            raise ValueError(
                f"detector {name!r} must return scores, floats that are negative where it rejects; "
                f"got {shape.dtype}"
            )
    return found


@functools.lru_cache(maxsize=64)
def score_program(votes: int, devices: tuple[Any, ...]) -> Callable[..., dict[str, Array]]:
    """`((detectors, logits_fn), x, judge_keys) -> {name: scores}`, rows sharded over the devices.

    A score that is no number is -inf. That of a `Randomized` model is the mean over its votes.
    """

    def scores(functions: tuple[dict[str, Any], LogitsFn], x: Array, keys: Array) -> Any:
        detectors, logits_fn = functions
        model = jax.vmap(per_example(logits_fn))

        def draw(keys: Array) -> dict[str, Array]:
            outputs = model(x, keys)
            return {name: detector(outputs) for name, detector in detectors.items()}

        if not isinstance(logits_fn, Randomized):
            found = draw(keys)
        else:
            found = jax.lax.map(
                lambda v: draw(jax.vmap(jax.random.fold_in, (0, None))(keys, v)), jnp.arange(votes)
            )
            found = {name: jnp.mean(drawn, 0) for name, drawn in found.items()}
        return {k: jnp.where(jnp.isnan(v), -jnp.inf, v) for k, v in found.items()}

    return sharded(scores, devices)


def score_columns(detectors: Any, found: Mapping[str, Any], suffix: str = "") -> dict[str, Any]:
    """A stage's scores under the names of the report: "score/DETECTOR" and "/ATTACK"."""
    return {f"score/{name}{suffix}": np.asarray(found[f"score {name}"]) for name in detectors}


def summarised(
    detectors: Any, attacks: Any, examples: dict[str, np.ndarray]
) -> tuple[dict[str, DetectorRecord], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Records, more columns, and what the accuracies are fractions of, by name of the interval."""
    records, more, counted = {}, {}, {}
    right = examples["clean_correct"]
    for name in detectors:
        clean = examples[f"score/{name}"]
        accepted = right & (clean >= 0)
        robust = accepted.copy()
        rates, areas, accuracies = {}, {}, {}
        for attack in attacks:
            scores = examples[f"score/{name}/{attack}"]
            fooled = right & examples[f"success/{attack}"]
            safe = right & ~(fooled & (scores >= 0))
            robust &= safe
            rates[attack] = _share(scores[fooled] < 0)
            areas[attack] = auc(clean[fooled], scores[fooled]) if fooled.any() else None
            accuracies[attack] = float(safe.mean())
            counted[f"joint {name} {attack}"] = safe
        counted |= {f"joint clean {name}": accepted, f"joint robust {name}": robust}
        more[f"joint/{name}"] = robust
        records[name] = DetectorRecord(
            _share(clean[right] < 0), float(accepted.mean()), float(robust.mean()), rates, areas,
            accuracies,
        )  # fmt: skip
    return records, more, counted


def _share(mask: np.ndarray) -> float | None:
    return float(mask.mean()) if mask.size else None
