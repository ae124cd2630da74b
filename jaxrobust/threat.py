"""Threat models: an lp ball around the clean example, inside the box of legal pixel values.

Every method speaks of **one example**; attacks lift it with `jax.vmap`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxrobust.checks import check_radius

NORMS = ("linf", "l2", "l1")


class Box(NamedTuple):
    """The interval of legal pixel values, `[0, 1]` unless said otherwise."""

    low: float = 0.0
    high: float = 1.0


UNIT_BOX = Box()
"""Pixels in [0, 1]."""


@runtime_checkable
class Threat(Protocol):
    """What an attack may make of an image: a `Ball`, or a `flow.FlowBall`.

    All that `evaluate`, attacks made of attacks and objectives ask of one. It is a dataclass and a
    pytree whose only leaf is `eps`, so that `dataclasses.replace` gives another radius.

    Attributes:
        measured: Whether an image shows how far it is. Where it does not, an attack that says it
            kept to the radius is taken at its word.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    measured: ClassVar[bool]

    @property
    def eps(self) -> Any:
        """Radius: a number, or an array with one radius a row."""
        ...

    @property
    def box(self) -> Box:
        """Legal pixel values."""
        ...

    @property
    def norm(self) -> str:
        """What reports and certificates call it, the radius apart."""
        ...

    def judged(
        self, x: Float[Array, "*d"], x_adv: Float[Array, "*d"]
    ) -> tuple[Float[Array, "*d"], Float[Array, ""]]:
        """The legal image that counts for `x_adv`, and the distance of `x_adv`, NaN if unknown."""
        ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ball:
    """All images within `eps` of the clean one in a norm, and within the box.

    Args:
        norm: "linf", "l2" or "l1", taken over all entries of one example.
        eps: Radius in pixel units of the box (0.3 of [0, 1], say; never 0-255): a number, or an
            array with one radius a row of the batch. A pytree leaf, so it can be traced and swept
            under `vmap`.
        box: Legal pixel values.

    Raises:
        ValueError: For an unknown norm, and for a number that is no radius; the radii of an array
            are looked at where the ball is used.

    >>> ball = Ball("linf", 0.1)
    >>> ball.project(jnp.array([0.5]), jnp.array([0.8]))
    Array([0.6], dtype=float32)
    """

    norm: Literal["linf", "l2", "l1"] = dataclasses.field(metadata={"static": True})
    eps: Any  # a float or an Array, but unflattening passes placeholders
    box: Box = dataclasses.field(default=UNIT_BOX, metadata={"static": True})
    measured: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {self.norm!r}")
        # Plain numbers only: unflattening runs this with placeholders and tracers.
        if isinstance(self.eps, complex | int | float | np.number):
            check_radius(self.eps, "eps")

    def distance(self, x: Float[Array, "*d"], x_adv: Float[Array, "*d"]) -> Float[Array, ""]:
        """Distance of `x_adv` from `x` in the ball's norm."""
        return norm(x_adv - x, self.norm)

    def project(self, x: Float[Array, "*d"], x_adv: Float[Array, "*d"]) -> Float[Array, "*d"]:
        """Bring `x_adv` into the ball around `x` and into the box.

        linf and l1 are the exact Euclidean projection onto the intersection of both (l1: Croce and
        Hein 2021, "Mind the box"); l2 projects onto the ball, then clips to the box, which stays in
        the ball because the box holds `x` (the usual form, though not the nearest point).
        """
        low, high = self.box
        if self.norm == "linf":
            return jnp.clip(x_adv, jnp.maximum(x - self.eps, low), jnp.minimum(x + self.eps, high))
        delta = x_adv - x
        if self.norm == "l2":
            length = norm(delta, "l2")
            inside = length <= self.eps
            scale = jnp.where(inside, 1.0, self.eps / jnp.where(inside, 1.0, length))
            return jnp.clip(x + scale * delta, low, high)
        room = jnp.where(delta > 0, high - x, x - low)
        moved = x + jnp.sign(delta) * _shrink_to_sum(jnp.abs(delta), room, self.eps)
        return jnp.clip(moved, low, high)  # for rounding

    def judged(
        self, x: Float[Array, "*d"], x_adv: Float[Array, "*d"]
    ) -> tuple[Float[Array, "*d"], Float[Array, ""]]:
        """`x_adv` brought into ball and box, and how far it was; see `Threat`."""
        return self.project(x, x_adv), self.distance(x, x_adv)

    def sample(self, x: Float[Array, "*d"], key: Key[Array, ""]) -> Float[Array, "*d"]:
        """Draw uniformly from the ball around `x`, then clip to the box."""
        if self.norm == "linf":
            delta = self.eps * jax.random.uniform(key, x.shape, x.dtype, -1.0, 1.0)
        else:
            direction_key, radius_key = jax.random.split(key)
            draw = jax.random.normal if self.norm == "l2" else jax.random.laplace
            delta = draw(direction_key, x.shape, x.dtype)
            radius = jax.random.uniform(radius_key, (), x.dtype) ** (1.0 / x.size)
            delta = self.eps * radius * delta / norm(delta, self.norm)
        return jnp.clip(x + delta, *self.box)

    def step(
        self, x: Float[Array, "*d"], gradient: Float[Array, "*d"], size: float | Array
    ) -> Float[Array, "*d"]:
        """Move `x` by `size` (in this norm) along the steepest ascent direction; no projection.

        linf: the sign of the gradient; l2: the normalised gradient. l1: the exact maximiser of the
        linearised loss over the l1 ball of that size *within the box*: pixels in order of falling
        `|gradient|` go to their box limit until the size is spent (a plain l1 step would push one
        pixel out of the box). A zero gradient moves nothing.
        """
        if self.norm == "linf":
            return x + size * jnp.sign(gradient)
        if self.norm == "l2":
            length = norm(gradient, "l2")
            return x + size * gradient / jnp.where(length > 0, length, 1.0)
        low, high = self.box
        magnitude = jnp.abs(gradient).ravel()
        room = jnp.where(gradient > 0, high - x, x - low).ravel()
        room = jnp.where(magnitude > 0, jnp.maximum(room, 0.0), 0.0)
        order = jnp.argsort(-magnitude, stable=True)
        spent_before = jnp.cumsum(room[order]) - room[order]
        moved = jnp.clip(size - spent_before, 0.0, room[order])
        amount = jnp.zeros_like(room).at[order].set(moved).reshape(x.shape)
        return jnp.clip(x + jnp.sign(gradient) * amount, low, high)  # for rounding


