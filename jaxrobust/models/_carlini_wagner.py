"""The network that Carlini and Wagner attack, and that distillation was to defend."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust.models._sequential import max_pool
from jaxrobust.types import Images


class CarliniWagnerCNN(nn.Module):
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
    def __call__(self, images: Images, train: bool = False) -> Float[Array, "batch classes"]:
        """Logits of a batch of NHWC images."""
        x = jnp.asarray(images) - 0.5
        if x.shape[1] % 4 or x.shape[2] % 4 or min(x.shape[1:3]) < 16:
            raise ValueError(
                "carlini_wagner_cnn pools twice: image sides must be multiples of 4, at least 16; "
                f"got {x.shape[1:3]}"
            )
        init: dict[str, Any] = {"kernel_init": nn.initializers.glorot_uniform()}
        for width in self.widths[:2]:
            for _ in range(2):
                x = nn.relu(nn.Conv(width, (3, 3), padding="VALID", **init)(x))
            x = max_pool(x)
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

    Published training: SGD of rate 0.01 and Nesterov momentum 0.9, batches of 128, 50 epochs
    (methods.md C).

    References: Carlini and Wagner 2017, table I (paper 001).

    >>> carlini_wagner_cnn().widths
    (32, 64, 200)
    """
    return CarliniWagnerCNN(widths, num_classes)
