"""Steady features: the regulariser of TisODE."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxrobust.checks import check_radius
from jaxrobust.losses import Loss
from jaxrobust.objectives._base import Forward, from_batch_loss
from jaxrobust.types import Objective


def steady_state(
    forward: Forward, *, weight: float | Array = 0.01, loss: Loss | None = None
) -> Objective:
    """How far from rest the features of a neural ODE are: `weight` times the mean drift.

    The drift of a row is the mean over its features of the integral of |f| from t1 to t2, on the
    path that the features take (`models.OdeNet.outputs`, which says what t1 and t2 were published).
    Published from the sixth epoch on: `scheduled` moves the weight.

    The paper's aim is z(t2) near z(t1). Its own field, which ends in a ReLU, is never negative:
    there |f| = f, and the drift is the mean of z(t2) - z(t1), whatever the path. For a field with
    signs those differ, for it could come back; what is regularised here is |f|.

    Args:
        forward: `(params, model_state, x) -> ((logits, drift), model_state)`, such as
            `from_module(functools.partial(model.apply, method="outputs"))`.
        weight: Of the mean drift; 0.01 as published.
        loss: Minimised beside it in the same pass, as `losses.cross_entropy` is as published. None
            for the regulariser alone, to be added to other objectives, which costs a pass more.

    Returns:
        An objective with the metric `drift`, and `accuracy` where there is a loss.

    Raises:
        ValueError: For a negative weight; for a model that returns no drift.

    References:
        Yan et al. 2020 (on robustness of neural ODEs), eq. 6, and its released code; paper 001.

    >>> from jaxrobust.types import Batch
    >>> objective = steady_state(lambda p, s, x: ((x, p * x[:, 0]), s), weight=0.5)
    >>> batch = Batch(jnp.ones((2, 3)), jnp.array([0, 1]), jnp.array([0, 1]))
    >>> out, grad = objective.value_and_grad(4.0, {}, (), batch, key=jax.random.key(0))
    >>> float(out.loss), float(grad)
    (2.0, 0.5)
    """
    check_radius(weight, "weight")

    def of_rows(outputs: PyTree, y: Array, key: Array) -> tuple[Array, dict[str, Array]]:
        del key
        logits, drift = _drifting(outputs, y.shape[0])
        drift = jnp.mean(drift)
        if loss is None:
            return weight * drift, {"drift": drift}
        hits = jnp.argmax(logits, axis=-1) == y
        value = jnp.mean(jax.vmap(loss)(logits, y)) + weight * drift
        return value, {"accuracy": jnp.mean(hits), "drift": drift}

    return from_batch_loss(forward, of_rows)


def _drifting(outputs: PyTree, num_rows: int) -> tuple[Array, Array]:
    """Logits and the drift of each row, or a word to whoever returns something else."""
    shapes = [jnp.shape(part) for part in outputs] if isinstance(outputs, tuple) else None
    if shapes is None or len(shapes) != 2 or shapes[1] != (num_rows,):
        raise ValueError(
            f"the model must return (logits, drift), drift of shape ({num_rows},); got "
            f"{'logits alone' if shapes is None else f'shapes {shapes}'}"
        )
    return outputs
