"""Numbers of an objective that move with the step: warm-ups of eps, and whatever else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from jaxrobust.types import Batch, Objective, Out

Schedule = Callable[[Array], Any]
"""Step -> number, as in optax."""


class ScheduledState(NamedTuple):
    """Number of steps taken, and the state of the objective."""

    step: Array
    state: PyTree


def scheduled(make: Callable[..., Objective], **schedules: Schedule) -> Objective:
    """An objective whose numbers follow schedules of the step.

    Any number that an objective, its ball or its attack takes may move, under a name of your
    choice. The published uses: eps rises at the beginning (warm-up) or throughout (PGDLS, whose
    exact schedule paper 001 does not give: `optax.linear_schedule(0.0, eps, total_steps)` is our
    reading). An attack's `step_size` of None follows the ball.

    Args:
        make: `make(**numbers) -> objective`, called with the numbers of step 0, whose state is the
            first one, and then while the step is traced, when what it checks about a number is not
            checked. The shapes of its state must be the same at every step.
        schedules: An optax schedule, step -> number, for each number by name.

    Returns:
        An objective with its metrics and each number, as of that step, under its name.

    Raises:
        ValueError: If there is no schedule, or one is no function.

    >>> import jax, optax
    >>> from jaxrobust.objectives import gaussian_augmentation
    >>> rising = scheduled(
    ...     lambda sigma: gaussian_augmentation(lambda p, s, x: (x * p, s), sigma=sigma),
    ...     sigma=optax.linear_schedule(0.0, 0.5, 2),
    ... )
    >>> batch = Batch(jnp.ones((1, 2)), jnp.array([0]), jnp.array([0]))
    >>> key = jax.random.key(0)
    >>> out, _ = rising.value_and_grad(1.0, {}, ScheduledState(jnp.array(1), ()), batch, key=key)
    >>> float(out.metrics["sigma"]), int(out.state.step)
    (0.25, 2)
    """
    if not schedules:
        raise ValueError("schedules must hold at least one schedule by name; got none")
    for name, schedule in schedules.items():
        if not callable(schedule):
            raise ValueError(
                f"{name} must be an optax schedule, step -> number; got {schedule!r}: a constant "
                "is optax.constant_schedule, or goes into make"
            )

    def now(step: Array) -> dict[str, Array]:
        return {name: jnp.asarray(schedule(step)) for name, schedule in schedules.items()}

    first = make(**now(jnp.zeros((), jnp.int32)))

    def init(params: PyTree, key: Key[Array, ""]) -> ScheduledState:
        return ScheduledState(jnp.zeros((), jnp.int32), first.init(params, key))

    def value_and_grad(
        params: PyTree,
        model_state: PyTree,
        state: ScheduledState,
        batch: Batch,
        *,
        key: Key[Array, ""],
    ) -> tuple[Out, PyTree]:
        numbers = now(state.step)
        out, grads = make(**numbers).value_and_grad(
            params, model_state, state.state, batch, key=key
        )
        after = ScheduledState(state.step + 1, out.state)
        return out._replace(state=after, metrics={**out.metrics, **numbers}), grads

    value_and_grad.__qualname__ = f"{first.name}, scheduled"
    return Objective(init, value_and_grad)
