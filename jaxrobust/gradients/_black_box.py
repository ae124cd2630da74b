"""Derivatives of what has none to offer: by differences of values, or of a stand-in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxrobust.checks import check_count
from jaxrobust.gradients._vjp import Gradient, OneExample

Draw = Callable[..., Array]


def spsa(n: int, delta: float = 0.01) -> Gradient:
    """Simultaneous perturbation: differences of f along n random vectors of signs.

    `mean over v of (f(x + delta v) - f(x - delta v)) / (2 delta) v`, v uniform on {-1, 1}^d: two
    evaluations a draw, with the same key for a randomised model, and never a derivative of f. The
    value is the mean over all 2n of them. Exact in the mean for linear and quadratic f; its
    variance is about `d / n` times the gradient's square.

    f may return a scalar or a pytree of arrays of any shape. Memory for these: one Jacobian, of f's
    outputs x dims. Draws are taken one after another on a CPU, all at once elsewhere (then n times
    that, and n times the model's own).

    Args:
        n: Number of draws. The paper's smallest is 128.
        delta: Change of every pixel in a draw, in pixel units.

    Raises:
        ValueError: For a count below 1, or a change that is not positive.

    References:
        Spall 1992; Uesato et al. 2018, algorithm 1.

    >>> from jaxrobust.gradients import vjp
    >>> plane = lambda x, key: 3 * x[0]
    >>> _, pullback = vjp(spsa(8)(plane), jnp.zeros(1), jax.random.key(0))
    >>> round(float(pullback(jnp.ones(()))[0]), 3)
    3.0
    """
    check_count(n, "n")
    _check_width(delta, "delta")
    return _differences(jax.random.rademacher, int(n), float(delta))


def nes(n: int, sigma: float = 0.001) -> Gradient:
    """Natural evolution strategies: differences of f along n Gaussian vectors.

    `mean over u of (f(x + sigma u) - f(x - sigma u)) / (2 sigma) u`, u ~ N(0, I): in the mean the
    gradient of f smoothed by that noise, for any f that has a mean. The rest is as for `spsa`.

    Args:
        n: Number of draws, each used with both signs (the paper's n counts both).
        sigma: Standard deviation of the noise in pixel units. On models with steps (quantisers), it
            should reach over some of them.

    Raises:
        ValueError: For a count below 1, or a deviation that is not positive.

    References:
        Ilyas et al. 2018, algorithm 1; Salimans et al. 2017.

    >>> f = nes(4, 0.1)(lambda x, key: 2 * x[0])
    >>> round(float(f(jnp.ones(1), jax.random.key(0))), 3)
    2.0
    """
    check_count(n, "n")
    _check_width(sigma, "sigma")
    return _differences(jax.random.normal, int(n), float(sigma))


@functools.cache  # one object for each setting, so that nothing is retraced
def _differences(draw: Draw, n: int, width: float) -> Gradient:
    def gradient(f: OneExample) -> OneExample:
        def estimate(x: Array, key: Array) -> PyTree:
            here = jax.lax.stop_gradient(x)

            def one(key: Array) -> tuple[PyTree, PyTree]:
                direction_key, model_key = jax.random.split(key)
                direction = draw(direction_key, x.shape, x.dtype)
                high = f(here + width * direction, model_key)
                low = f(here - width * direction, model_key)
                value = jax.tree.map(lambda a, b: (a + b) / 2, high, low)
                slope = jax.tree.map(
                    lambda a, b: jnp.multiply.outer((a - b) / (2 * width), direction), high, low
                )
                return value, slope

            value, slope = _mean_over(one, jax.random.split(key, n))
            axes = tuple(range(-x.ndim, 0))
            # A function with this value and this derivative.
            return jax.tree.map(lambda v, s: v + jnp.sum((x - here) * s, axes), value, slope)

        estimate.derivative_free = True  # pyright: ignore[reportFunctionMemberAccess]
        return estimate

    return gradient


def _mean_over(one: Callable[[Array], PyTree], keys: Array) -> PyTree:
    """Mean of a function over keys: one after another on a CPU, which gains nothing from width."""
    if jax.default_backend() != "cpu":
        return jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(one)(keys))
    total = one(keys[0])
    add = lambda total, key: (jax.tree.map(jnp.add, total, one(key)), None)
    if len(keys) > 1:
        total, _ = jax.lax.scan(add, total, keys[1:])
    return jax.tree.map(lambda leaf: leaf / len(keys), total)


def bpda(
    forward: Callable[[Array], Array], backward: Callable[[Array], Array] = lambda x: x
) -> Callable[[Array], Array]:
    """A function of value `forward(x)` that is differentiated as if it were `backward(x)`.

    Backward pass differentiable approximation. It is put *into* the model, in place of the part
    whose gradient is zero, undefined or misleading (a quantiser, a compressor, a denoiser); it is
    no `gradient=` of an attack. What is differentiated is `backward` at x, as in the authors' code.

    Args:
        forward: Function of an array. It is never differentiated in x, though in weights that it
            closes over.
        backward: Function of the same array, of a result of the same shape: the identity, for a
            forward that changes little, or a smooth stand-in.

    Returns:
        A function of an array, fit for jit, vmap, grad and jvp.

    Raises:
        ValueError: When it is called, if the two results differ in shape, or if it was taken for a
            `gradient=`.

    References:
        Athalye et al. 2018, sec. 4.1 (paper 001, gradient masking).

    >>> rounded = bpda(jnp.round)
    >>> jax.value_and_grad(lambda x: rounded(x) ** 2)(1.75)
    (Array(4., dtype=float32...), Array(4., dtype=float32...))
    """

    def approximated(x: Array, *key: Array) -> Array:
        if key or callable(x):  # called as a gradient is, or as its result
            raise ValueError(
                "gradients.bpda must be put into the model, in place of the part without a usable "
                "derivative; it is no gradient= of an attack"
            )
        value, smooth = forward(jax.lax.stop_gradient(x)), backward(x)
        if jnp.shape(value) != jnp.shape(smooth):
            raise ValueError(
                "backward must return an array of the shape of forward's, "
                f"{jnp.shape(value)}; got {jnp.shape(smooth)}"
            )
        value, smooth = jnp.asarray(value), jnp.asarray(smooth)
        if not jnp.issubdtype(value.dtype, jnp.inexact):
            value = value.astype(smooth.dtype)
        return _with_derivative_of(value, smooth)

    return approximated


@jax.custom_jvp
def _with_derivative_of(value: Array, smooth: Array) -> Array:
    """The first, whose derivative is the sum of both, even where the second is infinite."""
    del smooth
    return value


@_with_derivative_of.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    of_value, of_smooth = tangents
    return primals[0], of_value + of_smooth.astype(of_value.dtype)


def _check_width(value: Any, name: str) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite; got {value}")
