"""Attacks made of attacks: the next one only faces what the last one left."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrobust import checks, losses
from jaxrobust.attacks._lift import check_call, clear_success, over_draws, row_axis
from jaxrobust.loops import at_most
from jaxrobust.threat import Threat
from jaxrobust.types import (
    Attack,
    Images,
    Keys,
    Labels,
    LogitsFn,
    Randomized,
    as_partial,
    per_example,
    row_keys,
)


def on_alive(attack: Attack, chunk: int) -> Callable[..., Array]:
    """Spend an attack only on the rows still alive, in compiled chunks of a fixed shape.

    Rows are ordered alive-first and attacked chunk by chunk while any are left, so the cost falls
    with the number alive and nothing is retraced.

    Args:
        attack: Any attack of the common form.
        chunk: Rows attacked at once.

    Returns:
        `run(logits_fn, x, y, alive, *, key, ball) -> x_adv`, with the clean rows where not alive.

    >>> from jaxrobust import Ball
    >>> from jaxrobust.attacks import fgsm
    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> on_alive(fgsm, 1)(logits_fn, jnp.full((2, 1), 0.5), jnp.array([0, 0]),
    ...     jnp.array([False, True]), key=jax.random.key(0), ball=Ball("linf", 0.25))
    Array([[0.5 ],
           [0.25]], dtype=float32)
    """
    checks.check_count(chunk, "chunk")

    def run(logits_fn: LogitsFn, x: Any, y: Any, alive: Array, *, key: Any, ball: Threat) -> Array:
        x, y = jnp.asarray(x), jnp.asarray(y)
        num_rows = x.shape[0]
        keys = row_keys(key, num_rows)
        order = jnp.argsort(~alive, stable=True)
        num_alive = jnp.sum(alive)
        num_chunks = -(-num_rows // chunk)
        # Fill the last chunk by repeating rows that are alive: their work is thrown away below, and
        # no other row keeps a loop going.
        filled = order[jnp.arange(num_chunks * chunk) % jnp.maximum(num_alive, 1)]

        def rows(leaf: Any, which: Array) -> Any:
            return leaf[which] if jnp.ndim(leaf) else leaf

        def body(turn: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            left, out = state
            start = turn * chunk
            which = jax.lax.dynamic_slice_in_dim(filled, start, chunk)
            part = dataclasses.replace(ball, eps=rows(ball.eps, which))
            attacked = attack(logits_fn, x[which], y[which], key=keys[which], ball=part)
            return left - chunk, jax.lax.dynamic_update_slice_in_dim(out, attacked, start, 0)

        slots = jnp.zeros_like(x, shape=(num_chunks * chunk, *x.shape[1:])) + 0 * x[:1]
        _, slots = at_most(num_chunks, lambda state: state[0] > 0, body, (num_alive, slots))
        place = jnp.argsort(order)
        mask = alive.reshape(-1, *[1] * (x.ndim - 1))
        return jnp.where(mask, slots[place], x)

    return run


def first_success(members: Mapping[str, Attack], chunk: int = 64) -> Attack:
    """One attack made of several: each member only faces the examples that still stand.

    Memory: that of the hungriest member on `chunk` rows, beside some four images a row.

    Args:
        members: Attacks by name, in order. A member draws from `fold_in(key, crc32(name))`, so
            changing the order changes nobody's draws.
        chunk: Rows attacked at once; see `on_alive`.

    Returns:
        An attack of the common form (untargeted). What a member returns is brought into ball and
        box (of flows: into the box) before it is judged, so a minimum-norm attack (`against`) may
        be one. Where no member succeeds, the attempt of the highest margin comes back; an example
        that the model gets wrong anyway comes back clean. A success is by more than rounding. A
        randomised model is judged by 16 draws, and is wrong where each of them is; its margin is
        their mean.

    Raises:
        ValueError: If there are no members, or chunk is not at least 1.

    References:
        The per-example worst case over attacks: AutoAttack (Croce and Hein 2020).

    >>> from jaxrobust import Ball
    >>> from jaxrobust.attacks import fgsm, pgd
    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> both = first_success({"fgsm": fgsm, "pgd": pgd})
    >>> both(logits_fn, jnp.full((1, 2), 0.4), jnp.array([0]), key=jax.random.key(0),
    ...      ball=Ball("linf", 0.25))
    Array([[0.15, 0.15]], dtype=float32)
    """
    if not members:
        raise ValueError("members must hold at least one attack; got none")
    for name, attack in members.items():
        checks.check_attack(attack, f"member {name!r}")
    runs = {name: on_alive(attack, chunk) for name, attack in members.items()}

    def composed(
        logits_fn: LogitsFn, x: Images, y: Labels, *, key: Keys, ball: Threat
    ) -> Float[Array, "batch *dims"]:
        keys = check_call(logits_fn, x, y, key, ball)
        ball = dataclasses.replace(ball, eps=jnp.asarray(ball.eps, x.dtype))
        return jitted(as_partial(logits_fn), jnp.asarray(x), jnp.asarray(y), keys, ball)

    @jax.jit
    def jitted(logits_fn: LogitsFn, x: Array, y: Array, keys: Array, ball: Threat) -> Array:
        model = per_example(logits_fn)
        random = isinstance(logits_fn, Randomized)

        def one(x: Array, y: Array, key: Array) -> tuple[Array, Array]:
            if random:
                return over_draws(model, x, y, key)
            outputs = model(x, key)
            return clear_success(losses.margin, outputs, y), losses.margin(outputs, y)

        def judged(images: Array, salt: str) -> tuple[Array, Array]:
            return jax.vmap(one)(images, y, salted(keys, salt))

        def legal(ball: Threat, x: Array, x_adv: Array) -> Array:
            finite = jnp.all(jnp.isfinite(x_adv))
            return jnp.where(finite, ball.judged(x, jnp.where(finite, x_adv, x))[0], x)

        best = x
        wrong, gap = judged(x, "clean")
        alive, most = ~wrong, jnp.full_like(gap, -jnp.inf)
        for name, run in runs.items():
            attacked = run(logits_fn, x, y, alive, key=salted(keys, name), ball=ball)
            attacked = jax.vmap(legal, (jax.tree.map(row_axis, ball), 0, 0))(ball, x, attacked)
            wrong, gap = judged(attacked, f"judge {name}")
            better = alive & (wrong | (gap > most))
            best = jnp.where(better.reshape(-1, *[1] * (x.ndim - 1)), attacked, best)
            alive, most = alive & ~wrong, jnp.where(better, gap, most)
        return jax.lax.stop_gradient(best)

    return composed


def salted(keys: Array, name: str) -> Array:
    """Row keys of a member: its name's checksum folded in.

    >>> salted(jax.random.split(jax.random.key(0), 2), "pgd").shape
    (2,)
    """
    return jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(name.encode()))
