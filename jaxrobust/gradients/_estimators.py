"""Estimators that average a function over keys or over noise."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
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


def eot(n: int, fresh: bool = True) -> Gradient:
    """Expectation over transformation: the mean of f over n keys.

    Args:
        n: Number of draws of the model's randomness.
        fresh: True draws anew at every step of the search. False keeps the draws of the first step
            throughout: with `n=1` an attack on a single frozen draw, which random defences have
            been judged by.

    References: Athalye et al. 2018 (paper 001, gradient masking).

    >>> import jax.numpy as jnp
    >>> eot(2)(lambda x, key: x)(jnp.ones(3), jax.random.key(0))
    Array([1., 1., 1.], dtype=float32)
    """
    check_count(n, "n")
    return _eot(int(n), bool(fresh))


@functools.cache  # one object for each setting, so that nothing is retraced
def _eot(n: int, fresh: bool) -> Gradient:
    def gradient(f: OneExample) -> OneExample:
        return lambda x, key: _mean(f, x, jax.random.split(key, n))

    gradient.same_draws = not fresh  # pyright: ignore[reportFunctionMemberAccess]
    return gradient


def smoothed(sigma: float, n: int, fresh: bool = True) -> Gradient:
    """The mean of f over n Gaussian perturbations of the input: the second-order attack's gradient.

    Args:
        sigma: Standard deviation of the noise in pixel units.
        n: Number of draws.
        fresh: True draws new noise at every step of the search. False keeps the draws of the first
            step throughout, those of a `Randomized` model too, as the released code of paper 000
            did by its fixed op seed (there all n draws also coincide: n=1 reproduces it).

    References: paper 000, sec. 3 (`E_{d~N(0, sigma^2 I)} grad L(x + d)`).

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
    is_loss = isinstance(out, jax.ShapeDtypeStruct) and not out.shape
    if jax.default_backend() != "cpu" or not is_loss or not jnp.issubdtype(out.dtype, jnp.floating):
        outputs = jax.vmap(f, (None, 0))(x, keys)
        return jax.tree.map(lambda leaf: leaf.mean(0), outputs)

    loss, tracers = _closed(f, x, keys[0])
    varying = x + _varying_zero(x, keys, *tracers).astype(x.dtype)
    if jax.typeof(varying) != jax.typeof(x):
        # The loss varies over devices where x does not; its slope must, or it would be their sum.
        x = varying
        loss, tracers = _closed(f, x, keys[0])
    return _mean_loss(loss, out.dtype)(x, keys, *tracers)


def _closed(f: OneExample, x: Array, key: Array) -> tuple[Callable[..., Array], list[Array]]:
    """`loss(x, key, *tracers)` and the tracers that f closes over.

    They become arguments, as a derivative may be taken after the trace to which they belong.
    """
    closed = jax.make_jaxpr(f)(x, key)
    traced = [isinstance(const, jax.core.Tracer) for const in closed.consts]

    def loss(x: Array, key: Array, *tracers: Array) -> Array:
        given = iter(tracers)
        consts = [
            next(given) if is_traced else const
            for const, is_traced in zip(closed.consts, traced, strict=True)
        ]
        (value,) = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))(x, key)
        return value

    return loss, [const for const in closed.consts if isinstance(const, jax.core.Tracer)]


def _mean_loss(loss: Callable[..., Array], dtype: Any) -> Callable[..., Array]:
    """Mean over keys, whose derivatives of any order take one draw's memory.

    Derivatives in x alone, as in a search, cost no forwards of their own.
    """

    def serial(x: Array, keys: Array, *consts: Array) -> Array:
        like = _varying_zero(x, keys, *consts)
        at = jax.checkpoint(loss)
        return _running_mean(lambda key: at(x, key, *consts), keys, like.astype(dtype), like)

    mean = jax.custom_jvp(serial)

    @functools.partial(mean.defjvp, symbolic_zeros=True)
    def mean_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
        x, keys, *consts = primals
        moved = [i for i, dot in enumerate(tangents) if not isinstance(dot, SymbolicZero)]
        if moved != [0]:
            whole = list(primals)

            def of_moved(*moving: Array) -> Array:
                for i, one in zip(moved, moving, strict=True):
                    whole[i] = one
                return serial(*whole)

            here = tuple(primals[i] for i in moved)
            return jax.jvp(of_moved, here, tuple(tangents[i] for i in moved))
        zero = _varying_zero(x, keys, *consts)
        value_and_grad = canonical(jax.value_and_grad(loss))
        like = (zero.astype(dtype), jnp.zeros_like(x))
        each = lambda key: value_and_grad(x, key, *consts)
        value, slope = _running_mean(each, keys, like, zero)
        return value, jnp.sum(slope * tangents[0]).astype(dtype)

    return mean


def _running_mean(one: Callable[[Array], PyTree], keys: Array, like: PyTree, zero: Array) -> PyTree:
    """Mean of a function over keys, one after another, in single precision at least."""
    wide = lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))

    def add(state: tuple[Array, PyTree], key: Array) -> tuple[tuple[Array, PyTree], None]:
        count, mean = state
        count = count + 1
        return (count, jax.tree.map(lambda m, new: m + (new - m) / count, mean, one(key))), None

    (_, mean), _ = jax.lax.scan(add, (zero, jax.tree.map(wide, like)), keys)
    return jax.tree.map(lambda leaf, wanted: leaf.astype(wanted.dtype), mean, like)


def _varying_zero(*arrays: Array) -> Array:
    """A float32 zero that varies over devices wherever one of the arrays does."""
    firsts = [
        (jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a).ravel()[:1]
        for a in arrays
    ]
    return sum((jnp.where(jnp.any(a != a), 0.0, 0.0) for a in firsts), jnp.zeros(()))


def step_key(gradient: Gradient, key: Key[Array, ""], step: int | Array) -> Key[Array, ""]:
    """The key of one step of a search: new at each, unless the gradient shares its draws.

    >>> key = jax.random.key(3)
    >>> bool(step_key(smoothed(1.0, 1, fresh=False), key, 5) == key)
    True
    """
    return key if getattr(gradient, "same_draws", False) else jax.random.fold_in(key, step)
