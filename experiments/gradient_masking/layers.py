"""The parts that the defences put into a network, each a pure function of arrays."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxrobust import gradients

LEVELS = 16
"""Of the thermometer code (Buckman et al. 2018)."""

BLOCK, COARSE = 4, 0.5
"""Side of a block of the compressor, and the step to which it rounds coefficients."""

KEPT = 0.05
"""Share of units that win in `k_winners`, as few as the sparsest of Xiao et al. 2020."""

SAMPLED = 0.05
"""Samples a unit that stochastic pruning draws; Dhillon et al. 2018 draw 1 and more."""

SMALLEST = 0.25
"""Least size to which `resize_and_pad` shrinks an image, as a share of it."""

WELLS = 4
"""Steps from black to white at whose ends the purifier's pixels come to rest."""

DOUBLINGS = 8
"""Its iterations: together they make the logit of a pixel's place in its step 256 times as large.
"""


def init(key: Array, sizes: tuple[int, ...]) -> list[tuple[Array, Array]]:
    """He-normal weights and zero biases of a network of these widths."""
    pairs = enumerate(itertools.pairwise(sizes))
    return [
        (jax.random.normal(jax.random.fold_in(key, i), pair) * (2 / pair[0]) ** 0.5,
         jnp.zeros(pair[1]))
        for i, pair in pairs
    ]  # fmt: skip


def dense(params: Any, x: Array, unit: Any = jax.nn.relu) -> tuple[Array, Array]:
    """Logits, and the last hidden layer."""
    hidden = x.reshape(len(x), -1)
    for kernel, bias in params[:-1]:
        hidden = unit(hidden @ kernel + bias)
    return hidden @ params[-1][0] + params[-1][1], hidden


def thermometer(x: Array, hard: bool = True) -> Array:
    """`LEVELS` bits a pixel, each whether it is brighter than a level; or ramps in their place."""
    levels = jnp.arange(LEVELS) / LEVELS
    above = x[..., None] - levels
    return (above > 0).astype(x.dtype) if hard else jnp.clip(LEVELS * above, 0, 1)


def compressed(x: Array) -> Array:
    """Cosine coefficients of each block rounded to multiples of `COARSE`, as JPEG does it."""
    n = np.arange(BLOCK)
    basis = np.cos(np.pi * (2 * n + 1) * n[:, None] / (2 * BLOCK)) * np.sqrt(2 / BLOCK)
    basis[0] /= np.sqrt(2)
    basis = jnp.asarray(basis, x.dtype)
    rows, columns = (side // BLOCK for side in x.shape[1:3])
    blocks = x.reshape(len(x), rows, BLOCK, columns, BLOCK)
    coefficients = jnp.einsum("ij,brjcl,kl->brick", basis, blocks, basis)
    rounded = COARSE * jnp.round(coefficients / COARSE)
    return jnp.einsum("ij,brick,kl->brjcl", basis, rounded, basis).reshape(x.shape)


def k_winners(hidden: Array) -> Array:
    """The `KEPT` largest activations of each row; zero for all others."""
    count = max(int(KEPT * hidden.shape[-1]), 1)
    least = jax.lax.top_k(hidden, count)[0][:, -1:]
    return jnp.where(hidden >= least, hidden, 0)


def pruned(hidden: Array, key: Array) -> Array:
    """Units drawn in proportion to their activation; those drawn weigh by the inverse of chance."""
    hidden = jax.nn.relu(hidden)
    share = hidden / jnp.maximum(jnp.sum(hidden, -1, keepdims=True), 1e-9)
    chance = -jnp.expm1(SAMPLED * hidden.shape[-1] * jnp.log1p(-jnp.minimum(share, 0.999)))
    kept = jax.random.uniform(key, hidden.shape) < chance
    return jnp.where(kept, hidden / jnp.maximum(chance, 1e-3), 0)


def resized_and_padded(x: Array, key: Array) -> Array:
    """Images shrunk to a random size and put at a random place on black, all alike."""
    size_key, place_key = jax.random.split(key)
    share = jax.random.uniform(size_key, (), minval=SMALLEST, maxval=1.0)
    sides = jnp.asarray(x.shape[1:3])
    corner = jax.random.uniform(place_key, (2,)) * (1 - share) * sides
    move = functools.partial(
        jax.image.scale_and_translate, shape=x.shape[1:], spatial_dims=(0, 1),
        scale=jnp.stack([share, share]), translation=corner, method="linear", antialias=False,
    )  # fmt: skip
    return jax.vmap(move)(x)


def purified(x: Array) -> Array:
    """Pixels driven to the nearest of `WELLS + 1` grey levels.

    By `DOUBLINGS` iterations of `t^2 / (t^2 + (1 - t)^2)`, t the place between two levels.
    """

    def turn(t: Array, _: None) -> tuple[Array, None]:
        return t**2 / (t**2 + (1 - t) ** 2), None

    level, t = _in_step(x)
    return (level + jax.lax.scan(turn, t, length=DOUBLINGS)[0]) / WELLS


def unpurified(z: Array) -> Array:
    """The image that `purified` makes z of, but for a thousandth of a step where z is a level."""
    level, t = _in_step(z)
    t = 1e-3 + (1 - 2e-3) * t  # never at rest, where there is no gradient
    return (level + jax.nn.sigmoid((jnp.log(t) - jnp.log1p(-t)) / 2**DOUBLINGS)) / WELLS


def _in_step(x: Array) -> tuple[Array, Array]:
    """The level below a pixel, and its place between that and the next, 0 to 1."""
    level = jnp.clip(jnp.floor(WELLS * x), 0, WELLS - 1)
    return level, WELLS * x - level


def local_dimension(embedding: Array, reference: Array, k: int = 20) -> Array:
    """Local intrinsic dimensionality of each row among its k nearest references (Ma et al. 2018).

    `-1 / mean log(r_i / r_k)`, r the rising distances.
    """
    squares = (
        jnp.sum(embedding**2, -1)[:, None] + jnp.sum(reference**2, -1)
        - 2 * embedding @ reference.T
    )  # fmt: skip
    nearest = -jax.lax.top_k(-squares, k)[0]
    logs = 0.5 * jnp.log(jnp.maximum(nearest, 1e-6))
    return -1 / jnp.minimum(jnp.mean(logs[:, :-1] - logs[:, -1:], -1), -1e-3)


soft_thermometer = gradients.bpda(thermometer, functools.partial(thermometer, hard=False))
"""The code, differentiated as ramps."""

straight_compressed = gradients.bpda(compressed)
"""The compressor, differentiated as the identity."""
