"""Models made of models, `logits_fn` in, `logits_fn` out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from jaxrobust.checks import check_sigma, check_temperature
from jaxrobust.types import Images, LogitsFn, Randomized, as_partial, logits_of, row_keys


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


def _normalized(logits_fn: LogitsFn, mean: Array, std: Array, x: Images, *key: Array) -> PyTree:
    return logits_fn((x - mean.astype(x.dtype)) / std.astype(x.dtype), *key)


def beside(logits_fn: LogitsFn, reference: Any) -> LogitsFn:
    """A model with constant logits beside its own, for a loss of both such as `losses.kl`.

    Args:
        logits_fn: A deterministic model of one image at a time (attacks call it so under `vmap`).
        reference: `(classes,)` the logits that each of its rows gets for company.

    Returns:
        `x -> (logits, reference)`, a pytree.

    >>> beside(lambda x: x, jnp.zeros(2))(jnp.ones((1, 2)))
    (Array([[1., 1.]], dtype=float32), Array([[0., 0.]], dtype=float32))
    """
    return Partial(_beside, as_partial(logits_fn), jnp.asarray(reference))


def _beside(logits_fn: LogitsFn, reference: Array, x: Array) -> tuple[Array, Array]:
    logits = logits_of(logits_fn(x))
    return logits, jnp.broadcast_to(reference, logits.shape)


def ensemble(logits_fns: Sequence[LogitsFn]) -> LogitsFn:
    """One model of several: the mean of their probabilities, as logits.

    Probabilities, not logits: models trained at different radii have logits of different scales,
    and in a mean of logits the largest would outvote the others. The mean is a smooth function of
    the image, so every attack sees through it.

    Args:
        logits_fns: Models of the same images and classes, each as likely to be right. If any is
            `Randomized`, so is the ensemble, and each such member gets a key of its own.

    Returns:
        The model whose logits are `log(mean_i softmax(z_i))`, a pytree wherever all members are.

    Raises:
        ValueError: If there are none; for one that is no model, or, when called, has classes of its
            own.

    References: PGD-ens and PGDLS-ens of Ding et al. 2020 (MMA; paper 001, table 1), which are made
        of models trained at several eps; paper 001 does not say what is averaged.

    >>> ensemble([lambda x: x, lambda x: -x])(jnp.array([[0.0, 2.0]]))  # log 1/2
    Array([[-0.693147..., -0.693147...]], dtype=float32)
    """
    if not isinstance(logits_fns, Sequence) or not all(callable(one) for one in logits_fns):
        raise ValueError(f"logits_fns must be a list of models; got {logits_fns!r:.60}")
    if not logits_fns:
        raise ValueError("logits_fns must hold at least one model; got none")
    members = tuple(as_partial(one) for one in logits_fns)
    if any(isinstance(one, Randomized) for one in members):
        return Randomized(Partial(_mean_softmax, members))
    return Partial(_mean_softmax, members)


def _mean_softmax(members: tuple[LogitsFn, ...], x: Any, *key: Array) -> Array:
    outputs = [
        one(x, jax.random.fold_in(key[0], i)) if isinstance(one, Randomized) else one(x)
        for i, one in enumerate(members)
    ]
    logits = [logits_of(found) for found in outputs]
    if len({found.shape for found in logits}) > 1:
        shapes = ", ".join(str(found.shape) for found in logits)
        raise ValueError(f"logits_fns must be models of the same classes; got logits of {shapes}")
    log_softmax = jax.nn.log_softmax(jnp.stack(logits))
    count = jnp.asarray(len(members), log_softmax.dtype)
    return jax.nn.logsumexp(log_softmax, axis=0) - jnp.log(count)


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


def randomized(logits_fn: LogitsFn, change: Callable[[Array, Array], Array]) -> Randomized:
    """Put a random change of the image in front of a model, a draw of its own for each row.

    With `resize_and_pad`, the input randomisation of Xie et al. 2018 (IRd of paper 001). Attack it
    by `pgd(..., gradient=gradients.eot(n))`: that defence alone fell to it (Athalye et al. 2018).

    Args:
        logits_fn: A model of what `change` returns, possibly `Randomized`: it then gets a key of
            its own.
        change: `change(x, key)` of one image, such as `crop_and_flip`; differentiable where
            attacks are to see through it. `train.fit(augment=...)` takes the same function.

    Returns:
        The random model; row i of a batch is changed by `fold_in` of a part of the key and i.

    References: Xie et al. 2018; Athalye et al. 2018 (paper 001).

    >>> turned = randomized(lambda x: x, lambda x, key: x + jax.random.normal(key, x.shape))
    >>> turned(jnp.zeros((2, 3)), jax.random.key(0)).shape
    (2, 3)
    """
    return Randomized(Partial(_changed, as_partial(logits_fn), Partial(change)))


def _changed(logits_fn: LogitsFn, change: Any, x: Array, key: Array) -> PyTree:
    change_key, model_key = jax.random.split(key)
    x = jax.vmap(change)(x, row_keys(change_key, x.shape[0]))
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

    References: Pang et al. 2018 (RCE); paper 004 leaves it out.

    >>> reversed_logits(lambda x: x)(jnp.array([[3.0, 1.0]]))
    Array([[-3., -1.]], dtype=float32)
    """
    if isinstance(logits_fn, Randomized):
        return Randomized(Partial(_reversed, logits_fn.fn))
    return Partial(_reversed, as_partial(logits_fn))


