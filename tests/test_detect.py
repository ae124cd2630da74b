"""Detectors against scikit-learn and brute force, and attacks that know them against a grid."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from scipy.special import logsumexp
from sklearn import metrics
from sklearn.neighbors import KernelDensity

import jaxrobust as jr
from jaxrobust import detect, losses
from jaxrobust.detect._distances import Points, log_densities


def clusters(seed, num_points=700, dims=5, classes=3, tight=0.5):
    rng = np.random.default_rng(seed)
    y = np.arange(num_points) % classes
    centres = 3 * np.random.default_rng(9).normal(size=(classes, dims))
    z = centres[y] + tight * rng.normal(size=(num_points, dims))
    return z.astype(np.float32), y


def logits_for(y, classes=3):
    return jax.nn.one_hot(y, classes)


# Densities.


@pytest.mark.parametrize(
    "dims,bandwidth,offset", [(1, 0.3, 0), (5, 0.3, 100), (40, 1.2, 0), (16, 0.05, 0)]
)
def test_densities_are_those_of_scikit_learn(dims, bandwidth, offset):
    z, y = clusters(0, dims=dims, tight=bandwidth)
    queries = np.concatenate([clusters(1, 60, dims, tight=bandwidth)[0], z[:5], z[:5] + 30])
    z, queries = (part + np.float32(offset) for part in (z, queries))
    found = detect.kernel_density(z, y, num_classes=3, bandwidth=bandwidth)
    found = np.asarray(found.raw(jnp.asarray(queries)), np.float64)
    for c in range(3):
        # In one leaf: scikit-learn's trees lose whole nats of far queries in many dims.
        tree = KernelDensity(bandwidth=bandwidth, leaf_size=1000).fit(z[y == c].astype(np.float64))
        theirs = tree.score_samples(queries.astype(np.float64))
        np.testing.assert_allclose(found[:, c], theirs, rtol=1e-5, atol=1e-5)


def test_neither_chunks_nor_batches_nor_vmap_change_a_bit():
    z, y = clusters(0, dims=20)
    queries = jnp.asarray(clusters(1, 101, 20)[0])
    make = functools.partial(detect.kernel_density, z, y, num_classes=3, bandwidth=0.4)
    whole = np.asarray(make(chunk=1000).raw(queries))
    for chunk in (1, 7, 64, 100):
        np.testing.assert_array_equal(make(chunk=chunk).raw(queries), whole)
    density = make()
    one = jax.jit(jax.vmap(lambda q: density.raw(q[None])[0]))(queries)
    np.testing.assert_array_equal(one, whole)
    np.testing.assert_array_equal(density.raw(queries[:1]), whole[:1])
    margins = {
        detect.embedding_margin(z, y, num_classes=3, chunk=chunk) for chunk in (1, 13, 128, 999)
    }
    assert len(margins) == 1


def test_memory_does_not_grow_with_queries_times_points():
    """10,000 queries, 1,000 points of each of 10 classes, 64 dims: all pairs would be 400 MB."""
    points = Points(jnp.zeros((8, 10, 64, 128)), jnp.full(10, 1000))
    queries = jax.ShapeDtypeStruct((10_000, 64), jnp.float32)
    used = log_densities.lower(points, 1.0, queries, chunk=128).compile().memory_analysis()
    assert used.temp_size_in_bytes < 64 * 2**20


def test_slopes_of_densities_are_those_of_the_formula():
    z, y = clusters(0, 300)
    density = detect.kernel_density(z, y, num_classes=3, bandwidth=0.7)
    own = jnp.asarray(z[y == 1])

    def plain(q):
        return jax.nn.logsumexp(-jnp.sum((q - own) ** 2, -1) / (2 * 0.7**2))

    ours = lambda q: density.raw(q[None])[0, 1]
    for q in jnp.asarray(clusters(2, 6)[0]):
        np.testing.assert_allclose(jax.grad(ours)(q), jax.grad(plain)(q), rtol=1e-4, atol=1e-4)
    q = own[0] + 0.1
    np.testing.assert_allclose(jax.hessian(ours)(q), jax.hessian(plain)(q), rtol=1e-3, atol=1e-3)
    forward = jax.jvp(ours, (q,), (jnp.ones_like(q),))[1]
    np.testing.assert_allclose(forward, jnp.sum(jax.grad(plain)(q)), rtol=1e-4)


def test_k_density_is_of_so_many_random_points():
    z, y = clusters(0)
    make = functools.partial(
        detect.kernel_density, z, y, num_classes=3, bandwidth=0.5, num_points=50
    )
    some = make(key=jax.random.key(1))
    assert some.points.sizes.tolist() == [50] * 3
    kept = np.asarray(some.points.values).transpose(1, 0, 3, 2).reshape(3, -1, 8)[:, :50, :5]
    for c in range(3):
        assert {tuple(p) for p in kept[c]} <= {tuple(p) for p in z[y == c]}
        assert len({tuple(p) for p in kept[c]}) == 50
    queries = jnp.asarray(clusters(1, 10)[0])
    assert (some.raw(queries) != make(key=jax.random.key(2)).raw(queries)).any()
    everything = make(num_points=1000, key=jax.random.key(2)).raw(queries)
    exact = detect.kernel_density(z, y, num_classes=3, bandwidth=0.5).raw(queries)
    np.testing.assert_allclose(everything, exact, rtol=1e-5)


def test_double_precision_is_kept():
    with jax.enable_x64():
        z, y = clusters(0, 100)
        z = z.astype(np.float64)
        density = detect.kernel_density(z, y, num_classes=3, bandwidth=0.5)
        found = density.raw(jnp.asarray(z[:9]))
        assert found.dtype == jnp.float64
        apart = ((z[:9, None] - z[y == 0]) ** 2).sum(-1)
        exact = logsumexp(-apart / 0.5, axis=1) - np.log((y == 0).sum())
        exact -= 2.5 * np.log(2 * np.pi * 0.25)
        np.testing.assert_allclose(found[:, 0], exact, rtol=1e-12)


def test_the_bandwidth_is_the_likeliest_of_the_grid():
    z, y = clusters(0)
    held, held_y = clusters(1)
    grid = [0.02, 0.1, 0.2, 0.4, 0.8, 3.0]

    def likelihood(h):
        trees = [KernelDensity(bandwidth=h, leaf_size=1000).fit(z[y == c]) for c in range(3)]
        return sum(trees[c].score_samples(held[held_y == c]).sum() for c in range(3))

    best = max(grid, key=likelihood)
    choose = functools.partial(detect.choose_bandwidth, z, y, held, held_y, num_classes=3)
    assert choose(grid=grid) == choose(grid=grid[::-1]) == best
    assert grid[0] < best < grid[-1]
    assert likelihood(choose()) >= likelihood(best) - 20  # the default grid is about there, too


# Mahalanobis.


def test_mahalanobis_is_the_log_density_of_gaussians_but_for_a_constant():
    from scipy.stats import multivariate_normal

    z, y = clusters(0)
    mixing = np.random.default_rng(5).normal(size=(5, 5)).astype(np.float32)
    z = z @ mixing
    found = detect.mahalanobis(z, y, num_classes=3)
    centred = z - np.stack([z[y == c].mean(0) for c in range(3)])[y]
    covariance = centred.T.astype(np.float64) @ centred / len(z)
    for c in range(3):
        theirs = multivariate_normal(z[y == c].mean(0), covariance)
        expected = 2 * (theirs.logpdf(z[:20]) - theirs.logpdf(z[y == c].mean(0)))
        np.testing.assert_allclose(found.raw(jnp.asarray(z[:20]))[:, c], expected, rtol=2e-3)


def test_mahalanobis_measures_nothing_where_nothing_varies():
    z, y = clusters(0)
    dead = np.concatenate([z, np.full((len(z), 2), 0.1, np.float32)], 1)
    found = detect.mahalanobis(dead, y, num_classes=3)
    assert found.whitening.shape == (7, 5)
    plain = detect.mahalanobis(z, y, num_classes=3)
    np.testing.assert_allclose(
        found.raw(jnp.asarray(dead[:9])), plain.raw(jnp.asarray(z[:9])), rtol=1e-3
    )


# Thresholds, curves.


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.07, 0.29, 0.999])
def test_the_rate_on_clean_images_never_exceeds_the_one_asked_for(rate):
    z, y = clusters(0)
    held, held_y = clusters(1, 100)
    held[:30] = held[30:60]  # ties
    outputs = logits_for(held_y), jnp.asarray(held)
    for made in (
        detect.kernel_density(z, y, num_classes=3, bandwidth=0.4),
        detect.mahalanobis(z, y, num_classes=3),
    ):
        for per_class in (False, True):
            found = detect.calibrated(made, outputs, rate=rate, per_class=per_class)
            rejected = np.asarray(found(outputs)) < 0
            assert rejected.sum() <= rate * 100 + 1e-9
            if per_class:
                for c in range(3):
                    assert rejected[held_y == c].mean() <= rate
            again = detect.calibrated(found, outputs, rate=rate, per_class=per_class)
            np.testing.assert_array_equal(again.thresholds, found.thresholds)
    seven = detect.calibrated(made, (logits_for(y), jnp.asarray(z)), rate=0.07)
    assert (np.asarray(seven((logits_for(y), jnp.asarray(z)))) < 0).sum() == 49


def test_medians_reject_half_of_clean_images():
    """And those of the reference points, which count themselves, far more."""
    z, y = clusters(0, 600, dims=20)
    held, fresh = (clusters(seed, 3000, dims=20)[0] for seed in (1, 2))
    labels = np.arange(3000) % 3
    made = detect.kernel_density(z, y, num_classes=3, bandwidth=0.3, thresholds=5.0)
    fair, lifted = (
        np.asarray(
            detect.median_thresholds(made, of, c)((logits_for(labels), jnp.asarray(fresh))) < 0
        )
        for of, c in ((held, labels), (z, y))
    )
    assert all(abs(fair[labels == c].mean() - 0.5) < 0.09 for c in range(3))
    assert lifted.mean() > 0.95


def test_curves_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    clean, attacked = rng.normal(size=80).round(1) + 1, rng.normal(size=50).round(1)
    truth = np.arange(130) >= 80
    joined = -np.concatenate([clean, attacked])
    assert detect.auc(clean, attacked) == pytest.approx(metrics.roc_auc_score(truth, joined))
    pairs = (clean[:, None] > attacked) + 0.5 * (clean[:, None] == attacked)
    assert detect.auc(clean, attacked) == pytest.approx(pairs.mean())
    curve = detect.roc(clean, attacked)
    false_positive, detected, threshold = metrics.roc_curve(truth, joined)
    np.testing.assert_allclose(curve.false_positive, false_positive)
    np.testing.assert_allclose(curve.detected, detected)
    np.testing.assert_allclose(curve.threshold, -threshold)
    for at, share in zip(curve.threshold, curve.detected, strict=True):
        assert (attacked <= at).mean() == share
    # What is no number is rejected at every threshold that rejects anything.
    broken = detect.roc([1.0, 2.0], [np.nan, -np.inf, 3.0])
    assert broken.detected[np.flatnonzero(broken.false_positive == 0)].max() == pytest.approx(2 / 3)
    assert detect.auc([1.0, 2.0], [np.nan, -np.inf, 3.0]) == pytest.approx(2 / 3)


# Measurements.


def test_margins_are_the_least_of_all_pairs():
    z, y = clusters(0, 200)
    apart = np.linalg.norm(z[:, None].astype(np.float64) - z, axis=-1)
    expected = apart[y[:, None] != y].min()
    assert detect.embedding_margin(z, y, num_classes=3) == pytest.approx(expected, rel=1e-6)


def test_cluster_measures_by_loops():
    z, y = clusters(0, 60)
    means = [np.mean([p for p, c in zip(z, y, strict=True) if c == k], 0) for k in range(3)]
    variance = np.mean(
        [
            np.mean([np.sum((p - means[k]) ** 2) for p, c in zip(z, y, strict=True) if c == k])
            for k in range(3)
        ]
    )
    assert detect.cluster_variance(z, y, num_classes=3) == pytest.approx(variance, rel=1e-5)
    pairs = [np.linalg.norm(means[a] - means[b]) for a in range(3) for b in range(3) if a != b]
    assert detect.cluster_distance(z, y, num_classes=3) == pytest.approx(np.mean(pairs), rel=1e-5)


def test_gradient_norms_are_those_of_each_layer_and_image():
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(3, 4)), "b": rng.normal(size=4), "steps": np.array([2])}
    model = jax.tree_util.Partial(
        lambda of, x: (jnp.tanh(x @ of["w"] + of["b"]), x), jax.tree.map(jnp.asarray, weights)
    )
    x, y = jnp.asarray(rng.uniform(size=(5, 3)), jnp.float32), jnp.array([0, 1, 2, 3, 0])
    found = detect.gradient_norms(model, x, y, key=jax.random.key(0))
    assert [path.split("'")[-2] for path in found] == ["b", "w"]
    for i in range(5):
        z = jnp.tanh(x[i] @ weights["w"] + weights["b"])
        back = (jax.nn.softmax(z) - jax.nn.one_hot(y[i], 4)) * (1 - z**2)
        wanted = jnp.linalg.norm(back), jnp.linalg.norm(jnp.outer(x[i], back))
        for norm, right in zip(found.values(), wanted, strict=True):
            np.testing.assert_allclose(norm[i], right, rtol=1e-5)
    with pytest.raises(ValueError, match="logits_fn must be a pytree with its weights in it"):
        detect.gradient_norms(lambda x: x, x, y, key=jax.random.key(0))


def test_jacobian_norms_are_those_of_the_whole_jacobian():
    weights = jax.random.normal(jax.random.key(0), (12, 7))

    def model(x):
        z = jnp.tanh(x.reshape(len(x), -1) @ weights)
        return z[:, :3], z.reshape(len(x), 7)

    x = jax.random.uniform(jax.random.key(1), (5, 3, 4))
    found = detect.jacobian_norm(model, x, key=jax.random.key(0))
    for i in range(5):
        whole = jax.jacfwd(lambda q: model(q[None])[1][0])(x[i])
        np.testing.assert_allclose(found[i], jnp.linalg.norm(whole), rtol=1e-5)
    noisy = jr.Randomized(lambda x, key: model(x + jax.random.normal(key, x.shape)))
    again = [detect.jacobian_norm(noisy, x, key=jax.random.key(k)) for k in (0, 0, 1)]
    np.testing.assert_array_equal(again[0], again[1])
    assert (again[0] != again[2]).all()
    bound = detect.penetration_bound(2.0, found)
    np.testing.assert_allclose(bound, 2 / np.asarray(found), rtol=1e-6)
    assert detect.penetration_bound(2.0, [0.0]).tolist() == [np.inf]
    assert detect.penetration_bound(0.0, [0.0]).tolist() == [np.inf]


# Attacks that know the detector. The image is its embedding, and a class two Gaussians.

REFERENCE = np.array(
    [[0.25, 0.3], [0.3, 0.35], [0.72, 0.6], [0.78, 0.7]], np.float32
)  # fmt: skip
BANDWIDTH, LEVEL = 0.08, 1.2


def plane(x):
    """Class 1 to the right of the middle."""
    return jnp.stack([0.5 - x[:, 0], x[:, 0] - 0.5], -1) * 5, x


def planes_detector():
    return detect.kernel_density(
        REFERENCE, np.array([0, 0, 1, 1]), num_classes=2, bandwidth=BANDWIDTH, thresholds=LEVEL
    )


def exact_score(x):
    """Of class 1, in NumPy."""
    apart = ((x[..., None, :] - REFERENCE[2:].astype(np.float64)) ** 2).sum(-1)
    return (
        logsumexp(-apart / (2 * BANDWIDTH**2), axis=-1)
        - np.log(2 * 2 * np.pi * BANDWIDTH**2) - LEVEL
    )  # fmt: skip


@pytest.fixture(scope="module")
def starts():
    rng = np.random.default_rng(3)
    x = rng.uniform([0.1, 0.1], [0.45, 0.95], size=(12, 2)).astype(np.float32)
    axis = np.linspace(0, 1, 1501)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    wanted = grid[(grid[:, 0] > 0.5) & (exact_score(grid) >= 0)]
    nearest = np.linalg.norm(x[:, None] - wanted, axis=-1).min(1)
    blind = 0.5 - x[:, 0]
    assert (nearest > 1.1 * blind).all()  # so that the detector matters
    return x, nearest


def outcome(x_adv):
    x_adv = np.asarray(x_adv, np.float64)
    return (x_adv[:, 0] > 0.5) & (exact_score(x_adv) >= 0)


@pytest.mark.parametrize("targeted", [False, True])
def test_carlini_wagner_finds_the_nearest_image_that_passes(starts, targeted):
    x, nearest = starts
    y = np.zeros(len(x), int)
    x_adv = jr.attacks.carlini_wagner_l2(
        detect.exposed(plane, planes_detector()), x, y, key=jax.random.key(0),
        loss=losses.penalized(losses.f6, detect.hinge()), num_steps=400, num_searches=9,
        initial_c=0.01, target=1 - y if targeted else None, abort_early=False,
    )  # fmt: skip
    assert outcome(x_adv).all()
    distance = np.linalg.norm(np.asarray(x_adv) - x, axis=1)
    assert (distance >= 0.998 * nearest).all()  # the grid's own resolution
    assert (distance <= 1.03 * nearest).all()


@pytest.mark.parametrize("targeted", [False, True])
def test_pgd_passes_just_beyond_the_nearest_and_never_before(starts, targeted):
    x, nearest = starts
    y = np.zeros(len(x), int)
    loss = losses.penalized(losses.f6, detect.hinge())
    view = detect.exposed(plane, planes_detector())
    for factor, passes in ((1.03, True), (0.99, False)):
        eps = jnp.asarray(factor * nearest, jnp.float32)
        x_adv = jr.attacks.pgd(
            view, x, 1 - y if targeted else y, key=jax.random.key(0), ball=jr.Ball("l2", eps),
            loss=losses.targeted(loss) if targeted else loss, num_steps=300, step_size=eps / 100,
        )  # fmt: skip
        assert (outcome(x_adv) == passes).all(), (factor, outcome(x_adv))


def test_apgd_ends_at_the_densest_image_of_the_ball_that_is_misclassified(starts):
    x, nearest = starts
    ball = jr.Ball("l2", jnp.asarray(1.2 * nearest, jnp.float32))
    axis = np.linspace(0, 1, 1001)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    grid = grid[grid[:, 0] > 0.5]
    score = exact_score(grid)
    within = np.linalg.norm(x[:, None] - grid, axis=-1) <= 1.2 * nearest[:, None]
    best = np.where(within, score, -np.inf).max(1)
    x_adv = jr.attacks.apgd(
        detect.exposed(plane, planes_detector()), x, np.zeros(len(x), int), key=jax.random.key(0),
        ball=ball, num_steps=200, num_restarts=5,
        loss=losses.selective(losses.f6, detect.hinge(math.inf)),
    )  # fmt: skip
    assert (np.asarray(x_adv)[:, 0] > 0.5).all()
    np.testing.assert_allclose(exact_score(np.asarray(x_adv)), best, atol=0.02)


def triangle(x):
    """Three classes around the middle of the plane."""
    centres = jnp.array([[0.2, 0.5], [0.6, 0.5], [0.5, 0.9]])
    return -20 * jnp.sum((x[:, None] - centres) ** 2, -1), x


def test_the_nearest_of_all_targets_is_the_nearest_that_passes():
    """Class 1 is the nearer to be taken for; class 2 the nearer that passes."""
    reference = np.array(
        [[0.2, 0.5], [0.25, 0.5], [0.95, 0.1], [0.9, 0.1], [0.4, 0.8], [0.45, 0.85]]
    )
    detector = detect.kernel_density(
        reference.astype(np.float32), np.array([0, 0, 1, 1, 2, 2]), num_classes=3, bandwidth=0.06,
        thresholds=0.5,
    )  # fmt: skip
    x = np.random.default_rng(0).uniform([0.15, 0.45], [0.3, 0.55], (8, 2)).astype(np.float32)
    y = np.zeros(8, int)
    axis = np.linspace(0, 1, 801)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    outputs = triangle(jnp.asarray(grid))
    taken = np.asarray(outputs[0].argmax(-1))
    passes = (taken != 0) & (np.asarray(detector(outputs)) >= 0)
    apart = np.linalg.norm(x[:, None] - grid, axis=-1)
    assert (taken[np.where(taken != 0, apart, np.inf).argmin(1)] == 1).all()
    assert (taken[np.where(passes, apart, np.inf).argmin(1)] == 2).all()
    distance = np.full((2, 8), np.inf)
    for target in (1, 2):
        x_adv = jr.attacks.carlini_wagner_l2(
            detect.exposed(triangle, detector), x, y, key=jax.random.key(0), num_steps=400,
            loss=losses.penalized(losses.f6, detect.hinge()), initial_c=0.01, abort_early=False,
            target=np.full(8, target),
        )  # fmt: skip
        outputs = triangle(x_adv)
        passed = (np.asarray(outputs[0]).argmax(-1) == target) & (detector(outputs) >= 0)
        distance[target - 1] = np.where(passed, np.linalg.norm(x_adv - x, axis=1), np.inf)
    nearest = np.where(passes, apart, np.inf).min(1)
    assert (distance.min(0) >= 0.995 * nearest).all()
    assert (distance.min(0) <= 1.03 * nearest).all()


def test_an_attack_that_does_not_know_the_detector_is_rejected(starts):
    x, _ = starts
    x_adv = jr.attacks.carlini_wagner_l2(
        plane, x, np.zeros(len(x), int), key=jax.random.key(0), num_steps=200
    )
    assert (np.asarray(x_adv)[:, 0] > 0.5).all()
    assert not outcome(x_adv).any()
    assert (np.asarray(planes_detector()(plane(jnp.asarray(x_adv)))) < 0).all()


def test_the_hinge_is_of_the_class_driven_at():
    outputs = jnp.array([3.0, 1.0, 2.0]), jnp.array([9.0, -1.0, -4.0])
    penalty = detect.hinge(0.5)
    assert float(penalty(outputs, 0)) == 4.5  # the best wrong class is 2
    assert float(penalty(outputs, 2)) == 0.0  # and here 0
    both = losses.penalized(losses.f6, penalty)
    assert float(both(outputs, 0)) == -1 - 4.5
    wanted, one = losses.targeted(both), jnp.array(1)
    assert float(wanted(outputs, one)) == -2 - 1.5
    inside = losses.penalized(losses.targeted(losses.f6), penalty)
    assert float(inside(outputs, one)) == float(wanted(outputs, one))
    for loss in (wanted, inside):
        assert bool(losses.success(loss, outputs, jnp.array(0)))
        passing = outputs[0], jnp.array([0.4, 9.0, 9.0])
        assert not bool(losses.success(loss, passing, jnp.array(0)))
        assert not bool(losses.success(loss, outputs, one))


def test_a_view_of_a_random_model_stays_random(starts):
    x, _ = starts
    noisy = jr.Randomized(lambda x, key: plane(x + 0.01 * jax.random.normal(key, x.shape)))
    view = detect.exposed(noisy, planes_detector())
    assert isinstance(view, jr.Randomized)
    logits, scores = view(jnp.asarray(x), jax.random.key(0))
    expected = planes_detector().scores(noisy(jnp.asarray(x), jax.random.key(0)))
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert logits.shape == scores.shape == (12, 2)


def test_detectors_are_arguments_of_compiled_programs():
    traces = []

    @jax.jit
    def score(detector, outputs):
        traces.append(1)
        return detector(outputs)

    z, y = clusters(0, 90)
    outputs = logits_for(y), jnp.asarray(z)
    for seed in (1, 2):
        points, labels = clusters(seed, 300)
        score(detect.kernel_density(points, labels, num_classes=3, bandwidth=0.3), outputs)
    assert len(traces) == 1


def test_what_is_no_number_is_rejected():
    z, y = clusters(0)
    queries, logits = jnp.asarray(z[:4]), logits_for(y[:4])
    queries = queries.at[1].set(jnp.nan).at[2].set(jnp.inf)
    for made in (
        detect.kernel_density(z, y, num_classes=3, bandwidth=0.4, thresholds=-1e30),
        detect.mahalanobis(z, y, num_classes=3),
    ):
        scores = np.asarray(made((logits.at[3].set(jnp.nan), queries)))
        assert np.isfinite(scores[0])
        assert (scores[1:] == -np.inf).all()


# Mistakes.


def test_reference_points_that_say_nothing_are_refused(untyped):
    z, y = clusters(0, 30)
    makers = {
        "density": functools.partial(detect.kernel_density, num_classes=3, bandwidth=1.0),
        "mahalanobis": functools.partial(detect.mahalanobis, num_classes=3),
        "margin": functools.partial(detect.embedding_margin, num_classes=3),
        "variance": functools.partial(detect.cluster_variance, num_classes=3),
    }
    nan = z.copy()
    nan[7, 0] = np.nan
    for make in makers.values():
        with pytest.raises(ValueError, match="class 1 has none"):
            make(z[y != 1], y[y != 1])
        with pytest.raises(ValueError, match=r"embeddings must be finite; 1 rows .* first is 7"):
            make(nan, y)
        with pytest.raises(ValueError, match=r"embeddings must be floats of shape \(points, dims"):
            make(z[:, 0], y)
        with pytest.raises(ValueError, match="labels"):
            make(z, y + 1)
    one = np.concatenate([z[y != 1], z[:1]]), np.append(y[y != 1], 1)
    same = np.where(y[:, None] == 2, np.float32(0.5), z)
    with pytest.raises(ValueError, match="class 1 has one point"):
        makers["density"](*one)
    with pytest.raises(ValueError, match="class 2 has 10 identical points"):
        makers["density"](same, y)
    # One covariance for all classes is content with a mean of each.
    assert np.isfinite(makers["mahalanobis"](*one).raw(jnp.asarray(z))).all()
    assert np.isfinite(makers["mahalanobis"](same, y).raw(jnp.asarray(z))).all()
    with pytest.raises(ValueError, match="all points of each class are identical"):
        makers["mahalanobis"](np.float32(y[:, None] * np.array([[1.0, 0.1]])), y)


@pytest.mark.parametrize("bandwidth", [0.0, -1.0, np.nan, np.inf, "wide", np.ones(3)])
def test_bandwidths_that_are_no_width_are_refused(untyped, bandwidth):
    z, y = clusters(0, 30)
    with pytest.raises(ValueError, match="bandwidth must be finite and positive"):
        detect.kernel_density(z, y, num_classes=3, bandwidth=bandwidth)
    if isinstance(bandwidth, float):
        with pytest.raises(ValueError, match="grid must be finite and positive"):
            detect.choose_bandwidth(z, y, z, y, num_classes=3, grid=[bandwidth, 1.0])


def test_other_mistakes_are_named(untyped):
    z, y = clusters(0, 60)
    make = functools.partial(detect.kernel_density, z, y, num_classes=3, bandwidth=1.0)
    with pytest.raises(ValueError, match="key must be given with num_points"):
        make(num_points=5)
    with pytest.raises(ValueError, match=r"embeddings must be an array .* a tuple of 2"):
        detect.kernel_density((z, z), y, num_classes=3, bandwidth=1.0)
    with pytest.raises(ValueError, match=r"validation_labels must hold labels in 0\.\.2"):
        detect.choose_bandwidth(z, y, z, y + 1, num_classes=3)
    with pytest.raises(ValueError, match="validation_embeddings must have the 5 dims"):
        detect.choose_bandwidth(z, y, z[:, :4], y, num_classes=3)
    with pytest.warns(UserWarning, match="0.5, is an end of the grid"):
        detect.choose_bandwidth(z, y, z, y, num_classes=3, grid=[0.5, 9.0])
    with pytest.raises(ValueError, match=r"outputs must be \(logits, scores\).*\(3,\), \(5,\)"):
        detect.hinge()((jnp.zeros(3), jnp.zeros(5)), 0)
    with pytest.raises(ValueError, match=r"called first: hinge\(\)"):
        losses.penalized(losses.f6, detect.hinge)
    with pytest.raises(ValueError, match="num_points"):
        make(num_points=0, key=jax.random.key(0))
    with pytest.raises(ValueError, match="chunk"):
        make(chunk=0)
    with pytest.raises(ValueError, match="thresholds must be one finite number or one for each"):
        make(thresholds=[1.0, 2.0])
    density = make()
    outputs = logits_for(y), jnp.asarray(z)
    with pytest.raises(ValueError, match=r"embedding must have the 5 dims .* got 4"):
        density((outputs[0], outputs[1][:, :4]))
    with pytest.raises(ValueError, match="logits of the detector's 3 classes; got 4"):
        density((logits_for(y, 4), outputs[1]))
    with pytest.raises(ValueError, match=r"outputs must be a tuple \(logits, embedding\)"):
        density(outputs[0])
    with pytest.raises(ValueError, match=r"an embedding of shape \(60, \*dims\)"):
        density((outputs[0], outputs[1][:5]))
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\)"):
        detect.calibrated(density, outputs, rate=1.0)
    with pytest.raises(ValueError, match="class 2 is never predicted"):
        detect.calibrated(density, (logits_for(y).at[:, 2].set(-1), outputs[1]), per_class=True)
    with pytest.raises(ValueError, match=r"outputs must be finite; 1 rows .* first is 3"):
        detect.calibrated(density, (outputs[0], outputs[1].at[3].set(jnp.nan)))
    with pytest.raises(ValueError, match=r"detector must be one of jaxrobust\.detect"):
        detect.calibrated(lambda outputs: outputs[0][:, 0], outputs)
    with pytest.raises(ValueError, match="detector must have scores of every class"):
        detect.exposed(plane, lambda outputs: outputs[0][:, 0])
    with pytest.raises(ValueError, match="kappa"):
        detect.hinge(-1.0)
    with pytest.raises(ValueError, match="clean_scores must be a vector"):
        detect.auc([], [1.0])
    with pytest.raises(ValueError, match=r"logits_fn must return \(logits, embedding\)"):
        detect.jacobian_norm(lambda x: x, jnp.ones((2, 3)), key=jax.random.key(0))
    with pytest.raises(ValueError, match="margin must be at least 0"):
        detect.penetration_bound(np.nan, [1.0])
    with pytest.raises(ValueError, match="validation_embeddings must be finite"):
        detect.choose_bandwidth(z, y, np.full_like(z, np.nan), y, num_classes=3)


def test_an_attack_in_the_common_form_sees_through():
    view = Partial(detect.exposed, detector=planes_detector())
    attack = jr.attacks.through(view, jr.attacks.against(jr.attacks.carlini_wagner_l2))
    assert jr.attacks.is_minimum_norm(attack)
    assert not jr.attacks.is_transfer(attack)
