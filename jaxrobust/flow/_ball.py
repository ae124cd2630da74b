"""The threat of paper 002: flows that are smooth enough."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from jaxrobust.checks import check_radius
from jaxrobust.flow._roughness import (
    NullSpace,
    allowed,
    check_null_space,
    quadratic_variation,
    smoothed,
    solved,
)
from jaxrobust.threat import UNIT_BOX, Box, check_box, norm


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FlowBall:
    """All flows r of one example with `sqrt(|M r_0|^2 + |M r_1|^2) <= eps` that keep a rule.

    The budget of attack and certificate alike. r_0 and r_1 move pixels down and to the right.

    Args:
        eps: Radius, in pixels: a number, or an array with one radius a row of the batch. A pytree
            leaf, so it can be traced and swept under `vmap`.
        null_space: "dirichlet": what lies outside the image does not move; "zero_mean"; or the
            pixel `(row, column)` that does not move. Without a rule, moving everything costs
            nothing.
        box: Legal pixel values of the images, which a flow never leaves.

    Raises:
        ValueError: For a number that is no radius, and a rule that is none.

    References:
        Paper 002, eq. 3 and proposition 1.

    >>> ball = FlowBall(0.5)
    >>> flow = ball.project(jnp.ones((28, 28, 2)))
    >>> ball.distance(flow).round(3)
    Array(0.5, dtype=float32)
    """

    eps: Any  # a float or an Array, but unflattening passes placeholders
    null_space: NullSpace = dataclasses.field(default="dirichlet", metadata={"static": True})
    box: Box = dataclasses.field(default=UNIT_BOX, metadata={"static": True})
    measured: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_null_space(self.null_space, ())
        # Plain numbers only: unflattening runs this with placeholders and tracers.
        if isinstance(self.eps, complex | int | float | np.number):
            check_radius(self.eps, "eps")

    @property
    def norm(self) -> str:
        """What reports and certificates call the threat: "flow" and the rule."""
        return f"flow {self.null_space}"

    def judged(
        self, x: Float[Array, "*d"], x_adv: Float[Array, "*d"]
    ) -> tuple[Float[Array, "*d"], Float[Array, ""]]:
        """`x_adv` in the box, and NaN: no image shows the flow that made it, if any did."""
        return jnp.clip(x_adv, *self.box), jnp.full_like(x, jnp.nan, shape=())

    def distance(self, flow: Float[Array, "height width 2"]) -> Float[Array, ""]:
        """How much of the budget a flow takes."""
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(flow)))
        # Tiny flows must not underflow, nor the reciprocal of huge ones: hence two scalings, chosen
        # and not divided, which the compiler would make one of.
        huge = largest > 2.0**64
        smaller = jnp.where(huge, flow * 2.0**-64, flow)
        scale = jnp.where(largest > 0, jnp.where(huge, largest * 2.0**-64, largest), 1.0)
        square = quadratic_variation(smaller / scale, self.null_space)
        length = scale * jnp.sqrt(jnp.where(square > 0, square, 1.0)) * (square > 0)
        return jnp.where(huge, length * 2.0**64, length)

    def project(self, flow: Float[Array, "height width 2"]) -> Float[Array, "height width 2"]:
        """The nearest flow of the ball in its own norm: moved to keep the rule, then scaled.

        A flow that is not finite, or overflows on the way, becomes 0.
        """
        flow = allowed(flow, self.null_space)
        length = self.distance(flow)
        inside = length <= self.eps
        flow = flow * jnp.where(inside, 1.0, self.eps / jnp.where(inside, 1.0, length))
        return jnp.where(jnp.all(jnp.isfinite(flow)), flow, 0.0)

    def step(
        self,
        flow: Float[Array, "height width 2"],
        gradient: Float[Array, "height width 2"],
        size: float | Array,
    ) -> Float[Array, "height width 2"]:
        """Move by `size` (in this norm) along the steepest ascent; a zero gradient moves nothing.

        In the norm `|M r|` that is along `(M'M)^-1 gradient`.
        """
        largest = jnp.max(jnp.abs(gradient))
        uphill = solved(gradient / jnp.where(largest > 0, largest, 1.0), self.null_space)
        length = self.distance(uphill)
        return flow + size * (uphill / jnp.where(length > 0, length, 1.0))

    def sample(
        self, shape: tuple[int, int], key: Key[Array, ""], dtype: Any = jnp.float32
    ) -> Float[Array, "height width 2"]:
        """Draw from the ball: uniformly, but for what a rule other than "dirichlet" takes away."""
        direction_key, radius_key = jax.random.split(key)
        white = jax.random.normal(direction_key, (*shape, 2), dtype)
        radius = jax.random.uniform(radius_key, (), dtype) ** (1.0 / white.size)
        return smoothed(self.eps * (radius * white / norm(white, "l2")), self.null_space)


def check_flow_ball(ball: Any, shape: tuple[int, ...] = ()) -> None:
    """Refuse what is no ball of flows of images of this shape, or has no box; of any radius."""
    if not isinstance(ball, FlowBall):
        raise ValueError(f"ball must be a jaxrobust.flow.FlowBall; got {type(ball).__name__}")
    check_null_space(ball.null_space, shape[:2])
    check_box(ball.box)
