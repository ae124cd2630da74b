"""Neural ODEs: a convolutional front, features that flow for a while, pooling, a dense layer."""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust.models._denoising import group_norm
from jaxrobust.models._ode_field import Field
from jaxrobust.models._ode_solve import check_solver, solved
from jaxrobust.types import Images


class OdeNet(nn.Module):
    """A neural ODE for images of any size from 6 x 6; see `odenet` and `tisode`.

    conv 3x3 without padding, group norm, ReLU, conv 4x4 of stride 2, group norm, ReLU; then
    `dz/dt = f(t, z)` over `interval`, from a solver of diffrax; average pooling, dense.

    Every row is solved by itself: an adaptive solver chooses its steps from that row alone. A row
    that needs more than `max_steps` gets logits of NaN, which predict no class.

    Attributes:
        width: Channels throughout: even, and a multiple of 32 above 64, for the group norm.
        num_classes: Number of logits.
        timed: Whether the field sees the time; see `Field`.
        interval: When it begins and ends to flow.
        step: Longest of constant steps, which share the interval equally; first of others.
        solver: A diffrax solver; Euler's where None.
        controller: A diffrax step size controller, beside a solver that estimates its error (as
            `Dopri5` does); constant steps where None.
        adjoint: A diffrax adjoint: how the solver is differentiated. Where None, exactly, for the
            steps taken, in either direction and to any order (`DirectAdjoint` where steps adapt,
            which counts them as constants; a field with kinks put that 1 % off).
            `RecursiveCheckpointAdjoint` is exact too, in reverse and once, for less memory, but
            does not run inside `shard_map`, so in `evaluate` on one device only. `BacksolveAdjoint`
            solves the adjoint ODE: right in the limit of small steps only.
        max_steps: Most steps of an adaptive solver.
        after: A module for the features that have flown, such as `FeatureDenoising()`.
    """

    width: int = 64
    num_classes: int = 10
    timed: bool = True
    interval: tuple[float, float] = (0.0, 1.0)
    step: float = 0.1
    solver: Any = None
    controller: Any = None
    adjoint: Any = None
    max_steps: int = 256
    after: nn.Module | None = None

    def setup(self) -> None:
        """Layers, by the order in which they come."""
        if not self.interval[0] < self.interval[1] or not self.step > 0:
            raise ValueError(
                "interval must be (begin, end) with begin < end, and step positive; got "
                f"{self.interval} and {self.step}"
            )
        check_solver(self.solver, self.controller, self.adjoint)
        self.front = [
            nn.Conv(self.width, (3, 3), padding="VALID"), group_norm(self.width),
            nn.Conv(self.width, (4, 4), strides=(2, 2), padding=((1, 1), (1, 1))),
            group_norm(self.width),
        ]  # fmt: skip
        self.field = Field(self.width, self.timed)
        self.head = nn.Dense(self.num_classes)

    def __call__(self, images: Images) -> Float[Array, "batch classes"]:
        """Logits of a batch of NHWC images."""
        z = self._features(images)
        (z,) = self._flow((z,), *self.interval)
        return self._read(z)

    def outputs(
        self, images: Images, steady: tuple[float, float] = (0.75, 1.05)
    ) -> tuple[Float[Array, "batch classes"], Float[Array, " batch"]]:
        """Logits, and how far from rest the features are: what `objectives.steady_state` wants.

        Args:
            images: `(batch, height, width, channels)`.
            steady: `(t1, t2)`, counted from the beginning of `interval`: the mean over features of
                the integral of |f| from t1 to t2, by the same solver and of the same path that the
                logits are read from at the end of `interval`. The released script says 0.75 to
                1.05, the log of the released weights 0.9 to 1.5, the published text T to 2 T.

        Returns:
            `(logits, drift)`, of which drift is not negative.
        """
        begin, end = self.interval
        t1, t2 = (begin + time for time in steady)
        if not begin <= t1 < t2:
            raise ValueError(f"steady must be (t1, t2) with 0 <= t1 < t2; got {steady}")
        z = at_end = self._features(images)
        drift = jnp.zeros_like(z)
        for now, then in itertools.pairwise(sorted({begin, end, t1, t2})):
            if t1 <= now and then <= t2:
                z, drift = self._flow((z, drift), now, then)
            else:
                (z,) = self._flow((z,), now, then)
            at_end = z if then == end else at_end
        return self._read(at_end), jnp.mean(drift, axis=(1, 2, 3))

    def _features(self, images: Any) -> Array:
        x = jnp.asarray(images)
        if x.ndim != 4 or min(x.shape[1:3]) < 6:  # below, one place, of which a norm leaves nothing
            raise ValueError(f"images must be NHWC, of sides of at least 6; got shape {x.shape}")
        for conv, norm in zip(self.front[::2], self.front[1::2], strict=True):
            x = nn.relu(norm(conv(x)))
        return x

    def _read(self, z: Array) -> Array:
        z = z if self.after is None else self.after(z)
        return self.head(jnp.mean(z, axis=(1, 2)))

    def _flow(self, state: tuple[Array, ...], begin: float, end: float) -> tuple[Array, ...]:
        """Features from one time to another; behind them, if asked, the integral of |f|."""
        if self.is_initializing():  # a solver cannot make parameters
            return (self.field(jnp.asarray(begin, state[0].dtype), state[0]), *state[1:])

        field = self.field.clone(parent=None)

        def slope(t: Any, state: tuple[Array, ...], variables: Any) -> tuple[Array, ...]:
            z = state[0]
            return rates(field.apply(variables, jnp.asarray(t, z.dtype), z[None])[0], state)

        def one(state: tuple[Array, ...], variables: Any) -> tuple[Array, ...]:
            return solved(
                slope, state, variables, begin, end, self.step, self.solver, self.controller,
                self.adjoint, self.max_steps,
            )  # fmt: skip

        return jax.vmap(one, (0, None))(state, self.field.variables)


