"""Descent inside a box, as Carlini and Wagner's three attacks share it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxrobust import checks, gradients
from jaxrobust.attacks._minimum_norm import check_balanced
from jaxrobust.gradients import Gradient
from jaxrobust.threat import Box

METHODS = ("change_of_variable", "clipped", "projected")

PROGRESS = 1e-4
"""Share by which an objective must fall in a tenth of the steps to be worth going on with."""

INSIDE = 0.999999
"""Share of the box that the change of variable starts within, as in the authors' code."""


class Adam(NamedTuple):
    """Adam's moments; `age` counts the steps since they were zero."""

    mean: Float[Array, "*d"]
    square: Float[Array, "*d"]
    age: Int[Array, ""]


def adam_start(x: Float[Array, "*d"]) -> Adam:
    """No moments yet, for a variable of the shape of x."""
    return Adam(jnp.zeros_like(x), jnp.zeros_like(x), jnp.zeros_like(x, shape=(), dtype=jnp.int32))


def adam_step(adam: Adam, slope: Array, learning_rate: float) -> tuple[Adam, Array]:
    """New moments and the step to subtract (Kingma and Ba 2015, algorithm 1, its constants).

    Written out, since attacks need nothing but JAX, and the library's example optimisers are no
    public interface.
    """
    age = adam.age + 1
    mean = 0.9 * adam.mean + 0.1 * slope
    square = 0.999 * adam.square + 0.001 * slope**2
    since = age.astype(slope.dtype)
    corrected = jnp.sqrt(square / (1 - 0.999**since)) + 1e-8
    return Adam(mean, square, age), learning_rate * mean / (1 - 0.9**since) / corrected


class Place(NamedTuple):
    """Where a variable puts the image.

    Attributes:
        x_adv: The image, in the box: what the model is shown.
        delta: The perturbation that the objective measures, in widths of the box.
        x_rate: Derivative of `x_adv` in the variable, pixel by pixel.
        delta_rate: Derivative of `delta` in it.
    """

    x_adv: Float[Array, "*d"]
    delta: Float[Array, "*d"]
    x_rate: Float[Array, "*d"]
    delta_rate: Float[Array, "*d"]


def variable_of(
    method: str, image: Float[Array, "*d"], x: Float[Array, "*d"], box: Box
) -> Float[Array, "*d"]:
    """The variable of an image (under the change of variable, of one barely inside the box)."""
    low, high = box
    if method != "change_of_variable":
        return (image - x) / (high - low)
    return jnp.arctanh(INSIDE * (2 * (image - low) / (high - low) - 1))


def place(method: str, variable: Array, x: Array, box: Box) -> Place:
    """The image of a variable: `mid + half * tanh(w)`, or x plus delta, clipped."""
    low, high = box
    width = high - low
    if method == "change_of_variable":
        x_adv = jnp.clip(low + width * (0.5 + 0.5 * jnp.tanh(variable)), low, high)
        # Half of 1 - tanh^2, which would round to 0 where a pixel has come close to the edge.
        rate = 2 * jax.nn.sigmoid(2 * variable) * jax.nn.sigmoid(-2 * variable)
        return Place(x_adv, (x_adv - x) / width, width * rate, rate)
    moved = x + width * variable
    # Clipped: no slope outside. On the edge itself there is one, or such pixels would never move.
    inside = (moved >= low) & (moved <= high) | (method == "projected")
    x_rate = width * inside.astype(x.dtype)
    return Place(jnp.clip(moved, low, high), variable, x_rate, jnp.ones_like(x))


def settle(method: str, variable: Array, x: Array, box: Box) -> Array:
    """The variable after a step: brought into the box where descent is projected."""
    if method != "projected":
        return variable
    low, high = box
    width = high - low
    return jnp.clip(variable, (low - x) / width, (high - x) / width)


class Look(NamedTuple):
    """What one gradient tells.

    Attributes:
        loss: The gradient estimator's value of the loss.
        slope: Its derivative in the image.
        success: Whether the model's own outputs there have reached the aim.
    """

    loss: Float[Array, ""]
    slope: Float[Array, "*d"]
    success: Bool[Array, ""]


def look(
    model: Callable[..., Any],
    loss: Callable[[Any, Any], Array],
    success: Callable[[Array, Array, Any], Array],
    gradient: Gradient,
    x_adv: Float[Array, "*d"],
    key: Key[Array, ""],
) -> Look:
    """One gradient, and success by the same forward where that shows the image itself.

    An estimator's value is a mean over noise or draws, which proves nothing about the image: there
    success takes a plain forward of its own. Where the slope is not finite it is 0, so that descent
    goes on.

    Args:
        model: Outputs of `(x, key)`.
        loss: To be maximised; of outputs and whether they succeed.
        success: Of image, key and outputs: `reached` of a model and aim.
        gradient: Gradient estimator.
        x_adv: The image.
        key: Of this step.
    """
    if gradient is gradients.exact:
        outputs, pullback = gradients.vjp(model, x_adv, key)
        reached = success(x_adv, key, outputs)
        value, back = jax.vjp(lambda out: loss(out, reached), outputs)
        (cotangent,) = back(jnp.ones_like(value))
        return Look(value, _finite(pullback(cotangent)), reached)
    reached = success(x_adv, key, model(x_adv, key))
    estimate = gradient(lambda x, key: loss(model(x, key), reached))
    value, pullback = gradients.vjp(estimate, x_adv, key)
    return Look(value, _finite(pullback(jnp.ones_like(value))), reached)


def _finite(slope: Array) -> Array:
    return jnp.where(jnp.isfinite(slope), slope, 0)


def is_stuck(objective: Array, previous: Array) -> Array:
    """Whether an objective has not fallen enough since it was looked at last."""
    return ~(objective <= previous - PROGRESS * jnp.abs(previous))


def check_descent(
    loss: Any, method: Any, num_steps: Any, learning_rate: Any, initial_c: Any, largest_c: Any
) -> None:
    """Refuse settings of a descent that cannot be meant."""
    check_balanced(loss)
    checks.check_choice(method, "method", METHODS)
    checks.check_count(num_steps, "num_steps")
    numbers = {"learning_rate": learning_rate, "initial_c": initial_c, "largest_c": largest_c}
    for name, value in numbers.items():
        checks.check_radius(value, name)
        if not value > 0:
            raise ValueError(f"{name} must be positive; got {value}")
    if not initial_c < largest_c:
        raise ValueError(f"initial_c must be below {largest_c:g}; got {initial_c}")


def pick(which: Bool[Array, ""], new: Any, old: Any) -> Any:
    """`new` where a condition of the example holds, else `old`; pytrees alike."""
    return jax.tree.map(lambda a, b: jnp.where(which, a, b), new, old)
