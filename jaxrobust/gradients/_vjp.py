"""The only place where searches differentiate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, Key, PyTree

from jaxrobust.gradients._canonical import canonical
from jaxrobust.marks import GRADIENT, mark

OneExample = Callable[[Array, Array], PyTree]
Gradient = Callable[[OneExample], OneExample]


def vjp(
    f: OneExample, x: Float[Array, "*d"], key: Key[Array, ""]
) -> tuple[PyTree, Callable[[Any], Float[Array, "*d"]]]:
    """Value and pull-back of f in its first argument, with convolutions fit for compiled loops.

    The only place where searches differentiate.

    Args:
        f: Function of one example and a key.
        x: The example.
        key: Key handed to f.

    Returns:
        `(out, pullback)`: `pullback(cotangent of out)` has the shape of x.

    >>> import jax.numpy as jnp
    >>> out, pullback = vjp(lambda x, key: jnp.sum(x**2), jnp.ones(2), jax.random.key(0))
    >>> pullback(jnp.ones_like(out))
    Array([2., 2.], dtype=float32)
    """
    out, pullback = jax.vjp(lambda x: f(x, key), x)

    def marked(cotangent: Any) -> Array:
        (x_cotangent,) = pullback(cotangent)
        if getattr(f, "derivative_free", False):  # an estimate from values is no gradient
            return x_cotangent
        return mark(x_cotangent, GRADIENT)

    return out, canonical(marked)
