"""Norms of the layers as regularisers: what Fro-NN and Spe-NN of paper 003 train with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from jaxrobust import linalg
from jaxrobust.layers import Conv, Dense, Layer
from jaxrobust.types import Batch, Objective, Out

Read = Callable[[PyTree], list[Layer]]


def frobenius_norm(layers: Read, weight: float | Array) -> Objective:
    """`weight * sum_l ||W_l||_F` over the affine layers; norms, not their squares.

    Args:
        layers: `params -> layers`.
        weight: Lambda; the paper's 0.08 goes with the hinge loss.

    References: paper 003, sec. 6 (Fro-NN), which writes `||W||_F + ||v||_2` for two classes; that
        the last layer of several counts by its norm as a matrix is our choice.

    >>> objective = frobenius_norm(lambda params: [Dense(params, 0)], 0.5)
    >>> batch = Batch(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([0]))
    >>> params = jnp.array([[3.0, 4.0]])
    >>> float(objective.value_and_grad(params, {}, (), batch, key=jax.random.key(0))[0].loss)
    2.5
    """

    def init(params: PyTree, key: Key[Array, ""]) -> PyTree:
        del params, key
        return ()

    def norms(params: PyTree, state: PyTree) -> tuple[list[Array], PyTree]:
        return [_frobenius(kernel) for kernel in _kernels(layers(params))], state

    return _regulariser(init, norms, weight)


def spectral_norm(layers: Read, weight: float | Array, num_steps: int = 1) -> Objective:
    """`weight * sum_l ||W_l||_2` over the dense layers, by power iteration kept across steps.

    Args:
        layers: `params -> layers`, without convolutions.
        weight: Lambda; the paper's 0.09 goes with the hinge loss.
        num_steps: Power iterations a step, from the last step's singular vectors.

    Returns:
        Objective whose state holds each layer's right singular vector. Its value is a little below
        the norm, as power iteration is; `linalg.proved_upper` proves.

    Raises:
        ValueError: For a network with convolutions.

    References: paper 003, sec. 6 (Spe-NN); see `frobenius_norm` for the last layer.

    >>> objective = spectral_norm(lambda params: [Dense(params, 0)], 0.5)
    >>> batch = Batch(jnp.zeros((1, 2)), jnp.array([0]), jnp.array([0]))
    >>> params = jnp.diag(jnp.array([3.0, 4.0]))
    >>> state = objective.init(params, jax.random.key(0))
    >>> round(float(objective.value_and_grad(params, {}, state, batch, key=None)[0].loss), 3)
    2.0
    """

    def read(params: PyTree) -> list[Array]:
        network = layers(params)
        if any(isinstance(layer, Conv) for layer in network):
            raise ValueError("layers must be dense for spectral_norm; got a Conv")
        return _kernels(network)

    def init(params: PyTree, key: Key[Array, ""]) -> PyTree:
        kernels = read(params)
        keys = jax.random.split(key, len(kernels))
        starts = [
            jax.random.normal(k, w.shape[:1], w.dtype) for k, w in zip(keys, kernels, strict=True)
        ]
        return [
            linalg.power_iteration(lambda x, w=w: x @ w, v, 20).right
            for w, v in zip(kernels, starts, strict=True)
        ]

    def norms(params: PyTree, state: PyTree) -> tuple[list[Array], PyTree]:
        found = [
            linalg.power_iteration(lambda x, w=w: x @ w, v, num_steps)
            for w, v in zip(read(params), state, strict=True)
        ]
        return [one.value for one in found], [jax.lax.stop_gradient(one.right) for one in found]

    return _regulariser(init, norms, weight)


def _regulariser(
    init: Callable[..., PyTree],
    norms: Callable[[PyTree, PyTree], tuple[list[Array], PyTree]],
    weight: float | Array,
) -> Objective:
    """`weight` times the sum of the norms, whatever the batch."""

    def value_and_grad(
        params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, *, key: Any
    ) -> tuple[Out, PyTree]:
        del batch, key

        def total(params: PyTree) -> tuple[Array, PyTree]:
            values, after = norms(params, state)
            return jnp.sum(jnp.stack(values)), after

        (value, after), grads = jax.value_and_grad(total, has_aux=True)(params)
        out = Out(weight * value, model_state, after, {"norms": value})
        return out, jax.tree.map(lambda g: weight * g, grads)

    return Objective(init, value_and_grad)


def _kernels(network: list[Layer]) -> list[Array]:
    return [layer.kernel for layer in network if isinstance(layer, Dense | Conv)]


def _frobenius(kernel: Array) -> Array:
    """The norm, with derivative zero at the zero matrix."""
    squares = jnp.sum(kernel * kernel)
    safe = jnp.where(squares > 0, squares, 1.0)
    return jnp.where(squares > 0, jnp.sqrt(safe), 0.0)