def _reversed(logits_fn: LogitsFn, x: Images, *key: Array) -> PyTree:
    return reversed_outputs(logits_fn(x, *key))


def reversed_outputs(outputs: PyTree) -> PyTree:
    """What `reversed_logits` makes of a model's outputs.

    >>> reversed_outputs((jnp.array([3.0, 1.0]), "untouched"))
    (Array([-3., -1.], dtype=float32), 'untouched')
    """
    reverse = -logits_of(outputs)
    return (reverse, *outputs[1:]) if isinstance(outputs, tuple) else reverse


def rescaled_logits(logits_fn: LogitsFn, temperature: float | None = None) -> LogitsFn:
    """The model with smaller logits, so that a softmax over them does not saturate.

    Predictions stay as they are; gradients of the cross-entropy, which underflow where one logit is
    some hundred above the others, come back. Attack this model instead (`attacks.through`).

    Args:
        logits_fn: A model, possibly `Randomized`, of logits or of a tuple that they are the first
            of.
        temperature: What logits are divided by: a network distilled at T wants T. None brings each
            image's logits to unit standard deviation, by a factor that counts as a constant in
            derivatives, so that no scale of the logits is left.

    Returns:
        The rescaled model, a pytree wherever the given one is.

    Raises:
        ValueError: For a temperature that is not positive and finite.

    References: Carlini and Wagner 2017, sec. IV (paper 001) divide a distilled network's logits by
        its temperature; the difference of logits ratio (`losses.dlr`) rescales by their own spread.

    >>> large = rescaled_logits(lambda x: 1000 * x)
    >>> large(jnp.array([[2.0, 0.0, -2.0]])).round(3)
    Array([[ 1.225,  0.   , -1.225]], dtype=float32)
    """
    scale = None
    if temperature is not None:
        check_temperature(temperature)
        scale = jnp.asarray(temperature)
    if isinstance(logits_fn, Randomized):
        return Randomized(Partial(_rescaled, logits_fn.fn, scale))
    return Partial(_rescaled, as_partial(logits_fn), scale)


def _rescaled(logits_fn: LogitsFn, scale: Array | None, x: Images, *key: Array) -> PyTree:
    outputs = logits_fn(x, *key)
    logits = logits_of(outputs)
    if scale is None:
        spread = jax.lax.stop_gradient(jnp.std(logits, axis=-1, keepdims=True))
        shrunk = logits / jnp.where(spread > 0, spread, 1)
    else:
        shrunk = logits / scale.astype(logits.dtype)
    return (shrunk, *outputs[1:]) if isinstance(outputs, tuple) else shrunk
