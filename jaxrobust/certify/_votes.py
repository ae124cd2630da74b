"""From the votes of a noisy classifier to a certified radius: intervals, then a bound."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from jaxrobust import checks
from jaxrobust.certify._radii import cohen_radius, pixeldp_radius, renyi_radius
from jaxrobust.types import SmoothedRadius

Bound = Literal["renyi", "cohen", "pixeldp"]
Interval = Literal["clopper_pearson", "bonferroni", "goodman"]

BOUNDS = {"renyi": renyi_radius, "cohen": cohen_radius, "pixeldp": pixeldp_radius}
INTERVALS = {
    "clopper_pearson": "the one-sided Clopper-Pearson end of the winner, its rest for the others",
    "bonferroni": "exact Clopper-Pearson ends that hold at once, by Bonferroni's inequality",
    "goodman": "Goodman's simultaneous intervals, which are asymptotic: that probability is no "
    "guarantee at any n",
}


def smoothed_radius(
    counts: Any,
    *,
    n: int,
    sigma: float,
    alpha: float = 0.001,
    bound: Bound = "cohen",
    interval: Interval = "clopper_pearson",
    winner: Any = None,
    lipschitz: float = 1.0,
) -> SmoothedRadius:
    """Certified radii from votes that were counted already: pure, on the host, in float64.

    With probability at least `1 - alpha` the winner's probability under noise is at least `p1_low`
    and every other outcome's at most `p2_high`:

    - "clopper_pearson": the one-sided lower end at level alpha; `p2_high = 1 - p1_low`.
    - "bonferroni": with a winner chosen beforehand, its lower end and the others' largest upper
      end, at alpha / 2 each. One upper end is enough, for the largest is at least that of the other
      that is truly strongest. Without, all classes at once: each end at `alpha / (2 classes)`.
    - "goodman": score intervals at `alpha / classes`, as in the released code of paper 000;
      asymptotic, and no guarantee at any n.

    Votes for no class (`n` less the counts: logits with NaN or +inf) are an outcome that is never
    certified and competes like a class. `p2_high` is cut at `1 - p1_low`.

    Args:
        counts: `(batch, classes)` votes of each image's n samples.
        n: Samples an image.
        sigma: Standard deviation of the noise.
        alpha: Probability with which the claim on one image may fail, in (0, 1).
        bound: "renyi", "cohen" or "pixeldp": which radius is the claim. All three are returned.
        interval: "clopper_pearson", "bonferroni" or "goodman".
        winner: `(batch,)` classes chosen beforehand, on other samples; None lets `counts` choose
            (not with "clopper_pearson").
        lipschitz: Upper bound on the l2 Lipschitz constant of what stands before the noise: radii
            are divided by it.

    Returns:
        The radii, 0 where `p1_low <= p2_high` (abstained).

    Raises:
        ValueError: For counts that are no votes of n samples, numbers out of range, unknown names,
            and "clopper_pearson" without a winner.

    References:
        Li et al. 2018 (paper 000), Algorithm 1; Cohen et al. 2019, sec. 3.2.2 (CERTIFY); Goodman,
        On Simultaneous Confidence Intervals for Multinomial Proportions, 1965.

    >>> found = smoothed_radius([[990, 10], [510, 490]], n=1000, sigma=0.5, winner=[0, 0])
    >>> found.prediction, found.radius.round(3)
    (array([ 0, -1]), array([0.989, 0.   ]))
    """
    check_settings(n, sigma, alpha, bound, interval, lipschitz)
    counts = _checked(counts, n)
    apart = winner is not None
    check_selection(interval, apart)
    winner = np.asarray(winner) if apart else counts.argmax(1)
    checks.check_labels(winner, len(counts), counts.shape[1], "winner")
    p1, p2 = _ends(counts, n, winner, interval, alpha, apart)
    radii = {name: f(p1, p2, sigma) / lipschitz for name, f in BOUNDS.items()}

    unanimous = np.eye(1, counts.shape[1], dtype=np.int64) * n
    best = _ends(unanimous, n, np.zeros(1, int), interval, alpha, apart)
    most = float(BOUNDS[bound](*best, sigma)[0]) / lipschitz
    least_n = _least_n(interval, _level(interval, alpha, counts.shape[1], apart))
    enough = "" if n >= least_n else f"n = {n} can certify nothing, n = {least_n} could; "
    failure = "about" if interval == "goodman" else "at most"
    proof = (
        f"{enough}the class that wins under Gaussian noise of sigma {sigma:g} wins at every image "
        f"closer in l2 than the radius (bound: {bound}). For each image by itself this is wrong "
        f"with probability {failure} {alpha:g} over the noise drawn ({n} samples, "
        f"{INTERVALS[interval]}). It speaks of the true majority vote: not of finitely many votes, "
        "nor of the classifier without noise; and it takes the noise for exactly Gaussian, as if "
        f"images and draws were not rounded to floats. If all {n} samples agree the radius is "
        f"{most:.3g}; below n = {least_n} nothing can be certified"
    )
    if lipschitz != 1:
        proof += f"; noise is added to a function whose l2 Lipschitz constant is {lipschitz:g}"
    return SmoothedRadius(
        radii=radii, bound=bound, winner=winner, counts=counts, p1_low=p1, p2_high=p2,
        sigma=float(sigma), alpha=float(alpha), n=int(n), interval=interval, least_n=least_n,
        lipschitz=float(lipschitz), proof=proof,
    )  # fmt: skip


def check_settings(
    n: Any, sigma: Any, alpha: Any, bound: Any, interval: Any, lipschitz: Any = 1.0
) -> None:
    """Refuse numbers out of range and unknown names."""
    checks.check_count(n, "n")
    checks.check_sigma(sigma)
    check_alpha(alpha)
    for name, value, known in (("bound", bound, BOUNDS), ("interval", interval, INTERVALS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {value!r}")
    if np.ndim(lipschitz) != 0 or not 0 < lipschitz < math.inf:
        raise ValueError(f"lipschitz must be one finite positive number; got {lipschitz!r}")


def check_alpha(alpha: Any) -> None:
    """Refuse what is no probability of failure."""
    if np.ndim(alpha) != 0 or not 0 < alpha < 1:
        raise ValueError(f"alpha must be a probability in (0, 1); got {alpha!r}")


def check_selection(interval: str, apart: bool) -> None:
    """Refuse one-sided ends for a winner that the same votes have chosen."""
    if interval == "clopper_pearson" and not apart:
        raise ValueError(
            "interval 'clopper_pearson' needs a winner chosen on other samples (n0 of at least 1); "
            "where the same votes choose it, take 'bonferroni'"
        )


def _checked(counts: Any, n: int) -> np.ndarray:
    counts = np.asarray(counts)
    whole = np.issubdtype(counts.dtype, np.integer) and counts.ndim == 2 and counts.shape[1] >= 2
    if not whole or counts.min(initial=0) < 0 or counts.sum(1).max(initial=0) > n:
        raise ValueError(
            f"counts must be (batch, classes) votes, at most n = {n} a row; got {counts!r}"
        )
    return counts.astype(np.int64)


def _ends(
    counts: np.ndarray, n: int, winner: np.ndarray, interval: str, alpha: float, apart: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Lower end of the winner's probability, and upper end of all others'."""
    rows = np.arange(len(counts))
    votes = counts[rows, winner]
    others = counts.copy()
    others[rows, winner] = 0
    second = np.maximum(others.max(1), n - counts.sum(1))
    level = _level(interval, alpha, counts.shape[1], apart)
    if interval == "goodman":
        p1, p2 = _score(votes, n, level)[0], _score(second, n, level)[1]
    else:
        p1 = _clopper_pearson_low(votes, n, level)
        p2 = 1 - p1 if interval == "clopper_pearson" else _clopper_pearson_high(second, n, level)
    return p1, np.minimum(p2, 1 - p1)


