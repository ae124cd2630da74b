"""Convolutions rewritten to forms that XLA's CPU compiler runs well inside loops."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal
from jax.extend.core.primitives import conv_general_dilated_p
from jaxtyping import Array, PyTree

CALLS = ("jit", "pjit", "core_call", "closed_call")
"""Primitives that `canonical` looks into: plain calls of an inner jaxpr."""


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
