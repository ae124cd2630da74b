"""Second-order directions: the loss's dominant Hessian eigenvector, exactly and as in paper 000."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxrobust.checks import check_count
from jaxrobust.gradients._canonical import canonical
from jaxrobust.gradients._vjp import Gradient, OneExample, vjp
from jaxrobust.marks import GRADIENT, mark
from jaxrobust.threat import norm

METHODS = ("jvp", "finite_difference")


def hessian_direction(
    num_iters: int = 1,
    method: Literal["jvp", "finite_difference"] = "jvp",
    xi: float = 0.01,
) -> Gradient:
    """The dominant eigenvector of the loss's Hessian at x, in place of its gradient.

    Power iteration from a random unit vector: `d <- H d / |H d|`, `num_iters` products. The value
    is the loss itself; its derivative is the last product `H d`, whose direction tends to the
    eigenvector of the eigenvalue largest in modulus, and whose length to that modulus. So says the
    paper, though where that eigenvalue is negative the loss falls along it both ways.

    An eigenvector has no sign: the one that ascends is taken, of non-negative inner product with
    the gradient. Where the gradient vanishes, the paper's premise, both signs raise the loss alike
    to second order, and the draw of `d` decides.

    **Where `H d` is zero (or within rounding of it, by finite differences) or not finite, the
    gradient itself is returned.** A ReLU network is piecewise linear, so of the Hessian of its
    cross-entropy only the Gauss-Newton part `J^T (diag p - p p^T) J` is left almost everywhere: the
    softmax's curvature, none of the network's. With a margin loss the Hessian is zero and this is
    the plain gradient.

    Args:
        num_iters: Products with the Hessian, each at about the cost of one gradient. The published
            one gives a random direction that the Hessian has leant towards its eigenvector.
        method: "jvp" for exact products, by forward differentiation of the gradient;
            "finite_difference" for `(grad L(x + xi d) - grad L(x)) / xi`.
        xi: Step of the finite difference in pixel units, l2. Shorter steps drown in rounding: in
            float32 about `1e-7 |grad L| / xi` is lost in each product. Longer ones cross the kinks
            of ReLU and max pooling, and count them as curvature.

    Returns:
        A gradient for scalar functions, i.e. losses.

    Raises:
        ValueError: For a count below 1, an unknown method, or a step that is not positive.

    References:
        Paper 000, sec. 3 and app. A; Miyato et al. 2017 (virtual adversarial training). Their
        one-step form drops `grad L(x)`: that is `perturbed(xi)`, the same where `grad L(x)` is
        zero.

    >>> bowl = lambda x, key: -jnp.sum(jnp.array([1.0, 5.0, 2.0]) * (x - 1) ** 2)
    >>> _, pullback = vjp(hessian_direction(20)(bowl), jnp.zeros(3), jax.random.key(0))
    >>> jnp.abs(pullback(jnp.ones(()))).round(3)
    Array([ 0., 10.,  0.], dtype=float32)
    """
    check_count(num_iters, "num_iters")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}")
    _check_step(xi)
    return _hessian_direction(int(num_iters), method, float(xi))


@functools.cache  # one object for each setting, so that nothing is retraced
def _hessian_direction(num_iters: int, method: str, xi: float) -> Gradient:
    def gradient(f: OneExample) -> OneExample:
        def estimate(x: Array, key: Array) -> Array:
            direction_key, model_key = jax.random.split(key)
            here = jax.lax.stop_gradient(x)
            value_and_grad = canonical(jax.value_and_grad(lambda x: f(x, model_key)))

            floor = jnp.zeros((), x.dtype)
            if method == "jvp":
                (value, ascent), push = jax.linearize(value_and_grad, here)
                product = lambda d: mark(push(d)[1], GRADIENT)
            else:
                value, ascent = value_and_grad(here)
                floor = 8 * jnp.finfo(x.dtype).eps * norm(ascent, "l2") / xi

                def product(d: Array) -> Array:
                    loss, pullback = vjp(f, here + xi * d, model_key)
                    return (pullback(jnp.ones_like(loss)) - ascent) / xi

            def turn(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
                image = product(carry[0])
                length = norm(image, "l2")
                curved = (length > floor) & jnp.isfinite(length)
                unit = jnp.where(curved, image / jnp.where(curved, length, 1), carry[0])
                return (unit, jnp.where(curved, image, 0)), None

            start = random_unit(direction_key, here)
            (_, image), _ = jax.lax.scan(turn, (start, jnp.zeros_like(here)), length=num_iters)
            upward = jnp.where(jnp.vdot(image, ascent) < 0, -image, image)
            found = jnp.where(jnp.any(image != 0), upward, ascent)
            # A function with this value and this derivative.
            value, found = jax.lax.stop_gradient((value, found))
            return value + jnp.sum((x - here) * found)

        return estimate

    return gradient


def perturbed(xi: float) -> Gradient:
    """The gradient a random step of l2 length xi away: the second-order attack's first form.

    One power iteration by finite differences, less `grad L(x)`, which is taken for zero. To
    average over Gaussian steps instead is `smoothed(xi / sqrt(dims), n)`, the paper's eq. 4.

    Args:
        xi: Length of the step in pixel units.

    Raises:
        ValueError: For a step that is not positive.

    References:
        Paper 000, eq. 3 and app. A; Miyato et al. 2017.

    >>> f = perturbed(0.1)(lambda x, key: jnp.sum(x**2))
    >>> print(f"{f(jnp.zeros(3), jax.random.key(0)):.4f}")
    0.0100
    """
    _check_step(xi)
    return _perturbed(float(xi))


@functools.cache
def _perturbed(xi: float) -> Gradient:
    def gradient(f: OneExample) -> OneExample:
        def moved(x: Array, key: Array) -> Array:
            direction_key, model_key = jax.random.split(key)
            return f(x + xi * random_unit(direction_key, x), model_key)

        return moved

    return gradient


def random_unit(key: Key[Array, ""], like: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """A direction drawn uniformly from the unit sphere, of the shape of `like`.

    >>> round(float(norm(random_unit(jax.random.key(0), jnp.zeros((2, 3))), "l2")), 5)
    1.0
    """
    draw = jax.random.normal(key, like.shape, like.dtype)
    return draw / norm(draw, "l2")


def _check_step(xi: float) -> None:
    if not 0 < xi < float("inf"):
        raise ValueError(f"xi must be positive and finite; got {xi}")
