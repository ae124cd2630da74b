"""What minimum-norm attacks are called through: the common form, and every target at once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Float, Int

from jaxrobust import checks, losses
from jaxrobust.attacks._lift import check_model, reached
from jaxrobust.attacks._variants import made_of
from jaxrobust.losses import Loss
from jaxrobust.threat import UNIT_BOX, Box, Threat, check_box, check_threat
from jaxrobust.types import (
    Attack,
    Images,
    Keys,
    Labels,
    LogitsFn,
    as_partial,
    per_example,
    row_keys,
)

MinimumNorm = Callable[..., Array]
"""`attack(logits_fn, x, y, *, key, box, target, ...) -> x_adv`, the clean image where it fails."""


def against(attack: MinimumNorm, *, survivors_only: bool = False) -> Attack:
    """Put a minimum-norm attack into the common form, which names a ball.

    The ball gives the box and, where the attack asks for them, the norm, and the radius of restarts
    unless that is set. Else its radius is not looked at: images come back at whatever distance they
    were found, which `evaluate` records. There it runs on every image that the model gets right,
    also on those that attacks before it broke, so one run gives accuracy against every eps
    (`Report.accuracy_at`). `evaluate` and `first_success` count an image only after they have
    brought it into the ball; in a ball of another norm than the attack keeps small, `evaluate` says
    so. No image can be brought into a `flow.FlowBall`: there `evaluate` says that no budget was
    kept.

    Args:
        attack: A minimum-norm attack, `functools.partial` for settings of its own.
        survivors_only: True leaves images that attacks before it broke alone there, as other
            attacks do: cheaper, but below the ball's radius its distances then are no curve.

    Raises:
        ValueError: For what is no minimum-norm attack: its signature has no `box`.

    >>> from jaxrobust import Ball
    >>> from jaxrobust.attacks import deepfool
    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> against(deepfool)(logits_fn, jnp.full((1, 2), 0.6), jnp.array([0]), key=jax.random.key(0),
    ...     ball=Ball("linf", 0.25)).round(2)
    Array([[0.24, 0.24]], dtype=float32)
    """
    takes = checks.check_takes(
        attack, ("box",), "of minimum norm: one within a ball is in the common form already"
    )
    handed = {"norm"} | {"restart_radius"} - getattr(attack, "keywords", {}).keys()
    handed = tuple(sorted(takes & handed))
    return Partial(_Against(handed, survivors_only), as_partial(attack))


def is_minimum_norm(attack: Any) -> bool:
    """Whether an attack came from `against`, so that what it returns may lie outside the ball.

    Looks through `functools.partial`, `at_eps`, `transfer` and `through`.

    >>> from jaxrobust.attacks import deepfool, fgsm
    >>> is_minimum_norm(functools.partial(against(deepfool))), is_minimum_norm(fgsm)
    (True, False)
    """
    return any(isinstance(part, _Against) for part in made_of(attack))


_MINIMISED: dict[Any, str] = {}
_Attack = TypeVar("_Attack", bound=MinimumNorm)


def minimises(norm: str) -> Callable[[_Attack], _Attack]:
    """Say which norm a minimum-norm attack without a choice keeps small."""

    def registered(attack: _Attack) -> _Attack:
        _MINIMISED[attack] = norm
        return attack

    return registered


def minimised_norm(attack: Any) -> str | None:
    """Norm that an attack from `against` keeps small whatever the ball's; None where it follows it.

    >>> from jaxrobust.attacks import carlini_wagner_l2, deepfool
    >>> minimised_norm(against(functools.partial(carlini_wagner_l2, num_steps=100)))
    'l2'
    >>> minimised_norm(against(deepfool))
    """
    for part in made_of(attack):
        if isinstance(getattr(part, "func", None), _Against):
            inner = (one for one in made_of(part.args[0]) if isinstance(one, Hashable))
            return next((_MINIMISED[one] for one in inner if one in _MINIMISED), None)
    return None


def faces_all(attack: Any) -> bool:
    """Whether an attack came from `against` and wants the images that others broke, too.

    >>> from jaxrobust.attacks import deepfool
    >>> faces_all(against(deepfool)), faces_all(against(deepfool, survivors_only=True))
    (True, False)
    """
    return any(isinstance(part, _Against) and not part.survivors_only for part in made_of(attack))


@dataclasses.dataclass(frozen=True)
class _Against:
    """The common form; equal objects, so that nothing is retraced."""

    handed: tuple[str, ...]
    survivors_only: bool

    def __call__(
        self, attack: MinimumNorm, logits_fn: LogitsFn, x: Any, y: Any, *, key: Any, ball: Threat
    ) -> Array:
        check_threat(ball, len(x) if hasattr(x, "shape") else None)
        of_ball = {"norm": ball.norm, "restart_radius": ball.eps}
        given = {name: of_ball[name] for name in self.handed}
        return attack(logits_fn, x, y, key=key, box=ball.box, **given)


def aim(loss: Loss, target: Any) -> Loss:
    """The loss, in its targeted form where there is a target."""
    return loss if target is None else losses.targeted(loss)


def check_balanced(loss: Any) -> None:
    """Refuse a loss that cannot be weighed against a distance: not 0 or more exactly on success."""
    if not isinstance(weighable(loss), losses.CarliniWagner):
        raise ValueError(
            "loss must be one of losses.f1 to f7, possibly inside losses.penalized: the search "
            f"relies on a loss that is 0 or more on success only; got {loss!r}"
        )


def weighable(loss: Any) -> Loss:
    """The loss without penalties; refuse one that jumps where it succeeds, and a targeted one."""
    if any(isinstance(part, losses.selective) for part in _parts(loss)):
        raise ValueError(
            "loss must not be losses.selective, which is for attacks within a ball: take "
            f"losses.penalized; got {loss!r:.80}"
        )
    return untargeted(loss)


def untargeted(loss: Any) -> Loss:
    """The loss without penalties; refuse a targeted one: its classes would pass for true ones."""
    *around, inner = _parts(loss)
    if any(isinstance(part, losses.targeted) for part in around):
        raise ValueError(f"loss must not be targeted: hand the classes to target; got {loss!r}")
    return inner


def _parts(loss: Any) -> list[Any]:
    """A loss and those in it, from the outside in."""
    parts = [loss]
    while isinstance(parts[-1], losses.targeted | losses.penalized):
        parts.append(parts[-1].loss)
    return parts


class EveryTarget(NamedTuple):
    """Attacks on each image towards every class but its own, in rising order of class.

    Attributes:
        x_adv: `(batch, classes - 1, *dims)`, the clean image where the attack failed.
        target: `(batch, classes - 1)` wanted classes.
        success: `(batch, classes - 1)` whether the model gives the wanted class.
    """

    x_adv: Float[Array, "batch targets *dims"]
    target: Int[Array, "batch targets"]
    success: Bool[Array, "batch targets"]


def every_target(attack: MinimumNorm) -> Callable[..., EveryTarget]:
    """Attack towards all wrong classes at once, in one vmapped program.

    Of the distances, the smallest is the paper's best case, the largest its worst case, and one
    drawn at random its average case. An attack on a batch becomes one on `classes - 1` times as
    many rows, with as much more memory: a model of a thousand classes wants batches of one or few.

    Args:
        attack: A minimum-norm attack that takes `target`.

    Returns:
        `run(logits_fn, x, y, *, key, box=UNIT_BOX) -> EveryTarget`. The search for a target draws
        from the image's key with the class folded in.

    Raises:
        ValueError: For an attack that takes no `target`.

    References: Carlini and Wagner 2017, sec. VI (paper 001).

    >>> from jaxrobust.attacks import carlini_wagner_l2
    >>> attack = functools.partial(carlini_wagner_l2, num_steps=100, num_searches=5, initial_c=0.1)
    >>> x = jnp.array([[0.6, 0.2, 0.4]])
    >>> found = every_target(attack)(lambda x: 2 * x, x, jnp.array([0]), key=jax.random.key(0))
    >>> found.target, found.success
    (Array([[1, 2]], dtype=int32), Array([[ True,  True]], dtype=bool))
    >>> jnp.linalg.norm(found.x_adv - x[:, None], axis=-1).round(2)  # 0.4 and 0.2 / sqrt(2)
    Array([[0.28, 0.14]], dtype=float32)
    """
    checks.check_takes(attack, ("target",), "towards each of which it is sent in turn")

    def run(
        logits_fn: LogitsFn, x: Images, y: Labels, *, key: Keys, box: Box = UNIT_BOX
    ) -> EveryTarget:
        check_box(box)
        num_classes = check_model(logits_fn, x, y, key, box)
        return jitted(
            as_partial(logits_fn), jnp.asarray(x), jnp.asarray(y), row_keys(key, len(x)),
            num_classes, box,
        )  # fmt: skip

    @functools.partial(jax.jit, static_argnums=(4, 5))
    def jitted(
        logits_fn: LogitsFn, x: Array, y: Array, keys: Array, num_classes: int, box: Box
    ) -> EveryTarget:
        others = jnp.arange(num_classes - 1)
        target = others + (others >= y[:, None])
        rows = jnp.repeat(jnp.arange(len(x)), num_classes - 1)
        keys = jax.vmap(jax.random.fold_in)(keys[rows], target.ravel())
        x_adv = attack(logits_fn, x[rows], y[rows], key=keys, box=box, target=target.ravel())
        model, aimed = per_example(logits_fn), losses.targeted(losses.margin)

        def judged(x: Array, key: Array, target: Array) -> Array:
            return reached(model, aimed, target, x, key, model(x, key))

        hit = jax.vmap(judged)(x_adv, keys, target.ravel())
        shape = target.shape
        return EveryTarget(x_adv.reshape(*shape, *x.shape[1:]), target, hit.reshape(shape))

    return run
