"""Training on the semidefinite certificate of paper 003."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from jaxrobust import losses
from jaxrobust.certify import class_pairs, pair_numbers, two_layers
from jaxrobust.checks import check_count, check_radius
from jaxrobust.layers import Layer
from jaxrobust.losses import Loss
from jaxrobust.objectives._base import Forward
from jaxrobust.objectives._pair_solvers import PairSolver
from jaxrobust.types import Batch, Objective, Out, logits_of


class PairState(NamedTuple):
    """What is known of the pairs of classes.

    Attributes:
        step: Steps taken.
        solver: The solver's state, one row a pair.
        values: `(pairs,)` each pair's optimum as its last refresh had it.
        weights: `(pairs,)` shares, of sum 1.
        counts: `(pairs,)` how often each pair was an example's worst since the last renewal.
    """

    step: Array
    solver: PyTree
    values: Array
    weights: Array
    counts: Array


def sdp_regularized(
    forward: Forward,
    layers: Callable[[PyTree], list[Layer]],
    solver: PairSolver,
    *,
    weight: float | Array,
    eps: float | Array,
    loss: Loss = losses.hinge,
    renew_every: int | None = None,
    all_pairs: bool = False,
) -> Objective:
    """The loss plus a multiple of the pairs' certificates: training of SDP-NN.

    Minimises `mean loss + weight * sum_{i<j} w_ij S_ij`, S_ij the value that the solver gives pair
    ij, with weights of sum 1. Each step refreshes the pairs of one random class; as a pair is in
    two of the k classes' rows, the row's sum is scaled by k / 2.

    The paper's objective (15) sums over ordered pairs and over examples, and does not say how a
    mini-batch weighs the two; read as a mean over examples plus the nine terms of a step, each with
    its lambda of .05, it would be `weight = .05 * 9 = .45` here, and as printed for 60,000 examples
    `.05 * 90 / 60000 = 7.5e-5`. `experiments/certified_mnist` chose about .01 on held-out images.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        layers: `params -> layers`: the same network, `Dense, Relu | Sigmoid, Dense`.
        solver: `lanczos_dual(...)`, the paper's, or `warm_mixing(...)`.
        weight: Lambda.
        eps: Linf radius at which an example's worst pair is looked up, for the weights and for the
            metric `sdp_error`. The regulariser itself does not depend on it.
        loss: Loss of an example on clean images; the paper's is the hinge.
        renew_every: Steps after which w_ij becomes the share of examples, seen since the last
            renewal, whose worst pair was ij (the paper: every 20 epochs, over the training set).
            None keeps all weights equal.
        all_pairs: Refresh every pair at every step.

    Returns:
        Objective with metrics `accuracy`, `pair_value` (mean over pairs) and `sdp_error`, the share
        of the batch that the last refreshed values do not certify. The values are estimates; what
        is proved of a network, `certify.sdp` says.

    References: paper 003, Eq. 15 and sec. 6.3; the mixing variant, the scale and where the counts
        come from are ours.
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight must be a finite number >= 0; got {weight}")
    if renew_every is not None:
        check_count(renew_every, "renew_every")

    def total(outputs: PyTree, y: Array, values: Array, state: PairState) -> Array:
        mean = jnp.mean(jax.vmap(loss)(outputs, y))
        return mean + weight * jnp.sum(state.weights * values)

    return _with_pairs(forward, layers, solver, total, eps, renew_every, all_pairs)


def sdp_robust(
    forward: Forward,
    layers: Callable[[PyTree], list[Layer]],
    solver: PairSolver,
    *,
    eps: float | Array,
    loss: Loss = losses.cross_entropy,
    all_pairs: bool = False,
) -> Objective:
    """A loss of certified worst-case logits `z_i + eps / 4 S_iy`.

    Each example weighs the pairs by how much they endanger it, which replaces the weights of
    `sdp_regularized`. Gradients flow through the pairs that a step refreshes, scaled by how seldom
    that is (k / 2 times for one class's row of k).

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        layers: `params -> layers`: the same network, `Dense, Relu | Sigmoid, Dense`.
        solver: `warm_mixing(...)` or `lanczos_dual(...)`.
        eps: Linf radius trained for; let it rise from 0 (`scheduled`) where that is hard.
        loss: Of one example's worst-case logits. `losses.generalized_cross_entropy` gives up on
            examples out of reach, and so certifies more of the others.
        all_pairs: Refresh every pair at every step.

    Returns:
        Objective with the metrics of `sdp_regularized`.

    References: our objective, on the bound of paper 003, Eq. 11; the robust cross-entropy is that
        of Wong and Kolter, arXiv:1711.00851.
    """

    def total(outputs: PyTree, y: Array, values: Array, state: PairState) -> Array:
        worst = logits_of(outputs) + eps / 4 * _square(values)[y]
        return jnp.mean(jax.vmap(loss)(worst, y))

    return _with_pairs(forward, layers, solver, total, eps, None, all_pairs)


