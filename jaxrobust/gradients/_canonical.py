"""Convolutions rewritten to forms that XLA's CPU compiler runs well inside loops."""

from __future__ import annotations

import functools
import itertools
import math
import operator
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
    - A convolution with few output features, as the gradient in an image's one or three channels
      is, becomes one matrix product and a sum of shifted results: the convolution kernel's inner
      product would have one or three columns, and runs as slowly as with thirty.
    - A convolution with few input features, as a model's first is, becomes one matrix product of
      its windows.

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
    elif _has_few_inputs(rhs.shape, params):
        out = _product_of_windows(lhs, rhs, params)
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
    """Whether a convolution has so few output features that its products are slivers."""
    *window, features_in, features_out = kernel
    plain = _is_plain(params, "window_strides", "rhs_dilation")
    return plain and features_out <= 4 <= features_in // 2 and math.prod(window) <= 64


def _has_few_inputs(kernel: tuple[int, ...], params: dict[str, Any]) -> bool:
    """Whether a convolution has so few input features that its windows are few numbers."""
    *window, features_in, features_out = kernel
    plain = _is_plain(params, "lhs_dilation", "rhs_dilation")
    return plain and features_in <= 4 <= features_out // 2 and math.prod(window) <= 64


def _is_plain(params: dict[str, Any], *names: str) -> bool:
    """Whether a convolution has one group, and neither of two kinds of steps."""
    groups = params["feature_group_count"] == params["batch_group_count"] == 1
    return groups and all(size == 1 for name in names for size in params[name])


def _shifted_products(lhs: Array, rhs: Array, params: dict[str, Any]) -> Array:
    """Convolution of channels-last operands as one product per pixel, then a sum over offsets.

    Where the left operand is dilated (the gradient of strides), each product gives a block of that
    many pixels a side.
    """
    *window, features_in, features_out = rhs.shape
    steps = params["lhs_dilation"]
    flipped = jnp.flip(rhs, tuple(range(len(window))))
    kernel, reach = _in_blocks(flipped, steps)
    products = jnp.matmul(
        lhs, jnp.moveaxis(kernel, -2, 0).reshape(features_in, -1), precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    ).reshape(*lhs.shape[:-1], math.prod(reach), -1)  # fmt: skip
    # pixel o of the result is pixel o + size - 1 - low of all that the products reach
    first, sizes, last = [], [], []
    for length, size, step, (low, high) in zip(
        lhs.shape[1:-1], window, steps, params["padding"], strict=True
    ):
        first.append(size - 1 - low)
        sizes.append((length - 1) * step + 1 + low + high - (size - 1))
        last.append((first[-1] + sizes[-1] - 1) // step)
    total = None
    for index, offset in enumerate(itertools.product(*(range(number) for number in reach))):
        moves = [
            (shift - start // step, end - shift - (length - 1), 0)
            for shift, start, end, step, length in zip(
                offset, first, last, steps, lhs.shape[1:-1], strict=True
            )
        ]
        zero = jnp.zeros((), products.dtype)
        moved = lax.pad(products[..., index, :], zero, [(0, 0, 0), *moves, (0, 0, 0)])
        total = moved if total is None else total + moved
    assert total is not None
    pixels = _depth_to_space(total, steps, features_out)
    begin = [start % step for start, step in zip(first, steps, strict=True)]
    end = [start + size for start, size in zip(begin, sizes, strict=True)]
    return lax.slice(pixels, (0, *begin, 0), (len(lhs), *end, features_out))


def _product_of_windows(lhs: Array, rhs: Array, params: dict[str, Any]) -> Array:
    """Convolution of channels-last operands as the windows' product with the kernel.

    Strides are taken out first: blocks of that many pixels a side become features of one pixel.
    """
    *window, _, features_out = rhs.shape
    steps = params["window_strides"]
    kernel, reach = _in_blocks(rhs, steps)
    padding, sizes = [], []
    for length, size, number, step, (low, high) in zip(
        lhs.shape[1:-1], window, reach, steps, params["padding"], strict=True
    ):
        sizes.append((length + low + high - size) // step + 1)
        padding.append((low, (sizes[-1] - 1 + number) * step - length - low, 0))
    padded = lax.pad(lhs, jnp.zeros((), lhs.dtype), [(0, 0, 0), *padding, (0, 0, 0)])
    blocks = _space_to_depth(padded, steps)
    moved = [
        lax.slice(
            blocks,
            (0, *offset, 0),
            (len(lhs), *map(operator.add, offset, sizes), blocks.shape[-1]),
        )
        for offset in itertools.product(*(range(number) for number in reach))
    ]
    return jnp.matmul(
        jnp.concatenate(moved, axis=-1), kernel.reshape(-1, features_out),
        precision=params["precision"], preferred_element_type=params["preferred_element_type"],
    )  # fmt: skip


def _in_blocks(kernel: Array, steps: tuple[int, ...]) -> tuple[Array, list[int]]:
    """A kernel as offsets of blocks, then of pixels in a block, features; and how many blocks."""
    *window, features_in, features_out = kernel.shape
    reach = [-(-size // step) for size, step in zip(window, steps, strict=True)]
    beyond = [
        (0, number * step - size, 0)
        for size, number, step in zip(window, reach, steps, strict=True)
    ]
    whole = lax.pad(kernel, jnp.zeros((), kernel.dtype), [*beyond, (0, 0, 0), (0, 0, 0)])
    split = whole.reshape(*itertools.chain(*zip(reach, steps, strict=True)), *kernel.shape[-2:])
    rank = len(window)
    order = (*range(0, 2 * rank, 2), *range(1, 2 * rank, 2), 2 * rank, 2 * rank + 1)
    inner = math.prod(steps)
    return split.transpose(order).reshape(*reach, inner, features_in, features_out), reach


def _space_to_depth(x: Array, steps: tuple[int, ...]) -> Array:
    """Blocks of pixels as features of one."""
    rank = len(steps)
    counts = [length // step for length, step in zip(x.shape[1:-1], steps, strict=True)]
    split = x.reshape(len(x), *itertools.chain(*zip(counts, steps, strict=True)), x.shape[-1])
    order = (0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)
    return split.transpose(order).reshape(len(x), *counts, -1)


def _depth_to_space(x: Array, steps: tuple[int, ...], features: int) -> Array:
    """The other way round."""
    rank, counts = len(steps), x.shape[1:-1]
    split = x.reshape(len(x), *counts, *steps, features)
    order = (0, *itertools.chain(*((1 + i, 1 + rank + i) for i in range(rank))), 2 * rank + 1)
    lengths = map(operator.mul, counts, steps)
    return split.transpose(order).reshape(len(x), *lengths, features)
