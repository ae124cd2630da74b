"""Residual networks of three stages: that of the Madry CIFAR-10 challenge, and those of RCE."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust.checks import check_count
from jaxrobust.models._split import Part, Split
from jaxrobust.types import Images


class ResNet(Split, nn.Module):
    """Pre-activation residual network with batch normalisation, for images of any size.

    conv 3x3, then three stages of residual units, the second and third of stride 2; leaky ReLU of
    slope 0.1, global average pooling, dense. Where a stage widens, the shortcut is average pooling
    and zeros for the new channels.

    Its variables hold `batch_stats` beside `params`. `outputs` is the form that detectors and
    training on embeddings want, in training and frozen:

    >>> import functools, jax
    >>> from jaxrobust import objectives
    >>> model, x = ResNet((2, 2, 2, 4), num_units=1), jnp.ones((2, 8, 8, 1))
    >>> variables = model.init(jax.random.key(0), x)
    >>> params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    >>> apply = functools.partial(model.apply, method="outputs")  # once
    >>> forward, frozen = objectives.from_stateful_module(apply)
    >>> objective = objectives.pdm(forward)
    >>> logits_fn = jax.tree_util.Partial(apply, variables)  # frozen, for attacks
    >>> [leaf.shape for leaf in logits_fn(x)]
    [(2, 10), (2, 4)]

    Attributes:
        widths: Channels of the first convolution and of the three stages.
        num_units: Residual units of two convolutions in each stage.
        num_classes: Number of logits.
        standardise: Take mean and deviation out of each image; else subtract 0.5.
        epsilon: What is added to variances in batch normalisation.
    """

    widths: tuple[int, int, int, int] = (16, 16, 32, 64)
    num_units: int = 5
    num_classes: int = 10
    standardise: bool = False
    epsilon: float = 1e-3

    def __call__(
        self, images: Images, train: bool = False, part: Part = "whole"
    ) -> Float[Array, "batch *out"]:
        """Logits of a batch of NHWC images; `train=True` for statistics of the batch."""
        found = self.outputs(images, train, part)
        return found if part == "stem" else found[0]

    def embed(self, images: Images, train: bool = False) -> Float[Array, "batch features"]:
        """What the last layer sees: pooled features, as many as the last stage has channels."""
        return self.outputs(images, train)[1]

    @nn.compact
    def outputs(self, images: Images, train: bool = False, part: Part = "whole") -> Any:
        """Logits and embedding, in one pass; of the part "stem", its features alone."""
        norm = functools.partial(
            nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=self.epsilon
        )
        conv = functools.partial(
            nn.Conv, kernel_size=(3, 3), use_bias=False,
            kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        )  # fmt: skip
        active = lambda x: nn.leaky_relu(norm()(x), 0.1)
        x = jnp.asarray(images)
        if part != "trunk":
            x = _standardised(x) if self.standardise else x - 0.5
            x = conv(self.widths[0], name="Conv_0")(x)
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
        return nn.Dense(self.num_classes)(x), x


def resnet(depth: int = 56, num_classes: int = 10) -> ResNet:
    """Residual network of the CIFAR form, as RCE and PDM are trained on; see `ResNet`.

    Args:
        depth: `6 n + 2` layers with weights, for n units a stage: 56 in paper 004, 32 for its
            proxies and in the experiments of RCE.
        num_classes: Number of logits.

    Raises:
        ValueError: For other depths.

    References: Pang et al. 2018 (RCE), whose released network this is; paper 004, app. B; He et al.
        2016 (identity mappings). Theirs pools shortcuts without padding, which images of sides that
        are multiples of 4 do not feel.

    >>> resnet(32).num_units, resnet(32).widths
    (5, (16, 16, 32, 64))
    """
    check_count(depth, "depth", 8)
    if depth % 6 != 2:
        raise ValueError(f"depth must be 6 n + 2 (8, 14, 20, 32, 56, ...); got {depth}")
    return ResNet(num_units=(int(depth) - 2) // 6, num_classes=num_classes)


def wide_resnet(num_classes: int = 10) -> ResNet:
    """Network of the Madry CIFAR-10 challenge, which standardises images; see `ResNet`.

    References: Zagoruyko and Komodakis 2016; Madry et al. 2018; paper 000, sec. 6.

    >>> wide_resnet().widths
    (16, 160, 320, 640)
    """
    return ResNet((16, 160, 320, 640), 5, num_classes, standardise=True, epsilon=1e-5)


def _standardised(x: Array) -> Array:
    """Mean 0 and deviation 1 of each image; nearly constant images are not blown up."""
    axes: Any = tuple(range(1, x.ndim))
    centred = x - jnp.mean(x, axes, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axes, keepdims=True)
    least = 1.0 / x[0].size
    return centred / jnp.sqrt(jnp.maximum(variance, least))


def _shortcut(x: Array, stride: int, width: int) -> Array:
    if stride > 1:
        whole = x.shape[1] % stride == x.shape[2] % stride == 0  # else padding, which has no mean
        x = nn.avg_pool(x, (stride, stride), (stride, stride), "SAME", count_include_pad=whole)
    missing = width - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))
