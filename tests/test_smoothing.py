"""Smoothing: that its claims hold as often as they say, and what it does with votes and draws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from rich.console import Console
from scipy.stats import binomtest, chi2, norm

import jaxrobust as jr
from jaxrobust.certify import (
    _smoothing,
    cohen_radius,
    on_layers,
    on_model,
    smoothed_predict,
    smoothed_radius,
    smoothing,
)
from jaxrobust.certify._smoothing import _predict_pairs, _predictions
from jaxrobust.layers import Dense
from jaxrobust.linalg import proved_upper
from jaxrobust.transforms import gaussian_noise

KEY = jax.random.key(5)
SIGMA = 0.25
W = np.array([2.0, -1.0, 0.5, 1.5], np.float32)
CENTRE = 0.5


def linear(x):
    """Two classes on the sides of a plane through the middle of the box."""
    side = (x - CENTRE) @ W
    return jnp.stack([side, jnp.zeros_like(side)], -1)


def at_distance(*distances):
    """Images at these signed distances from the plane of `linear`."""
    return (CENTRE + np.outer(distances, W / np.linalg.norm(W))).astype(np.float32)


def classifiers(num, seed=0):
    """Class probabilities of all kinds: easy, hard, tied at the top, uniform."""
    rng = np.random.default_rng(seed)
    k = 6
    p = rng.dirichlet(np.full(k, 0.5), num)
    p[: num // 4] = rng.dirichlet(np.full(k, 20.0), num // 4)
    tied = slice(num // 4, num // 2)
    p[tied] = 0
    p[tied, 0] = rng.uniform(0.5, 0.55, num // 4)
    p[tied, 1] = 1 - p[tied, 0]
    p[num // 2 : num // 2 + num // 8] = 1 / k
    return p, rng


# Soundness


@pytest.mark.parametrize("n", [30, 1000])
@pytest.mark.parametrize(
    "interval,apart", [("clopper_pearson", True), ("bonferroni", True), ("bonferroni", False)]
)
def test_ends_fail_no_more_often_than_alpha(interval, apart, n):
    p, rng = classifiers(3000)
    counts, rows = rng.multinomial(n, p), np.arange(len(p))
    winner = rng.multinomial(20, p).argmax(1) if apart else None
    found = smoothed_radius(counts, n=n, sigma=0.5, alpha=0.05, interval=interval, winner=winner)
    others = p.copy()
    others[rows, found.winner] = 0
    p1, p2 = p[rows, found.winner], others.max(1)
    failed = (found.p1_low > p1) | (found.p2_high < p2)
    assert binomtest(int(failed.sum()), len(p), 0.05, alternative="greater").pvalue > 1e-3
    too_far = found.radius > cohen_radius(p1, p2, 0.5)
    assert not (too_far & ~failed).any()
    assert (~found.abstain).sum() > 100


def test_one_sided_ends_would_not_hold_for_a_class_that_the_same_votes_chose():
    """Why selection samples are kept apart, and what the simultaneous interval repairs."""
    k, n = 10, 50
    counts = np.random.default_rng(0).multinomial(n, np.full(k, 1 / k), 3000)
    naive = smoothed_radius(counts, n=n, sigma=1.0, alpha=0.05, winner=counts.argmax(1))
    sound = smoothed_radius(counts, n=n, sigma=1.0, alpha=0.05, interval="bonferroni")
    assert (naive.p1_low > 1 / k).mean() > 0.2
    assert (sound.p1_low > 1 / k).mean() < 0.05


def test_bonferroni_ends_are_clopper_pearsons():
    counts = np.array([[70, 20, 10], [0, 100, 0]])
    for winner, level in ((np.array([0, 1]), 0.05 / 2), (None, 0.05 / 6)):
        found = smoothed_radius(
            counts, n=100, sigma=1.0, alpha=0.05, interval="bonferroni", winner=winner
        )
        low = [binomtest(k, 100, alternative="greater") for k in (70, 100)]
        high = [binomtest(k, 100, alternative="less") for k in (20, 0)]
        confidence = 1 - level
        np.testing.assert_allclose(
            found.p1_low, [t.proportion_ci(confidence, "exact").low for t in low]
        )
        np.testing.assert_allclose(
            found.p2_high, [t.proportion_ci(confidence, "exact").high for t in high]
        )


def test_goodmans_interval():
    """The formula of Goodman's paper, as the paper's code took it from statsmodels."""
    counts, n = np.array([700, 200, 60, 40]), 1000
    bar = chi2.ppf(1 - 0.05 / 4, 1)
    root = np.sqrt(bar * (bar + 4 * counts * (n - counts) / n))
    low, high = ((bar + 2 * counts + s * root) / (2 * (n + bar)) for s in (-1, 1))
    found = smoothed_radius(counts[None], n=n, sigma=1.0, alpha=0.05, interval="goodman")
    np.testing.assert_allclose(found.p1_low, low[0])
    np.testing.assert_allclose(found.p2_high, high[1])
    assert "asymptotic" in found.proof
    assert "at most 0.05" not in found.proof


def test_the_radius_is_tight_for_a_linear_classifier():
    """Cohen's radius is the distance to the plane: just inside holds, just beyond flips."""
    x, distance = at_distance(0.2, -0.2, 0.02), np.array([0.2, 0.2, 0.02])
    found = smoothing(linear, x, key=KEY, sigma=SIGMA, n=20_000)
    np.testing.assert_array_equal(found.prediction, [0, 1, 0])
    assert (found.radius < distance).all()
    assert (found.radius > 0.9 * distance - 0.02 * SIGMA).all()
    np.testing.assert_allclose(cohen_radius(norm.cdf(0.2 / SIGMA), 1, SIGMA), 0.2, rtol=1e-9)
    toward = -np.array([[1.0], [-1.0]]) * W / np.linalg.norm(W)
    for reach, wins in ((0.95, [0, 1]), (1.05, [1, 0])):
        moved = (x[:2] + reach * 0.2 * toward).astype(np.float32)
        predicted = smoothed_predict(linear, moved, key=KEY, sigma=SIGMA, n=50_000)
        np.testing.assert_array_equal(predicted, wins)


