"""How training keeps each pair's certificate up to date while the network moves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxrobust import linalg
from jaxrobust.certify import pair_halves, pair_matmul, pair_matvec
from jaxrobust.checks import check_count

Slopes = tuple[float, float]


class PairSolver(NamedTuple):
    """A pair's value `max <M, P>`, estimated, for a network that changes little between steps.

    Attributes:
        init: `(kernel, v, slopes, key) -> (state, value)` of one pair.
        step: `(kernel, v, slopes, state) -> (value, state)`: the value differentiates in kernel and
            v with the state constant.
    """

    init: Callable[..., tuple[PyTree, Array]]
    step: Callable[..., tuple[Array, PyTree]]


def warm_mixing(num_columns: int = 24, num_steps: int = 1) -> PairSolver:
    """Block mixing sweeps from where the last step left off; the gradient of `<M, P>` at P.

    By the envelope theorem that is the optimum's gradient once P is optimal: no eigenvectors, no
    ties. The value is that of a feasible P, so it lies below the optimum.

    Args:
        num_columns: Rank of P. `sqrt(2 D)` is the safe choice (51 for 784-500-10); 24 reached the
            same optima there.
        num_steps: Sweeps a refresh.

    Raises:
        ValueError: For counts below 1.

    References: ours; `linalg.mixing`.
    """
    check_count(num_columns, "num_columns")
    check_count(num_steps, "num_steps")

    def init(kernel: Array, v: Array, slopes: Slopes, key: Array) -> tuple[Array, Array]:
        point = _roughly_solved(kernel, v, slopes, key, num_columns)
        return point.right, point.value

    def step(kernel: Array, v: Array, slopes: Slopes, right: Array) -> tuple[Array, Array]:
        constant = pair_matmul(*jax.lax.stop_gradient((kernel, v)), slopes)
        point = linalg.mixing(constant, right, num_steps)
        product = pair_matmul(kernel, v, slopes)(point.right)
        return 2.0 * jnp.sum(point.left * product), point.right

    return PairSolver(init, step)


POLISH = 3
"""Lanczos steps on M itself, which put right what a stale `top` led astray."""

LEAST_TOP = 0.003
"""In units of the mean dual: no input weighs more than its dual and this allow."""


class DualState(NamedTuple):
    """Duals of one pair, their optimiser's state, and the last top eigenpair.

    Attributes:
        log_c: `(D,)`, logarithms of the duals: constant and hidden units first, then inputs.
        opt_state: The optimiser's.
        rows: `(1 + hidden,)`, the eigenvector's first part.
        top: The eigenvalue.
    """

    log_c: Any
    opt_state: Any
    rows: Array
    top: Array


def lanczos_dual(optimizer: optax.GradientTransformation, num_steps: int = 14) -> PairSolver:
    """The paper's: `D lambda_max^+(M - diag c) + sum max(c, 0)`, with c trained along.

    The value differentiates through the top eigenvector, found by Lanczos from the last one. It is
    a dual value but for Lanczos' shortfall, so it lies a little below an upper bound.

    M couples rows with inputs only, so the inputs' part of an eigenvector follows from the rows':
    `(top + c_t) t = A' s`. Lanczos runs on what that leaves, `s -> A (A' s / (top + c_t)) - c_s s`
    with the last refresh's top, and then for three steps on M: where the network has moved little,
    that is as close as twenty steps on M, in less time (`benchmarks.run sdp`).

    The optimiser moves log c: where c itself was moved, by Adam or by plain gradient steps, duals
    of all sizes could not follow a network that shrinks, and stayed far above the solved programs.

    Args:
        optimizer: Of log c, e.g. `optax.adam(2e-2)`: each pair has its own state, moved when the
            pair is refreshed.
        num_steps: Lanczos steps on the rows a refresh.

    References: paper 003, Eq. 14 and 15, sec. 6.3. How c starts (block mixing), the
        logarithm, and Lanczos on the rows
        are our choice; the paper moves c by the network's Adam.
    """
    check_count(num_steps, "num_steps")

    def init(kernel: Array, v: Array, slopes: Slopes, key: Array) -> tuple[DualState, Array]:
        point = _roughly_solved(kernel, v, slopes, key, 24)
        duals = jnp.concatenate([point.left_dual, point.right_dual])
        # A dead unit's dual is zero; a millionth of the mean costs nothing and can come back.
        log_c = jnp.log(jnp.maximum(duals, 1e-6 * jnp.mean(duals) + 1e-30))
        state = DualState(log_c, optimizer.init(log_c), point.left[:, 0], jnp.zeros_like(log_c[0]))
        return state, jnp.sum(duals)

    def step(kernel: Array, v: Array, slopes: Slopes, state: DualState) -> tuple[Array, DualState]:
        c = jnp.exp(state.log_c)
        start = _start(*jax.lax.stop_gradient((kernel, v)), slopes, c, state)
        product = pair_matvec(kernel, v, slopes)

        def matvec(z: Array) -> Array:
            return product(z) - c * z

        top, vector, _ = linalg.top_eigenpair(matvec, start, num_steps=POLISH, tol=math.inf)
        value = len(c) * jnp.maximum(top, 0.0) + jnp.sum(c)
        slope = c * (1.0 - jnp.where(top > 0, len(c) * vector**2, 0.0))
        updates, opt_state = optimizer.update(slope, state.opt_state, state.log_c)
        after = DualState(
            optax.apply_updates(state.log_c, updates), opt_state, vector[: 1 + len(v)], top
        )
        return value, jax.lax.stop_gradient(after)

    def _start(kernel: Array, v: Array, slopes: Slopes, c: Array, state: DualState) -> Array:
        """The top eigenvector, by Lanczos on the rows."""
        times, back = pair_halves(kernel, v, slopes)
        on_rows, on_inputs = jnp.split(c, [1 + len(v)])
        weight = 1.0 / (on_inputs + jnp.maximum(state.top, LEAST_TOP * jnp.mean(c)))

        def matvec(s: Array) -> Array:
            return times(weight * back(s)) - on_rows * s

        pair = linalg.top_eigenpair(matvec, state.rows, num_steps=num_steps, tol=math.inf)
        return jnp.concatenate([pair.vector, weight * back(pair.vector)])

    return PairSolver(init, step)


def _roughly_solved(
    kernel: Array, v: Array, slopes: Slopes, key: Array, num_columns: int
) -> linalg.Mixing:
    """Where both solvers start: fifty sweeps from a random draw."""
    start = jax.random.normal(key, (kernel.shape[0], num_columns), kernel.dtype)
    return linalg.mixing(pair_matmul(kernel, v, slopes), start, 50)
