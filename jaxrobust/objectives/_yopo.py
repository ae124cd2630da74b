"""YOPO: adversarial training whose search goes through the first layer only."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from jaxrobust import checks, gradients, losses
from jaxrobust.losses import Loss
from jaxrobust.objectives._base import Forward, check_function
from jaxrobust.objectives._split import Stem
from jaxrobust.threat import Ball, check_ball
from jaxrobust.types import Batch, Objective, Out, logits_of, row_keys


def yopo(
    stem: Stem,
    trunk: Forward | None = None,
    m: int = 5,
    n: int = 10,
    *,
    ball: Ball,
    step_size: float | Array | None = None,
    loss: Loss = losses.cross_entropy,
) -> Objective:
    """YOPO-m-n: m passes through the model, and n steps through its first layer behind each.

    The model is `trunk(stem(x))`. A pass gives the costate, the derivative of the loss in the
    stem's output. With it frozen, n ascent steps change the images by the stem's derivative alone;
    the next pass is at the images that come out. The m passes behind the steps also give parameter
    gradients, and their mean is the gradient of one update; a pass at the random start only gives
    the first costate. That is m + 1 passes of the whole model, and m n of the stem. With n = 1 the
    images are those of PGD after 1 to m steps.

    Deviations. The paper sums the m gradients and divides the learning rate by m (0.01 / 5): here
    it is their mean, and the rate is whole. The released code takes the parameter gradients before
    each n steps, at the random start too and never at the last images, and counts the stem's
    twice, by back-propagation and by the Hamiltonian at the next images with the old costate; the
    authors say that the latter does nothing (issue 4). Here it is the gradient of algorithm
    YOPO-m-n in the paper, at the images that the steps lead to, the stem's once. Costates are those
    of the model in training mode, as there, since they come with the parameter gradients: batch
    statistics are of the attacked batch. The model's state goes through the last m passes.

    Args:
        stem: `(params, x) -> hidden`: MNIST the first convolution and its ReLU, CIFAR-10 the
            first convolution; see `from_split_module`.
        trunk: `(params, model_state, hidden) -> (outputs, model_state)`.
        m: Passes; 5 as published.
        n: Steps behind each; 10 for MNIST, 3 for CIFAR-10.
        ball: The threat trained against; one eps for all.
        step_size: In the ball's norm: 0.01 for MNIST, 2 / 255 for CIFAR-10; `2.5 * eps / (m * n)`
            where None (our choice).
        loss: Loss minimised at the attacked images.

    Returns:
        An objective with the metric `adversarial_accuracy` (at the last images); the loss is the
        mean of the m losses.

    Raises:
        ValueError: For a stem or trunk that is no function, a ball, counts or a step that cannot be
            meant; at the first step, for a stem whose output is no batch of the images' length.

    References:
        Zhang et al. 2019, "You Only Propagate Once" (paper 001).
    """
    made = "which objectives.from_split_module(module) returns"
    if trunk is None:
        raise ValueError(f"trunk must be given: stem and trunk are a model in two parts, {made}")
    check_function(stem, "stem", ("params", "x"), made)
    check_function(trunk, "trunk", ("params", "model_state", "hidden"), made)
    checks.check_count(m, "m")
    checks.check_count(n, "n")
    check_ball(ball)
    if step_size is not None:
        checks.check_radius(step_size, "step_size")

    def init(params: PyTree, key: Key[Array, ""]) -> tuple[()]:
        del params, key
        return ()

    def one_pass(params: PyTree, model_state: PyTree, x: Array, y: Array) -> Any:
        """Sum of losses, gradients, costate, hits and the model's next state."""
        hidden, stem_pullback = jax.vjp(lambda params: stem(params, x), params)
        if getattr(hidden, "shape", ())[:1] != x.shape[:1]:
            raise ValueError(
                f"stem must return one array with a row for each of the {len(x)} images; got "
                f"{getattr(hidden, 'shape', type(hidden).__name__)}"
            )

        def rest(params: PyTree, hidden: Array) -> tuple[Array, tuple[Array, PyTree]]:
            outputs, after = trunk(params, model_state, hidden)
            hits = jnp.argmax(logits_of(outputs), axis=-1) == y
            return jnp.sum(jax.vmap(loss)(outputs, y)), (jnp.mean(hits), after)

        (value, (hits, after)), (by_trunk, costate) = jax.value_and_grad(
            rest, argnums=(0, 1), has_aux=True
        )(params, hidden)
        (by_stem,) = stem_pullback(costate)
        return value, jax.tree.map(jnp.add, by_trunk, by_stem), costate, hits, after

    full_pass = gradients.canonical(one_pass)

    def value_and_grad(
        params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, *, key: Key[Array, ""]
    ) -> tuple[Out, PyTree]:
        x, y = batch.x, batch.y
        size = 2.5 * ball.eps / (m * n) if step_size is None else step_size

        def sample(x: Array, key: Array) -> Array:
            start_key = jax.random.split(jax.random.fold_in(key, 0))[0]  # as `pgd` draws it
            return ball.sample(x, start_key)

        def move(x: Array, x_adv: Array, ascent: Array) -> Array:
            return ball.project(x, ball.step(x_adv, ascent, size))

        @gradients.canonical
        def slope(x_adv: Array, costate: Array) -> Array:
            return jax.vjp(lambda x: stem(params, x), x_adv)[1](costate)[0]

        def ascend(x_adv: Array, costate: Array) -> Array:
            def step(x_adv: Array, _: None) -> tuple[Array, None]:
                ascent = slope(x_adv, costate)
                return jax.vmap(move)(x, x_adv, ascent), None

            return jax.lax.scan(step, x_adv, None, n)[0]

        def outer(carry: Any, _: None) -> tuple[Any, tuple[Array, Array]]:
            x_adv, costate, grads, now = carry
            x_adv = jax.lax.stop_gradient(ascend(x_adv, costate))
            value, more, costate, hits, now = full_pass(params, now, x_adv, y)
            return (x_adv, costate, jax.tree.map(jnp.add, grads, more), now), (value, hits)

        start = jax.vmap(sample)(x, row_keys(key, len(x)))
        costate = full_pass(params, model_state, start, y)[2]
        nothing = jax.tree.map(jnp.zeros_like, params)
        (_, _, grads, after), (values, hits) = jax.lax.scan(
            outer, (start, costate, nothing, model_state), None, m
        )
        grads = jax.tree.map(lambda g: g / (m * len(x)), grads)
        value = jnp.mean(values) / len(x)
        return Out(value, after, state, {"adversarial_accuracy": hits[-1]}), grads

    return Objective(init, value_and_grad)
