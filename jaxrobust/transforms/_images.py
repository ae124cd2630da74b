"""Random changes of one image, `change(x, key)`: for training, and for `randomized` models."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxrobust.checks import check_count, check_sigma


def crop_and_flip(
    x: Float[Array, "height width channels"],
    key: Key[Array, ""],
    *,
    padding: int = 4,
    flip: bool = True,
) -> Float[Array, "height width channels"]:
    """Move an image by a few pixels, black coming in, and mirror it every other time.

    For `train.fit(augment=...)`; the published augmentation of CIFAR-10.

    Args:
        x: One image.
        key: A key of its own.
        padding: Most pixels that it moves along each side: rows of zeros put around it before it is
            cropped at random to its size again.
        flip: Whether left and right may change places.

    Raises:
        ValueError: For a padding that is no count, or an x that is no image.

    References: He et al. 2016; Madry et al. 2018 pad by 2, Wang and Zhang 2019 and others by 4.

    >>> crop_and_flip(jnp.ones((3, 3, 1)), jax.random.key(0), padding=0).shape
    (3, 3, 1)
    """
    check_count(padding, "padding", least=0)
    if x.ndim != 3:
        raise ValueError(f"x must be one image, (height, width, channels); got shape {x.shape}")
    crop_key, flip_key = jax.random.split(key)
    rows, columns = jax.random.randint(crop_key, (2,), 0, 2 * padding + 1)
    padded = jnp.pad(x, [(padding, padding), (padding, padding), (0, 0)])
    x = jax.lax.dynamic_slice(padded, (rows, columns, jnp.zeros_like(rows)), x.shape)
    return jnp.where(flip & jax.random.bernoulli(flip_key), x[:, ::-1], x)


def resize_and_pad(
    x: Float[Array, "height width channels"], key: Key[Array, ""], *, padding: int = 3
) -> Float[Array, "taller wider channels"]:
    """Enlarge an image a little and put it somewhere on a black canvas: input randomisation.

    Its sides grow by d pixels, d uniform in 0..padding-1 (published: 299 to 299..330), and of the
    `padding - d` rows of zeros that are left each number may lie above it, likewise of columns.
    Interpolation is bilinear between the centres of pixels.

    Args:
        x: One image.
        key: A key of its own.
        padding: By how much the sides of the canvas exceed the image's. 32 for 299 pixels as
            published, of which 3 for 28 is the like; for MNIST nothing is published.

    Returns:
        The canvas, `(height + padding, width + padding, channels)`: what follows must take images
        of that size, as `models.tisode` does.

    Raises:
        ValueError: For what is no image of three dimensions; for a padding below 1.

    References: Xie et al. 2018 (mitigating adversarial effects through randomization), sec. 3.
        Theirs interpolates from corner pixel to corner pixel.

    >>> canvas = resize_and_pad(jnp.ones((2, 2, 1)), jax.random.key(0), padding=1)
    >>> canvas.shape, float(canvas.sum())
    ((3, 3, 1), 4.0)
    """
    check_count(padding, "padding")
    if x.ndim != 3:
        raise ValueError(f"x must be one image (height, width, channels); got shape {x.shape}")
    size_key, place_key = jax.random.split(key)
    more = jax.random.randint(size_key, (), 0, padding)
    above, left = jax.random.randint(place_key, (2,), 0, padding - more + 1)
    rows = _stretched(x.shape[0], padding, more, above, x)
    columns = _stretched(x.shape[1], padding, more, left, x)
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("ph,qw,hwc->pqc", rows, columns, x)


def _stretched(size: int, padding: int, more: Array, offset: Array, like: Array) -> Array:
    """`(size + padding, size)`: the weights of the old pixels in each of the new."""
    place = (jnp.arange(size + padding) - offset).astype(like.dtype)
    longer = (size + more).astype(like.dtype)
    source = jnp.clip((place + 0.5) * (size / longer) - 0.5, 0, size - 1)
    old = jnp.arange(size).astype(like.dtype)
    weights = jax.nn.relu(1 - jnp.abs(source[:, None] - old))
    return jnp.where((place >= 0) & (place < longer), weights.T, 0).T


def sometimes_noisy(
    x: Float[Array, "height width channels"],
    key: Key[Array, ""],
    *,
    sigmas: Sequence[float] = (50 / 255, 75 / 255, 100 / 255),
    probability: float = 0.5,
) -> Float[Array, "height width channels"]:
    """Gaussian noise on every other image, of a deviation drawn among a few, clipped to [0, 1].

    For `train.fit(augment=...)`: the training on noise of the neural ODEs.

    Args:
        x: One image in [0, 1].
        key: A key of its own.
        sigmas: Deviations in pixel units, each as likely; the published ones are MNIST's.
        probability: Share of the images that get noise.

    References: Yan et al. 2020 (TisODE), released code; paper 001, table 2.

    >>> sometimes_noisy(jnp.ones((2, 2, 1)), jax.random.key(0), probability=0.0).sum()
    Array(4., dtype=float32)
    """
    for sigma in sigmas:
        check_sigma(sigma)
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must lie in [0, 1]; got {probability}")
    often, which, draw = jax.random.split(key, 3)
    sigma = jax.random.choice(which, jnp.asarray(sigmas, x.dtype))
    noisy = jnp.clip(x + sigma * jax.random.normal(draw, x.shape, x.dtype), 0, 1)
    return jnp.where(jax.random.bernoulli(often, probability), noisy, x)