@pytest.mark.parametrize("scale", [0.3, 4.0])
def test_noise_behind_a_dense_layer(scale):
    """Radii are divided by a proved norm of the layer; the true distance is known."""
    rng = np.random.default_rng(1)
    kernel, bias = scale * rng.normal(size=(4, 3)), rng.normal(size=3)
    head = rng.normal(size=3)
    stem = jax.tree_util.Partial(jr.layers.apply, [Dense(jnp.float32(kernel), jnp.float32(bias))])
    x = rng.uniform(size=(6, 4)).astype(np.float32)
    side = (x @ kernel + bias) @ head
    classify = lambda h: jnp.stack([h @ jnp.float32(head), jnp.zeros(len(h))], -1)
    found = smoothing(
        classify, x, key=KEY, sigma=1.0, n=4000, stem=stem, lipschitz=proved_upper(kernel)
    )
    distance = np.abs(side) / np.linalg.norm(kernel @ head)
    assert (~found.abstain).sum() >= 4
    np.testing.assert_array_equal(found.prediction[~found.abstain], (side < 0)[~found.abstain])
    assert (found.radius <= distance).all()
    np.testing.assert_allclose(
        found.radius * proved_upper(kernel), cohen_radius(found.p1_low, found.p2_high, 1.0)
    )
    assert "Lipschitz" in found.proof


# Votes


def test_algorithm_1_of_the_paper_from_images_to_radii():
    """Same samples for choice and estimate, 95 % ends, Theorem 1: step by step with SciPy."""
    x, n = at_distance(0.0, 0.1, 0.3, 0.6), 300
    found = smoothing(
        linear, x, key=KEY, sigma=SIGMA, n0=0, n=n, alpha=0.05, bound="renyi",
        interval="bonferroni",
    )  # fmt: skip
    assert (found.counts.sum(1) == n).all()
    for row, counts in enumerate(found.counts):
        ends = [binomtest(int(k), n).proportion_ci(1 - 0.05 / len(counts), "exact") for k in counts]
        order = np.argsort(-counts, kind="stable")
        p1, p2 = ends[order[0]].low, ends[order[1]].high
        assert found.prediction[row] == (-1 if p1 <= p2 else order[0])
        alphas = np.linspace(1.0001, 50, 200_000)
        powers = (0.5 * (p1 ** (1 - alphas) + p2 ** (1 - alphas))) ** (1 / (1 - alphas))
        inner = 1 - p1 - p2 + 2 * powers
        want = 0 if p1 <= p2 else np.sqrt((-2 * SIGMA**2 / alphas * np.log(inner)).max())
        np.testing.assert_allclose(found.radius[row], want, rtol=1e-3)
    assert found.abstain.tolist() == [True, False, False, False]


