"""The network that Carlini and Wagner attack, and that distillation was to defend."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust.models._sequential import max_pool
from jaxrobust.models._split import Part, Split
from jaxrobust.types import Images


class CarliniWagnerCNN(Split, nn.Module):
    """The network of Carlini and Wagner: two convolutions, pool, two more, pool, three dense.

    3x3 convolutions without padding, 2x2 max pooling, ReLU, Glorot weights; dropout of 0.5 behind
    the first dense layer in training. The released code feeds pixels in [-0.5, 0.5]; here images
    are in [0, 1] and shifted inside. Image sides must be multiples of 4 and at least 16.

    Dropout draws from a key that the variables hold in `dropout` beside `params`, renewed by each
    call with `train=True`: train with `objectives.from_stateful_module`. Without, nothing is drawn.

    Attributes:
        widths: Channels of the first and of the last two convolutions, width of the dense layers.
        num_classes: Number of logits.
    """

    widths: tuple[int, int, int] = (32, 64, 200)
    num_classes: int = 10

    @nn.compact
    def __call__(
        self, images: Images, train: bool = False, part: Part = "whole"
    ) -> Float[Array, "batch *out"]:
        """Logits of a batch of NHWC images."""
        init: dict[str, Any] = {"kernel_init": nn.initializers.glorot_uniform()}
        conv = functools.partial(nn.Conv, kernel_size=(3, 3), padding="VALID", **init)
        x = jnp.asarray(images)
        if part != "trunk":
            if x.shape[1] % 4 or x.shape[2] % 4 or min(x.shape[1:3]) < 16:
                raise ValueError(
                    "carlini_wagner_cnn pools twice: image sides must be multiples of 4, at least "
                    f"16; got {x.shape[1:3]}"
                )
            x = nn.relu(conv(self.widths[0], name="Conv_0")(x - 0.5))
        if part == "stem":
            return x
        x = max_pool(nn.relu(conv(self.widths[0], name="Conv_1")(x)))
        x = nn.relu(conv(self.widths[1], name="Conv_2")(x))
        x = max_pool(nn.relu(conv(self.widths[1], name="Conv_3")(x)))
        x = x.reshape(x.shape[0], -1)
        x = self._dropped(nn.relu(nn.Dense(self.widths[2], **init)(x)), train)
        x = nn.relu(nn.Dense(self.widths[2], **init)(x))
        return nn.Dense(self.num_classes, **init)(x)

    def _dropped(self, x: Array, train: bool) -> Array:
        """Half of the entries, doubled, where training; the key moves on."""
        if not (train or self.is_initializing()):
            return x
        stored = self.variable(
            "dropout", "key", lambda: jax.random.key_data(self.make_rng("params"))
        )
        if self.is_initializing():
            return x
        now, then = jax.random.split(jax.random.wrap_key_data(stored.value))
        stored.value = jax.random.key_data(then)
        return jnp.where(jax.random.bernoulli(now, 0.5, x.shape), 2 * x, 0)


def carlini_wagner_cnn(
    widths: tuple[int, int, int] = (32, 64, 200), num_classes: int = 10
) -> CarliniWagnerCNN:
    """Network of Carlini and Wagner for MNIST; widths of (64, 128, 256) are those for CIFAR-10.

    Published training: SGD of rate 0.01 and Nesterov momentum 0.9, batches of 128, 50 epochs.

    References: Carlini and Wagner 2017, table I (paper 001).

    >>> carlini_wagner_cnn().widths
    (32, 64, 200)
    """
    return CarliniWagnerCNN(widths, num_classes)
