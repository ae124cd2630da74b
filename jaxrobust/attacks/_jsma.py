"""JSMA: pixels of the largest saliency are moved, two at a time, until the target is reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrobust import checks, gradients, losses
from jaxrobust.attacks._lift import lift_free, reached
from jaxrobust.attacks._minimum_norm import aim, minimises
from jaxrobust.loops import at_most
from jaxrobust.threat import UNIT_BOX, Box
from jaxrobust.types import Images, Keys, Labels, LogitsFn, logits_of


class _State(NamedTuple):
    x_adv: Float[Array, "*d"]
    free: Bool[Array, " features"]  # neither moved yet nor at the box's edge from the start
    done: Bool[Array, ""]
    stuck: Bool[Array, ""]  # no pair raises the target and lowers the rest


@minimises("l0")
def jsma(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    box: Box = UNIT_BOX,
    target: Labels | None = None,
    on: Literal["logits", "softmax"] = "logits",
    pairs: bool = True,
    theta: float = 1.0,
    gamma: float = 1.0,
) -> Float[Array, "batch *dims"]:
    """Jacobian-based saliency map attack: few features changed, each once and by much (l0).

    With `a_p` the derivative of the target's output in feature p and `b_p` that of the sum of all
    others, each step moves the pair that maximises `-(a_p + a_q) (b_p + b_q)` among those with
    `a_p + a_q > 0 > b_p + b_q` (both signs reversed for a negative theta). A colour channel counts
    as a feature of its own, as in paper 001.

    The search over pairs is exact without looking at all of them: of a best pair, one member is
    beaten by no feature in both `a` and `-b`, so the others are tried against those few alone.
    Memory: a dozen arrays of batch x features, beside the model's.

    Where this differs from cleverhans: the search ends when no pair qualifies (there, the first
    feature is then moved); a negative theta decreases; what comes back has been judged.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`; see `per_example`.
        x: `(batch, *dims)` images inside the box.
        y: `(batch,)` true labels.
        key: Typed key; used by randomised models only, where success takes 16 more draws, in each
            of which it must hold.
        box: Legal pixel values.
        target: `(batch,)` wanted classes. Where None, the search goes for the wrong class of the
            largest logit at x and ends at any wrong class: that is ours, the method is targeted.
        on: Outputs that are differentiated: "logits" is JSMA-Z, "softmax" JSMA-F. Probabilities sum
            to 1, so in the latter `b = -a` and features are ranked by the target alone; it takes
            the derivative of the logarithm, which ranks alike and does not underflow.
        pairs: Two features a step, as published; False moves one, by `-a_p b_p`.
        theta: What a feature is changed by, as a share of the box's width in [-1, 1]; not 0.
        gamma: Largest share of the features that may be changed, in (0, 1]: `floor(gamma
            features / 2)` steps.

    Returns:
        `(batch, *dims)` images in the box; the clean one where the target was not reached.

    Raises:
        ValueError: For arguments that cannot be meant, and a gamma that allows no step.

    References:
        Papernot et al. 2016, algorithms 2 and 3; paper 001, table IV.

    >>> logits_fn = lambda x: x @ jnp.array([[0.0, 2.0], [0.0, 3.0], [1.0, 0.0]])
    >>> jsma(logits_fn, jnp.array([[0.25, 0.0, 1.0]]), jnp.array([0]), key=jax.random.key(0),
    ...     pairs=False, on="softmax")
    Array([[0.25, 1.  , 1.  ]], dtype=float32)
    """
    checks.check_choice(on, "on", ("logits", "softmax"))
    if not (0 < abs(theta) <= 1):
        raise ValueError(f"theta must lie in [-1, 1] and not be 0; got {theta}")
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma must lie in (0, 1]; got {gamma}")
    return lift_free(
        _search, logits_fn, x, y, key=key, box=box, target=target, on=on, pairs=bool(pairs),
        theta=float(theta), gamma=float(gamma),
    )  # fmt: skip


def _search(
    model: Callable[..., Any], x: Array, y: Array, key: Array, *, box: Box, on: str, pairs: bool,
    theta: float, gamma: float, target: Array | None = None,
) -> Array:  # fmt: skip
    num_steps = int(x.size * gamma / (2 if pairs else 1))
    if num_steps < 1:
        raise ValueError(f"gamma must allow a step; {gamma} of {x.size} features is too few")

    def logits(x: Array, key: Array) -> Array:
        return logits_of(model(x, key))

    first = logits(x, key)
    classes = jnp.arange(first.size)
    others = jnp.argmax(jnp.where(classes == y, -jnp.inf, first))
    wanted = others if target is None else target
    aimed, label = aim(losses.margin, target), y if target is None else target

    def saliency(values: Array, pullback: Callable[[Array], Array]) -> tuple[Array, Array]:
        """How much the target rises, and the others together fall, for a move along theta."""
        towards = (classes == wanted).astype(values.dtype)
        if on == "softmax":  # the slope of the target's log probability
            rise = fall = pullback(towards - jax.nn.softmax(values))
        else:
            rise, fall = jax.vmap(pullback)(jnp.stack([towards, towards - 1]))
        return _unit(rise.ravel()) * jnp.sign(theta), _unit(fall.ravel()) * jnp.sign(theta)

    best = _best_pair if pairs else _best_feature

    def step(t: Array, state: _State) -> _State:
        now = jax.random.fold_in(key, t)
        values, pullback = gradients.vjp(logits, state.x_adv, now)
        done = reached(model, aimed, label, state.x_adv, now, values)
        rise, fall = saliency(values, pullback)
        usable = state.free & jnp.isfinite(rise) & jnp.isfinite(fall)
        chosen = best(jnp.where(usable, rise, -jnp.inf), jnp.where(usable, fall, -jnp.inf))
        chosen &= ~done & (t < num_steps)  # the last turn only judges
        moved = jnp.clip(state.x_adv + theta * (box[1] - box[0]), *box)
        x_adv = jnp.where(chosen.reshape(x.shape), moved, state.x_adv)
        return _State(x_adv, state.free & ~chosen, done, ~jnp.any(chosen))

    free = (x < box[1] if theta > 0 else x > box[0]).ravel()
    no = jnp.zeros_like(free, shape=())
    found = at_most(num_steps + 1, lambda s: ~(s.done | s.stuck), step, _State(x, free, no, no))
    return jnp.where(found.done, found.x_adv, x)


def _unit(slope: Float[Array, " features"]) -> Float[Array, " features"]:
    """Largest entry 1, so that products neither overflow nor underflow."""
    largest = jnp.max(jnp.abs(slope))
    return slope / jnp.where(largest > 0, largest, 1.0)


def _best_feature(
    rise: Float[Array, " features"], fall: Float[Array, " features"]
) -> Bool[Array, " features"]:
    """The feature of largest `rise * fall`, both positive; none where there is none."""
    score = jnp.where((rise > 0) & (fall > 0), rise * fall, 0.0)
    return (jnp.arange(rise.size) == jnp.argmax(score)) & (jnp.max(score) > 0)


def _best_pair(
    rise: Float[Array, " features"], fall: Float[Array, " features"]
) -> Bool[Array, " features"]:
    """The pair of largest `(rise_p + rise_q) (fall_p + fall_q)`, both positive; none if none is.

    Let r be at least as good as p in both coordinates. In a pair of p with any other than r, r in
    p's place scores no less (also in floating point, whose sums and products are monotone). So
    there is a best pair in which nothing but q, if anything, is as good as p, and nothing but p as
    good as q; ranked by index where equal, these cannot both be, and one of the two is maximal.
    """
    index = jnp.arange(rise.size)
    order = jnp.lexsort((-fall, -rise))
    falling = fall[order]
    before = jnp.concatenate([jnp.full_like(fall, -jnp.inf, shape=(1,)), falling[:-1]])
    maximal = falling > jax.lax.cummax(before)
    candidates = order[jnp.argsort(~maximal, stable=True)]

    def try_all(turn: Array, state: tuple[Array, Array, Array, Array]) -> Any:
        left, score, first, second = state
        p = candidates[turn]
        risen, fallen = rise[p] + rise, fall[p] + fall
        qualifies = (risen > 0) & (fallen > 0) & (index != p)
        scores = jnp.where(qualifies, risen * fallen, 0.0)
        q = jnp.argmax(scores).astype(p.dtype)
        better = scores[q] > score
        first, second = jnp.where(better, p, first), jnp.where(better, q, second)
        return left - 1, jnp.maximum(score, scores[q]), first, second

    none = candidates[0]
    start = (jnp.sum(maximal), jnp.zeros_like(rise, shape=()), none, none)
    _, score, p, q = at_most(rise.size, lambda state: state[0] > 0, try_all, start)
    return ((index == p) | (index == q)) & (score > 0)
