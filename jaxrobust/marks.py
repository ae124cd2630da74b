"""Names left on values in a jaxpr, by which `evaluate` counts what an attack costs."""

from __future__ import annotations

from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array

GRADIENT = "jaxrobust gradient"
FORWARD = "jaxrobust forward"
TURNS = "jaxrobust turns"


def mark(value: Array, kind: str, number: int | None = None) -> Array:
    """The same value under a name.

    Args:
        value: Of one example: its gradient, its logits; or the number of a loop's turn.
        kind: `GRADIENT`, `FORWARD` or `TURNS`.
        number: The most turns; elsewhere entries of one example, which are those of value.
    """
    return checkpoint_name(value, f"{kind} {value.size if number is None else number}")


def marked(name: str, kind: str) -> int | None:
    """The number in a name of that kind; None in any other name.

    >>> marked("jaxrobust turns 7", TURNS)
    7
    """
    prefix, _, number = name.rpartition(" ")
    return int(number) if prefix == kind else None
