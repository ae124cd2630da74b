"""The slope of a neural ODE, in a form that is quick inside solvers' loops."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from jaxrobust.models._denoising import group_norm


class Field(nn.Module):
    """What features flow along, `f(t, z)`: twice a convolution 3x3, a group norm, a ReLU.

    So `f >= 0`: features only grow, and the integral of |f| is what they grow by.

    Attributes:
        width: Channels.
        timed: Whether each convolution sees the time, as one more channel, and has a bias.
    """

    width: int
    timed: bool

    @nn.compact
    def __call__(
        self, t: Float[Array, ""], z: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """The slope at a time."""
        for _ in range(2):
            if self.timed:
                time = jnp.full_like(z[..., :1], 1) * t
                z = jnp.concatenate([time, z], axis=-1)
            z = nn.relu(group_norm(self.width)(Conv3x3(self.width, self.timed)(z)))
        return z


class Conv3x3(nn.Module):
    """`nn.Conv(features, (3, 3))` by one product with all patches, which is quick inside loops.

    Solvers loop, and there XLA's CPU compiler runs the gradients of convolutions by a naive kernel
    (`gradients.canonical` does not see into a solver); training was 8 times slower.

    Attributes:
        features: Channels that come out.
        use_bias: Whether they have a bias.
    """

    features: int
    use_bias: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Of a batch of NHWC features; as many pixels come out."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[-1:]) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias)
        out = _product(x, kernel)
        return out if bias is None else out + bias.reshape(1, 1, 1, -1)


@jax.checkpoint  # patches are nine times x: made again rather than kept for the derivative
def _product(x: Array, kernel: Array) -> Array:
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])
