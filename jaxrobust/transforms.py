"""Models made of models: `logits_fn` in, `logits_fn` out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from jaxrobust.checks import check_sigma
from jaxrobust.types import LogitsFn, Randomized, as_partial, logits_of


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


def gaussian_noise(logits_fn: LogitsFn, sigma: float) -> Randomized:
    """Add Gaussian noise to a model's input: the noisy classifier that smoothing takes votes of.

    Attack it by `pgd(..., gradient=gradients.eot(n))`, judge it by `evaluate(..., votes=n)`,
    certify the vote by `certify.smoothing`, which adds the noise itself.

    Args:
        logits_fn: A model, possibly `Randomized`: it then gets a key of its own.
        sigma: Standard deviation of the noise in the units of its input.

    Returns:
        The noisy model; each call draws noise for the whole batch from its key. Noisy images are
        not clipped to the box.

    Raises:
        ValueError: If sigma is not finite and positive.

    References: paper 000, Algorithm 1; Cohen et al. 2019.

    >>> noisy = gaussian_noise(lambda x: x, 0.5)
    >>> noisy(jnp.zeros((2, 3)), jax.random.key(0)).shape
    (2, 3)
    """
    check_sigma(sigma)
    return Randomized(Partial(_noisy, as_partial(logits_fn), jnp.asarray(sigma)))


def _noisy(logits_fn: LogitsFn, sigma: Array, x: Array, key: Array) -> PyTree:
    noise_key, model_key = jax.random.split(key)
    x = x + sigma.astype(x.dtype) * jax.random.normal(noise_key, x.shape, x.dtype)
    return logits_fn(x, model_key) if isinstance(logits_fn, Randomized) else logits_fn(x)


def reversed_logits(logits_fn: LogitsFn) -> LogitsFn:
    """The model with `-z` in place of its logits z, whatever else it returns left as it is.

    A network trained by `objectives.reverse_cross_entropy` or `pdm` predicts by `softmax(-z)`:
    attacks, `evaluate` and detectors want it so wrapped, and training as it is.

    Args:
        logits_fn: A model, possibly `Randomized`, of logits or of a tuple that they are the first
            of.

    Returns:
        The reversed model, a pytree wherever the given one is.

    References: Pang et al. 2018 (RCE); paper 004 leaves it out; methods.md K.

    >>> reversed_logits(lambda x: x)(jnp.array([[3.0, 1.0]]))
    Array([[-3., -1.]], dtype=float32)
    """
    if isinstance(logits_fn, Randomized):
        return Randomized(Partial(_reversed, logits_fn.fn))
    return Partial(_reversed, as_partial(logits_fn))


def _reversed(logits_fn: LogitsFn, x: Array, *key: Array) -> PyTree:
    return reversed_outputs(logits_fn(x, *key))


def reversed_outputs(outputs: PyTree) -> PyTree:
    """What `reversed_logits` makes of a model's outputs.

    >>> reversed_outputs((jnp.array([3.0, 1.0]), "untouched"))
    (Array([-3., -1.], dtype=float32), 'untouched')
    """
    reverse = -logits_of(outputs)
    return (reverse, *outputs[1:]) if isinstance(outputs, tuple) else reverse
