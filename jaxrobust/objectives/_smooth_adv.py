"""SmoothAdv: adversarial training of the smoothed classifier."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key, PyTree

from jaxrobust import checks, losses
from jaxrobust.objectives._base import Forward, from_loss, frozen_model
from jaxrobust.threat import Ball
from jaxrobust.types import Attack, Batch, LogitsFn, Objective, Out, logits_of, row_keys


def smooth_adv(
    forward: Forward,
    attack: Attack,
    *,
    ball: Ball,
    sigma: float | Array,
    num_samples: int = 1,
    eval_forward: Forward | None = None,
) -> Objective:
    """Cross-entropy at noisy copies of images that an attack finds against the smoothed classifier.

    Each example draws `num_samples` noises a step. The attack meets a deterministic model, the
    logarithm of the mean softmax over these draws, whose cross-entropy is the SmoothAdv loss
    `-log mean_i softmax(f(x' + d_i))_y`; any attack will do. The same draws are then added to the
    attacked image, and the mean ordinary cross-entropy of the copies is minimised. Noise is not
    clipped to the box; the attacked image is.

    The released code trains on one of the draws only unless told otherwise, and its batches hold
    `1 / num_samples` of the examples, at the same cost; here every draw of every example counts, at
    `num_samples` times the cost.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        attack: `attack(logits_fn, x, y, *, key, ball) -> x_adv`, called on one image at a time
            under `jax.vmap`. Released: `pgd` in ten steps of `2 * eps / 10`, no random start.
        ball: The threat trained against, l2 as published; one eps for all. In published runs it
            rises linearly over the first epochs: `scheduled`.
        sigma: Standard deviation of the noise in pixel units, that of the smoothed classifier.
        num_samples: Noise draws an example, shared by the attack and the loss.
        eval_forward: The forward function that the attack sees; see `madry`.

    Returns:
        An objective with the metric `adversarial_accuracy`, over the noisy copies.

    Raises:
        ValueError: For a negative sigma or a count below 1; at the first step, for a model with a
            state but no `eval_forward`.

    References:
        Salman et al. 2019, "Provably robust deep learning via adversarially trained smoothed
        classifiers", arXiv:1906.04584.
    """
    checks.check_radius(sigma, "sigma")
    checks.check_count(num_samples, "num_samples")
    at_noisy = from_loss(forward, losses.cross_entropy, accuracy="adversarial_accuracy")

    def value_and_grad(
        params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, *, key: Key[Array, ""]
    ) -> tuple[Out, PyTree]:
        model = frozen_model(forward, eval_forward, params, model_state)
        rows, *dims = batch.x.shape
        noise_key, attack_key = jax.random.split(key)
        noise = sigma * jax.random.normal(noise_key, (rows, num_samples, *dims), batch.x.dtype)

        def attacked(x: Array, y: Array, noise: Array, key: Array) -> Array:
            logits_fn = Partial(log_mean_softmax, model, noise)
            return attack(logits_fn, x[None], y[None], key=key[None], ball=ball)[0]

        x_adv = jax.vmap(attacked)(batch.x, batch.y, noise, row_keys(attack_key, rows))
        copies = Batch(
            (x_adv[:, None] + noise).reshape(-1, *dims),
            jnp.repeat(batch.y, num_samples),
            jnp.repeat(batch.index, num_samples),
        )
        return at_noisy.value_and_grad(params, model_state, state, copies, key=key)

    return Objective(at_noisy.init, value_and_grad)


def log_mean_softmax(
    logits_fn: LogitsFn, noise: Float[Array, "samples *dims"], x: Float[Array, "rows *dims"]
) -> Float[Array, "rows classes"]:
    """Logarithm of the mean softmax over fixed noises, the same for every row.

    >>> log_mean_softmax(lambda x: x, jnp.zeros((3, 2)), jnp.zeros((1, 2)))  # log 1/2
    Array([[-0.693147..., -0.693147...]], dtype=float32)
    """
    copies = (x[:, None] + noise).reshape(-1, *x.shape[1:])
    log_softmax = jax.nn.log_softmax(logits_of(logits_fn(copies)))
    by_row = log_softmax.reshape(len(x), len(noise), -1)
    return jax.nn.logsumexp(by_row, axis=1) - jnp.log(jnp.asarray(len(noise), by_row.dtype))
