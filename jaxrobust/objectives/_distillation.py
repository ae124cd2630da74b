"""Defensive distillation: a student learns a teacher's probabilities at a high temperature."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from jaxrobust.checks import check_temperature
from jaxrobust.objectives._base import Forward
from jaxrobust.types import Batch, LogitsFn, Objective, Out, Randomized, as_partial, logits_of


class DistillationState(NamedTuple):
    """The teacher's arrays, in the order of its pytree."""

    teacher: tuple[Array, ...]


def distillation(
    forward: Forward, teacher: LogitsFn, *, temperature: float | Array = 100.0
) -> Objective:
    """Cross-entropy between teacher and student, both softened: broken as a defence, for study.

    Minimises the mean of `-sum_i p_i log q_i`, p and q the softmax of the teacher's and of the
    student's logits divided by the temperature T. At test time the student's logits are used as
    they are, T times the size of those that its softmax was trained on: it saturates, derivatives
    of its cross-entropy underflow, and attacks that climb them stall. That is gradient masking; a
    loss of logits (`losses.margin`, `losses.f6`) or logits divided by T sees through it.

    The teacher is trained at the same temperature: `cross_entropy(forward, temperature=T)`. In the
    released code both start from the same weights, one epoch old.

    Args:
        forward: The student, `(params, model_state, x) -> (outputs, model_state)`.
        teacher: Its `logits_fn`, in evaluation mode: a `jax.tree_util.Partial`, whose weights
            become the objective's state, or another pytree. It is run on each batch, so the images
            may be augmented; only its labels are used, never its gradient.
        temperature: T, positive; the published one.

    Raises:
        ValueError: For a temperature that is not positive and finite, or a random teacher.

    References:
        Papernot et al. 2016 (distillation as a defense), sec. IV; paper 001, table VI, which breaks
        it. Gradients carry a factor 1 / T, which Hinton et al. 2015 cancel by T^2 and
        these do not.
    """
    check_temperature(temperature)
    if isinstance(teacher, Randomized):
        raise ValueError("teacher must be deterministic; got a Randomized model")
    leaves, structure = jax.tree.flatten(as_partial(teacher))

    def init(params: PyTree, key: Key[Array, ""]) -> DistillationState:
        del params, key
        # Copies: a training loop may donate its state, and the caller's teacher must live on.
        return DistillationState(tuple(jnp.copy(leaf) for leaf in leaves))

    def value_and_grad(
        params: PyTree,
        model_state: PyTree,
        state: DistillationState,
        batch: Batch,
        *,
        key: Key[Array, ""],
    ) -> tuple[Out, PyTree]:
        del key
        logits_fn: Any = jax.tree.unflatten(structure, state.teacher)
        wanted = jax.nn.softmax(logits_of(logits_fn(batch.x)) / temperature)

        def mean_loss(params: PyTree) -> tuple[Array, Out]:
            outputs, new_state = forward(params, model_state, batch.x)
            logits = logits_of(outputs)
            value = -jnp.mean(jnp.sum(wanted * jax.nn.log_softmax(logits / temperature), -1))
            hits = jnp.argmax(logits, -1) == batch.y
            return value, Out(value, new_state, state, {"accuracy": jnp.mean(hits)})

        grads, out = jax.grad(mean_loss, has_aux=True)(params)
        return out, grads

    return Objective(init, value_and_grad)
