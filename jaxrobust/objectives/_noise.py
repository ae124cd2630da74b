"""Training on noisy images, for classifiers that will be smoothed."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float, Key, PyTree

from jaxrobust import checks, losses
from jaxrobust.losses import Loss
from jaxrobust.objectives._base import Forward, from_loss
from jaxrobust.types import Batch, Objective, Out


def gaussian_augmentation(
    forward: Forward, *, sigma: float | Array, loss: Loss = losses.cross_entropy
) -> Objective:
    """The loss at images with Gaussian noise, one draw an example and step; no clean term.

    Noisy images are not clipped to the box, as smoothing will not clip them either.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        sigma: Standard deviation of the noise in pixel units, that of the smoothed classifier.
        loss: Loss minimised at the noisy images.

    Returns:
        An objective with the metric `noisy_accuracy`.

    Raises:
        ValueError: For a negative sigma.

    References:
        Lecuyer et al. 2019 (PixelDP), as paper 000, sec. 5, describes it; Cohen et al. 2019,
        "Certified adversarial robustness via randomized smoothing".

    >>> objective = gaussian_augmentation(lambda p, s, x: (x * p, s), sigma=0.0)
    >>> batch = Batch(jax.numpy.zeros((1, 2)), jax.numpy.array([0]), jax.numpy.array([0]))
    >>> float(objective.value_and_grad(1.0, {}, (), batch, key=jax.random.key(0))[0].loss)
    0.693147...
    """
    checks.check_radius(sigma, "sigma")
    at_noisy = from_loss(forward, loss, accuracy="noisy_accuracy")

    def value_and_grad(
        params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, *, key: Key[Array, ""]
    ) -> tuple[Out, PyTree]:
        noisy = batch._replace(x=add_noise(batch.x, sigma, key))
        return at_noisy.value_and_grad(params, model_state, state, noisy, key=key)

    return Objective(at_noisy.init, value_and_grad)


def add_noise(
    x: Float[Array, "*dims"], sigma: float | Array, key: Key[Array, ""]
) -> Float[Array, "*dims"]:
    """Images plus independent Gaussian noise, not clipped.

    >>> add_noise(jax.numpy.ones(2), 0.0, jax.random.key(0))
    Array([1., 1.], dtype=float32)
    """
    return x + sigma * jax.random.normal(key, x.shape, x.dtype)
