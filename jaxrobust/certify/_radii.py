"""Radii of a smoothed classifier from its two largest class probabilities: Rényi, Cohen, PixelDP.

Plain NumPy in float64. With one lower end p1 of the winner's probability under Gaussian noise and
one upper end p2 of every other class's, each returns a radius in l2 within which the winner stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_DOWN = 1 - 1e-10  # far more than the rounding of the formulas, far less than 1e-6
_NO_SLACK = 16 * np.finfo(np.float64).eps


def renyi_radius(p1: ArrayLike, p2: ArrayLike, sigma: ArrayLike) -> np.ndarray:
    """Radius by the Rényi divergence between the class distributions at two images.

    `L^2 = sup_{a > 1} -(2 sigma^2 / a) log(1 - p1 - p2 + 2 M)`, M the mean of p1 and p2 of power
    `1 - a`. Every order a gives a valid radius, so a supremum that is missed only costs radius: it
    is searched to a relative 1e-6 on a grid of orders that is refined around its best, with the
    limit a -> 1, `L^2 = -2 sigma^2 log(1 - (sqrt(p1) - sqrt(p2))^2)`, which is often the best one,
    and the result is rounded down. At `p2 = 0` all orders agree on the divergence, so the limit is
    the supremum: `sigma sqrt(-2 log(1 - p1))`, infinite at p1 = 1 only, where the class never
    changes.

    Args:
        p1: Lower end of the winner's probability, in [0, 1].
        p2: Upper end of each other class's, in [0, 1]; what exceeds `1 - p1` cannot be, and is cut.
        sigma: Standard deviation of the noise, positive.

    Returns:
        Radii in the units of sigma, float64, of the arguments' common shape; 0 unless p1 > p2.

    Raises:
        ValueError: For probabilities outside [0, 1] and deviations that are not finite and > 0.

    References:
        Li, Chen, Wang, Carin, Second-Order Adversarial Attack and Certifiable Robustness, 2018
        (paper 000), Theorem 2; the abstention where p1 <= p2 is added, since the formula is
        symmetric in them.

    >>> renyi_radius([0.6, 0.99, 0.4], [0.4, 0.01, 0.6], 1.0).round(3)
    array([0.202, 1.908, 0.   ])
    """
    return _where_p1_wins(_renyi, p1, p2, sigma)


def cohen_radius(p1: ArrayLike, p2: ArrayLike, sigma: ArrayLike) -> np.ndarray:
    """Radius by the Neyman-Pearson lemma, `sigma / 2 (Phi^-1(p1) - Phi^-1(p2))`: tight.

    No larger radius holds for all classifiers with these probabilities. Infinite where p2 = 0 or
    p1 = 1: a class that is never seen under noise at one image is never seen at another.

    Args:
        p1: Lower end of the winner's probability, in [0, 1].
        p2: Upper end of each other class's, in [0, 1]; what exceeds `1 - p1` cannot be, and is cut.
        sigma: Standard deviation of the noise, positive.

    Returns:
        Radii in the units of sigma, rounded down; 0 unless p1 > p2.

    Raises:
        ValueError: For probabilities outside [0, 1] and deviations that are not finite and > 0.

    References:
        Cohen, Rosenfeld, Kolter, Certified Adversarial Robustness via Randomized Smoothing, ICML
        2019, Theorem 1.

    >>> cohen_radius([0.6, 0.99, 0.4], [0.4, 0.01, 0.6], 1.0).round(3)
    array([0.253, 2.326, 0.   ])
    """
    return _where_p1_wins(_cohen, p1, p2, sigma)


def pixeldp_radius(p1: ArrayLike, p2: ArrayLike, sigma: ArrayLike) -> np.ndarray:
    """Radius by differential privacy of the Gaussian mechanism.

    `sup sigma e / sqrt(2 log(1.25 / d))` over `0 < e <= 1` and `d > 0` with
    `p1 >= exp(2 e) p2 + (1 + exp(e)) d`. The privacy budget e stays at most 1, where the Gaussian
    mechanism is proved; d is the largest allowed. Every e gives a valid radius; the best is
    searched to a relative 1e-6, and rounded down.

    Args:
        p1: Lower end of the winner's probability, in [0, 1].
        p2: Upper end of each other class's, in [0, 1]; what exceeds `1 - p1` cannot be, and is cut.
        sigma: Standard deviation of the noise, positive.

    Returns:
        Radii in the units of sigma; 0 unless p1 > p2. Never above 0.5705 sigma.

    Raises:
        ValueError: For probabilities outside [0, 1] and deviations that are not finite and > 0.

    References:
        Lecuyer et al., Certified Robustness to Adversarial Examples with Differential Privacy, S&P
        2019, Proposition 1; the form of paper 000, appendix D. Dwork and Roth 2014, Theorem A.1.

    >>> pixeldp_radius([0.6, 0.99, 0.4], [0.4, 0.01, 0.6], 1.0).round(3)
    array([0.059, 0.555, 0.   ])
    """
    return _where_p1_wins(_pixeldp, p1, p2, sigma)


def _where_p1_wins(
    unit_radius: Callable[[np.ndarray, np.ndarray], np.ndarray], p1: Any, p2: Any, sigma: Any
) -> np.ndarray:
    """`sigma * unit_radius(p1, p2)` where p1 > p2, else 0, over the arguments' common shape."""
    p1, p2, sigma = (np.asarray(value, np.float64) for value in (p1, p2, sigma))
    for name, p in (("p1", p1), ("p2", p2)):
        if not np.all((p >= 0) & (p <= 1)):
            raise ValueError(f"{name} must be a probability in [0, 1]; got {p}")
    if not np.all((sigma > 0) & np.isfinite(sigma)):
        raise ValueError(f"sigma must be finite and positive; got {sigma}")
    p1, p2, sigma = np.broadcast_arrays(p1, np.minimum(p2, 1 - p1), sigma)
    radius, wins = np.zeros(p1.shape), p1 > p2
    if wins.any():
        radius[wins] = sigma[wins] * unit_radius(p1[wins], p2[wins])
    return radius


