"""Bounds in the form that `evaluate` wants of a certificate."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxrobust.layers import Layer
from jaxrobust.types import LogitsFn, MarginBound, SmoothedRadius


def on_layers(bound: Callable[..., MarginBound], layers: Sequence[Layer]) -> Callable[..., Any]:
    """Give a bound on an explicit network the form that `evaluate` wants of a certificate.

    Args:
        bound: `bound(layers, x, y, *, eps, ...)`, as in this package. The ball's norm and box are
            passed on where it has parameters of these names that no `functools.partial` fixed; or
            the ball itself, where it has a parameter `ball`, as `spatial` does.
        layers: The network.

    Returns:
        `certificate(x, y, *, key, ball) -> MarginBound`; the key is not used. It raises a
        ValueError where a partial fixed another norm or eps than the ball's, or a box that does not
        hold the ball's.

    >>> from jaxrobust import certify
    >>> from jaxrobust.layers import Dense
    >>> from jaxrobust.threat import Ball
    >>> certificate = on_layers(certify.spectral, [Dense(np.eye(2), np.zeros(2))])
    >>> certificate(np.eye(2), np.array([0, 1]), key=None, ball=Ball("l2", 0.5)).certified
    array([ True,  True])
    """
    if not callable(bound):
        raise ValueError(
            f"bound must be a function such as certify.lp, and stand before the layers; got "
            f"{type(bound).__name__}"
        )
    takes = inspect.signature(bound).parameters
    fixed = bound.keywords if isinstance(bound, functools.partial) else {}

    def certificate(x: Any, y: Any, *, key: Any, ball: Any) -> MarginBound:
        del key
        threat = (
            {"ball": ball}
            if "ball" in takes
            else {"eps": ball.eps, "norm": ball.norm, "box": ball.box}
        )
        for name in fixed.keys() & threat.keys():
            _check_fixed(name, fixed[name], threat[name])
        passed = {k: v for k, v in threat.items() if k in (*takes, "eps") and k not in fixed}
        return bound(layers, x, y, **passed)

    return certificate


def _check_fixed(name: str, value: Any, of_ball: Any) -> None:
    """Refuse what a partial fixed if the bound would not speak of the whole ball."""
    if name == "box":
        same = value is None or (value[0] <= of_ball[0] and of_ball[1] <= value[1])
    else:
        same = np.all(value == of_ball)
    if not same:
        raise ValueError(
            f"certificate: its {name} is fixed to {value!r}, but the ball evaluated has {name} "
            f"{of_ball!r}; leave {name} to the ball"
        )


def on_model(bound: Callable[..., SmoothedRadius], logits_fn: LogitsFn) -> Callable[..., Any]:
    """Give a bound on any model the form that `evaluate` wants of a certificate.

    Args:
        bound: `bound(logits_fn, x, *, key, box)`: `functools.partial(smoothing, sigma=0.5)`, say.
        logits_fn: The model without the noise that the bound itself adds.

    Returns:
        `certificate(x, y, *, key, ball) -> SmoothedRadius`; the labels are not used.

    >>> import functools, jax
    >>> from jaxrobust import certify
    >>> from jaxrobust.threat import Ball
    >>> smooth = functools.partial(certify.smoothing, sigma=0.1, n=500)
    >>> certificate = on_model(smooth, lambda x: x)
    >>> x, y, key = np.array([[0.9, 0.1]], np.float32), np.array([0]), jax.random.key(0)
    >>> certificate(x, y, key=key, ball=Ball("l2", 0.2)).certified(y, 0.2)
    array([ True])
    """

    def certificate(x: Any, y: Any, *, key: Any, ball: Any) -> SmoothedRadius:
        del y
        return bound(logits_fn, x, key=key, box=ball.box)

    return certificate
