"""The wide residual network of the Madry CIFAR-10 challenge."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust.models._split import Part, Split
from jaxrobust.types import Images


class WideResNet(Split, nn.Module):
    """Pre-activation residual network with batch normalisation; images are standardised first.

    conv 3x3, then three stages of residual units, the second and third of stride 2; leaky ReLU of
    slope 0.1, global average pooling, dense. Where a stage widens, the shortcut is average pooling
    and zeros for the new channels.

    Attributes:
        widths: Channels of the first convolution and of the three stages.
        num_units: Residual units of two convolutions in each stage.
        num_classes: Number of logits.
    """

    widths: tuple[int, int, int, int] = (16, 160, 320, 640)
    num_units: int = 5
    num_classes: int = 10

    @nn.compact
    def __call__(
        self, images: Images, train: bool = False, part: Part = "whole"
    ) -> Float[Array, "batch *out"]:
        """Logits of a batch of NHWC images; `train=True` for statistics of the batch."""
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5
        )
        conv = functools.partial(
            nn.Conv, kernel_size=(3, 3), use_bias=False,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        )  # fmt: skip
        active = lambda x: nn.leaky_relu(norm()(x), 0.1)
        x = jnp.asarray(images)
        if part != "trunk":
            x = conv(self.widths[0], name="Conv_0")(_standardised(x))
        if part == "stem":
            return x
        names = (f"Conv_{i}" for i in itertools.count(1))
        for stage, width in enumerate(self.widths[1:]):
            for unit in range(self.num_units):
                stride = 2 if stage > 0 and unit == 0 else 1
                branch = active(x)
                if stage == unit == 0:  # the first activation serves the shortcut as well
                    x = branch
                branch = active(conv(width, strides=(stride, stride), name=next(names))(branch))
                x = _shortcut(x, stride, width) + conv(width, name=next(names))(branch)
        x = jnp.mean(active(x), axis=(1, 2))
        return nn.Dense(self.num_classes)(x)


def wide_resnet(num_classes: int = 10) -> WideResNet:
    """Network of the Madry CIFAR-10 challenge; see `WideResNet`.

    Its variables hold `batch_stats` beside `params`: train with `objectives.from_stateful_module`.

    References: Zagoruyko and Komodakis 2016; Madry et al. 2018; paper 000, sec. 6.

    >>> wide_resnet().widths
    (16, 160, 320, 640)
    """
    return WideResNet(num_classes=num_classes)


def _standardised(x: Array) -> Array:
    """Mean 0 and deviation 1 of each image; nearly constant images are not blown up."""
    axes: Any = tuple(range(1, x.ndim))
    centred = x - jnp.mean(x, axes, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axes, keepdims=True)
    least = 1.0 / x[0].size
    return centred / jnp.sqrt(jnp.maximum(variance, least))


def _shortcut(x: Array, stride: int, width: int) -> Array:
    if stride > 1:
        x = nn.avg_pool(x, (stride, stride), (stride, stride), "SAME")
    missing = width - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
