"""Gradient estimators: transformations of functions of one example.

A gradient takes `f: (x, key) -> out` on one example (a scalar loss or a vector of logits) and
returns a function of the same signature whose value and derivative are the estimates. Every search
differentiates through `vjp`, so an estimator works with every attack.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Literal
from jax.extend.core.primitives import conv_general_dilated_p
from jaxtyping import Array, Float, Key, PyTree

from jaxrobust.checks import check_count, check_radius

OneExample = Callable[[Array, Array], PyTree]
Gradient = Callable[[OneExample], OneExample]

GRADIENT = "jaxrobust_gradient"
"""Marks one pull-back in a jaxpr; `evaluate` counts these."""

CALLS = ("jit", "pjit", "core_call", "closed_call")
"""Primitives that `canonical` looks into: plain calls of an inner jaxpr."""


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

    >>> bool(jnp.all(step_key(smoothed(1.0, 1, fresh=False), jax.random.key(3), 5)
    ...              == jax.random.key(3)))
    True
    """
    return key if getattr(gradient, "same_draws", False) else jax.random.fold_in(key, step)


def vjp(
    f: OneExample, x: Float[Array, "*d"], key: Key[Array, ""]
) -> tuple[PyTree, Callable[[Any], Float[Array, "*d"]]]:
    """Value and pull-back of f in its first argument, with convolutions fit for compiled loops.

    The only place where searches differentiate.

    Args:
        f: Function of one example and a key.
        x: The example.
        key: Key handed to f.

    Returns:
        `(out, pullback)`: `pullback(cotangent of out)` has the shape of x.

    >>> out, pullback = vjp(lambda x, key: jnp.sum(x**2), jnp.ones(2), jax.random.key(0))
    >>> pullback(jnp.ones_like(out))
    Array([2., 2.], dtype=float32)
    """
    out, pullback = jax.vjp(lambda x: f(x, key), x)

    def marked(cotangent: Any) -> Array:
        (x_cotangent,) = pullback(cotangent)
        return checkpoint_name(x_cotangent, GRADIENT)

    return out, canonical(marked)


def canonical(f: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Rewrite f's convolutions to forms that XLA's CPU compiler runs well; same sums.

    - Operands are put in NHWC/HWIO order by explicit transposes. The compiler does so itself, but
      in a program's entry computation only; in a loop's body the input-gradient convolution falls
      to a naive kernel, several times slower.
    - A convolution of stride 1 with few output features, as the gradient in an image's one or three
      channels is, becomes one matrix product and a sum of shifted results: the convolution kernel's
      inner product would have one or three columns, and runs as slowly as with thirty.

    Apply this to functions already differentiated. Looks into `jit` and call primitives, re-binds
    everything else; on other backends f is returned as it is.

    >>> canonical(jnp.sin)(0.0)
    Array(0., dtype=float32...)
    """
    if jax.default_backend() != "cpu":
        return f

    @functools.wraps(f)
    def rewritten(*args: Any) -> PyTree:
        closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
        outputs = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return rewritten


def _evaluate(jaxpr: Any, consts: list[Any], args: list[Any]) -> list[Any]:
    """Run a jaxpr with its convolutions rewritten."""
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if eqn.primitive is conv_general_dilated_p:
            results = [_convolution(*operands, **eqn.params)]
        elif eqn.primitive.name in CALLS:
            inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            consts = getattr(inner, "consts", [])
            results = _evaluate(getattr(inner, "jaxpr", inner), consts, operands)
        else:
            results = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
            if not eqn.primitive.multiple_results:
                results = [results]
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _convolution(lhs: Array, rhs: Array, *, dimension_numbers: Any, **params: Any) -> Array:
    """One convolution with its operands moved to channels-last order and its result moved back."""
    lhs_spec, rhs_spec, out_spec = dimension_numbers
    rank = lhs.ndim
    lhs = jnp.transpose(lhs, (lhs_spec[0], *lhs_spec[2:], lhs_spec[1]))
    rhs = jnp.transpose(rhs, (*rhs_spec[2:], rhs_spec[1], rhs_spec[0]))
    spatial = tuple(range(rank - 2))
    if _has_few_outputs(rhs.shape, params):
        out = _shifted_products(lhs, rhs, params)
    else:
        last = tuple(i + 1 for i in spatial)
        canonical_numbers = type(dimension_numbers)(
            (0, rank - 1, *last), (rank - 1, rank - 2, *spatial), (0, rank - 1, *last)
        )
        out = conv_general_dilated_p.bind(lhs, rhs, dimension_numbers=canonical_numbers, **params)
    positions = (out_spec[0], *out_spec[2:], out_spec[1])
    inverse = [0] * rank
    for source, target in enumerate(positions):
        inverse[target] = source
    return jnp.transpose(out, inverse)


def _has_few_outputs(kernel: tuple[int, ...], params: dict[str, Any]) -> bool:
    """Whether a plain convolution has so few output features that its products are slivers."""
    plain = (
        all(
            size == 1
            for name in ("window_strides", "lhs_dilation", "rhs_dilation")
            for size in params[name]
        )
        and params["feature_group_count"] == params["batch_group_count"] == 1
    )
    *window, features_in, features_out = kernel
    return plain and features_out <= 4 <= features_in // 2 and math.prod(window) <= 64


def _shifted_products(lhs: Array, rhs: Array, params: dict[str, Any]) -> Array:
    """Convolution of channels-last operands as one product per pixel, then a sum over offsets."""
    *window, features_in, features_out = rhs.shape
    kernel = jnp.moveaxis(rhs, -2, 0).reshape(features_in, -1)
    products = jnp.matmul(
        lhs, kernel, precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    ).reshape(*lhs.shape[:-1], -1, features_out)  # fmt: skip
    whole = [(0, 0, 0)]
    total = None
    for index, offset in enumerate(itertools.product(*(range(size) for size in window))):
        moves = [
            (low - shift, high - (size - 1 - shift), 0)
            for shift, size, (low, high) in zip(offset, window, params["padding"], strict=True)
        ]
        zero = jnp.zeros((), products.dtype)
        moved = lax.pad(products[..., index, :], zero, [*whole, *moves, *whole])
        total = moved if total is None else total + moved
    assert total is not None
    return total
