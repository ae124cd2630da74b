"""What an attack costs: gradients and forwards an example, read off its jaxpr."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxprs_in_params

from jaxrobust.marks import FORWARD, GRADIENT, TURNS, marked
from jaxrobust.threat import Threat
from jaxrobust.types import Attack, LogitsFn, as_partial


def count(
    attack: Attack, logits_fn: LogitsFn, x: Any, ball: Threat
) -> tuple[int | None, int | None]:
    """Most gradients and model evaluations that an attack spends on one example.

    Counted are the marks that `gradients.vjp` and `per_example` leave, times the length of the
    loops around them.

    Args:
        attack: The attack.
        logits_fn: The model.
        x: A batch of any images.
        ball: The threat; its radius is not looked at.

    Returns:
        `(gradients, forwards)`; None where they sit in a loop without a stated bound.
    """
    leaves, structure = jax.tree.flatten((as_partial(attack), logits_fn))
    shapes = tuple(jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    image = jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype)
    threat = jax.tree.structure(ball)
    return _cached(structure, shapes, image, threat)


@functools.lru_cache(maxsize=256)
def _cached(structure: Any, shapes: Any, image: Any, threat: Any) -> tuple[int | None, int | None]:
    def traced(functions: Any, x: Any, y: Any, key: Any, eps: Any) -> Any:
        attack, logits_fn = functions
        return attack(logits_fn, x, y, key=key, ball=jax.tree.unflatten(threat, [eps]))

    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    label = jax.ShapeDtypeStruct((1,), "int32")
    eps = jax.ShapeDtypeStruct((1,), image.dtype)
    functions = jax.tree.unflatten(structure, shapes)
    jaxpr = jax.make_jaxpr(traced)(functions, image, label, keys, eps).jaxpr
    return _times(jaxpr, GRADIENT), _times(jaxpr, FORWARD)


def _times(jaxpr: Any, kind: str) -> int | None:
    """Examples that pass a mark of that kind; None if that is not bounded."""
    total = 0
    for eqn in jaxpr.eqns:
        size = _mark(eqn, kind)
        if size is not None:
            total += math.prod(eqn.invars[0].aval.shape) // max(size, 1)
            continue
        inner = [_times(sub, kind) for sub in _subjaxprs(eqn)]
        if not any(part is None or part > 0 for part in inner):
            continue
        if any(part is None for part in inner):
            return None
        parts = [part for part in inner if part is not None]
        if eqn.primitive.name == "scan":
            total += eqn.params["length"] * sum(parts)
        elif eqn.primitive.name == "cond":
            total += max(parts)
        elif eqn.primitive.name == "while":
            turns = _bound(eqn)
            if turns is None:
                return None
            total += turns * sum(parts)
        else:
            total += sum(parts)
    return total


def _bound(eqn: Any) -> int | None:
    """The most turns of a while loop made by `loops.at_most`."""
    for inner in _plain(eqn.params["body_jaxpr"]).eqns:
        turns = _mark(inner, TURNS)
        if turns is not None:
            return turns
    return None


def _mark(eqn: Any, kind: str) -> int | None:
    return marked(eqn.params["name"], kind) if eqn.primitive.name == "name" else None


def _subjaxprs(eqn: Any) -> list[Any]:
    return [_plain(sub) for sub in jaxprs_in_params(eqn.params)]


def _plain(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)