def check_ball(ball: Any, num_rows: int | None = None) -> None:
    """Refuse a threat that is no ball, or whose radius is negative, not finite or misshapen."""
    if not isinstance(ball, Ball):
        raise ValueError(f"ball must be a jaxrobust.Ball; got {type(ball).__name__}")
    check_threat(ball, num_rows)


def check_threat(threat: Any, num_rows: int | None = None) -> None:
    """Refuse what is no threat at all, or whose box or radius cannot be meant."""
    if not isinstance(threat, Threat):
        raise ValueError(
            "ball must be a threat, such as jaxrobust.Ball or jaxrobust.flow.FlowBall; got "
            f"{type(threat).__name__}"
        )
    check_box(threat.box)
    check_radius(threat.eps, "eps", num_rows)
    low, high = threat.box
    plain = isinstance(threat.eps, int | float | np.number)
    if threat.norm == "linf" and plain and threat.eps > 2 * (high - low):
        raise ValueError(
            f"eps must be in the units of x, whose box is [{low:g}, {high:g}], and in linf at most "
            f"twice its width; got {threat.eps:g}: was it meant for 0-255 images? Divide by 255"
        )


def check_box(box: Any) -> None:
    """Refuse what is no pair of finite numbers, the lower one first."""
    if not isinstance(box, tuple) or len(box) != 2 or not -np.inf < box[0] < box[1] < np.inf:
        raise ValueError(
            f"box must be a pair (low, high) of finite numbers, low < high; got {box!r}"
        )


def norm(delta: Float[Array, "*d"], which: str) -> Float[Array, ""]:
    """The lp norm of one example's perturbation, flattened.

    >>> norm(jnp.array([[3.0], [-4.0]]), "l2")
    Array(5., dtype=float32)
    """
    flat = delta.ravel()
    if which == "linf":
        return jnp.max(jnp.abs(flat))
    if which == "l2":
        # Scaled, so that tiny perturbations neither underflow nor lose their gradient to NaN.
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(flat)))
        safe = jnp.where(largest > 0, largest, 1.0)
        squares = jnp.sum((flat / safe) ** 2)
        return safe * jnp.sqrt(jnp.where(squares > 0, squares, 1.0)) * (squares > 0)
    return jnp.sum(jnp.abs(flat))


def num_pixels_changed(delta: Float[Array, "*d"]) -> Float[Array, ""]:
    """The l0 distance of one example's perturbation.

    Where an example has three dimensions or more, the last holds channels, and a pixel of several
    counts once (as in paper 001, where Carlini and Wagner count).

    >>> num_pixels_changed(jnp.zeros((2, 2, 3)).at[0, 0].set(1.0))
    Array(1., dtype=float32)
    """
    changed = delta != 0
    return jnp.sum(changed.any(-1) if delta.ndim >= 3 else changed, dtype=delta.dtype)


def _shrink_to_sum(magnitude: Array, room: Array, total: float | Array) -> Array:
    """`clip(magnitude - t, 0, room)` for the smallest `t >= 0` whose sum is at most `total`.

    The sum falls piecewise linearly in t with kinks at `magnitude` and `magnitude - room`, so t is
    found exactly from the sorted kinks.
    """
    a, c = magnitude.ravel(), jnp.maximum(room.ravel(), 0.0)
    kinks = jnp.concatenate([a, a - c])
    # Walking t down from the largest kink, a pixel starts to grow at a and stops at a - c.
    growth = jnp.concatenate([jnp.ones_like(a), -jnp.ones_like(a)])
    order = jnp.argsort(-kinks, stable=True)
    kinks, slope = kinks[order], jnp.cumsum(growth[order])
    gaps = jnp.append(kinks[:-1] - kinks[1:], 0.0)
    sum_after = jnp.cumsum(slope * gaps)  # the sum at t = the next kink
    segment = jnp.minimum(jnp.sum(sum_after < total), kinks.size - 1)
    sum_before = jnp.where(segment > 0, sum_after[segment - 1], 0.0)
    t = kinks[segment] - (total - sum_before) / jnp.maximum(slope[segment], 1.0)
    t = jnp.maximum(t, 0.0)
    kept = jnp.clip(a - t, 0.0, c) * (total > 0)  # nothing, whatever the rounding of t
    return kept.reshape(magnitude.shape)
