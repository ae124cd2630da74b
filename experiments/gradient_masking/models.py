"""The defences' models: pure functions of weights and images, and of a key where they are random.

Those of the same outputs and better gradients, which break them, stand beside them.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jaxtyping import Array

from experiments.gradient_masking import layers
from jaxrobust import gradients


def plain(params: Any, x: Array) -> Array:
    """The network without any defence."""
    return layers.dense(params, x)[0]


def of_thermometer(params: Any, x: Array) -> Array:
    """A network of thermometer codes."""
    return plain(params, layers.thermometer(x))


def of_soft_thermometer(params: Any, x: Array) -> Array:
    """The same, differentiated as ramps."""
    return plain(params, layers.soft_thermometer(x))


def of_compressed(params: Any, x: Array) -> Array:
    """A network of compressed images."""
    return plain(params, layers.compressed(x))


def of_straight_compressed(params: Any, x: Array) -> Array:
    """The same, the compressor differentiated as the identity."""
    return plain(params, layers.straight_compressed(x))


def of_purified(params: Any, x: Array) -> Array:
    """A network of purified images."""
    return plain(params, layers.purified(x))


def with_winners(params: Any, x: Array) -> Array:
    """A network of units of which few win."""
    return layers.dense(params, x, layers.k_winners)[0]


def with_pruning(params: Any, x: Array, key: Array) -> Array:
    """A network whose units are pruned at random."""
    return layers.dense(params, x, functools.partial(layers.pruned, key=key))[0]


def with_straight_pruning(params: Any, x: Array, key: Array) -> Array:
    """The same, the draw differentiated as its mean."""
    prune = functools.partial(layers.pruned, key=key)
    return layers.dense(params, x, gradients.bpda(prune, jax.nn.relu))[0]


def of_resized(params: Any, x: Array, key: Array) -> Array:
    """A network of images that are resized and padded at random."""
    return plain(params, layers.resized_and_padded(x, key))


def with_dimension(params: Any, reference: Array, most: Array, x: Array) -> tuple[Array, Array]:
    """Logits, and how far the local dimension stays below the most that is accepted."""
    logits, hidden = layers.dense(params, x)
    return logits, most - layers.local_dimension(hidden, reference)


def accepted(outputs: tuple[Array, Array]) -> Array:
    """Score of the detector of local dimensions; negative rejects."""
    return outputs[1]


def rejected(outputs: tuple[Array, Array], y: Any) -> Array:
    """Its hinge, for attacks that know it."""
    del y
    return jax.nn.relu(0.05 - outputs[1])
