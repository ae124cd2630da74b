"""The pre-activation ResNet-18 of CIFAR-10, on which fast adversarial training is compared."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust.models._split import Part, Split
from jaxrobust.types import Images


class PreActResNet(Split, nn.Module):
    """Pre-activation residual network with batch normalisation, for images of any size.

    conv 3x3, then stages of residual units, all but the first stage of stride 2; ReLU, global
    average pooling, dense. Where a stage widens or strides, the shortcut is a 1x1 convolution of
    the activated features. Images in [0, 1] go in as they are. Behind the last unit comes a
    normalisation and a ReLU, as in He et al.; some released code leaves them out.

    Its variables hold `batch_stats` beside `params`. The stem is the first convolution alone, which
    is where YOPO splits it.

    Attributes:
        widths: Channels of the stages; the first convolution has those of the first.
        num_units: Residual units of two convolutions in each stage.
        num_classes: Number of logits.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    num_units: int = 2
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
            nn.Conv, use_bias=False,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        )  # fmt: skip
        active = lambda x: nn.relu(norm()(x))
        names: Any = (f"Conv_{i}" for i in itertools.count())
        x, first = jnp.asarray(images), next(names)
        if part != "trunk":
            x = conv(self.widths[0], (3, 3), name=first)(x)
        if part == "stem":
            return x
        for stage, width in enumerate(self.widths):
            for unit in range(self.num_units):
                stride = 2 if stage > 0 and unit == 0 else 1
                branch = active(x)
                if stride > 1 or x.shape[-1] != width:
                    x = conv(width, (1, 1), (stride, stride), name=next(names))(branch)
                branch = conv(width, (3, 3), (stride, stride), name=next(names))(branch)
                x = x + conv(width, (3, 3), name=next(names))(active(branch))
        return nn.Dense(self.num_classes)(jnp.mean(active(x), axis=(1, 2)))


def preact_resnet18(num_classes: int = 10) -> PreActResNet:
    """Pre-activation ResNet-18, 11.2 million parameters; see `PreActResNet`.

    References: He et al. 2016 (identity mappings); Zhang et al. 2019 (YOPO; paper 001, table 2).

    >>> preact_resnet18().widths
    (64, 128, 256, 512)
    """
    return PreActResNet(num_classes=num_classes)
