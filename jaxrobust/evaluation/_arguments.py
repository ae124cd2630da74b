"""What `evaluate` refuses before it starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxrobust import checks
from jaxrobust.threat import Threat, check_threat
from jaxrobust.types import LogitsFn, Randomized, as_partial, logits_of, per_example, row_keys


def check(
    logits_fn: LogitsFn, x: Any, y: Any, attacks: Any, certificates: Any, ball: Threat, key: Any,
    batch_size: int, votes: int, names: tuple[str, str] = ("data[0]", "data[1]"),
) -> int:  # fmt: skip
    """Refuse what cannot be meant, x and y by these names; returns the number of classes."""
    if not isinstance(attacks, Mapping) or not (attacks or certificates):
        raise ValueError(
            "attacks must be a dictionary of attacks by name, and hold one unless there are "
            f"certificates; got {attacks!r}"
        )
    for name, attack in attacks.items():
        checks.check_attack(attack, f"attack {name!r}")
    checks.check_count(batch_size, "batch_size")
    checks.check_count(votes, "votes")
    if votes > 1 and not isinstance(logits_fn, Randomized):
        raise ValueError(f"votes must be 1 for a model that is not Randomized; got {votes}")
    if not hasattr(x, "shape") or x.ndim < 2 or x.shape[0] == 0:
        raise ValueError(
            f"{names[0]} must be a non-empty batch of images; got {getattr(x, 'shape', type(x))}"
        )
    checks.check_precision(x, names[0])
    check_threat(ball, len(x))
    if certificates and np.ndim(ball.eps):
        raise ValueError("eps must be a scalar where certificates are asked for; got one a row")
    for start in range(0, len(x), 1024):
        checks.check_images(np.asarray(x[start : start + 1024]), ball.box, names[0])
    keys = row_keys(key, 1)
    if key.ndim:
        raise ValueError(f"key must be a single key; got shape {key.shape}")
    num_classes = _num_classes(logits_fn, x, keys)
    checks.check_labels(y, len(x), num_classes, names[1])
    return num_classes


def _num_classes(logits_fn: LogitsFn, x: Any, keys: Any) -> int:
    model = jax.vmap(per_example(logits_fn))
    one = np.asarray(x[:1])
    shape = checks.output_shapes(model, jax.ShapeDtypeStruct(one.shape, one.dtype), keys)
    return checks.check_logits(logits_of(shape), 1)


def check_sources(sources: Any, x: Any, key: Any, num_classes: int) -> dict[str, Any]:
    """Refuse what is no dictionary of models of these images and so many classes."""
    if not isinstance(sources, Mapping):
        raise ValueError(f"sources must be a dictionary by name; got {type(sources).__name__}")
    for name, source in sources.items():
        if not callable(source):
            raise ValueError(f"source {name!r} must be a function of images; got {source!r:.60}")
        found = _num_classes(source, x, row_keys(key, 1))
        if found != num_classes:
            raise ValueError(
                f"source {name!r} must return logits of {num_classes} classes, as the model does; "
                f"got {found}"
            )
    return {name: as_partial(source) for name, source in sources.items()}


def check_certificates(certificates: Any) -> dict[str, Any]:
    """Refuse what is no dictionary of functions of `(x, y, *, key, ball)`."""
    if not isinstance(certificates, Mapping):
        raise ValueError(
            f"certificates must be a dictionary by name; got {type(certificates).__name__}"
        )
    for name, certificate in certificates.items():
        of = "as a function of (x, y, *, key, ball), which certify.on_layers(bound, layers) makes"
        checks.check_takes(certificate, ("ball",), of, f"certificate {name!r}")
    return dict(certificates)
