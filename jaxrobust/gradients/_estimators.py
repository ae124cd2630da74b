"""Estimators that average a function over keys or over noise."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Key, PyTree

from jaxrobust.checks import check_count, check_radius
from jaxrobust.gradients._canonical import canonical
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
        n: Number of draws of the model's randomness.

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
        return lambda x, key: _mean(f, x, jax.random.split(key, n))

    return gradient


def smoothed(sigma: float, n: int, fresh: bool = True) -> Gradient:
    """The mean of f over n Gaussian perturbations of the input: the second-order attack's gradient.

    Args:
        sigma: Standard deviation of the noise in pixel units.
        n: Number of draws.
        fresh: True draws new noise at every step of the search. False keeps the draws of the first
            step throughout, those of a `Randomized` model too, as the released code of paper 000
            did by its fixed op seed (there all n draws also coincide: n=1 reproduces it).

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
        def noisy(x: Array, key: Array) -> PyTree:
            noise_key, model_key = jax.random.split(key)
            return f(x + sigma * jax.random.normal(noise_key, x.shape, x.dtype), model_key)

        return lambda x, key: _mean(noisy, x, jax.random.split(key, n))

    gradient.same_draws = not fresh  # pyright: ignore[reportFunctionMemberAccess]
    return gradient


def _mean(f: OneExample, x: Float[Array, "*d"], keys: Key[Array, " n"]) -> PyTree:
    """Mean of f over keys: on a CPU, losses one key after another, all else in one evaluation.

    A CPU gains nothing from the wider batch, which leaves its caches and takes a quarter longer
    (`benchmarks.run smoothing`).
    """
    out = jax.eval_shape(f, x, keys[0])
    if jax.default_backend() != "cpu" or not isinstance(out, jax.ShapeDtypeStruct) or out.shape:
        outputs = jax.vmap(f, (None, 0))(x, keys)
        return jax.tree.map(lambda leaf: leaf.mean(0), outputs)

    loss, consts = jax.closure_convert(f, x, keys[0])
    return _mean_loss(loss)(x, keys, *consts)


def _mean_loss(loss: Callable[..., Array]) -> Callable[..., Array]:
    """Mean over keys, whose derivatives take one draw's memory: in x, constants, of any order."""

    @jax.custom_jvp
    def mean(x: Array, keys: Array, *consts: Array) -> Array:
        add = lambda total, key: (total + loss(x, key, *consts), None)
        return jax.lax.scan(add, jnp.zeros_like(x, shape=()), keys)[0] / len(keys)

    @functools.partial(mean.defjvp, symbolic_zeros=True)
    def mean_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        x, keys, *consts = primals
        inputs = [x, *consts]
        dots = [tangents[0], *tangents[2:]]
        moved = [i for i, dot in enumerate(dots) if not isinstance(dot, SymbolicZero)]

        def of_moved(moving: list[Array], key: Array) -> Array:
            whole = dict(enumerate(inputs)) | dict(zip(moved, moving, strict=True))
            return loss(whole[0], key, *(whole[i] for i in range(1, len(whole))))

        here = [inputs[i] for i in moved]
        value_and_grad = canonical(jax.value_and_grad(of_moved))

        def add(total: Any, key: Array) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, value_and_grad(here, key)), None

        start = (jnp.zeros_like(x, shape=()), [jnp.zeros_like(one) for one in here])
        value, slopes = jax.lax.scan(add, start, keys)[0]
        slope = sum(
            (jnp.sum(slopes[k] * dots[i]) for k, i in enumerate(moved)), jnp.zeros_like(value)
        )
        return value / len(keys), slope / len(keys)

    return mean


def step_key(gradient: Gradient, key: Key[Array, ""], step: int | Array) -> Key[Array, ""]:
    """The key of one step of a search: new at each, unless the gradient shares its draws.

    >>> key = jax.random.key(3)
    >>> bool(step_key(smoothed(1.0, 1, fresh=False), key, 5) == key)
    True
    """
    return key if getattr(gradient, "same_draws", False) else jax.random.fold_in(key, step)
