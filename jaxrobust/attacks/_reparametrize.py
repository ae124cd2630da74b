"""An attack that searches codes instead of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, PyTree

from jaxrobust.attacks._lift import check_call
from jaxrobust.checks import check_attack
from jaxrobust.threat import Ball, check_ball
from jaxrobust.types import Attack, LogitsFn, Randomized, as_partial

Coder = Callable[[Array], Array]


def reparametrize(decoder: Coder, attack: Attack, *, encoder: Coder, codes: Ball) -> Attack:
    """Attack a code z in place of the image, which is `decoder(z)`.

    The cure for gradients that explode or vanish in a chain of iterations in front of the model:
    images that the decoder makes are such as the chain leaves as they are. Either its gradient is
    harmless there; or it is left out, by attacking the model without it (`transfer`), and what is
    found is judged behind the chain.

    The search is in the ball `codes` around `encoder(x)`; PGD starts anywhere in it, unless it has
    `random_start=False`. What the model is shown, and what comes back, is `decoder(z)` brought into
    the ball around x; so a code whose image lies outside does not count for more than its nearest
    image within.

    A minimum-norm attack goes in by `against`: it looks for the nearest code, in `codes.box`, not
    for the nearest image.

    Args:
        decoder: Codes `(batch, *code)` to images `(batch, *dims)`, rows by themselves; as a
            `jax.tree_util.Partial` its weights stay out of the compiled program.
        attack: Any attack of the common form, within a `Ball`.
        encoder: Images to codes to search around: the inverse of the decoder, or near it.
        codes: The threat that the attack is handed: how far codes may go, and their legal values.

    Returns:
        An attack of the common form, within a `Ball`.

    Raises:
        ValueError: For what is no function, or no attack within a ball; for codes that are no
            `Ball`; when it is called, for a decoder whose images are not of the shape of x.

    References:
        Athalye et al. 2018, sec. 4.3 (paper 001, gradient masking).

    >>> from jaxrobust.attacks import fgsm
    >>> logits_fn = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    >>> doubled = reparametrize(lambda z: z / 2, fgsm, encoder=lambda x: 2 * x,
    ...                         codes=Ball("linf", 0.25, box=(0.0, 2.0)))
    >>> doubled(logits_fn, jnp.full((1, 2), 0.5), jnp.array([0]), key=jax.random.key(0),
    ...         ball=Ball("linf", 0.2))
    Array([[0.375, 0.375]], dtype=float32)

    Behind a chain that has no gradient at all the code is searched on the model alone:

    >>> from jaxrobust.attacks import transfer
    >>> behind = lambda x: logits_fn(jnp.round(8 * x) / 8)
    >>> call = {"key": jax.random.key(0), "ball": Ball("linf", 0.2)}
    >>> doubled(behind, jnp.full((1, 2), 0.5), jnp.array([0]), **call)
    Array([[0.5, 0.5]], dtype=float32)
    >>> transfer(logits_fn, doubled)(behind, jnp.full((1, 2), 0.5), jnp.array([0]), **call)
    Array([[0.375, 0.375]], dtype=float32)
    """
    for name, coder in (("decoder", decoder), ("encoder", encoder)):
        if not callable(coder):
            raise ValueError(f"{name} must be a function of arrays; got {coder!r:.60}")
    check_attack(attack)
    check_ball(codes)
    return Partial(
        _reparametrized, as_partial(decoder), as_partial(encoder), codes, as_partial(attack)
    )


def _reparametrized(
    decoder: Coder, encoder: Coder, codes: Ball, attack: Attack, logits_fn: LogitsFn, x: Any,
    y: Any, *, key: Any, ball: Ball,
) -> Array:  # fmt: skip
    check_ball(ball, len(x) if hasattr(x, "shape") else None)
    keys = check_call(logits_fn, x, y, key, ball)
    x = jnp.asarray(x)
    ball = dataclasses.replace(ball, eps=jnp.broadcast_to(jnp.asarray(ball.eps, x.dtype), len(x)))
    codes = dataclasses.replace(codes, eps=jnp.asarray(codes.eps, x.dtype))
    functions = (decoder, encoder, attack, as_partial(logits_fn))
    return _search(functions, codes, x, jnp.asarray(y), keys, ball)


@jax.jit
def _search(functions: Any, codes: Ball, x: Array, y: Array, keys: Array, ball: Ball) -> Array:
    decoder, encoder, attack, logits_fn = functions
    start = jnp.clip(encoder(x), *codes.box)
    shape = jax.eval_shape(decoder, start).shape
    if shape != x.shape:
        raise ValueError(f"decoder must return images of shape {x.shape}; got {shape}")

    def one(x: Array, z: Array, y: Array, key: Array, ball: Ball) -> Array:
        seen = Partial(_decoded, decoder, ball, x, logits_fn)
        model = Randomized(seen) if isinstance(logits_fn, Randomized) else seen
        found = decoder(attack(model, z[None], y[None], key=key[None], ball=codes))[0]
        finite = jnp.all(jnp.isfinite(found))
        return ball.project(x, jnp.where(finite, found, x))

    return jax.lax.stop_gradient(jax.vmap(one)(x, start, y, keys, ball))


def _decoded(
    decoder: Coder, ball: Ball, x: Array, logits_fn: LogitsFn, z: Array, *key: Array
) -> PyTree:
    """The model of codes of one image, on a batch of one or more."""
    image = jax.vmap(lambda one: ball.project(x, one))(decoder(z))
    return logits_fn(image, *key)