def _with_pairs(
    forward: Forward,
    layers: Callable[[PyTree], list[Layer]],
    solver: PairSolver,
    total: Callable[..., Array],
    eps: float | Array,
    renew_every: int | None,
    all_pairs: bool,
) -> Objective:
    """`total(outputs, y, values, state)` minimised in the network, the solver's state along."""
    check_radius(eps, "eps")
    if not isinstance(solver, PairSolver):
        raise ValueError(
            f"solver must be a PairSolver, such as warm_mixing(); got {type(solver).__name__}"
        )

    def read(params: PyTree) -> tuple[Array, Array, Any]:
        network = two_layers(layers(params))
        first, second = class_pairs(network.last.shape[1])
        pairs = (network.last[:, first] - network.last[:, second]).T
        return network.kernel, pairs, network.slopes

    def init(params: PyTree, key: Key[Array, ""]) -> PairState:
        kernel, pairs, slopes = read(params)
        keys = jax.random.split(key, len(pairs))
        states, values = jax.vmap(lambda v, k: solver.init(kernel, v, slopes, k))(pairs, keys)
        share = jnp.full(len(pairs), 1 / len(pairs))
        return PairState(
            jnp.zeros((), jnp.int32), states, values, share, jnp.zeros(len(pairs), jnp.int32)
        )

    def value_and_grad(
        params: PyTree, model_state: PyTree, state: PairState, batch: Batch, *, key: Key[Array, ""]
    ) -> tuple[Out, PyTree]:
        rows = pair_numbers(_classes(len(state.values)))
        if all_pairs:
            chosen, boost = jnp.arange(len(state.values)), 1.0
        else:
            chosen = jnp.asarray(rows)[jax.random.randint(key, (), 0, len(rows))]
            boost = len(rows) / 2
        before = jax.tree.map(lambda leaf: leaf[chosen], state.solver)

        def objective(params: PyTree) -> tuple[Array, Any]:
            kernel, pairs, slopes = read(params)
            refreshed, after = jax.vmap(lambda v, own: solver.step(kernel, v, slopes, own))(
                pairs[chosen], before
            )
            constant = jax.lax.stop_gradient(refreshed)
            values = state.values.at[chosen].set(constant + boost * (refreshed - constant))
            outputs, new_state = forward(params, model_state, batch.x)
            value = total(outputs, batch.y, values, state)
            return value, (logits_of(outputs), new_state, values, after)

        (value, (logits, model_state, values, after)), grads = jax.value_and_grad(
            objective, has_aux=True
        )(params)
        square = _square(values)[batch.y]
        worst = jnp.where(
            jnp.arange(logits.shape[1]) == batch.y[:, None], -jnp.inf, logits + eps / 4 * square
        )
        attained = jnp.argmax(worst, axis=1)
        own = jnp.take_along_axis(logits, batch.y[:, None], axis=1)[:, 0]
        counts = state.counts + _count(attained, batch.y, len(rows))
        weights = state.weights
        if renew_every is not None:
            due = (state.step + 1) % renew_every == 0
            weights = jnp.where(due, counts / jnp.maximum(jnp.sum(counts), 1), weights)
            counts = jnp.where(due, 0, counts)
        solved = jax.tree.map(lambda old, new: old.at[chosen].set(new), state.solver, after)
        metrics = {
            "accuracy": jnp.mean(jnp.argmax(logits, axis=1) == batch.y),
            "pair_value": jnp.mean(values),
            "sdp_error": jnp.mean(jnp.max(worst, axis=1) >= own),
        }
        state = PairState(state.step + 1, solved, values, weights, counts)
        return Out(value, model_state, state, metrics), grads

    return Objective(init, value_and_grad)


def _classes(pairs: int) -> int:
    """Number of classes that have so many pairs."""
    return int((1 + (1 + 8 * pairs) ** 0.5) / 2)


def _square(values: Array) -> Array:
    """Pair values as a symmetric matrix over classes."""
    classes = _classes(len(values))
    first, second = class_pairs(classes)
    square = jnp.zeros((classes, classes), values.dtype)
    return square.at[first, second].set(values).at[second, first].set(values)


def _count(attained: Array, y: Array, classes: int) -> Array:
    """How often each pair is (attained, y)."""
    table = jnp.zeros((classes, classes), jnp.int32).at[attained, y].add(1)
    first, second = class_pairs(classes)
    return table[first, second] + table[second, first]