def _level(interval: str, alpha: float, classes: int, apart: bool) -> float:
    """Probability with which one end may fail.

    At `alpha / (2 classes)` the lower ends of all classes fail with at most alpha / 2. Of the
    upper ends only those of the two truly strongest outcomes matter, "no class" among them: they
    cover the strongest other outcome whichever class wins, and fail with at most alpha / classes.
    """
    if interval == "clopper_pearson":
        return alpha
    return alpha / 2 if interval == "bonferroni" and apart else alpha / (2 * classes)


def _least_n(interval: str, level: float) -> int:
    """Least n at which unanimous votes win: the lower end passes 1/2, or n passes chi squared."""
    from scipy.special import ndtri

    bar = ndtri(level) ** 2 if interval == "goodman" else -math.log2(level)
    return math.floor(bar) + 1


def _clopper_pearson_low(k: np.ndarray, n: int, level: float) -> np.ndarray:
    from scipy.special import betaincinv

    return np.where(k > 0, betaincinv(np.maximum(k, 1), n - np.maximum(k, 1) + 1, level), 0.0)


def _clopper_pearson_high(k: np.ndarray, n: int, level: float) -> np.ndarray:
    from scipy.special import betainccinv

    return np.where(
        k < n, betainccinv(np.minimum(k, n - 1) + 1, n - np.minimum(k, n - 1), level), 1.0
    )


def _score(k: np.ndarray, n: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the score interval, on which Goodman's rests."""
    from scipy.special import ndtri

    chi_squared = ndtri(level) ** 2
    spread = np.sqrt(chi_squared * (chi_squared + 4 * k * (n - k) / n))
    return tuple(
        (2 * k + chi_squared + sign * spread) / (2 * (n + chi_squared)) for sign in (-1, 1)
    )