def test_all_bounds_come_from_one_sample_set():
    x = at_distance(0.3, 0.1, 0.001)
    found = smoothing(linear, x, key=KEY, sigma=SIGMA, n=1000, bound="renyi")
    assert list(found.radii) == ["renyi", "cohen", "pixeldp"]
    for name, radius in found.radii.items():
        again = getattr(jr.certify, f"{name}_radius")(found.p1_low, found.p2_high, SIGMA)
        np.testing.assert_array_equal(radius, again)
    np.testing.assert_array_equal(found.radius, found.radii["renyi"])
    other = smoothing(linear, x, key=KEY, sigma=SIGMA, n=1000, bound="cohen")
    np.testing.assert_array_equal(other.radius, found.radii["cohen"])
    np.testing.assert_array_equal(other.counts, found.counts)
    assert found.abstain[2]
    assert found.prediction[2] == -1
    assert found.radius[2] == 0
    assert not found.certified(np.zeros(3, int), 0.0)[2]
    assert found.norm == "l2"
    assert found.method == "smoothing, renyi, clopper_pearson"


def test_certified_needs_more_than_eps_and_the_right_class():
    found = smoothing(linear, at_distance(0.3), key=KEY, sigma=SIGMA, n=1000)
    eps = float(found.radius[0])
    assert not found.certified(np.array([0]), eps)[0]
    assert found.certified(np.array([0]), eps * (1 - 1e-12))[0]
    assert not found.certified(np.array([1]), 0.0)[0]


def test_votes_for_no_class_count_against_the_winner():
    """NaN and +inf are an outcome that competes and is never certified."""

    def sometimes(x):
        logits = linear(x)
        bad = x[:, :1] > CENTRE
        return jnp.where(bad, jnp.where(x[:, 1:2] > CENTRE, jnp.nan, jnp.inf), logits)

    n = 4000
    found = smoothing(
        sometimes, np.full((1, 4), CENTRE, np.float32), key=KEY, sigma=SIGMA, n=n,
        interval="bonferroni", n0=0, alpha=0.05,
    )  # fmt: skip
    none = n - found.counts.sum()
    assert abs(none / n - 0.5) < 0.05
    assert found.p2_high[0] > none / n
    never = smoothing(
        lambda x: jnp.full((len(x), 2), jnp.nan), at_distance(0.3), key=KEY, sigma=SIGMA, n=100
    )
    assert never.counts.sum() == 0
    assert never.abstain.all()
    assert (never.p1_low == 0).all()
    predicted = smoothed_predict(
        lambda x: jnp.full((len(x), 2), jnp.nan), at_distance(0.3), key=KEY, sigma=SIGMA, n=100
    )
    assert predicted == [-1]


@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize(
    "interval,apart",
    [("clopper_pearson", True), ("bonferroni", True), ("bonferroni", False), ("goodman", False)],
)
def test_says_how_many_samples_would_be_enough(interval, apart, alpha):
    winner = np.array([0]) if apart else None

    def unanimous(n):
        return smoothed_radius(
            [[n, 0, 0]], n=n, sigma=1.0, alpha=alpha, interval=interval, winner=winner
        )

    least = unanimous(1000).least_n
    enough, short = unanimous(least), unanimous(least - 1)
    assert enough.radius[0] > 0
    assert short.abstain[0]
    assert short.proof.startswith(f"n = {least - 1} can certify nothing, n = {least} could")
    assert "can certify nothing" not in enough.proof
    assert f"below n = {least} nothing can be certified" in enough.proof


