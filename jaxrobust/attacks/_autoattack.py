"""AutoAttack: complementary attacks without settings, each against what the last ones left."""

from __future__ import annotations

import functools
from typing import Literal

from jaxtyping import Array, Float

from jaxrobust import checks, gradients, losses
from jaxrobust.attacks._apgd import apgd, apgd_targeted
from jaxrobust.attacks._compose import first_success
from jaxrobust.attacks._fab import fab, fab_targeted
from jaxrobust.attacks._gradient import ball_eps
from jaxrobust.attacks._minimum_norm import against
from jaxrobust.attacks._square import square
from jaxrobust.threat import NORMS, Ball
from jaxrobust.types import Attack, Images, Keys, Labels, LogitsFn

Version = Literal["standard", "plus", "rand"]
VERSIONS = ("standard", "plus", "rand")


def autoattack(
    logits_fn: LogitsFn,
    x: Images,
    y: Labels,
    *,
    key: Keys,
    ball: Ball,
    version: Version = "standard",
    chunk: int = 64,
) -> Float[Array, "batch *dims"]:
    """AutoAttack: the worst case of each example over `autoattack_members`, as one attack.

    Each member faces survivors only, in chunks of equal length. For what each of them does, and to
    be warned where Square breaks what gradients did not (gradient masking), give `evaluate` the
    members instead: `attacks=autoattack_members(version, norm)`. Of this one attack it only sees
    the outcome.

    Args:
        logits_fn: `(batch, *dims) -> (batch, classes)`; see `per_example`.
        x: `(batch, *dims)` images inside `ball.box`.
        y: `(batch,)` true labels.
        key: Typed key, one or one a row.
        ball: The threat; `eps` a scalar or one a row.
        version: "standard", "plus" or "rand"; see `autoattack_members`. In l1 there is no Square,
            and the ensemble is weaker than the authors'.
        chunk: Most rows attacked at once.

    Returns:
        `(batch, *dims)` attacked images, inside the ball and the box. An example that the model
        gets wrong anyway comes back clean; one that withstands all, where its margin was highest.
        For `Randomized` models see `first_success`. Memory: that of Square or of a member's runs,
        some seventeen images a row of a chunk beside the model's gradient; "plus", whose FAB knows
        no target, needs another image a class.

    Raises:
        ValueError: For images, labels, key, ball or version that cannot be meant.

    References:
        Croce and Hein 2020, sec. 6 (AutoAttack).

    >>> import jax, jax.numpy as jnp
    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> x_adv = autoattack(logits_fn, jnp.full((1, 2), 0.4), jnp.array([0]),
    ...     key=jax.random.key(0), ball=Ball("linf", 0.25))
    >>> bool(x_adv.sum() < 0.5)
    True
    """
    ball_eps(ball)
    checks.check_count(chunk, "chunk")
    checks.check_choice(version, "version", VERSIONS)
    rows = len(x) if hasattr(x, "shape") else 1
    turns = max(-(-rows // chunk), 1)
    equal = max(-(-rows // turns), 1)  # no chunk is filled up with rows to no end
    return _composed(version, ball.norm, equal)(logits_fn, x, y, key=key, ball=ball)


def autoattack_members(
    version: Version = "standard", norm: Literal["linf", "l2", "l1"] = "linf"
) -> dict[str, Attack]:
    """AutoAttack's members by name, in order: `evaluate(..., attacks=autoattack_members())`.

    - "standard": `apgd` on the cross-entropy (see below), `apgd_targeted` and `fab_targeted` on
      nine classes, `square` with 5000 queries. In l1 the first has five restarts and the second
      five classes.
    - "plus": five restarts of `apgd` on the cross-entropy, as many on `losses.dlr` and of `fab`,
      `square`, `apgd_targeted`, `fab_targeted`.
    - "rand", for `Randomized` models: `apgd` on the cross-entropy and on DLR, gradients averaged
      over 20 draws.

    Where a model is not randomised, "apgd-ce" climbs `losses.soft_margin`, of which the
    cross-entropy is a rising function (softplus): the same signs, directions and comparisons, but
    they outlast the probabilities, of which nothing is left in float32 for margins beyond 100.

    Square for l1 is not implemented here, so the l1 ensemble is weaker than the authors'. Auto-PGD
    begins in larger balls there (`larger_eps`; the authors do so in their standard version, and
    have no l1 settings for "plus").
    With two or three classes `losses.dlr` and `losses.targeted_dlr` fall back to what is defined.

    Args:
        version: "standard", "plus" or "rand".
        norm: Norm of the ball that they will be given; linf and l2 share their members.

    Raises:
        ValueError: For an unknown version or norm.

    References:
        Croce and Hein 2020, sec. 6; l1: Croce and Hein 2021; settings as in the authors' code.

    >>> list(autoattack_members("rand"))
    ['apgd-ce', 'apgd-dlr']
    """
    checks.check_choice(version, "version", VERSIONS)
    checks.check_choice(norm, "norm", NORMS)
    return dict(_members(version, norm))


@functools.cache  # the same objects each time, so that nothing is retraced
def _members(version: str, norm: str) -> dict[str, Attack]:
    in_l1 = norm == "l1"
    if version == "rand":
        climb = functools.partial(apgd, gradient=gradients.eot(20))
        return {"apgd-ce": climb, "apgd-dlr": functools.partial(climb, loss=losses.dlr)}
    climb = functools.partial(apgd, loss=losses.soft_margin, larger_eps=in_l1)
    targeted = functools.partial(apgd_targeted, larger_eps=in_l1)
    random_search = functools.partial(square, num_queries=5000, rescale=False)
    without_gradients: dict[str, Attack] = {} if in_l1 else {"square": random_search}
    survivors = functools.partial(against, survivors_only=True)
    boundary = survivors(fab_targeted)  # nine targets, 100 steps
    if version == "standard":
        return {
            "apgd-ce": functools.partial(climb, num_restarts=5 if in_l1 else 1),
            "apgd-t": functools.partial(targeted, num_targets=5 if in_l1 else 9),
            "fab-t": boundary,
            **without_gradients,
        }
    return {
        "apgd-ce": functools.partial(climb, num_restarts=5),
        "apgd-dlr": functools.partial(climb, num_restarts=5, loss=losses.dlr),
        "fab": survivors(functools.partial(fab, num_restarts=5)),
        **without_gradients,
        "apgd-t": functools.partial(targeted, num_targets=9),
        "fab-t": boundary,
    }


@functools.cache
def _composed(version: str, norm: str, chunk: int) -> Attack:
    return first_success(_members(version, norm), chunk)
