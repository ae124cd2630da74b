"""Plain feed-forward classifiers on images in [0, 1], NHWC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust.layers import Conv, Dense, Flatten, Layer, Relu
from jaxrobust.models._split import Part, Split
from jaxrobust.types import Images


class MLP(Split, nn.Module):
    """Fully connected ReLU network.

    Attributes:
        features: Widths of the hidden layers.
        num_classes: Number of logits.
    """

    features: tuple[int, ...] = (500,)
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Images, part: Part = "whole") -> Float[Array, "batch out"]:
        """Logits of a batch of images of any shape."""
        hidden = jnp.asarray(x).reshape(x.shape[0], -1)
        sizes = (*self.features, self.num_classes)
        for i, width in enumerate(sizes):
            if part == "trunk" and i == 0:
                continue
            hidden = nn.Dense(width, name=f"Dense_{i}")(hidden)
            hidden = nn.relu(hidden) if i + 1 < len(sizes) else hidden
            if part == "stem":
                break
        return hidden

    def layers(self, variables: Mapping[str, Any]) -> list[Layer]:
        """The network as explicit layers, for certificates."""
        params = _params(variables, f"Dense_{len(self.features)}")
        affine = [_dense(params[f"Dense_{i}"]) for i in range(len(self.features) + 1)]
        hidden = [layer for dense in affine[:-1] for layer in (dense, Relu())]
        return [Flatten(), *hidden, affine[-1]]


class SmallCNN(Split, nn.Module):
    """Two convolutions and one hidden layer, strided instead of pooled; sized for 8x8 digits.

    Attributes:
        num_classes: Number of logits.
    """

    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Images, part: Part = "whole") -> Float[Array, "batch *out"]:
        """Logits of a batch of NHWC images."""
        x = jnp.asarray(x)
        if part != "trunk":
            x = nn.relu(nn.Conv(16, (3, 3), name="Conv_0")(x))
        if part == "stem":
            return x
        x = nn.relu(nn.Conv(32, (3, 3), strides=(2, 2), name="Conv_1")(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(self.num_classes)(x)

    def layers(self, variables: Mapping[str, Any]) -> list[Layer]:
        """The network as explicit layers, for certificates."""
        params = _params(variables, "Dense_1")
        first, second = params["Conv_0"], params["Conv_1"]
        return [
            Conv(first["kernel"], first["bias"]), Relu(),
            Conv(second["kernel"], second["bias"], (2, 2)), Relu(), Flatten(),
            _dense(params["Dense_0"]), Relu(), _dense(params["Dense_1"]),
        ]  # fmt: skip


class ConvSmall(Split, nn.Module):
    """Two 4x4 convolutions of stride 2 and one hidden layer, ReLU, SAME; cheap on MNIST.

    Attributes:
        widths: Channels of both convolutions, width of the hidden layer.
        num_classes: Number of logits.
    """

    widths: tuple[int, int, int] = (16, 32, 100)
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Images, part: Part = "whole") -> Float[Array, "batch *out"]:
        """Logits of a batch of NHWC images."""
        x = jnp.asarray(x)
        if part != "trunk":
            x = nn.relu(nn.Conv(self.widths[0], (4, 4), (2, 2), name="Conv_0")(x))
        if part == "stem":
            return x
        x = nn.relu(nn.Conv(self.widths[1], (4, 4), (2, 2), name="Conv_1")(x))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(self.widths[2])(x))
        return nn.Dense(self.num_classes)(x)

    def layers(self, variables: Mapping[str, Any]) -> list[Layer]:
        """The network as explicit layers, for certificates."""
        params = _params(variables, "Dense_1")
        first, second = params["Conv_0"], params["Conv_1"]
        return [
            Conv(first["kernel"], first["bias"], (2, 2)), Relu(),
            Conv(second["kernel"], second["bias"], (2, 2)), Relu(), Flatten(),
            _dense(params["Dense_0"]), Relu(), _dense(params["Dense_1"]),
        ]  # fmt: skip


class MadryCNN(Split, nn.Module):
    """The MNIST network of the Madry challenge.

    conv 5x5x32, pool 2, conv 5x5x64, pool 2, dense 1024, dense 10; SAME, ReLU; weights truncated
    normal of deviation 0.1, biases 0.1. Image sides must be multiples of 4.

    Attributes:
        num_classes: Number of logits.
    """

    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Images, part: Part = "whole") -> Float[Array, "batch *out"]:
        """Logits of a batch of NHWC images."""
        x = jnp.asarray(x)
        if x.shape[1] % 4 or x.shape[2] % 4:
            raise ValueError(
                f"madry_cnn pools twice: image sides must be multiples of 4; got {x.shape[1:3]}"
            )
        init: dict[str, Any] = {
            "kernel_init": nn.initializers.truncated_normal(0.1),
            "bias_init": nn.initializers.constant(0.1),
        }
        if part != "trunk":
            x = nn.relu(nn.Conv(32, (5, 5), name="Conv_0", **init)(x))
        if part == "stem":
            return x
        x = max_pool(x)
        x = max_pool(nn.relu(nn.Conv(64, (5, 5), name="Conv_1", **init)(x)))
        x = x.reshape(x.shape[0], -1)
        x = nn.relu(nn.Dense(1024, **init)(x))
        return nn.Dense(self.num_classes, **init)(x)


def mlp(features: tuple[int, ...] = (500,), num_classes: int = 10) -> MLP:
    """Two-layer ReLU network of paper 003 (784-500-10 on MNIST), or any other widths.

    >>> import jax
    >>> model = mlp((8,), num_classes=3)
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    >>> model.apply(variables, jnp.zeros((2, 4, 4, 1))).shape
    (2, 3)
    """
    return MLP(features, num_classes)


def madry_cnn(num_classes: int = 10) -> MadryCNN:
    """Network of the Madry MNIST challenge; see `MadryCNN`.

    >>> madry_cnn().num_classes
    10
    """
    return MadryCNN(num_classes)


def small_cnn(num_classes: int = 10) -> SmallCNN:
    """A small strided convolutional network; see `SmallCNN`.

    >>> small_cnn(num_classes=3).num_classes
    3
    """
    return SmallCNN(num_classes)


def conv_small(widths: tuple[int, int, int] = (16, 32, 100), num_classes: int = 10) -> ConvSmall:
    """The small network of the Kolter-Wong line of work; see `ConvSmall`.

    References: Wong and Kolter 2018.

    >>> conv_small((2, 4, 64)).widths
    (2, 4, 64)
    """
    return ConvSmall(widths, num_classes)


def _params(variables: Mapping[str, Any], last: str) -> Mapping[str, Any]:
    """The parameters among a module's variables, if they are of its depth."""
    params = variables.get("params", {})
    if last not in params:
        raise ValueError(
            "variables must be what the module's init returned, with 'params' that reach up to "
            f"{last!r}; got {sorted(variables)}" + (f" with {sorted(params)}" if params else "")
        )
    return params


def _dense(params: Mapping[str, Any]) -> Dense:
    return Dense(params["kernel"], params["bias"])


def max_pool(x: Array) -> Array:
    """2x2 max pooling of even sides, whose gradient is far cheaper on CPU than reduce_window's.

    >>> max_pool(jnp.arange(4.0).reshape(1, 2, 2, 1)).ravel()
    Array([3.], dtype=float32)
    """
    rows = jnp.maximum(x[:, ::2], x[:, 1::2])
    return jnp.maximum(rows[:, :, ::2], rows[:, :, 1::2])