def test_ten_samples_certify_next_to_nothing_and_say_so():
    found = smoothing(linear, at_distance(0.45), key=KEY, sigma=0.1, n=10)
    assert found.counts[0, 0] == 10
    assert "If all 10 samples agree the radius is 0.000298" in found.proof
    simultaneous = smoothing(
        linear, at_distance(0.45), key=KEY, sigma=0.1, n=10, interval="bonferroni"
    )
    assert simultaneous.abstain.all()
    assert "n = 10 can certify nothing, n = 11 could" in repr(simultaneous)


def test_predict_is_the_binomial_test():
    x = at_distance(0.3, 0.05, 0.02, -0.03, 0.0)
    for alpha in (0.001, 0.05):
        for n in (20, 200):
            votes = smoothing(
                linear, x, key=KEY, sigma=SIGMA, n=n, n0=0, interval="bonferroni"
            ).counts
            p_values = [binomtest(int(v.max()), n).pvalue for v in votes]
            wanted = np.where(np.array(p_values) <= alpha, votes.argmax(1), -1)
            found = smoothed_predict(linear, x, key=KEY, sigma=SIGMA, n=n, alpha=alpha)
            np.testing.assert_array_equal(found, wanted)


# Draws


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_draws_rest_on_key_and_sample_alone(batch_size):
    x = at_distance(0.1, 0.05, 0.1)
    options = {"sigma": SIGMA, "n0": 10, "n": 90, "alpha": 0.05}
    whole = smoothing(linear, x, key=KEY, **options)
    pieces = smoothing(linear, x, key=KEY, batch_size=batch_size, **options)
    np.testing.assert_array_equal(whole.counts, pieces.counts)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(3))
    alone = smoothing(linear, x[2:], key=keys[2:], batch_size=batch_size, **options)
    np.testing.assert_array_equal(alone.counts, whole.counts[2:])
    # The same image under another key has other votes.
    assert (whole.counts[0] != whole.counts[2]).any()
    # More samples begin with the same ones.
    more = smoothing(linear, x, key=KEY, **(options | {"n": 100}))
    assert ((more.counts - whole.counts) >= 0).all()


def test_selection_samples_are_not_counted_again():
    """A model that knows the sample number would give it away: here, by the first draws."""
    x = at_distance(0.05)
    both = smoothing(
        linear, x, key=KEY, sigma=SIGMA, n0=0, n=100, interval="bonferroni", alpha=0.05
    )
    first = smoothing(
        linear, x, key=KEY, sigma=SIGMA, n0=0, n=40, interval="bonferroni", alpha=0.05
    )
    rest = smoothing(linear, x, key=KEY, sigma=SIGMA, n0=40, n=60, alpha=0.05)
    np.testing.assert_array_equal(first.counts + rest.counts, both.counts)


def test_noise_is_gaussian_of_that_width():
    """Votes count noise above thresholds: its distribution function."""
    thresholds = np.array([-1.5, -0.5, 0.0, 1.0, 2.0]) * SIGMA
    n = 20_000
    for threshold in thresholds:
        votes = smoothing(
            lambda x, t=threshold: jnp.concatenate([CENTRE + t - x, x - CENTRE - t], -1),
            np.full((1, 1), CENTRE, np.float32), key=KEY, sigma=SIGMA, n=n, batch_size=4096,
        ).counts  # fmt: skip
        p = norm.cdf(threshold / SIGMA)
        assert abs(votes[0, 0] / n - p) < 4.5 * np.sqrt(p * (1 - p) / n)


def test_all_devices_share_the_votes(monkeypatch):
    """Each pair is predicted by one device, and the votes do not depend on how many there are."""
    x = at_distance(0.05, 0.1, 0.2)
    seen = []
    spread = lambda devices: (seen.append(len(devices)), _predictions(devices))[1]
    monkeypatch.setattr(_smoothing, "_predictions", spread)
    votes = functools.partial(smoothing, linear, x, key=KEY, sigma=SIGMA, n=200, batch_size=32)
    many = votes().counts
    devices = jax.devices()
    monkeypatch.setattr(jax, "local_devices", lambda: devices[:1])
    np.testing.assert_array_equal(votes().counts, many)
    with jax.set_mesh(jax.make_mesh((len(devices),), ("data",))):
        np.testing.assert_array_equal(votes().counts, many)
    assert seen == [len(devices), 1, 1]
    assert len(devices) > 1


