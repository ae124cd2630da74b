"""Jacobian regularisation: the Frobenius norm of the logits' derivative, exact or projected."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxrobust import checks
from jaxrobust.objectives._base import Forward
from jaxrobust.objectives._input_products import squared_products
from jaxrobust.types import Objective


def jacobian(
    forward: Forward, *, weight: float | Array = 0.01, num_projections: int | None = 1
) -> Objective:
    """`weight / 2` times the batch mean of `||J||_F^2`, J the logits' derivative in the image.

    A regulariser alone: `add(cross_entropy(forward), jacobian(forward))`. With a projection v
    uniform on the unit sphere of C classes, `C ||J^T v||^2` is an unbiased estimate of the norm
    (eq. 8 of the paper omits C, the released code has it). Several projections of an example are
    orthonormal and are averaged, so that C of them are exact (in the code they are independent).

    A product costs a forward and a backward pass to the image, and a forward pass of derivatives
    with its own backward pass: about a natural step (`madry_cnn`, CPU). None, the exact norm, takes
    C of them, one after another; memory is that of one. The model runs in training mode; batch
    statistics couple the rows, and the products are those of the sum over the batch. Its state is
    left to the other members.

    Jakubovitz and Giryes penalise the root of the sum over the batch instead, `weight *
    sqrt(sum_b ||J_b||_F^2)` with weight 0.1, after normal training; their released code applies it
    to the first image of each batch only. That is not this function.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        weight: Lambda: 0.01 in the README of the released code, 0.1 in its example.
        num_projections: At most C, of each example and step; None for the exact norm.

    Returns:
        An objective with the metric `jacobian`, the (estimated) mean of `||J||_F^2 / 2`.

    Raises:
        ValueError: For a negative weight or a count below 1; at the first step, for more
            projections than classes.

    References:
        Hoffman, Roberts and Yaida 2019, "Robust Learning with Jacobian Regularization"; paper 001
        (Jakubovitz and Giryes 2018).

    >>> from jaxrobust.types import Batch
    >>> objective = jacobian(lambda w, s, x: (x @ w, s), weight=1.0, num_projections=None)
    >>> batch = Batch(jnp.ones((1, 1)), jnp.array([0]), jnp.array([0]))
    >>> weights = jnp.array([[3.0, 4.0]])
    >>> out, _ = objective.value_and_grad(weights, {}, (), batch, key=jax.random.key(0))
    >>> round(float(out.loss), 3)  # 25 / 2
    12.5
    """
    if num_projections is not None:
        checks.check_count(num_projections, "num_projections")

    def directions(key: Key[Array, ""], rows: int, classes: int) -> Float[Array, "n rows classes"]:
        if num_projections is None:
            return jnp.eye(classes)[:, None] / jnp.sqrt(2.0)
        if num_projections > classes:
            raise ValueError(
                f"num_projections must be at most the {classes} classes, or None for the exact "
                f"norm; got {num_projections}"
            )
        drawn = jax.random.normal(key, (rows, classes, num_projections))
        return jnp.moveaxis(jnp.linalg.qr(drawn)[0], -1, 0) * jnp.sqrt(
            classes / (2.0 * num_projections)
        )

    return squared_products(forward, directions, weight=weight, metric="jacobian")
