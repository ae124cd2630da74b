"""Distances to packed reference points: differences, not the expanded square, and its log-density.

Points lie along the last axis, in blocks of `BLOCK`, so that XLA's CPU compiler vectorises over
them however few queries there are. Every sum has its order written down: dims in groups, each
halved down to one number, and points likewise. So neither the number of queries at once nor vmap
changes a bit of a result.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

BLOCK = 128
GROUP = 16


class Points(NamedTuple):
    """Reference points of each class, padded; `sizes` of them are real.

    Attributes:
        values: `(blocks, classes, dims, BLOCK)`, dims padded by zeros to whole groups.
        sizes: `(classes,)` points of each class.
    """

    values: Float[Array, "blocks classes dims block"]
    sizes: Int[Array, " classes"]


def pack(embeddings: np.ndarray, labels: np.ndarray, num_classes: int) -> Points:
    """Sort points by class, pad, and put them last."""
    count = np.bincount(labels, minlength=num_classes)
    blocks = -(-count.max() // BLOCK)
    dims = _padded_dims(embeddings.shape[1])
    rows = np.zeros((num_classes, blocks * BLOCK, dims), embeddings.dtype)
    for c in range(num_classes):
        rows[c, : count[c], : embeddings.shape[1]] = embeddings[labels == c]
    values = rows.reshape(num_classes, blocks, BLOCK, dims).transpose(1, 0, 3, 2)
    return Points(jnp.asarray(values), jnp.asarray(count, jnp.int32))


def squared_distances(
    values: Float[Array, "classes dims block"], z: Float[Array, "batch dims"]
) -> Float[Array, "batch classes block"]:
    """Squared distances to one block of points, to the last places of the dtype."""
    groups = values.shape[1] // min(GROUP, values.shape[1])

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        points, queries = part
        square = [
            (queries[d][:, None, None] - points[None, :, d]) ** 2 for d in range(len(queries))
        ]
        while len(square) > 1:
            square = [a + b for a, b in zip(square[::2], square[1::2], strict=True)]
        return total + square[0], None

    split = jnp.moveaxis(values.reshape(len(values), groups, -1, values.shape[2]), 1, 0)
    queries = z.T.reshape(groups, -1, len(z))
    start = jnp.zeros_like(z, shape=(len(z), len(values), values.shape[2]))
    return jax.lax.scan(add, start, (split, queries))[0]


def is_real(points: Points, block: Array) -> Array:
    """`(classes, BLOCK)` which points of a block are no padding."""
    return block * BLOCK + jnp.arange(BLOCK) < points.sizes[:, None]


def in_chunks(f: Any, z: Array, chunk: int) -> Any:
    """`f(z)` over rows of z, `chunk` of them at once."""
    if len(z) <= chunk:
        return f(z)
    whole = -(-len(z) // chunk) * chunk
    padded = jnp.pad(z, ((0, whole - len(z)), (0, 0)))
    out = jax.lax.map(f, padded.reshape(-1, chunk, z.shape[1]))
    return jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:])[: len(z)], out)


@functools.partial(jax.jit, static_argnames="chunk")
def log_densities(
    points: Points, bandwidth: Any, z: Float[Array, "batch dims"], chunk: int
) -> Float[Array, "batch classes"]:
    """Logarithm of each class's normalised Gaussian kernel density; -inf only beyond the floats.

    Points and bandwidth are constants to differentiation.
    """
    dtype = z.dtype
    points = jax.lax.stop_gradient(Points(points.values.astype(dtype), points.sizes))
    width = jax.lax.stop_gradient(jnp.asarray(bandwidth, dtype))
    dims = z.shape[1]
    padded = jnp.pad(z, ((0, 0), (0, points.values.shape[2] - dims)))
    total = in_chunks(lambda part: _log_sum(part, points, width), padded, chunk)
    size = jnp.log(points.sizes.astype(dtype)) + dims * (
        jnp.log(width) + jnp.asarray(0.5 * np.log(2 * np.pi), dtype)
    )
    return total - size


@jax.custom_jvp
def _log_sum(z: Array, points: Points, width: Array) -> Array:
    """`log sum_i exp(-|z - z_i|^2 / 2 h^2)`, by a maximum and a sum carried along the blocks."""

    def add(carry: tuple[Array, Array], part: tuple[Array, Array]) -> Any:
        largest, total = carry
        terms = _exponents(z, points, width, *part)
        new = jnp.maximum(largest, jnp.max(terms, -1))
        terms = jnp.exp(terms - new[..., None])
        while terms.shape[-1] > 1:
            half = terms.shape[-1] // 2
            terms = terms[..., :half] + terms[..., half:]
        return (new, total * jnp.exp(largest - new) + terms[..., 0]), None

    zero = jnp.zeros_like(z, shape=(len(z), len(points.sizes)))
    start = (zero + jnp.finfo(z.dtype).min, zero)
    (largest, total), _ = jax.lax.scan(add, start, _numbered(points))
    return largest + jnp.log(total)


@_log_sum.defjvp
def _log_sum_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    """The weighted mean of the differences, block by block: no residuals, any order of mode."""
    z, points, width = primals
    value = _log_sum(z, points, width)

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        weights = jnp.exp(_exponents(z, points, width, *part) - value[..., None])
        mean = jnp.einsum("qcp,cdp->qcd", weights, part[0], precision="highest")
        return total + mean - jnp.sum(weights, -1)[..., None] * z[:, None], None

    start = jnp.zeros_like(z, shape=(*value.shape, z.shape[1]))
    shift, _ = jax.lax.scan(add, start, _numbered(points))
    return value, jnp.sum(shift / width**2 * tangents[0][:, None], -1)


def _exponents(z: Array, points: Points, width: Array, values: Array, block: Array) -> Array:
    terms = -squared_distances(values, z) / (2 * width**2)
    return jnp.where(is_real(points, block), terms, -jnp.inf)


def _numbered(points: Points) -> tuple[Array, Array]:
    return points.values, jnp.arange(len(points.values))


def _padded_dims(dims: int) -> int:
    """The next power of two up to a group, or whole groups."""
    return 1 << (dims - 1).bit_length() if dims < GROUP else -(-dims // GROUP) * GROUP
