"""Projections, steps and samples against independent solutions."""

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

import jaxrobust as jr


@pytest.mark.parametrize("eps", [-0.1, -1, np.float32(-0.1), np.nan, np.inf])
def test_a_number_that_is_no_radius_makes_no_ball(eps):
    with pytest.raises(ValueError, match="eps must be finite and at least 0"):
        jr.Ball("linf", eps)


def test_balls_pass_through_transformations():
    """Placeholders, tracers and cotangents, which may be negative, are no radii of a user's."""
    ball = jr.Ball("linf", 0.1)
    eps = jax.vmap(lambda b: b.eps, in_axes=(jr.Ball("linf", 0),))(jr.Ball("linf", jnp.ones(2)))
    assert eps.shape == (2,)
    slope = jax.jit(jax.grad(lambda b: -b.eps))(ball)
    assert jax.device_get(slope).eps == -1
    assert jax.tree.map(lambda _: None, ball).eps is None


seeds = st.integers(0, 2**32 - 1)


def draw(seed, size=7):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, size)
    wild = x + rng.normal(size=size) * rng.choice([0.05, 0.5, 5.0])
    return x, wild, rng.uniform(0.01, 2.0)


def as_float64(fn, *args):
    with jax.enable_x64(True):
        return np.asarray(fn(*[jnp.asarray(a, jnp.float64) for a in args]))


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_l1_projection_is_the_nearest_point_of_ball_and_box(seed):
    x, wild, eps = draw(seed)
    got = as_float64(lambda x, z: jr.Ball("l1", eps).project(x, z), x, wild)
    z = cp.Variable(x.size)
    nearest = cp.Problem(
        cp.Minimize(cp.sum_squares(z - wild)), [cp.norm1(z - x) <= eps, z >= 0, z <= 1]
    )
    nearest.solve(solver=cp.CLARABEL)
    assert np.abs(got - x).sum() <= eps + 1e-9
    assert got.min() >= 0
    assert got.max() <= 1
    np.testing.assert_allclose(((got - wild) ** 2).sum(), nearest.value, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_linf_projection_is_the_nearest_point(seed):
    x, wild, eps = draw(seed)
    got = as_float64(lambda x, z: jr.Ball("linf", eps).project(x, z), x, wild)
    np.testing.assert_allclose(got, np.clip(np.clip(wild, x - eps, x + eps), 0, 1), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_l2_projection_is_feasible_and_leaves_legal_points_alone(seed):
    x, wild, eps = draw(seed)
    ball = jr.Ball("l2", eps)
    got = as_float64(ball.project, x, wild)
    assert np.linalg.norm(got - x) <= eps * (1 + 1e-12)
    np.testing.assert_allclose(as_float64(ball.project, x, got), got, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_l1_step_maximises_the_linearised_loss_within_the_box(seed):
    x, gradient, size = draw(seed)
    gradient = gradient - 0.5
    got = as_float64(lambda x, g: jr.Ball("l1", 1.0).step(x, g, size), x, gradient)
    n = x.size
    # d = p - q with p, q >= 0 and sum(p + q) <= size.
    best = linprog(
        np.concatenate([-gradient, gradient]), A_ub=np.ones((1, 2 * n)), b_ub=[size],
        bounds=[(0, 1 - v) for v in x] + [(0, v) for v in x],
    )  # fmt: skip
    assert np.abs(got - x).sum() <= size + 1e-9
    np.testing.assert_allclose(gradient @ (got - x), -best.fun, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_step_is_the_steepest_of_its_length(norm):
    rng = np.random.default_rng(0)
    x, gradient = rng.uniform(size=9), rng.normal(size=9)
    ball = jr.Ball(norm, 1.0)
    moved = as_float64(lambda x, g: ball.step(x, g, 0.3), x, gradient) - x
    order = {"linf": np.inf, "l2": 2}[norm]
    dual = {"linf": 1, "l2": 2}[norm]
    np.testing.assert_allclose(np.linalg.norm(moved, order), 0.3)
    np.testing.assert_allclose(gradient @ moved, 0.3 * np.linalg.norm(gradient, dual))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_zero_gradient_moves_nothing(norm):
    x = jnp.full((3, 2), 0.5)
    np.testing.assert_array_equal(jr.Ball(norm, 1.0).step(x, jnp.zeros_like(x), 0.3), x)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_samples_fill_the_ball_uniformly(norm):
    size, eps = 3, 0.2
    x = jnp.full(size, 0.5)
    ball = jr.Ball(norm, eps)
    keys = jax.random.split(jax.random.key(0), 20_000)
    draws = np.asarray(jax.vmap(lambda k: ball.sample(x, k))(keys)) - 0.5
    distances = np.linalg.norm(draws, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    assert distances.max() <= eps * (1 + 1e-5)
    # Volume grows as the radius to the power of the dimension.
    share = (distances <= eps * 0.5 ** (1 / size)).mean()
    assert abs(share - 0.5) < 0.02
    assert np.abs(draws.mean(0)).max() < 0.005


def test_norm_of_tiny_numbers_and_of_zero():
    tiny = jnp.array([3e-30, 4e-30], jnp.float32)
    np.testing.assert_allclose(jr.threat.norm(tiny, "l2"), 5e-30, rtol=1e-5)
    gradient = jax.grad(lambda d: jr.threat.norm(d, "l2"))(jnp.zeros(2))
    assert np.isfinite(np.asarray(gradient)).all()


def test_ball_is_a_pytree_whose_eps_is_traced():
    ball = jr.Ball("l2", 0.5)
    assert jax.tree.leaves(ball) == [0.5]
    swept = jax.vmap(lambda e: jr.Ball("linf", e).project(jnp.zeros(1), jnp.ones(1)))(
        jnp.array([0.1, 0.2])
    )
    np.testing.assert_allclose(swept[:, 0], [0.1, 0.2])


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_rounding_never_leaves_an_odd_box(norm):
    ball = jr.Ball(norm, 3.0, jr.Box(-2.1179, 2.64))
    rng = np.random.default_rng(0)
    x = rng.uniform(-2.1179, 2.64, size=(300, 3)).astype(np.float32)
    gradient = rng.normal(size=x.shape).astype(np.float32)
    low, high = np.float32(-2.1179), np.float32(2.64)
    stepped = jax.vmap(lambda x, g: ball.project(x, ball.step(x, g, 2.0)))(x, gradient)
    projected = jax.vmap(ball.project)(x, x + 5 * gradient)
    for points in (stepped, projected):
        assert np.asarray(points).min() >= low
        assert np.asarray(points).max() <= high


def test_pixels_changed_count_colours_once():
    delta = np.zeros((2, 3, 3), np.float32)
    delta[0, 1] = 0.1, 0.0, -0.2
    delta[1, 2, 0] = 1e-6
    assert int(jr.threat.num_pixels_changed(jnp.asarray(delta))) == 2
    assert int(jr.threat.num_pixels_changed(jnp.asarray(delta[..., 0]))) == 2
    assert int(jr.threat.num_pixels_changed(jnp.asarray(delta.ravel()))) == 3
