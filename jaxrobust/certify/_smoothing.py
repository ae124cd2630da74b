"""Randomised smoothing: votes of a classifier under Gaussian noise, and what they certify."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from jaxrobust import checks
from jaxrobust.certify._common import refuse_tracers
from jaxrobust.certify._votes import (
    Bound,
    Interval,
    check_alpha,
    check_selection,
    check_settings,
    smoothed_radius,
)
from jaxrobust.threat import Box
from jaxrobust.transforms import gaussian_noise
from jaxrobust.types import (
    Images,
    Keys,
    LogitsFn,
    Randomized,
    SmoothedRadius,
    as_partial,
    logits_of,
    per_example,
    predicted_class,
    row_keys,
)

AXIS = "votes"


def smoothing(
    logits_fn: LogitsFn,
    x: Images,
    *,
    key: Keys,
    sigma: float,
    n0: int = 100,
    n: int = 100_000,
    alpha: float = 0.001,
    bound: Bound = "cohen",
    interval: Interval = "clopper_pearson",
    stem: Callable[..., Any] | None = None,
    lipschitz: float = 1.0,
    batch_size: int = 512,
    box: Box = Box(),  # noqa: B008 (immutable)
) -> SmoothedRadius:
    """Certify the majority vote of a classifier under Gaussian noise, with high probability.

    Draws `n0 + n` noisy copies of each image; the first n0 choose the class, the others bound its
    probability (see `smoothed_radius`). With `bound="renyi"`, `interval="bonferroni"`, `n0=0` and
    `alpha=0.05` this is Algorithm 1 of paper 000 with exact ends.

    With a `stem` the noise is added to `stem(x)` instead of x, as in the first layer of a network:
    two images at l2 distance r have stems at most `lipschitz * r` apart, so radii are divided by
    `lipschitz`. They are sound only if that is a proved upper bound, such as
    `linalg.proved_upper(kernel)` for a dense layer.

    Args:
        logits_fn: The classifier without noise, `(batch, *dims) -> (batch, classes)`, possibly
            `Randomized`: it then gets a key of its own for each sample. Takes `stem(x)` if there is
            a stem.
        x: `(batch, *dims)` images in the box.
        key: One key or one a row. Sample s of a row draws from `fold_in(row's key, s)` alone,
            however samples are batched.
        sigma: Standard deviation of the noise in the units of x (of [0, 1], never 0-255), or of
            `stem(x)`.
        n0: Samples an image that choose the class; 0 lets the n samples choose it, for intervals
            that hold for all classes at once.
        n: Samples an image that bound its probability.
        alpha: Probability with which the claim on one image may fail.
        bound: "cohen" (tight), "renyi" (paper 000) or "pixeldp": the radius claimed. All three are
            in the result's `radii`.
        interval: "clopper_pearson", "bonferroni" or "goodman" (asymptotic).
        stem: Batch function before the noise; None for the identity.
        lipschitz: Proved upper bound of its Lipschitz constant in l2.
        batch_size: Noisy images at once on each device, over rows and samples; all devices share
            the work, and memory does not depend on n.
        box: Legal pixel values of x. Noisy images leave it.

    Returns:
        Radii and votes; `proof` says which n would certify anything at all.

    Raises:
        ValueError: For images, key or model outputs that cannot be meant, traced arrays, numbers
            out of range, unknown names, "clopper_pearson" without n0, a sigma of the wrong scale,
            and a Lipschitz constant without a stem.

    References:
        Li et al. 2018 (paper 000), sec. 4 and Algorithm 1; Cohen et al. 2019 (CERTIFY; its
        published defaults); Lecuyer et al. 2019.

    >>> x = np.array([[0.9, 0.1]], np.float32)
    >>> found = smoothing(lambda x: x, x, key=jax.random.key(0), sigma=0.25, n=1000)
    >>> found.prediction, bool(found.radius < 0.8 / 2**0.5)  # the distance to x[0] = x[1]
    (array([0]), True)
    """
    check_settings(n, sigma, alpha, bound, interval, lipschitz)
    checks.check_count(n0, "n0", least=0)
    check_selection(interval, n0 > 0)
    if stem is None and lipschitz != 1:
        raise ValueError(f"lipschitz must be 1 where there is no stem; got {lipschitz}")
    votes = _count(logits_fn, x, key, sigma, n0, n, stem, batch_size, box)
    return smoothed_radius(
        votes[1], n=n, sigma=sigma, alpha=alpha, bound=bound, interval=interval,
        winner=votes[0].argmax(1) if n0 else None, lipschitz=lipschitz,
    )  # fmt: skip


def smoothed_predict(
    logits_fn: LogitsFn,
    x: Images,
    *,
    key: Keys,
    sigma: float,
    n: int = 1000,
    alpha: float = 0.001,
    stem: Callable[..., Any] | None = None,
    batch_size: int = 512,
    box: Box = Box(),  # noqa: B008 (immutable)
) -> np.ndarray:
    """The class that a classifier gives most often under Gaussian noise, or -1 to abstain.

    A two-sided binomial test between the two outcomes with most votes: with probability at least
    `1 - alpha` the class returned is the true majority's. Votes for no class (NaN or +inf) compete.

    Args:
        logits_fn: The classifier without noise; see `smoothing`.
        x: `(batch, *dims)` images in the box.
        key: One key or one a row.
        sigma: Standard deviation of the noise in the units of x, or of `stem(x)`.
        n: Samples an image.
        alpha: Probability of a wrong class, for each image.
        stem: Batch function before the noise; None for the identity.
        batch_size: Noisy images at once on each device.
        box: Legal pixel values of x.

    Returns:
        `(batch,)` classes; -1 where the test does not reject a tie.

    Raises:
        ValueError: As `smoothing`.

    References: Cohen et al. 2019, sec. 3.2.1 (PREDICT) and Proposition 2.

    >>> x = np.array([[0.9, 0.1], [0.5, 0.5]], np.float32)
    >>> smoothed_predict(lambda x: x, x, key=jax.random.key(0), sigma=0.25, n=100)
    array([ 0, -1])
    """
    from scipy.special import betainc

    checks.check_count(n, "n")
    check_alpha(alpha)
    votes = _count(logits_fn, x, key, sigma, 0, n, stem, batch_size, box)[1]
    none = n - votes.sum(1, keepdims=True)
    second, first = np.sort(np.concatenate([votes, none], 1), 1)[:, -2:].T
    # P(X >= first) for X of Binomial(first + second, 1/2), twice.
    p_value = np.minimum(2 * betainc(first, second + 1, 0.5), 1)
    won = (p_value <= alpha) & (votes.max(1) == first)
    return np.where(won, votes.argmax(1), -1)


def _count(
    logits_fn: LogitsFn, x: Any, key: Any, sigma: Any, n0: int, n: int,
    stem: Callable[..., Any] | None, batch_size: int, box: Box,
) -> np.ndarray:  # fmt: skip
    """Votes `(2, batch, classes)`: of the first n0 samples of each row, and of the n after them.

    All pairs of a row and a sample are one long list, worked off in pieces of one shape.
    """
    refuse_tracers("x", x)
    checks.check_images(x, box)
    checks.check_count(batch_size, "batch_size")
    checks.check_sigma(sigma, box if stem is None else None)
    if len(x) == 0:
        raise ValueError("x must hold at least one image; got an empty batch")
    keys = row_keys(key, len(x))
    features = jnp.asarray(x) if stem is None else _features(as_partial(stem), jnp.asarray(x))
    noisy = gaussian_noise(logits_fn, sigma)
    one = jax.eval_shape(jax.vmap(per_example(noisy)), features[:1], keys[:1])
    votes = np.zeros((2, len(x), checks.check_logits(logits_of(one), 1)), np.int64)
    samples = n0 + n
    total = len(x) * samples
    devices = tuple(jax.local_devices()[: -(-total // batch_size)])
    predictions = _predictions(devices)
    mesh = _mesh(devices)
    whole = jax.device_put((noisy, features, keys), NamedSharding(mesh, PartitionSpec()))
    piece = batch_size * len(devices)
    for start in range(0, total, piece):
        # The last piece is filled up with repetitions, which are not counted.
        item = np.arange(start, start + piece) % total
        row, sample = item // samples, item % samples
        with jax.set_mesh(mesh):  # whatever mesh the caller has set
            votes_of = predictions(*whole, row.astype(np.int32), sample.astype(np.int32))
        found = np.asarray(votes_of)
        counted = (found >= 0) & (np.arange(piece) < total - start)
        estimate = (sample >= n0).astype(int)
        np.add.at(votes, (estimate[counted], row[counted], found[counted]), 1)
    return votes


@jax.jit
def _features(stem: Callable[..., Any], x: Array) -> Array:
    return jax.vmap(lambda x: stem(x[None])[0])(x)


def _mesh(devices: tuple[Any, ...]) -> Mesh:
    return Mesh(np.array(devices), (AXIS,))


@functools.cache
def _predictions(devices: tuple[Any, ...]) -> Callable[..., Array]:
    """`(noisy, features, keys, row, sample) -> classes`, pairs spread over the devices."""
    whole, each = PartitionSpec(), PartitionSpec(AXIS)
    return jax.jit(
        jax.shard_map(
            _predict_pairs, mesh=_mesh(devices), in_specs=(whole, whole, whole, each, each),
            out_specs=each, check_vma=False,
        )
    )  # fmt: skip


def _predict_pairs(
    noisy: Randomized, features: Array, keys: Array, row: Array, sample: Array
) -> Array:
    """Class of each pair of a row and a sample; the draw rests on the row's key and the sample."""
    model = per_example(noisy)

    def one(row: Array, sample: Array) -> Array:
        return predicted_class(
            logits_of(model(features[row], jax.random.fold_in(keys[row], sample)))
        )

    return jax.vmap(one)(row, sample)