def test_one_trace_for_any_number_of_samples():
    traces = []

    def traced(x):
        traces.append(x.shape)
        return linear(x)

    x, compiled = at_distance(0.1, 0.2), _predictions(tuple(jax.devices()))
    before = compiled._cache_size()
    for n, sigma in ((400, 0.2), (1000, 0.2), (377, 0.3)):
        smoothing(traced, x, key=KEY, sigma=sigma, n=n, batch_size=128)
    assert compiled._cache_size() == before + 1
    assert len(traces) == 4  # and each call looks once at the shape of the output


def test_memory_does_not_depend_on_n():
    """The largest array in the one program holds `batch_size` noisy images."""
    x = at_distance(0.1, 0.2)
    item = np.zeros(16, np.int32)
    keys = jax.random.split(KEY, 2)
    jaxpr = jax.make_jaxpr(_predict_pairs)(gaussian_noise(linear, SIGMA), x, keys, item, item)
    sizes = [v.aval.size for eqn in _equations(jaxpr.jaxpr) for v in eqn.outvars]
    assert max(sizes) <= 16 * x[0].size * 4


def _equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from _equations(getattr(inner, "jaxpr", inner))


def test_randomised_models_get_a_key_for_each_sample():
    coin = jr.Randomized(
        lambda x, key: jnp.stack([jax.random.uniform(key, (len(x),)), jnp.full(len(x), 0.3)], -1)
    )
    votes = smoothing(coin, at_distance(0.1, 0.1), key=KEY, sigma=SIGMA, n=5000).counts
    assert (abs(votes[:, 0] / 5000 - 0.7) < 0.03).all()
    assert votes[0, 0] != votes[1, 0]  # rows have keys of their own


def test_gaussian_noise_is_what_smoothing_takes_votes_of():
    noisy = gaussian_noise(linear, SIGMA)
    assert isinstance(noisy, jr.Randomized)
    x = at_distance(0.1, 0.05)
    one = jr.per_example(noisy)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(2))
    samples = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, jnp.arange(50))
    logits = jax.vmap(jax.vmap(one, (None, 0)))(x, samples)
    votes = np.asarray(jax.nn.one_hot(logits.argmax(-1), 2).sum(1), int)
    found = smoothing(linear, x, key=KEY, sigma=SIGMA, n0=0, n=50, interval="bonferroni")
    np.testing.assert_array_equal(found.counts, votes)
    attacked = jr.attacks.pgd(
        noisy, x, np.array([0, 0]), key=KEY, ball=jr.Ball("l2", 0.3), num_steps=5,
        gradient=jr.gradients.eot(2),
    )  # fmt: skip
    assert ((attacked - x) @ W < 0).all()


