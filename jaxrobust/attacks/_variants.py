"""An attack at a radius or a class of its own, on another model or view of it; what it is of."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array

from jaxrobust import checks, losses
from jaxrobust.attacks._lift import check_call
from jaxrobust.losses import Loss
from jaxrobust.threat import Threat, check_threat
from jaxrobust.types import Attack, LogitsFn, as_partial, logits_of, per_example


def at_eps(attack: Attack, eps: float) -> Attack:
    """Pin an attack to a radius of its own, whatever ball it is later handed.

    Recorded distances of attacks at rising radii are the curve of accuracy against eps.

    Args:
        attack: Any attack of the common form.
        eps: Its radius from now on, in pixel units.

    >>> import jax, jax.numpy as jnp
    >>> from jaxrobust import Ball
    >>> from jaxrobust.attacks import fgsm
    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> at_eps(fgsm, 0.125)(logits_fn, jnp.full((1, 2), 0.5), jnp.array([0]),
    ...     key=jax.random.key(0), ball=Ball("linf", 0.25))
    Array([[0.375, 0.375]], dtype=float32)
    """
    checks.check_attack(attack)
    # A pytree, so that one compiled program serves all radii.
    return Partial(_pinned, as_partial(attack), eps)


def _pinned(
    attack: Attack, eps: Any, logits_fn: LogitsFn, x: Any, y: Any, *, key: Any, ball: Threat
) -> Array:
    check_threat(ball, len(x))
    return attack(logits_fn, x, y, key=key, ball=dataclasses.replace(ball, eps=eps))


def transfer(source_logits_fn: LogitsFn, attack: Attack) -> Attack:
    """A black-box attack: what `attack` finds on another model.

    Args:
        source_logits_fn: The model that is attacked instead; its gradients and keys are used, the
            victim is not looked at. As a `jax.tree_util.Partial` its weights stay out of the
            compiled program.
        attack: Any attack of the common form.

    References: Madry et al. 2018, table 1, rows A' and B (paper 001).

    >>> import jax, jax.numpy as jnp
    >>> from jaxrobust import Ball
    >>> from jaxrobust.attacks import fgsm
    >>> source = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> victim = lambda x: jnp.stack([x[:, 0], 1 - x[:, 0]], -1)
    >>> transfer(source, fgsm)(victim, jnp.full((1, 2), 0.5), jnp.array([0]),
    ...     key=jax.random.key(0), ball=Ball("linf", 0.25))
    Array([[0.25, 0.25]], dtype=float32)
    """
    checks.check_attack(attack)
    return Partial(_transferred, as_partial(source_logits_fn), as_partial(attack))


def _transferred(
    source: LogitsFn, attack: Attack, logits_fn: LogitsFn, x: Any, y: Any, *, key: Any, ball: Threat
) -> Array:
    check_call(logits_fn, x, y, key, ball)
    return attack(source, x, y, key=key, ball=ball)


def through(view: Callable[[LogitsFn], LogitsFn], attack: Attack) -> Attack:
    """A white-box attack on another view of the model: of what it shows besides its logits, say.

    So an attack in `evaluate` knows a detector: `view` is `Partial(detect.exposed, detector=...)`,
    and the attack's loss has `detect.hinge` for a penalty.

    Args:
        view: The model as the attack sees it, made of the model that it is called with; as a
            `jax.tree_util.Partial` its arrays stay out of the compiled program.
        attack: Any attack of the common form.

    >>> import jax, jax.numpy as jnp
    >>> from jaxrobust import Ball
    >>> from jaxrobust.attacks import fgsm
    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> through(lambda model: lambda x: -model(x), fgsm)(logits_fn, jnp.full((1, 2), 0.5),
    ...     jnp.array([0]), key=jax.random.key(0), ball=Ball("linf", 0.25))
    Array([[0.75, 0.75]], dtype=float32)
    """
    checks.check_attack(attack)
    return Partial(_through, as_partial(view), as_partial(attack))


def _through(
    view: Callable[[LogitsFn], LogitsFn], attack: Attack, logits_fn: LogitsFn, x: Any, y: Any, *,
    key: Any, ball: Threat,
) -> Array:  # fmt: skip
    return attack(view(logits_fn), x, y, key=key, ball=ball)


def most_confusing(attack: Callable[..., Array], loss: Loss = losses.cross_entropy) -> Attack:
    """Aim an attack at the wrong class that the model finds likeliest on the clean image.

    Args:
        attack: An attack of the common form that takes `loss`, and gets `losses.targeted(loss)`.
        loss: Of the outputs and that class, to be small.

    Raises:
        ValueError: For an attack that takes no `loss`.

    References: Wang and Zhang 2019 (bilateral adversarial training), the class "MC" of paper 001.

    >>> from jaxrobust import Ball
    >>> from jaxrobust.attacks import fgsm
    >>> logits_fn = lambda x: x * jnp.array([3.0, 1.0, 2.0])
    >>> most_confusing(fgsm, losses.margin)(logits_fn, jnp.full((1, 3), 0.5), jnp.array([0]),
    ...     key=jax.random.key(0), ball=Ball("linf", 0.25))  # towards the last
    Array([[0.25, 0.5 , 0.75]], dtype=float32)
    """
    checks.check_takes(attack, ("loss",), "as attacks.pgd does")
    aimed = functools.partial(attack, loss=losses.targeted(loss))
    return Partial(_at_most_confusing, as_partial(aimed))


def _at_most_confusing(
    attack: Attack, logits_fn: LogitsFn, x: Any, y: Any, *, key: Any, ball: Threat
) -> Array:
    keys = check_call(logits_fn, x, y, key, ball)
    logits = logits_of(jax.vmap(per_example(logits_fn))(jnp.asarray(x), keys))
    others = jnp.where(jnp.arange(logits.shape[1]) == jnp.asarray(y)[:, None], -jnp.inf, logits)
    return attack(logits_fn, x, jnp.argmax(others, 1), key=key, ball=ball)


def is_transfer(attack: Any) -> bool:
    """Whether an attack came from `transfer`, so that its gradients are another model's.

    Looks through `functools.partial`, `at_eps` and `through`.

    >>> from jaxrobust.attacks import fgsm
    >>> is_transfer(at_eps(transfer(print, fgsm), 0.1)), is_transfer(fgsm)
    (True, False)
    """
    return any(part is _transferred for part in made_of(attack))


def made_of(attack: Any) -> Iterator[Any]:
    """The functions that an attack is made of, from the outside in.

    Looks through `functools.partial`, `at_eps`, `most_confusing`, `transfer` and `through`. What
    `first_success` makes is an attack of its own: it brings into the ball what its members return.

    >>> from jaxrobust.attacks import fgsm
    >>> fgsm in made_of(at_eps(Partial(fgsm), 0.1))
    True
    """
    yield attack
    while (func := getattr(attack, "func", None)) is not None:
        yield func
        if func in (_pinned, _at_most_confusing):
            attack = attack.args[0]
            yield attack
        elif func in (_transferred, _through):
            attack = attack.args[1]
            yield attack
        else:
            attack = func
