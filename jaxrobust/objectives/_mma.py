"""Max-margin adversarial training: each example is attacked at its own margin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from jaxrobust import checks, losses
from jaxrobust.losses import Loss
from jaxrobust.objectives._base import Forward, frozen_model
from jaxrobust.threat import UNIT_BOX, Box, check_box
from jaxrobust.threat import norm as threat_norm
from jaxrobust.types import Batch, Objective, Out, logits_of

REACH = 1.05
"""Largest radius that is kept, in units of `d_max` (released code)."""


class MmaState(NamedTuple):
    """The radius from which each example of the training set is attacked next, by its index."""

    radius: Float[Array, " num_examples"]


def mma(
    forward: Forward,
    attack: Callable[..., Array],
    *,
    num_examples: int,
    norm: Literal["linf", "l2"] = "linf",
    eps_min: float | Array = 0.1,
    d_max: float | Array = 0.45,
    clean_weight: float | Array = 1 / 3,
    loss: Loss = losses.cross_entropy,
    eval_forward: Forward | None = None,
    box: Box = UNIT_BOX,
) -> Objective:
    """MMA training: the loss at the nearest image of another class, where it is nearer than d_max.

    Of N examples, those that the model gets wrong count with their loss. The others count with
    `clean_weight` times it, and those whose margin is below `d_max` with `1 - clean_weight` times
    the loss at the image that ends the margin: with 1/3 the sum of algorithm 2, over N. As in the
    released code this is `clean_weight` times the clean batch plus the rest times a batch of mixed
    images, two passes; a `clean_weight` of 0 is OMMA, one pass.

    An example's distance from its image is its margin, and the radius that its next attack starts
    from, which follows it through shuffling by `batch.index`: at least `eps_min`, which is also the
    first, and at most `1.05 * d_max`, which stands for margins that were not found. What the model
    gets wrong has margin 0 (algorithm 2 leaves its radius as it was). Right is who has more than
    half of the probability, the soft logit margin below 0, as in the released code; it is judged by
    the model that the attack sees, in evaluation mode (there the clean batch in training mode).

    The first of the two passes is over the clean batch, and the model's state goes through both.

    Args:
        forward: `(params, model_state, x) -> (outputs, model_state)`.
        attack: A minimum-norm attack: `functools.partial(attacks.adaptive_norm_pgd,
            search="soft_margin", num_steps=40)` as published for MNIST, 10 steps for CIFAR-10. It
            is handed `box`, and where it takes them `norm`, `radius` (one a row) and `d_max`.
        num_examples: Of the training set; an index beyond it makes the loss NaN.
        norm: Of the margin; the attack's own where it takes none.
        eps_min: Least radius: MNIST 0.1 (linf), 0.5 (l2); CIFAR-10 0.005 and 0.5.
        d_max: Margin from which an example is left alone: MNIST 0.45 (linf), 2, 4 or 6 (l2);
            CIFAR-10 12, 20 or 32 of 255, and 1, 2 or 3.
        clean_weight: In [0, 1).
        loss: Of an example, minimised.
        eval_forward: The forward function that the attack sees; see `madry`.
        box: Legal pixel values.

    Returns:
        An objective with the metrics `accuracy` (clean, evaluation mode), `margin` (mean distance,
        none above `1.05 * d_max`), `attacked` (share of examples that count with an attacked image)
        and `clipped`: how many of the attack's images were not finite, so that their radius fell
        back to `eps_min`, or beyond `1.05 * d_max`, which is what was kept of theirs. The loss is
        NaN for a row that the state does not have.

    Raises:
        ValueError: For numbers or a box that cannot be meant, and an attack that takes no `box`; at
            the first step, for a model with a state but no `eval_forward`.

    References:
        Ding et al. 2020, "MMA Training: Direct Input Space Margin Maximization through Adversarial
        Training", algorithm 2 (paper 001).
    """
    checks.check_count(num_examples, "num_examples")
    checks.check_choice(norm, "norm", ("linf", "l2"))
    if not checks.known(clean_weight, lambda share: 0 <= share < 1):
        raise ValueError(f"clean_weight must lie in [0, 1); got {clean_weight}")
    for name, value in (("eps_min", eps_min), ("d_max", d_max)):
        checks.check_radius(value, name)
        if not checks.known(value, lambda value: value > 0):
            raise ValueError(f"{name} must be positive; got {value}")
    if not checks.known(d_max - eps_min, lambda difference: difference >= 0):
        raise ValueError(f"eps_min must be at most d_max; got {eps_min} and {d_max}")
    check_box(box)
    takes = checks.check_takes(
        attack, ("box",), "which seeks the least distance: attacks.adaptive_norm_pgd, say"
    )
    given = getattr(attack, "keywords", {}).keys() & {"norm", "radius", "d_max"}
    if given:
        raise ValueError(
            f"attack must leave norm, radius and d_max to mma, which hands them on; got "
            f"{', '.join(sorted(given))}: give norm and d_max to mma"
        )
    reach = REACH * d_max

    def init(params: PyTree, key: Key[Array, ""]) -> MmaState:
        del params, key
        return MmaState(jnp.full(num_examples, eps_min, jnp.result_type(float)))

    def searched(logits_fn: Any, batch: Batch, radius: Array, key: Array) -> Array:
        offered = {"norm": norm, "radius": radius, "d_max": d_max}
        taken = {name: value for name, value in offered.items() if name in takes}
        x_adv = attack(logits_fn, batch.x, batch.y, key=key, box=box, **taken)
        return jax.lax.stop_gradient(x_adv)

    def value_and_grad(
        params: PyTree,
        model_state: PyTree,
        state: MmaState,
        batch: Batch,
        *,
        key: Key[Array, ""],
    ) -> tuple[Out, PyTree]:
        x, y = batch.x, batch.y
        logits_fn = frozen_model(forward, eval_forward, params, model_state)
        logits = logits_of(logits_fn(x))
        right = jax.vmap(losses.soft_margin)(logits, y) < 0
        found = state.radius.at[batch.index].get(mode="fill", fill_value=jnp.nan)
        stored = jnp.where(batch.index < 0, jnp.nan, found)  # which would count from the end
        radius = jnp.clip(jnp.nan_to_num(stored, nan=eps_min), eps_min, reach).astype(x.dtype)

        x_adv = searched(logits_fn, batch, radius, key)
        finite = jnp.all(jnp.isfinite(x_adv.reshape(len(x), -1)), axis=1)
        x_adv = jnp.where(_as_rows(right & finite, x), x_adv, x)
        length = jax.vmap(lambda delta: threat_norm(delta, norm))(x_adv - x)
        margin = jnp.where(length > 0, jnp.minimum(length, reach), jnp.where(finite, reach, 0.0))
        margin = jnp.where(right, margin, 0.0)
        clipped = right & (~finite | (length > reach * (1 + 1e-5)))
        attacked = right & (length > 0) & (length < d_max)
        kept = jnp.maximum(margin, eps_min).astype(state.radius.dtype)
        beyond = jnp.where(batch.index < 0, num_examples, batch.index)
        state = MmaState(state.radius.at[beyond].set(kept, mode="drop"))
        mixed = jnp.where(_as_rows(jnp.isnan(stored), x), jnp.nan, x_adv)

        def total(params: PyTree) -> tuple[Array, PyTree]:
            value, after = jnp.zeros((), x.dtype), model_state
            if checks.known(clean_weight, lambda share: share > 0):
                outputs, after = forward(params, after, x)
                value = clean_weight * jnp.mean(jax.vmap(loss)(outputs, y))
            outputs, after = forward(params, after, mixed)
            each = jnp.where(attacked | ~right, jax.vmap(loss)(outputs, y), 0.0)
            return value + (1 - clean_weight) * jnp.mean(each), after

        (value, after), grads = jax.value_and_grad(total, has_aux=True)(params)
        value = jnp.where(jnp.any(jnp.isnan(stored)), jnp.nan, value)
        metrics = {
            "accuracy": jnp.mean(jnp.argmax(logits, axis=-1) == y),
            "margin": jnp.mean(margin),
            "attacked": jnp.mean(attacked),
            "clipped": jnp.sum(clipped),
        }
        return Out(value, after, state, metrics), grads

    return Objective(init, value_and_grad)


def _as_rows(mask: Array, x: Array) -> Array:
    """A mask of rows, to be broadcast over their images."""
    return mask.reshape(-1, *[1] * (x.ndim - 1))
