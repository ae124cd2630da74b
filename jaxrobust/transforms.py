"""Models made of models: `logits_fn` in, `logits_fn` out."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from jaxrobust.types import LogitsFn, Randomized, as_partial


def normalized(logits_fn: LogitsFn, mean: Any, std: Any) -> LogitsFn:
    """Put `(x - mean) / std` in front of a model, so that attacks live in [0, 1] pixels.

    Args:
        logits_fn: A model of normalised images, possibly `Randomized`.
        mean: What to subtract, a scalar or one a channel (the last axis).
        std: What to divide by, likewise; positive.

    Returns:
        The model of raw images, a pytree wherever the given one is.

    Raises:
        ValueError: If a deviation is not positive.

    >>> normalized(lambda x: x, 0.5, 0.25)(jnp.array([[1.0, 0.5]]))
    Array([[2., 0.]], dtype=float32)
    """
    if not np.all(np.asarray(std) > 0):
        raise ValueError(f"std must be positive; got {std}")
    weights = (jnp.asarray(mean), jnp.asarray(std))
    if isinstance(logits_fn, Randomized):
        return Randomized(Partial(_normalized, logits_fn.fn, *weights))
    return Partial(_normalized, as_partial(logits_fn), *weights)


def _normalized(logits_fn: LogitsFn, mean: Array, std: Array, x: Array, *key: Array) -> PyTree:
    return logits_fn((x - mean.astype(x.dtype)) / std.astype(x.dtype), *key)