# Mistakes


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    "change,message",
    [
        ({"sigma": 25.0}, "0-255"),
        ({"sigma": 0.0}, "sigma must be finite and positive"),
        ({"sigma": np.nan}, "sigma must be finite and positive"),
        ({"sigma": np.ones(2)}, "sigma must be one number"),
        ({"x": np.full((1, 4), 128.0, np.float32)}, "0-255"),
        ({"x": np.full((1, 4), np.nan, np.float32)}, "finite"),
        ({"x": np.zeros((0, 4), np.float32)}, "at least one image"),
        ({"key": 0}, "key"),
        ({"n": 0}, "n must be"),
        ({"n0": -1}, "n0 must be"),
        ({"n0": 0}, "bonferroni"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.0}, "alpha"),
        ({"bound": "lecuyer"}, "bound must be one of renyi, cohen, pixeldp"),
        ({"interval": "wald"}, "interval must be one of"),
        ({"batch_size": 0}, "batch_size"),
        ({"lipschitz": 2.0}, "stem"),
        ({"lipschitz": 0.0, "stem": lambda x: x}, "lipschitz"),
        ({"logits_fn": lambda x: x.sum(-1)}, "logits_fn"),
    ],
)
def test_wrong_input_is_refused(change, message):
    arguments = {"logits_fn": linear, "x": at_distance(0.1), "key": KEY, "sigma": SIGMA, "n": 20}
    arguments |= change
    with pytest.raises(ValueError, match=message):
        smoothing(arguments.pop("logits_fn"), arguments.pop("x"), **arguments)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    "counts,change,message",
    [
        ([[5, 6]], {}, "at most n = 10"),
        ([[-1, 6]], {}, "counts"),
        ([[0.5, 6]], {}, "counts"),
        ([5, 5], {}, "counts"),
        ([[5, 5]], {"winner": [2]}, "winner"),
        ([[5, 5]], {"winner": [0, 1]}, "winner"),
        ([[5, 5]], {"winner": None}, "other samples"),
    ],
)
def test_counts_that_are_no_votes_are_refused(counts, change, message):
    with pytest.raises(ValueError, match=message):
        smoothed_radius(counts, **({"n": 10, "sigma": 1.0, "winner": [0]} | change))


def test_tracers_are_refused():
    with pytest.raises(ValueError, match="traced"):
        jax.jit(lambda x: smoothing(linear, x, key=KEY, sigma=SIGMA, n=10).counts)(at_distance(0.1))


def test_noise_behind_a_stem_has_the_stems_scale():
    found = smoothing(
        lambda h: linear(h / 255), at_distance(0.3), key=KEY, sigma=25.0, n=500,
        stem=lambda x: 255 * x, lipschitz=255.0,
    )  # fmt: skip
    assert 0 < found.radius[0] < 0.3


# In evaluate


X = at_distance(0.3, 0.25, 0.2, -0.3, -0.1, 0.05, 0.0, 0.28)
Y = np.array([0, 0, 0, 1, 1, 0, 0, 1])
BALL = jr.Ball("l2", 0.15)
SMOOTH = functools.partial(smoothing, sigma=SIGMA, n=1000)
VOTE = {"vote": on_model(SMOOTH, linear)}


def evaluated(certificates=None, **changes):
    options = {
        "attacks": {"pgd": functools.partial(jr.attacks.pgd, num_steps=5)}, "ball": BALL,
        "key": KEY, "batch_size": 2, "votes": 5,
        "certificates": VOTE if certificates is None else certificates,
    } | changes  # fmt: skip
    return jr.evaluate(gaussian_noise(linear, SIGMA), (X, Y), **options)


def test_evaluate_keeps_the_two_kinds_apart():
    layers = [Dense(np.stack([W, 0 * W], 1), np.array([-CENTRE * W.sum(), 0.0]))]
    both = {"vote": on_model(SMOOTH, linear), "norms": on_layers(jr.certify.spectral, layers)}
    report = evaluated(both)
    assert set(report.certified_accuracy) == {"norms"}
    assert set(report.smoothed_accuracy) == {"vote"}
    assert {"certified norms", "smoothed vote"} <= set(report.intervals)
    assert "smoothed norms" not in report.intervals
    claim = report.certificates["vote"]
    assert (claim.alpha, claim.n, claim.sigma) == (0.001, 1000, SIGMA)
    assert claim.probabilistic
    assert not report.certificates["norms"].probabilistic
    columns = report.examples
    certified = (columns["smoothed_prediction/vote"] == Y) & (columns["radius/vote"] > 0.15)
    np.testing.assert_array_equal(columns["smoothed/vote"], certified)
    np.testing.assert_array_equal(certified, [1, 1, 1, 1, 0, 0, 0, 0])
    assert report.smoothed_accuracy["vote"] == 0.5
    assert report.smoothed_at("vote", 0.15) == 0.5
    curve = report.smoothed_at("vote", np.array([0.0, 0.15, 0.2, 0.5]), "renyi")
    assert (np.diff(curve) <= 0).all()
    assert curve[0] > curve[-1] == 0
    assert "certified/vote" not in columns
    for bound in ("renyi", "cohen", "pixeldp"):
        assert columns[f"{bound}_radius/vote"].shape == Y.shape


