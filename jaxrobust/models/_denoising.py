"""Features cleaned by a mean over all places that look alike."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust.checks import check_count


class FeatureDenoising(nn.Module):
    """Feature denoising (FDn): a non-local mean and a 1x1 convolution, added to the features.

    `x + g(sum_j w_ij x_j)` with `w_i = softmax_j(theta(x_i) . phi(x_j) / sqrt(d))` over all places
    j of the same image, theta and phi 1x1 convolutions to half as many channels d, and g a 1x1
    convolution and a norm. The norm's scale starts at zero, and so does what is added.

    Paper 001 says nothing of where and how; its rows CNN-FDn and TisODE-FDn are ours with one of
    these behind the block. The publication has batch normalisation for the norm; here it is a group
    norm, which keeps rows apart, as in the networks that it is for. Memory: `batch * places^2`.

    References: Xie et al. 2019 (feature denoising), sec. 3 and fig. 4, 5; paper 001, table 4.

    >>> layer, x = FeatureDenoising(), jnp.ones((2, 3, 3, 4))
    >>> bool((layer.apply(layer.init(jax.random.key(0), x), x) == x).all())
    True
    """

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """Cleaned features, of the same shape."""
        width = x.shape[-1]
        inner = max(width // 2, 1)
        places = x.reshape(x.shape[0], -1, width)
        theta = nn.Dense(inner, use_bias=False, name="theta")(places)
        phi = nn.Dense(inner, use_bias=False, name="phi")(places)
        likeness = jnp.einsum("bic,bjc->bij", theta, phi) / jnp.sqrt(inner).astype(theta.dtype)
        mean = jnp.einsum("bij,bjc->bic", jax.nn.softmax(likeness), places).reshape(x.shape)
        mean = nn.Dense(width, name="g")(mean)
        return x + group_norm(width, scale_init=nn.initializers.zeros)(mean)


def group_norm(
    width: int, scale_init: nn.initializers.Initializer = nn.initializers.ones
) -> nn.GroupNorm:
    """The norm of neural ODEs: 32 groups, or groups of two channels where there are fewer than 64.

    The released code has 32 groups of two. Alone in its group a channel would lose, with its mean
    and scale, all that average pooling reads of it.

    Raises:
        ValueError: For a number of channels that these groups cannot share.

    >>> group_norm(16).num_groups
    8
    """
    check_count(width, "width", 2)
    if width % 2 or (width > 64 and width % 32):
        raise ValueError(f"width must be even, and a multiple of 32 above 64; got {width}")
    return nn.GroupNorm(
        min(32, width // 2), epsilon=1e-5, scale_init=scale_init, use_fast_variance=False
    )  # the fast one cancels: it was 0.1 % off in float32
