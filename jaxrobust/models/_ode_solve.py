"""One initial value problem, by a solver of diffrax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

State: TypeAlias = tuple[Array, ...]
Slope: TypeAlias = Callable[[Any, State, Any], State]


def check_solver(solver: Any, controller: Any, adjoint: Any) -> None:
    """Refuse what is not diffrax's, and steps that adapt to an error nobody estimates."""
    if solver is controller is adjoint is None:
        return
    import diffrax

    kinds = {
        "solver": (solver, diffrax.AbstractSolver),
        "controller": (controller, diffrax.AbstractStepSizeController),
        "adjoint": (adjoint, diffrax.AbstractAdjoint),
    }
    for name, (value, kind) in kinds.items():
        if not isinstance(value, kind | None):
            raise ValueError(f"{name} must be a diffrax.{kind.__name__} or None; got {value!r:.60}")
    adapts = isinstance(controller, diffrax.AbstractAdaptiveStepSizeController)
    if adapts and not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ValueError(
            "solver must estimate its error, as diffrax.Dopri5() does, for steps that adapt; got "
            f"{solver!r:.60}"
        )


def solved(
    slope: Slope, state: State, args: Any, begin: float, end: float, step: float, solver: Any,
    controller: Any, adjoint: Any, max_steps: int,
) -> State:  # fmt: skip
    """The state at the end; NaN where the solver fails.

    Args:
        slope: `slope(t, state, args)`.
        state: At the beginning, of one row: its steps are chosen for it alone.
        args: Whatever the slope depends on and gradients are wanted of: an adjoint sees no closure.
        begin: First time.
        end: Last time.
        step: See `OdeNet`, as for all that follow.
        solver: Of diffrax, or None.
        controller: Of diffrax, or None.
        adjoint: Of diffrax, or None.
        max_steps: Most steps where they adapt.
    """
    import diffrax  # takes a second, and no other model needs it

    term, solver = diffrax.ODETerm(slope), solver or diffrax.Euler()
    times = _grid(begin, end, step)
    if controller is None and adjoint is None:
        return _in_steps(term, solver, state, args, jnp.asarray(times, state[0].dtype))
    first = step if controller else (end - begin) / (len(times) - 1)
    solution = diffrax.diffeqsolve(
        term, solver, begin, end, first, state, args=args,
        stepsize_controller=controller or diffrax.ConstantStepSize(),
        adjoint=adjoint or diffrax.DirectAdjoint(), saveat=diffrax.SaveAt(t1=True),
        max_steps=max_steps if controller else len(times) - 1, throw=False,
    )  # fmt: skip
    last = jax.tree.map(lambda leaf: leaf[0], solution.ys)
    return _where(solution.result == diffrax.RESULTS.successful, last)


def _in_steps(term: Any, solver: Any, state: State, args: Any, times: Array) -> State:
    """Constant steps as a scan, which JAX differentiates itself and any `shard_map` takes.

    `diffeqsolve` takes the same steps, but compiles and differentiates more slowly, and its loops
    refuse a default `shard_map`.
    """
    import diffrax

    def step(carry: tuple[State, Any], ends: Array) -> tuple[tuple[State, Any], Array]:
        now, memory = carry
        then, _, _, memory, result = solver.step(
            term, ends[0], ends[1], now, args, memory, made_jump=False
        )
        return (then, memory), result == diffrax.RESULTS.successful

    memory = solver.init(term, times[0], times[1], state, args)
    ends = jnp.stack([times[:-1], times[1:]], axis=1)
    (last, _), fine = jax.lax.scan(step, (state, memory), ends)
    return _where(jnp.all(fine), last)


def _grid(begin: float, end: float, step: float) -> np.ndarray:
    """Times of constant steps: the fewest equal ones that are no longer than `step`."""
    return np.linspace(begin, end, math.ceil((end - begin) / step - 1e-3) + 1)


def _where(fine: Array, state: State) -> State:
    return jax.tree.map(lambda leaf: jnp.where(fine, leaf, jnp.nan), state)
