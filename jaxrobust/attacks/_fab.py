"""Fast Adaptive Boundary: projections onto linearised boundaries, drawn towards the clean image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust import checks, gradients, losses
from jaxrobust.attacks import _fab_runs as runs
from jaxrobust.attacks._lift import lift_free, loss_of
from jaxrobust.gradients import Gradient
from jaxrobust.threat import NORMS, UNIT_BOX, Box, check_box
from jaxrobust.types import Images, Keys, Labels, LogitsFn, logits_of


def fab(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    box: Box = UNIT_BOX,
    norm: Literal["linf", "l2", "l1"] = "linf",
    target: Labels | None = None,
    num_steps: int = 100,
    num_restarts: int = 1,
    restart_radius: Float[Array, "*batch"] | float | None = None,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    gradient: Gradient = gradients.exact,
) -> Float[Array, "batch *dims"]:
    """FAB: minimum-norm attack along the decision boundary, without a step size.

    Each step projects the iterate and the clean image, within the box, onto the nearest linearised
    boundary, goes `eta` times as far, and mixes the two. The closest wrong image is kept, and three
    steps of false position on the line to the clean image end the search.

    Deviations from the authors' code: with `target`, an image counts only if it is predicted as the
    target, and the boundary is the target's with whichever class leads (theirs is always that with
    y, and any wrong class counts, as in `fab_targeted`). The final search aims 0.1 % of the clean
    image's gap past the boundary, where rounding does not undo it. Restarts begin no farther than
    half the least distance found so far. Peak memory: the Jacobian, batch x classes x (dims + what
    one backward pass of the model takes); with `target` some ten images a row beside the model's
    gradient.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`; see `per_example`.
        x: `(batch, *dims)` images inside the box.
        y: `(batch,)` true labels.
        key: Typed key; used by restarts, random gradients and random models only. Success on a
            randomised model takes 16 more draws, in each of which it must hold.
        box: Legal pixel values.
        norm: What is minimised.
        target: `(batch,)` wanted classes; None where any wrong class will do.
        num_steps: Steps of a run: a gradient (a Jacobian without target) and a forward each.
        num_restarts: Runs, the first from the clean image.
        restart_radius: The others begin at a random image at half this distance, a scalar or one a
            row; None takes the authors' defaults, 0.3 (linf), 1 (l2) and 5 (l1) widths of the box.
            In AutoAttack it is the ball's eps, which `against` hands on.
        alpha_max: Largest weight of the clean image's projection, in [0, 1].
        eta: Extrapolation of the projections, at least 1.
        beta: What is left of the perturbation after a success, in (0, 1).
        gradient: Gradient estimator, of the logits (with `target` of their gap).

    Returns:
        `(batch, *dims)` images in the box; the clean one where no step succeeded.

    Raises:
        ValueError: For images, labels, key, box, norm, counts or weights that cannot be meant.

    References:
        Croce and Hein 2020, algorithm 1 and eq. 4-9; AutoAttack takes 100 steps.

    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> fab(logits_fn, jnp.full((1, 2), 0.6), jnp.array([0]), key=jax.random.key(0)).round(3)
    Array([[0.25, 0.25]], dtype=float32)
    """
    rule = _checked(norm, num_steps, num_restarts, alpha_max, eta, beta, gradient)
    radius = _radius(restart_radius, norm, box, x)
    return lift_free(_search, logits_fn, x, y, key=key, box=box, target=target, rows=radius, **rule)


def fab_targeted(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    box: Box = UNIT_BOX,
    norm: Literal["linf", "l2", "l1"] = "linf",
    num_targets: int = 9,
    num_steps: int = 100,
    num_restarts: int = 1,
    restart_radius: Float[Array, "*batch"] | float | None = None,
    alpha_max: float = 0.1,
    eta: float = 1.05,
    beta: float = 0.9,
    gradient: Gradient = gradients.exact,
) -> Float[Array, "batch *dims"]:
    """FAB-T, as in AutoAttack: one wrong class after another, only its boundary with y each.

    Whatever wrong class an image lands in counts, and the closest of all runs is returned. Takes
    the arguments of `fab` but for `target`, and deviates from the authors' code as that does. Peak
    memory is some ten images a row beside the model's gradient, for any number of classes: only the
    difference of two logits is differentiated.

    Args:
        logits_fn: See `fab`.
        x: See `fab`.
        y: See `fab`.
        key: See `fab`.
        box: See `fab`.
        norm: See `fab`.
        num_targets: Rivals: the largest wrong logits of the clean image; at most classes - 1 are
            taken.
        num_steps: Steps of a run, of which there are `num_targets * num_restarts`.
        num_restarts: See `fab`.
        restart_radius: See `fab`.
        alpha_max: See `fab`.
        eta: See `fab`.
        beta: See `fab`.
        gradient: Gradient estimator, of the gap of two logits.

    Returns:
        `(batch, *dims)` images in the box; the clean one where no run succeeded.

    Raises:
        ValueError: As `fab`.

    References:
        Croce and Hein 2020, "Reliable evaluation", sec. 5 (AutoAttack).

    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> fab_targeted(logits_fn, jnp.full((1, 2), 0.6), jnp.array([0]),
    ...     key=jax.random.key(0)).round(3)
    Array([[0.25, 0.25]], dtype=float32)
    """
    checks.check_count(num_targets, "num_targets")
    rule = _checked(norm, num_steps, num_restarts, alpha_max, eta, beta, gradient)
    radius = _radius(restart_radius, norm, box, x)
    return lift_free(
        _search_targets, logits_fn, x, y, key=key, box=box, rows=radius, num_targets=num_targets,
        **rule,
    )  # fmt: skip


def _radius(given: Any, norm: str, box: Box, x: Any) -> dict[str, Any]:
    """The restarts' radius as what a row is handed."""
    check_box(box)
    if given is None:
        given = runs.RADII[norm] * (box[1] - box[0])
    checks.check_radius(given, "restart_radius", len(x) if hasattr(x, "shape") else None)
    return {"restart_radius": jnp.asarray(given, getattr(x, "dtype", None))}


def _checked(
    norm: str, num_steps: int, num_restarts: int, alpha_max: float, eta: float, beta: float,
    gradient: Gradient,
) -> dict[str, Any]:  # fmt: skip
    """The settings that both share, after a word about those that cannot be meant."""
    checks.check_choice(norm, "norm", NORMS)
    checks.check_count(num_steps, "num_steps")
    checks.check_count(num_restarts, "num_restarts")
    if not 0 <= alpha_max <= 1:
        raise ValueError(f"alpha_max must lie in [0, 1]; got {alpha_max}")
    if not 1 <= eta < float("inf"):
        raise ValueError(f"eta must be finite and at least 1; got {eta}")
    if not 0 < beta < 1:
        raise ValueError(f"beta must lie in (0, 1); got {beta}")
    return {
        "norm": norm, "num_steps": num_steps, "num_restarts": num_restarts,
        "alpha_max": float(alpha_max), "eta": float(eta), "beta": float(beta),
        "gradient": gradient,
    }  # fmt: skip


def _search(
    model: Callable[..., Any], x: Array, y: Array, key: Array, *, target: Array | None = None,
    **settings: Any,
) -> Array:  # fmt: skip
    rule = runs.Rule(**settings)
    if target is None:
        goal = runs.Goal(model, losses.margin, y)
        plane = runs.nearest_plane(model, y, rule)
    else:
        goal = runs.Goal(model, losses.targeted(losses.margin), target)
        plane = runs.plane_of(loss_of(*goal), rule)
    best = runs.best_of_runs(goal, plane, x, key, runs.clean(goal, x, key), rule)
    return runs.final_search(goal, x, key, best, rule)


def _search_targets(
    model: Callable[..., Any], x: Array, y: Array, key: Array, *, num_targets: int,
    **settings: Any,
) -> Array:  # fmt: skip
    rule = runs.Rule(**settings)
    goal = runs.Goal(model, losses.margin, y)
    first = logits_of(model(x, key))
    wrong = jnp.where(jnp.arange(first.size) == y, -jnp.inf, first)
    rivals = jax.lax.top_k(wrong, min(num_targets, first.size - 1))[1]

    def against(best: runs.Best, rival: tuple[Array, Array]) -> tuple[runs.Best, None]:
        number, which = rival

        def gap(x: Array, key: Array) -> Array:
            logits = logits_of(model(x, key))
            return logits[which] - logits[y]

        own = jax.random.fold_in(key, number)
        return runs.best_of_runs(goal, runs.plane_of(gap, rule), x, own, best, rule), None

    numbered = (jnp.arange(rivals.size), rivals)
    best, _ = jax.lax.scan(against, runs.clean(goal, x, key), numbered)
    return runs.final_search(goal, x, key, best, rule)
