"""How training keeps each pair's certificate up to date while the network moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from jaxrobust import linalg
from jaxrobust.certify import pair_matmul, pair_matvec
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


class DualState(NamedTuple):
    """Duals of one pair, their optimiser's state, and the last top eigenvector.

    Attributes:
        log_c: `(D,)`, logarithms of the duals: constant and hidden units first, then inputs.
        opt_state: The optimiser's.
        vector: `(D,)`.
    """

    log_c: Any
    opt_state: Any
    vector: Array


def lanczos_dual(
    optimizer: optax.GradientTransformation, num_steps: int = 20, tol: float = float("inf")
) -> PairSolver:
    """The paper's: `D lambda_max^+(M - diag c) + sum max(c, 0)`, with c trained along.

    The value differentiates through the top eigenvector, found by Lanczos from the last one. It is
    a dual value but for Lanczos' shortfall, so it lies a little below an upper bound.

    The optimiser moves log c: where c itself was moved, by Adam or by plain gradient steps, duals
    of all sizes could not follow a network that shrinks, and stayed far above the solved programs.

    Args:
        optimizer: Of log c, e.g. `optax.adam(2e-2)`: each pair has its own state, moved when the
            pair is refreshed.
        num_steps: Lanczos steps a refresh.
        tol: Largest relative residual before a dense eigensolver takes over (the paper's back-off);
            at infinity it never does.

    References: paper 003, Eq. 14 and 15, sec. 6.3. How c starts (block mixing) and the logarithm
        are our choice; the paper moves c by the network's Adam.
    """
    check_count(num_steps, "num_steps")

    def init(kernel: Array, v: Array, slopes: Slopes, key: Array) -> tuple[DualState, Array]:
        point = _roughly_solved(kernel, v, slopes, key, 24)
        duals = jnp.concatenate([point.left_dual, point.right_dual])
        # A dead unit's dual is zero; a millionth of the mean costs nothing and can come back.
        log_c = jnp.log(jnp.maximum(duals, 1e-6 * jnp.mean(duals) + 1e-30))
        vector = jnp.concatenate([point.left[:, 0], point.right[:, 0]])
        return DualState(log_c, optimizer.init(log_c), vector), jnp.sum(duals)

    def step(kernel: Array, v: Array, slopes: Slopes, state: DualState) -> tuple[Array, DualState]:
        c = jnp.exp(state.log_c)
        product = pair_matvec(kernel, v, slopes)

        def matvec(z: Array) -> Array:
            return product(z) - c * z

        top, vector, _ = linalg.top_eigenpair(matvec, state.vector, num_steps=num_steps, tol=tol)
        value = len(c) * jnp.maximum(top, 0.0) + jnp.sum(c)
        slope = c * (1.0 - jnp.where(top > 0, len(c) * vector**2, 0.0))
        updates, opt_state = optimizer.update(slope, state.opt_state, state.log_c)
        after = DualState(optax.apply_updates(state.log_c, updates), opt_state, vector)
        return value, jax.lax.stop_gradient(after)

    return PairSolver(init, step)


def _roughly_solved(
    kernel: Array, v: Array, slopes: Slopes, key: Array, num_columns: int
) -> linalg.Mixing:
    """Where both solvers start: fifty sweeps from a random draw."""
    start = jax.random.normal(key, (kernel.shape[0], num_columns), kernel.dtype)
    return linalg.mixing(pair_matmul(kernel, v, slopes), start, 50)
