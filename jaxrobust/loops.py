"""A while loop that says how many turns it takes at most, so that work can be counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxrobust.marks import TURNS, mark

T = TypeVar("T")


def at_most(most: int, cond: Callable[[T], Array], body: Callable[[Array, T], T], start: T) -> T:
    """`while cond(state): state = body(turn, state)`, at most `most` times.

    Under `vmap` each row stops by itself and keeps its state while others go on.

    Args:
        most: Most turns, a static number.
        cond: Scalar bool of the state.
        body: New state from the turn's number (from 0) and the state.
        start: First state.

    >>> int(at_most(3, lambda s: s < 100, lambda i, s: s * 10, jnp.array(7)))
    700
    """

    def keep_going(carry: tuple[Array, T]) -> Array:
        turn, state = carry
        return (turn < most) & cond(state)

    def one(carry: tuple[Array, T]) -> tuple[Array, T]:
        turn, state = carry
        return mark(turn, TURNS, most) + 1, body(turn, state)

    # Made from the condition, so that the counter varies over devices as the state does.
    zero = jnp.where(cond(start), 0, 0).astype(jnp.int32)
    return jax.lax.while_loop(keep_going, one, (zero, start))[1]