def test_evaluate_gives_each_row_its_own_draws_at_any_batch_size():
    one, other = evaluated(batch_size=1), evaluated(batch_size=2)
    np.testing.assert_array_equal(one.examples["radius/vote"], other.examples["radius/vote"])
    assert (evaluated(key=jax.random.key(6)).examples["p1_low/vote"]
            != one.examples["p1_low/vote"]).any()  # fmt: skip


def test_evaluate_resumes_a_smoothed_certificate(tmp_path, monkeypatch):
    calls = []

    def counted(*args, **options):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return smoothing(*args, **options)

    def bound(logits_fn, x, *, key, box):
        return jr.certify.smoothing(logits_fn, x, key=key, box=box, sigma=SIGMA, n=1000)

    certificates = {"vote": on_model(bound, linear)}
    options = {"batch_size": 1, "directory": tmp_path}  # on four devices: two batches
    monkeypatch.setattr(jr.certify, "smoothing", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluated(certificates, **options)
    resumed = evaluated(certificates, **options)
    assert len(calls) == 3  # the first batch was not computed again
    for name, column in evaluated(batch_size=1).examples.items():
        np.testing.assert_array_equal(column, resumed.examples[name], err_msg=name)
    assert resumed.certificates["vote"].alpha == 0.001


def test_evaluate_refuses_a_claim_that_changes_between_batches():
    sigmas = iter((SIGMA, 2 * SIGMA))

    def bound(logits_fn, x, *, key, box):
        return smoothing(logits_fn, x, key=key, box=box, sigma=next(sigmas), n=1000)

    with pytest.raises(ValueError, match="must make one claim"):
        evaluated({"vote": on_model(bound, linear)}, batch_size=1)


def test_evaluate_refuses_a_threat_that_is_not_l2():
    with pytest.raises(ValueError, match=r"must speak of linf 0\.1"):
        evaluated(ball=jr.Ball("linf", 0.1))


def test_a_broken_smoothed_certificate_may_be_chance():
    def bold(logits_fn, x, *, key, box):
        found = SMOOTH(logits_fn, x, key=key, box=box)
        return dataclasses.replace(found, radii={"cohen": found.radius + 1})

    report = evaluated({"bold": on_model(bold, linear)}, ball=jr.Ball("l2", 0.4))
    assert report.findings[0].name == "random predictions"  # at the edge of the classes
    assert report.findings[0].severity == "note"  # of many votes
    (finding,) = report.findings[1:]
    assert finding.name == "smoothed certificate and broken: bold"
    assert "chance" in finding.meaning
    assert "no proof" in finding.meaning
    assert finding.threshold == 0.001 * len(Y)
    assert finding.value >= 4


def test_report_and_page_show_it_apart(tmp_path):
    report = evaluated(keep_images=2)
    entry = jr.report.Entry("linear", "", {"l2 0.15": report}, {}, [])
    document = jr.report.Document("Smoothed", "", [entry], [], "now")
    page = jr.report.save(document, tmp_path).read_text()
    assert "Certified with high probability" in page
    assert "failing with probability 0.001 an image" in page
    assert "vote, renyi" in page
    (figure,) = (tmp_path / "figures").glob("smoothed-*.svg")
    for word in ("vote, cohen", "vote, pixeldp", "attacked (at most)"):
        assert word in figure.read_text()
    (again,) = jr.report.load(tmp_path).entries
    assert again.reports["l2 0.15"].smoothed_accuracy == report.smoothed_accuracy
    assert again.reports["l2 0.15"].certificates == report.certificates
    before = page
    assert jr.report.render(tmp_path).read_text() == before
    console = Console(record=True, width=120)
    jr.report.print_tables(document, console)
    text = console.export_text()
    assert "smoothed, by vote, alpha 0.001" in text
    assert "certified by vote" not in text


def test_reports_from_before_are_still_read(tmp_path):
    report = evaluated({})
    summary = report.summary()
    del summary["smoothed_accuracy"]
    assert jr.Report.restored(summary, report.arrays()).smoothed_accuracy == {}
