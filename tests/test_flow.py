"""Flow fields against SciPy, dense matrices and a table of displacements."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.optimize import minimize

import jaxrobust as jr
from jaxrobust import flow

RULES = ["dirichlet", "zero_mean", (0, 0), (2, 1)]
SHAPES = [(4, 5), (1, 6), (5, 1), (1, 1), (7, 3)]


def ids(value):
    return str(value)


@functools.cache
def dense(shape, null_space):
    """`M'M` of one part, from the rows of `I - M^(k)`: one a pixel and direction."""
    height, width = shape
    rows = []
    for i in range(height):
        for j in range(width):
            for di, dj in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                row = np.zeros(shape)
                row[i, j] = 1
                if 0 <= i + di < height and 0 <= j + dj < width:
                    row[i + di, j + dj] = -1
                elif null_space != "dirichlet":
                    continue
                rows.append(row.ravel())
    rows = np.array(rows).reshape(-1, height * width)
    return rows.T @ rows


def inverse(shape, null_space):
    """Of `M'M` among the flows that the rule allows, as a matrix over all pixels."""
    matrix = dense(shape, null_space)
    if null_space == "dirichlet":
        return np.linalg.inv(matrix)
    if null_space == "zero_mean":
        return np.linalg.pinv(matrix, rcond=1e-9)
    kept = np.arange(len(matrix)) != np.ravel_multi_index(null_space, shape)
    found = np.zeros_like(matrix)
    found[np.ix_(kept, kept)] = np.linalg.inv(matrix[np.ix_(kept, kept)])
    return found


def rules_of(shape):
    return [r for r in RULES if isinstance(r, str) or (r[0] < shape[0] and r[1] < shape[1])]


CASES = [(shape, rule) for shape in SHAPES for rule in rules_of(shape)]

warp = jax.jit(flow.warp)


@functools.partial(jax.jit, static_argnums=1)
def variations(r, rule):
    """Of a flow and of its smoothed self, and both solutions."""
    smooth = flow.smoothed(r, rule)
    return (
        flow.quadratic_variation(r, rule), flow.quadratic_variation(smooth, rule),
        flow.solved(r, rule),
    )  # fmt: skip


@pytest.mark.parametrize("channels", [(), (1,), (3,)], ids=ids)
@pytest.mark.parametrize("shape", SHAPES, ids=ids)
def test_warp_is_bilinear_interpolation(shape, channels):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(*shape, *channels))
    with jax.enable_x64(True):
        for scale in (0.0, 0.3, 2.0, 1e6):
            r = scale * rng.normal(size=(*shape, 2))
            at = np.moveaxis(r, -1, 0) + np.indices(shape)
            planes = x.reshape(*shape, -1)
            right = np.stack(
                [
                    map_coordinates(planes[..., c], at, order=1, mode="nearest")
                    for c in range(planes.shape[-1])
                ],
                -1,
            ).reshape(x.shape)
            np.testing.assert_allclose(warp(jnp.asarray(x), jnp.asarray(r)), right, atol=1e-10)


def test_a_flow_of_zero_changes_no_bit():
    for x in jax.random.uniform(jax.random.key(0), (20, 9, 6, 3)):
        np.testing.assert_array_equal(warp(x, jnp.zeros((9, 6, 2))), x)


def test_whole_steps_move_pixels():
    x = jnp.arange(12.0).reshape(3, 4)
    moved = flow.warp(x, jnp.ones((3, 4, 2)))
    np.testing.assert_array_equal(moved, x[jnp.array([1, 2, 2])][:, jnp.array([1, 2, 3, 3])])


@pytest.mark.parametrize("shape", SHAPES, ids=ids)
def test_gradient_is_that_of_finite_differences_away_from_kinks(shape):
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.uniform(size=(*shape, 2)))
        weight = jnp.asarray(rng.normal(size=x.shape))
        r = rng.integers(-2, 3, size=(*shape, 2)) + rng.uniform(0.1, 0.9, size=(*shape, 2))

        @jax.jit
        def value(r):
            return jnp.sum(weight * flow.warp(x, r))

        found = np.asarray(jax.jit(jax.grad(value))(jnp.asarray(r)))
        for index in np.ndindex(r.shape):
            step = np.zeros_like(r)
            step[index] = 1e-6
            slope = (value(jnp.asarray(r + step)) - value(jnp.asarray(r - step))) / 2e-6
            np.testing.assert_allclose(found[index], slope, atol=1e-8)


def test_kinks_have_the_slope_of_a_cell():
    """At whole numbers: of the cell below and to the right; at the border, of the last one."""
    x = jnp.array([[0.0], [1.0], [5.0]])
    slope = jax.grad(lambda r: jnp.sum(flow.warp(x, r)))(jnp.zeros((3, 1, 2)))
    np.testing.assert_array_equal(slope[..., 0, 0], [1.0, 4.0, 4.0])
    far = jax.grad(lambda r: jnp.sum(flow.warp(x, r)))(jnp.full((3, 1, 2), 9.0))
    np.testing.assert_array_equal(far, 0)


def test_not_a_number_moves_pixels_nowhere():
    moved = flow.warp(jnp.ones((2, 2)), jnp.zeros((2, 2, 2)).at[0, 0, 0].set(jnp.nan))
    assert np.isnan(moved[0, 0])
    assert np.isfinite(np.asarray(moved).ravel()[1:]).all()


@pytest.mark.parametrize("shape", [(3, 4), (3,), (3, 4, 3)], ids=ids)
def test_flows_that_do_not_fit_are_refused(shape, untyped):
    with pytest.raises(ValueError, match=r"flow must be of shape \(height, width, 2\)"):
        flow.warp(jnp.zeros((3, 4, 1)), jnp.zeros(shape))


def test_the_operator_is_twice_the_laplacian_and_the_missing_neighbours():
    shape = (4, 5)
    degree = np.add.outer([1, 2, 2, 1], [1, 2, 2, 2, 1]).ravel()
    printed = dense(shape, "zero_mean")
    np.testing.assert_array_equal(np.diag(printed), 2 * degree)
    assert set(np.unique(printed - np.diag(np.diag(printed)))) == {-2, 0}
    np.testing.assert_allclose(printed.sum(1), 0)
    np.testing.assert_array_equal(dense(shape, "dirichlet"), printed + np.diag(4 - degree))


@pytest.mark.parametrize(("shape", "rule"), CASES, ids=ids)
def test_the_operator_without_its_matrix(shape, rule):
    rng = np.random.default_rng(2)
    r = rng.normal(size=(*shape, 2))
    flat = r.reshape(-1, 2)
    with jax.enable_x64(True):
        value, smooth, solved = variations(jnp.asarray(r), rule)
        np.testing.assert_allclose(value, np.sum(flat * (dense(shape, rule) @ flat)), rtol=1e-9)
        right = (inverse(shape, rule) @ flat).reshape(r.shape)
        np.testing.assert_allclose(solved, right, atol=1e-9)
        assert smooth <= np.sum(r**2) * (1 + 1e-9)
    right = np.sqrt(np.diag(inverse(shape, rule))).reshape(shape)
    np.testing.assert_allclose(flow.largest_displacement(shape, rule), right, atol=1e-9)


@pytest.mark.parametrize(("shape", "rule"), CASES, ids=ids)
def test_the_box_holds_the_ellipsoid_and_touches_it(shape, rule):
    """Proposition 2, with its radius: no flow of the ball moves a pixel farther; some do so far."""
    eps, reach = 0.7, flow.largest_displacement(shape, rule)
    with jax.enable_x64(True):
        ball = flow.FlowBall(eps, rule)
        keys = jax.random.split(jax.random.key(0), 50)
        sample = lambda key: ball.sample(shape, key, jnp.float64)
        drawn = jax.jit(jax.vmap(sample))(keys)
        sizes = np.asarray(jax.jit(jax.vmap(ball.distance))(drawn))
        assert (sizes <= eps * (1 + 1e-9)).all()
        assert (np.linalg.norm(drawn, axis=-1) <= eps * reach + 1e-9).all()
        pixels = list(np.ndindex(shape))
        directions = np.zeros((len(pixels), *shape, 2))
        for direction, index in zip(directions, pixels, strict=True):
            direction[index] = [0.6, -0.8]
        step = lambda direction: ball.step(jnp.zeros((*shape, 2)), direction, eps)
        mosts = jax.jit(jax.vmap(step))(directions)
        assert (np.asarray(jax.jit(jax.vmap(ball.distance))(mosts)) <= eps * (1 + 1e-9)).all()
        for most, index in zip(np.asarray(mosts), pixels, strict=True):
            got = np.sum(most[index] * [0.6, -0.8])
            np.testing.assert_allclose(got, eps * reach[index], atol=1e-9)


@pytest.mark.parametrize(
    ("rule", "mean", "most"),
    [
        ("zero_mean", 0.646, 0.985),
        ("dirichlet", 0.549, 0.594),
        ((0, 0), 1.177, 1.470),
        ((14, 14), 0.840, 1.153),
    ],
    ids=ids,
)
def test_displacements_on_mnist(rule, mean, most):
    reach = flow.largest_displacement((28, 28), rule)
    kept = reach[reach > 1e-6]  # a pinned pixel is none of them
    assert round(reach.max(), 3) == most
    assert round(kept.mean(), 3) == mean or round(reach.mean(), 3) == mean


@pytest.mark.parametrize("rule", RULES, ids=ids)
def test_a_step_is_the_steepest_and_projection_keeps_the_rule(rule):
    shape = (5, 4)
    with jax.enable_x64(True):
        ball = flow.FlowBall(0.3, rule)
        gradient = jax.random.normal(jax.random.key(1), (*shape, 2), jnp.float64)
        take, project, distance = jax.jit(ball.step), jax.jit(ball.project), jax.jit(ball.distance)
        step = take(jnp.zeros((*shape, 2)), gradient, 0.3)
        best = float(jnp.sum(gradient * step))
        keys = jax.random.split(jax.random.key(2), 200)
        sample = lambda key: ball.sample(shape, key, jnp.float64)
        others = jax.jit(jax.vmap(sample))(keys)
        assert jnp.max(jnp.sum(others * gradient, (1, 2, 3))) < best
        np.testing.assert_allclose(distance(step), 0.3, rtol=1e-9)
        wild = 5 * jax.random.normal(jax.random.key(3), (*shape, 2), jnp.float64)
        inside = project(wild)
        np.testing.assert_allclose(distance(inside), 0.3, rtol=1e-9)
        np.testing.assert_allclose(project(inside), inside, atol=1e-12)
        if rule == "zero_mean":
            np.testing.assert_allclose(jnp.mean(inside, (0, 1)), 0, atol=1e-12)
        elif rule != "dirichlet":
            np.testing.assert_array_equal(inside[rule], 0)
        np.testing.assert_array_equal(take(inside, jnp.zeros_like(inside), 0.3), inside)


def test_projection_is_the_nearest_in_its_own_norm():
    with jax.enable_x64(True):
        ball = flow.FlowBall(0.2)
        wild = jax.random.normal(jax.random.key(4), (2, 2, 2), jnp.float64)
        distance, variation = jax.jit(ball.distance), jax.jit(flow.quadratic_variation)
        nearest = float(distance(jax.jit(ball.project)(wild) - wild))
        solution = minimize(
            lambda r: float(distance(jnp.asarray(r.reshape(2, 2, 2)) - wild)) ** 2,
            np.zeros(8),
            constraints={
                "type": "ineq",
                "fun": lambda r: 0.04 - float(variation(jnp.asarray(r.reshape(2, 2, 2)))),
            },
        )
    assert nearest <= np.sqrt(solution.fun) + 1e-6


def test_total_variation_sums_roots():
    rng = np.random.default_rng(3)
    r = rng.normal(size=(3, 4, 2)).astype(np.float32)
    total = 0.0
    for i in range(3):
        for j in range(4):
            for di, dj in ((-1, 0), (1, 0), (0, -1), (0, 1)):
                if 0 <= i + di < 3 and 0 <= j + dj < 4:
                    total += np.linalg.norm(r[i, j] - r[i + di, j + dj])
    np.testing.assert_allclose(flow.total_variation(jnp.asarray(r)), total, rtol=1e-5)
    slope = jax.grad(flow.total_variation)(jnp.zeros((3, 4, 2)))
    np.testing.assert_array_equal(slope, 0)


def test_radii_and_rules_that_cannot_be_meant(untyped):
    with pytest.raises(ValueError, match="eps must be finite and at least 0; got -1"):
        flow.FlowBall(-1.0)
    with pytest.raises(ValueError, match='null_space must be "dirichlet", "zero_mean" or a pixel'):
        flow.FlowBall(1.0, "periodic")
    with pytest.raises(ValueError, match="null_space must be a pixel of an image"):
        flow.largest_displacement((4, 4), (4, 0))


def test_balls_are_swept_and_traced():
    r = jnp.ones((3, 3, 2))
    radii = jnp.array([0.0, 0.1, 0.5])
    sizes = jax.vmap(lambda eps: flow.FlowBall(eps).distance(flow.FlowBall(eps).project(r)))(radii)
    np.testing.assert_allclose(sizes, radii, rtol=1e-5)
    assert jr.flow is flow
