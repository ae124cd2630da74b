"""LP-NN: training on the worst logits that the Kolter-Wong bound allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from jaxrobust import losses
from jaxrobust.certify import lp_margins
from jaxrobust.checks import check_radius
from jaxrobust.layers import Layer
from jaxrobust.objectives._base import Forward
from jaxrobust.threat import Box
from jaxrobust.types import Batch, Objective, Out, logits_of


def lp_robust(
    forward: Forward,
    layers: Callable[[PyTree], Sequence[Layer]],
    *,
    eps: float | Array,
    box: Box | None = Box(),  # noqa: B008 (immutable)
) -> Objective:
    """Robust cross-entropy: the loss at the certified worst logits over the linf ball.

    The logits of an example are `-margins` of `certify.lp_margins`, 0 for the true class. As
    cross-entropy does not change when all logits are shifted and falls in the margins, the loss at
    these bounds the loss at every image of the ball. Training at the full eps from the start stalls
    at the loss of chance (2.3 with ten classes; issue 2 of locuslab/convex_adversarial): let it
    rise (`scheduled`). The published runs go linearly from 0.05 to 0.1 in the first half of 20
    epochs (version 0.2; Adam, rate 1e-3, batch 50) or from 0.01 in the first 10 to 20 of 60.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`, for the clean accuracy.
        layers: `params -> layers`, the same network as `certify.lp_margins` reads it.
        eps: Radius of the linf ball in pixel units.
        box: Legal pixel values, which cut the ball; None for the whole ball, as in the paper.

    Returns:
        An objective with the metrics `accuracy` (clean) and `lp_error` (share of the batch with a
        margin that is not positive).

    Raises:
        ValueError: For an eps that is no finite number >= 0.

    References:
        Wong and Kolter, Provable Defenses against Adversarial Examples via the Convex Outer
        Adversarial Polytope, ICML 2018, Theorem 2.

    >>> from jaxrobust.layers import Dense
    >>> layers = lambda w: [Dense(w, jnp.zeros(2))]
    >>> objective = lp_robust(lambda w, s, x: (x @ w, s), layers, eps=0.1)
    >>> batch = Batch(jnp.array([[0.5]]), jnp.array([0]), jnp.array([0]))
    >>> weights = jnp.array([[1.0, -1.0]])  # the margin is 2 (.5 - .1)
    >>> out, _ = objective.value_and_grad(
    ...     weights, {}, objective.init(weights, None), batch, key=jax.random.key(0))
    >>> float(out.loss)  # log(1 + exp(-.8))
    0.371100...
    """
    check_radius(eps, "eps")

    def init(params: PyTree, key: Key[Array, ""]) -> tuple[()]:
        del params, key
        return ()

    def value_and_grad(
        params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, *, key: Key[Array, ""]
    ) -> tuple[Out, PyTree]:
        del key
        radius = jnp.asarray(eps, batch.x.dtype)

        def worst_loss(params: PyTree) -> tuple[Array, Array]:
            margins = lp_margins(layers(params), batch.x, batch.y, eps=radius, box=box)
            worst = jnp.where(jnp.isposinf(margins), 0.0, -margins)
            return jnp.mean(jax.vmap(losses.cross_entropy)(worst, batch.y)), margins

        (loss, margins), grads = jax.value_and_grad(worst_loss, has_aux=True)(params)
        outputs, new_state = forward(params, model_state, batch.x)
        hits = jnp.argmax(logits_of(outputs), axis=-1) == batch.y
        certified = jnp.all(margins > 0, axis=-1)
        metrics = {"accuracy": jnp.mean(hits), "lp_error": 1.0 - jnp.mean(certified)}
        return Out(loss, new_state, state, metrics), grads

    return Objective(init, value_and_grad)
