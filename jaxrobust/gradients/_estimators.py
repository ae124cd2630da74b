"""Estimators that average a function over keys or over noise."""

from __future__ import annotations

import functools

import jax
from jaxtyping import Array, Key, PyTree

from jaxrobust.checks import check_count, check_radius
from jaxrobust.gradients._vjp import Gradient, OneExample


def exact(f: OneExample) -> OneExample:
    """The function itself: ordinary automatic differentiation.

    >>> exact(len) is len
    True
    """
    return f


def eot(n: int) -> Gradient:
    """Expectation over transformation: the mean of f over n keys.

    Args:
        n: Number of draws of the model's randomness, all in one vmapped evaluation.

    References: Athalye et al. 2018 (paper 001, gradient masking).

    >>> import jax.numpy as jnp
    >>> eot(2)(lambda x, key: x)(jnp.ones(3), jax.random.key(0))
    Array([1., 1., 1.], dtype=float32)
    """
    check_count(n, "n")
    return _eot(int(n))


@functools.cache  # one object for each n, so that nothing is retraced
def _eot(n: int) -> Gradient:
    def gradient(f: OneExample) -> OneExample:
        def mean(x: Array, key: Array) -> PyTree:
            outputs = jax.vmap(f, (None, 0))(x, jax.random.split(key, n))
            return jax.tree.map(lambda leaf: leaf.mean(0), outputs)

        return mean

    return gradient


def smoothed(sigma: float, n: int, fresh: bool = True) -> Gradient:
    """The mean of f over n Gaussian perturbations of the input: the second-order attack's gradient.

    Args:
        sigma: Standard deviation of the noise in pixel units.
        n: Number of draws.
        fresh: True draws new noise at every step of the search. False keeps the draws of the first
            step throughout, as the released code of paper 000 did by its fixed op seed (there all
            n draws also coincide: n=1 reproduces it).

    References: paper 000, sec. 3 (`E_{d~N(0, sigma^2 I)} grad L(x + d)`); methods.md A.

    >>> import jax.numpy as jnp
    >>> f = smoothed(0.1, 4)(lambda x, key: jnp.sum(x))
    >>> f(jnp.zeros(3), jax.random.key(0)).shape
    ()
    """
    check_count(n, "n")
    check_radius(sigma, "sigma")
    return _smoothed(float(sigma), int(n), bool(fresh))


@functools.cache
def _smoothed(sigma: float, n: int, fresh: bool) -> Gradient:
    def gradient(f: OneExample) -> OneExample:
        def mean(x: Array, key: Array) -> PyTree:
            def one(key: Array) -> PyTree:
                noise_key, model_key = jax.random.split(key)
                return f(x + sigma * jax.random.normal(noise_key, x.shape, x.dtype), model_key)

            outputs = jax.vmap(one)(jax.random.split(key, n))
            return jax.tree.map(lambda leaf: leaf.mean(0), outputs)

        return mean

    gradient.same_draws = not fresh  # pyright: ignore[reportFunctionMemberAccess]
    return gradient


def step_key(gradient: Gradient, key: Key[Array, ""], step: int | Array) -> Key[Array, ""]:
    """The key of one step of a search: new at each, unless the gradient shares its draws.

    >>> key = jax.random.key(3)
    >>> bool(step_key(smoothed(1.0, 1, fresh=False), key, 5) == key)
    True
    """
    return key if getattr(gradient, "same_draws", False) else jax.random.fold_in(key, step)
