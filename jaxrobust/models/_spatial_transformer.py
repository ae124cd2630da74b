"""A classifier that straightens its images first."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust import flow
from jaxrobust.types import Images


class SpatialTransformer(nn.Module):
    """A spatial transformer network: a small network says how to move the image, then a classifier.

    The localisation network, dense with ReLUs, gives an affine map of 2 x 3 numbers from the pixels
    of the new image to where they look in the old one: down and to the right, both from -1 to 1
    across the image, and a constant. It is the identity plus what the last layer returns, which
    starts at zero, so that the classifier first sees the images as they are. They are sampled by
    `flow.warp`: between pixels bilinearly, beyond the border as the border is (Jaderberg et al. pad
    with zeros).

    Attributes:
        classifier: A module from images to logits, called with the images alone.
        features: Widths of the localisation network's hidden layers.
    """

    classifier: nn.Module
    features: tuple[int, ...] = (100, 100)

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "batch classes"]:
        """Logits of a batch of images, `(batch, height, width)` or with channels."""
        x = jnp.asarray(x)
        if x.ndim < 3:
            raise ValueError(
                f"x must be images (batch, height, width, ...) to be moved; got shape {x.shape}"
            )
        hidden = x.reshape(x.shape[0], -1)
        for width in self.features:
            hidden = nn.relu(nn.Dense(width)(hidden))
        change = nn.Dense(6, kernel_init=nn.initializers.zeros)(hidden).reshape(-1, 2, 3)
        return self.classifier(
            jax.vmap(flow.warp)(x, _affine_flow(change, (x.shape[1], x.shape[2])))
        )


def _affine_flow(
    change: Float[Array, "batch 2 3"], shape: tuple[int, int]
) -> Float[Array, "batch height width 2"]:
    """Displacements, in pixels, of affine maps given by what they add to the identity."""
    down, right = (jnp.linspace(-1.0, 1.0, size, dtype=change.dtype) for size in shape)
    grid = jnp.stack([*jnp.meshgrid(down, right, indexing="ij"), jnp.ones(shape, change.dtype)], -1)
    pixels = jnp.array([(size - 1) / 2 for size in shape], change.dtype)  # a unit of the grid
    return pixels * jnp.einsum("bij,hwj->bhwi", change, grid, precision=jax.lax.Precision.HIGHEST)


def spatial_transformer(
    classifier: nn.Module, features: tuple[int, ...] = (100, 100)
) -> SpatialTransformer:
    """The baseline f_stn of paper 002: three dense layers, 100 hidden units, before `classifier`.

    The paper says no more of it than "three layer" and "100 hidden units": two hidden layers of 100
    and the output are our reading. It is trained on the hinge loss (`objectives.hinge`).

    Args:
        classifier: `mlp((500,))` in the paper.
        features: Widths of the localisation network's hidden layers.

    References: paper 002, sec. 6.8 (4); Jaderberg et al. 2015, sec. 3.

    >>> from jaxrobust.models import mlp
    >>> model, x = spatial_transformer(mlp((8,))), jnp.ones((2, 4, 4, 1))
    >>> model.apply(model.init(jax.random.key(0), x), x).shape
    (2, 10)
    """
    return SpatialTransformer(classifier, features)
