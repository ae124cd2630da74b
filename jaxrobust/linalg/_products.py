"""Maps that are given by their products only: what iterations with them have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jaxtyping import Array, Bool

from jaxrobust.checks import check_count
from jaxrobust.loops import at_most

Product = Callable[[tuple[Array, ...], Array], Array]

# A GPU's default may keep ten bits of the factors.
PRECISE = "highest"
matmul = functools.partial(jnp.matmul, precision=PRECISE)
inner = functools.partial(jnp.vdot, precision=PRECISE)


def closed_over(
    matvec: Callable[[Array], Array], v0: Array, num_steps: int
) -> tuple[Product, tuple[Array, ...], Array]:
    """A map with all that it closes over as arguments, and a start that varies as its images do.

    Not `jax.closure_convert`, which leaves integers inside: a label of an outer `jit` or `scan`
    would escape from it.
    """
    check_count(num_steps, "num_steps")
    v0 = jnp.asarray(v0)  # float64 of NumPy's comes as what JAX computes in
    if v0.dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"v0 must be float32 or float64; got {v0.dtype}")
    with jax.default_matmul_precision(PRECISE):
        start = v0 + jnp.zeros_like(matvec(v0), shape=(), dtype=v0.dtype)
        closed = jax.make_jaxpr(matvec)(start)

    def product(consts: tuple[Array, ...], vector: Array) -> Array:
        return jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, consts))(vector)[0]

    return product, tuple(jnp.asarray(const) for const in closed.consts), start


def started(start: Array) -> Array:
    """Of length 1; for zero a vector that nothing in practice is orthogonal to."""
    vector, size = unit_of(start)
    fixed = jnp.cos(jnp.arange(start.size, dtype=start.dtype)).reshape(start.shape)
    return jnp.where(size > 0, vector, unit_of(fixed)[0])


def unit_of(x: Array) -> tuple[Array, Array]:
    """A vector over its 2-norm, and the norm without overflow; zeros of zero, NaN of NaN."""
    largest = jnp.max(jnp.abs(x))
    none = largest < jnp.finfo(x.dtype).tiny
    scale = jnp.where(none, 1, largest)
    scaled = jnp.where(none, 0, x / scale)
    length = jnp.linalg.norm(scaled.ravel())
    return scaled / jnp.where(none, 1, length), scale * length


def where_needed(needed: Bool[Array, ""], repair: Callable[[Array, Any], Any], state: Any) -> Any:
    """`repair(needed, state)` where needed, and only then computed, under `vmap` too.

    All costly work must depend on the arguments: XLA moves what does not out of the loop.
    """

    def turn(_: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
        # Negated, for what never changes would be moved out too.
        return ~carry[0], repair(*carry)

    return at_most(1, lambda carry: carry[0], turn, (needed, state))[1]