def _renyi(p1: np.ndarray, p2: np.ndarray) -> np.ndarray:
    radius = np.sqrt(-2 * _log1p_negative(p1))
    some = p2 > 0  # so p1 < 1
    if some.any():
        p1, p2 = p1[some], p2[some]
        # Orders 1 + w^3, reflected at the limit 1, which may be the best of all.
        squares = _highest(_renyi_square, -0.05, 2.0, 42, p1, p2, _log_ratio(p1, p2))
        radius[some] = np.sqrt(np.maximum(squares, 0))
    return radius * _DOWN


def _renyi_square(w: np.ndarray, p1: np.ndarray, p2: np.ndarray, delta: np.ndarray) -> np.ndarray:
    """`L^2 / sigma^2` of order `1 + |w|^3`, where `delta = log(p1 / p2)`.

    With `G = sqrt(p1 p2)` and `t = a - 1`, the sum `p1 + p2` is `2 G cosh(delta / 2)` and M is
    `G exp(-z)`, `z = log(cosh(t delta / 2)) / t`; so neither side of 1/2 sees a cancellation.
    """
    t = np.abs(w) ** 3
    z = _log_cosh(t * delta / 2) / np.maximum(t, 1e-300)
    root = np.sqrt(p1) * np.sqrt(p2)
    missing = 2 * root * (2 * np.sinh(delta / 4) ** 2 - np.expm1(-z))
    left = (1 - p1 - p2) + 2 * root * np.exp(-z)
    logarithm = np.where(missing < 0.5, _log1p_negative(np.minimum(missing, 0.5)), np.log(left))
    return -2 * logarithm / (1 + t)


def _cohen(p1: np.ndarray, p2: np.ndarray) -> np.ndarray:
    from scipy.special import ndtri

    high, low = ndtri(p1), ndtri(p2)
    with np.errstate(invalid="ignore"):  # inf - inf
        difference = high - low
        slack = _NO_SLACK * (np.abs(high) + np.abs(low))
        lowered = np.maximum(difference - slack, 0) / 2
    return np.where(np.isposinf(difference), np.inf, lowered)


def _pixeldp(p1: np.ndarray, p2: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        delta = _log_ratio(p1, p2)
    most = np.minimum(1.0, delta / 2)
    return _highest(_pixeldp_share, 0.0, 33 / 32, 34, p1, delta, most) * _DOWN


def _pixeldp_share(
    share: np.ndarray, p1: np.ndarray, delta: np.ndarray, most: np.ndarray
) -> np.ndarray:
    """Radius at a share of the largest budget e; falling beyond share 1, so that 1 is inside."""
    budget = np.clip(share, 1e-300, 1) * most
    failure = np.maximum(-p1 * np.expm1(2 * budget - delta) / (1 + np.exp(budget)), 1e-300)
    return budget / np.sqrt(2 * np.log(1.25 / failure)) - most * np.maximum(share - 1, 0)


def _highest(
    f: Callable[..., np.ndarray], low: float, high: float, num: int, *args: np.ndarray
) -> np.ndarray:
    """Greatest value of `f(u, *args)` for u in [low, high], elementwise in the arguments.

    The best of `num` points, refined between its neighbours; never less than the best point.
    """
    from scipy.optimize.elementwise import find_minimum

    grid = np.linspace(low, high, num)
    values = np.stack([f(np.full_like(args[0], u), *args) for u in grid[1:-1]])
    best = values.argmax(0) + 1
    bracket = grid[best - 1], grid[best], grid[best + 1]
    found = find_minimum(lambda u, *args: -f(u, *args), bracket, args=args)
    return np.fmax(values.max(0), np.where(found.success, -found.f_x, -np.inf))


def _log_ratio(p1: np.ndarray, p2: np.ndarray) -> np.ndarray:
    """`log(p1 / p2)`, exact where they are close; p2 may be zero or tiny."""
    close = p1 < 2 * p2
    near = np.log1p(np.where(close, p1 - p2, 0) / np.where(close, p2, 1))
    return np.where(close, near, np.log(p1) - np.log(p2))


def _log_cosh(u: np.ndarray) -> np.ndarray:
    """`log(cosh(u))` for u >= 0 without overflow or cancellation."""
    small = np.log1p(2 * np.sinh(np.minimum(u, 1) / 2) ** 2)
    return np.where(u < 1, small, u + np.log1p(np.exp(-2 * u)) - np.log(2))


def _log1p_negative(u: np.ndarray) -> np.ndarray:
    """`log(1 - u)`, minus infinity at 1."""
    with np.errstate(divide="ignore"):
        return np.log1p(-u)
