"""DeepFool against the nearest points of affine classifiers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.attacks._projections import shortest_step

KEY = jax.random.key(8)
DUAL = {"l2": 2, "linf": 1}
MEASURE = {"l2": 2, "linf": np.inf}
WIDE = jr.Box(-50.0, 50.0)
OVER = 1.02


def affine(classes, seed=0, batch=6, dims=5):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(dims, classes))
    x = rng.uniform(size=(batch, dims))
    y = (x @ kernel).argmax(1).astype(np.int32)
    return lambda x: x @ kernel, kernel, x, y


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("classes", [2, 5])
def test_nearest_boundary_of_an_affine_classifier(norm, classes):
    """One step to the nearest of all boundaries, exact up to the overshoot and the 1e-4."""
    with jax.enable_x64(True):
        logits_fn, kernel, x, y = affine(classes)
        x_adv = np.asarray(jr.attacks.deepfool(logits_fn, x, y, key=KEY, box=WIDE, norm=norm))
    for i in range(len(x)):
        others = [j for j in range(classes) if j != y[i]]
        w = (kernel[:, others] - kernel[:, [y[i]]]).T
        gaps, lengths = -w @ x[i], np.linalg.norm(w, DUAL[norm], axis=1)
        nearest = np.argmin(gaps / lengths)
        best = gaps[nearest] / lengths[nearest] + 1e-4 * (WIDE.high - WIDE.low)
        w = w[nearest]
        step = best * (w / lengths[nearest] if norm == "l2" else np.sign(w))
        np.testing.assert_allclose(x_adv[i], x[i] + OVER * step, atol=1e-9)
        assert (x_adv[i] @ kernel).argmax() == others[nearest]


@pytest.mark.parametrize("norm", DUAL)
def test_pixels_at_the_edge_are_made_up_for_by_the_others(norm):
    """Two classes: the sum of steps ends at the nearest point within the box."""
    with jax.enable_x64(True):
        w = np.array([4.0, 3.0, -1.0, 0.5, 0.0])
        x = np.array([[0.95, 0.4, 0.3, 0.5, 0.5], [1.0, 0.5, 0.7, 0.2, 0.1]])

        def logits_fn(x):
            gap = x @ jnp.asarray(w) - 6.0
            return jnp.stack([jnp.zeros_like(gap), gap], -1)

        y = np.zeros(2, np.int32)
        x_adv = np.asarray(jr.attacks.deepfool(logits_fn, x, y, key=KEY, norm=norm))
        rise = 6.0 - x @ w
        project = jax.vmap(lambda z, r: shortest_step(z, jnp.asarray(w), r, jr.Box(), norm))
        steps = np.asarray(project(x, rise))
    assert (x_adv.max(1) == 1).all()
    assert ((x_adv @ w) > 6.0).all()
    best = np.linalg.norm(steps, MEASURE[norm], axis=1)
    found = np.linalg.norm(x_adv - x, MEASURE[norm], axis=1)
    assert (found >= best).all()
    assert (found <= best * (OVER + 1e-3)).all()


def test_candidates_are_the_largest_logits_of_the_clean_image():
    """Class 2 has the nearer boundary, class 1 the larger logit."""

    def logits_fn(x):
        return jnp.stack([x[:, 0] * 0, x[:, 0] - 0.8, 100 * x[:, 1] - 59.0], -1)

    x, y = np.array([[0.5, 0.5]], np.float32), np.zeros(1, np.int32)
    for candidates, landed in ((2, 1), (3, 2), (10, 2)):
        x_adv = jr.attacks.deepfool(logits_fn, x, y, key=KEY, num_candidates=candidates)
        assert int(logits_fn(x_adv).argmax()) == landed


def test_the_clean_image_where_nothing_is_in_reach():
    def logits_fn(x):
        return jnp.stack([x[:, 0] * 0 + 9.0, x.sum(-1)], -1)

    x = np.full((1, 3), 0.5, np.float32)
    x_adv = jr.attacks.deepfool(logits_fn, x, np.zeros(1, np.int32), key=KEY)
    np.testing.assert_array_equal(x_adv, x)