def rates(f: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
    """How the features change, f, and behind them, where it is part of the state, the drift."""
    return (f, jnp.abs(f))[: len(state)]


def odenet(
    width: int = 64,
    num_classes: int = 10,
    *,
    interval: tuple[float, float] = (0.0, 1.0),
    step: float = 0.1,
    solver: Any = None,
    controller: Any = None,
    adjoint: Any = None,
    max_steps: int = 256,
    after: nn.Module | None = None,
) -> OdeNet:
    """Neural ODE whose field sees the time: Euler from 0 to 1 in steps of 0.1, as published.

    Args:
        width: Channels, 64 as published.
        num_classes: Number of logits.
        interval: See `OdeNet`, as for all that follow.
        step: Of the solver.
        solver: `diffrax.Dopri5()`, say; Euler's where None.
        controller: `diffrax.PIDController(rtol=1e-3, atol=1e-3)`, say; constant steps where None.
        adjoint: `diffrax.BacksolveAdjoint()`, say; exact for the steps taken where None.
        max_steps: Most steps where they adapt; a row that needs more gets logits of NaN.
        after: A module for the features that have flown.

    References: Chen et al. 2018 (neural ODEs); Yan et al. 2020, sec. 3, and its released code
        (paper 001, tables 1 and 2). Initial weights are Flax's, not PyTorch's.

    >>> model, x = odenet(4), jnp.ones((2, 8, 8, 1))
    >>> model.apply(model.init(jax.random.key(0), x), x).shape
    (2, 10)
    """
    return OdeNet(
        width, num_classes, True, interval, step, solver, controller, adjoint, max_steps, after
    )


def tisode(
    width: int = 64,
    num_classes: int = 10,
    *,
    interval: tuple[float, float] = (0.0, 1.0),
    step: float = 0.05,
    solver: Any = None,
    controller: Any = None,
    adjoint: Any = None,
    max_steps: int = 256,
    after: nn.Module | None = None,
) -> OdeNet:
    """Time-invariant neural ODE, to be trained with `objectives.steady_state`; else as `odenet`.

    Its field sees no time and has no biases; Euler in steps of 0.05.

    Args:
        width: See `odenet`, as for all that follow.
        num_classes: Number of logits.
        interval: When it begins and ends to flow; only the difference matters.
        step: Of the solver.
        solver: Of diffrax.
        controller: Of diffrax.
        adjoint: Of diffrax.
        max_steps: Where they adapt.
        after: A module for the features that have flown.

    References: Yan et al. 2020, sec. 4, and its released code (paper 001, table 3).
        Steady states are not what its field can have: it is never negative.

    >>> tisode().step, tisode().timed
    (0.05, False)
    """
    return OdeNet(
        width, num_classes, False, interval, step, solver, controller, adjoint, max_steps, after
    )


def residual_cnn(
    width: int = 64, num_classes: int = 10, *, after: nn.Module | None = None
) -> OdeNet:
    """The network that neural ODEs are compared with: the same block once, `z + f(z)`.

    Which is `tisode` with one step of Euler's.

    Args:
        width: Channels.
        num_classes: Number of logits.
        after: A module for the features behind the block.

    References: Yan et al. 2020, released code (paper 001, tables 1 to 4).

    >>> residual_cnn().step
    1.0
    """
    return tisode(width, num_classes, step=1.0, after=after)
