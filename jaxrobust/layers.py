"""An explicit network of plain arrays: what certificates read, and anyone's weights fit into."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust.types import Images


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense:
    """Affine layer `x @ kernel + bias`.

    Args:
        kernel: `(inputs, outputs)`.
        bias: `(outputs,)`.
    """

    kernel: Any
    bias: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Conv:
    """Convolution (cross-correlation) over NHWC images.

    Args:
        kernel: `(height, width, inputs, outputs)` (HWIO).
        bias: `(outputs,)`.
        strides: Vertical and horizontal step.
        padding: "SAME" or "VALID".
    """

    kernel: Any
    bias: Any
    strides: tuple[int, int] = dataclasses.field(default=(1, 1), metadata={"static": True})
    padding: Literal["SAME", "VALID"] = dataclasses.field(default="SAME", metadata={"static": True})


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Relu:
    """`max(x, 0)`, elementwise."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Sigmoid:
    """`1 / (1 + exp(-x))`, elementwise; its slope lies in (0, 1/4]."""


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Flatten:
    """All but the batch axis in one, in row-major order."""


Layer: TypeAlias = Dense | Conv | Relu | Sigmoid | Flatten


def apply(layers: Sequence[Layer], x: Images) -> Float[Array, "batch classes"]:
    """Run the network; `jax.tree_util.Partial(apply, layers)` is a `logits_fn`.

    Args:
        layers: In order of application.
        x: `(batch, inputs)`, or `(batch, height, width, channels)` before a `Flatten` or `Conv`.

    Raises:
        ValueError: For anything that is no layer.

    >>> apply([Dense(jnp.eye(2), jnp.ones(2)), Relu()], jnp.array([[-3.0, 1.0]]))
    Array([[0., 2.]], dtype=float32)
    """
    x = jnp.asarray(x)
    for layer in layers:
        match layer:
            case Dense(kernel, bias):
                x = x @ jnp.asarray(kernel) + jnp.asarray(bias)
            case Conv(kernel, bias, strides, padding):
                x = jax.lax.conv_general_dilated(
                    x, jnp.asarray(kernel), strides, padding,
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                ) + jnp.asarray(bias)  # fmt: skip
            case Relu():
                x = jnp.maximum(x, 0)
            case Sigmoid():
                x = jax.nn.sigmoid(x)
            case Flatten():
                x = x.reshape(x.shape[0], -1)
            case _:
                raise ValueError(
                    "layers must hold Dense, Conv, Relu, Sigmoid or Flatten; got "
                    f"{type(layer).__name__}"
                )
    return x
