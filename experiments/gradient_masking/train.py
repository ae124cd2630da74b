"""Train one small network: a whole training is one compiled loop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

import jaxrobust as jr
from experiments.gradient_masking import layers
from experiments.gradient_masking.config import Sizes

RATE = 2e-3
"""Adam's, falling to zero as half a cosine."""

Model = Callable[..., Array]
"""`(params, x) -> logits`, or `(params, x, key) -> logits`."""

TrainingLoss = Callable[..., Array]
"""`(params, given, x, y, key) -> scalar` of a batch; `given` is the same throughout."""


class Data(NamedTuple):
    """Training images, and those that are diagnosed."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load(sizes: Sizes) -> Data:
    """The data of a preset."""
    train, test = (jr.data.load(sizes.data, split) for split in ("train", "test"))
    return Data(train.x, train.y, test.x[: sizes.num_images], test.y[: sizes.num_images])


def start(sizes: Sizes, data: Data, key: Array, codes: int = 1) -> Any:
    """Weights of a network of images, or of so many codes a pixel."""
    pixels = int(np.prod(data.x.shape[1:])) * codes
    return layers.init(key, (pixels, sizes.hidden, sizes.hidden, 10))


def fit(loss: TrainingLoss, params: Any, given: Any, sizes: Sizes, data: Data, key: Array) -> Any:
    """Train a network; the same loss and sizes trace once."""
    return _fit(
        loss, sizes.num_steps, sizes.batch, params, given, jnp.asarray(data.x),
        jnp.asarray(data.y), key,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _fit(
    loss: TrainingLoss, num_steps: int, batch: int, params: Any, given: Any, x: Array, y: Array,
    key: Array,
) -> Any:  # fmt: skip
    optimiser = optax.adam(optax.cosine_decay_schedule(RATE, num_steps))

    def step(carry: Any, now: Array) -> tuple[Any, None]:
        params, state = carry
        pick_key, loss_key = jax.random.split(now)
        rows = jax.random.randint(pick_key, (batch,), 0, len(x))
        slope = jax.grad(loss)(params, given, x[rows], y[rows], loss_key)
        updates, state = optimiser.update(slope, state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(key, num_steps)
    return jax.lax.scan(step, (params, optimiser.init(params)), keys)[0][0]


def mean_cross_entropy(logits: Array, y: Array) -> Array:
    """Of a batch; labels, or a probability of each class."""
    return jnp.mean(jax.vmap(jr.losses.cross_entropy)(logits, y))


@functools.cache  # one object for each model, so that nothing is retraced
def natural(model: Model) -> TrainingLoss:
    """Cross-entropy of a deterministic model."""
    return lambda params, given, x, y, key: mean_cross_entropy(model(params, x), y)


@functools.cache
def random(model: Model) -> TrainingLoss:
    """Cross-entropy of a model with a key."""
    return lambda params, given, x, y, key: mean_cross_entropy(model(params, x, key), y)


@functools.cache
def softened(model: Model) -> TrainingLoss:
    """At a temperature; `given` is `(T, teacher)`, the labels' own where there is no teacher."""

    def loss(params: Any, given: Any, x: Array, y: Array, key: Array) -> Array:
        temperature, teacher = given
        wanted = y if teacher is None else jax.nn.softmax(model(teacher, x) / temperature)
        return mean_cross_entropy(model(params, x) / temperature, wanted)

    return loss


@functools.cache
def adversarial(model: Model) -> TrainingLoss:
    """Madry's, by ten steps; `given` is the radius."""

    def loss(params: Any, given: Any, x: Array, y: Array, key: Array) -> Array:
        attacked = jr.attacks.pgd(
            jax.tree_util.Partial(model, params), x, y, key=key, ball=jr.Ball("linf", given),
            num_steps=10,
        )  # fmt: skip
        return mean_cross_entropy(model(params, attacked), y)

    return loss


@functools.cache
def cascade(model: Model) -> TrainingLoss:
    """One-step adversarial images, its own and an earlier network's, and a penalty on slopes.

    `given` is `(eps, earlier, weight)`.
    """

    def loss(params: Any, given: Any, x: Array, y: Array, key: Array) -> Array:
        eps, earlier, weight = given
        attacked = [
            jr.attacks.fgsm(
                jax.tree_util.Partial(model, of), x, y, key=key, ball=jr.Ball("linf", eps)
            )
            for of in (params, earlier)
        ]
        value = sum(mean_cross_entropy(model(params, z), y) for z in (x, *attacked)) / 3
        total = lambda x: len(x) * mean_cross_entropy(model(params, x), y)
        return value + weight * jnp.mean(jnp.sum(jnp.abs(jax.grad(total)(x)), (1, 2, 3)))

    return loss


@functools.cache
def stable(model: Model, sigma: float) -> TrainingLoss:
    """Paper 000's stability training: `CE(x) - E P(x) log P(x + noise)`."""

    def loss(params: Any, given: Any, x: Array, y: Array, key: Array) -> Array:
        clean = model(params, x)
        noisy = model(params, x + sigma * jax.random.normal(key, x.shape, x.dtype))
        return mean_cross_entropy(clean, y) + mean_cross_entropy(noisy, jax.nn.softmax(clean))

    return loss
