"""FAB against exact projections, closed forms, and what its runs promise."""

import functools

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import NORMS, images, problem

import jaxrobust as jr
from jaxrobust.attacks import _fab_runs as runs
from jaxrobust.attacks._projections import shortest_step, within_l2

KEY = jax.random.key(5)
MEASURE = {"linf": "inf", "l2": 2, "l1": 1}
BOX = jr.Box(-0.5, 1.0)


def half_spaces(number=20, dims=7):
    """Points, weights and rises: some weights zero, some pixels at an edge, some out of reach."""
    rng = np.random.default_rng(0)
    z = np.clip(rng.uniform(-0.9, 1.4, size=(number, dims)), *BOX)
    w = rng.normal(size=(number, dims)) * 10.0 ** rng.uniform(-3, 3, size=(number, 1))
    w[rng.random(w.shape) < 0.25] = 0
    w[0] = 0
    w[1, 1:] = w[1, 0] = 2.0  # ties
    most = (np.abs(w) * np.where(w > 0, BOX.high - z, z - BOX.low)).sum(1)
    rise = most * rng.uniform(-0.2, 1.3, size=number)
    rise[0] = 1.0
    return z, w, rise, most


@pytest.mark.parametrize("norm", NORMS)
def test_projection_onto_a_half_space_in_the_box_is_exact(norm):
    z, w, rise, most = half_spaces()
    with jax.enable_x64(True):
        project = jax.jit(jax.vmap(lambda z, w, r: shortest_step(z, w, r, BOX, norm)))
        steps = np.asarray(project(z, w, rise))
    assert steps.dtype == np.float64
    assert (steps[w == 0] == 0).all()
    assert ((z + steps >= BOX.low - 1e-12) & (z + steps <= BOX.high + 1e-12)).all()
    assert (steps[rise <= 0] == 0).all()
    out_of_reach = rise > most
    assert out_of_reach.sum() > 2
    assert (~out_of_reach & (rise > 0)).sum() > 8
    corner = np.where(w > 0, BOX.high, BOX.low)
    stuck = out_of_reach[:, None] & (w != 0)
    np.testing.assert_allclose((z + steps)[stuck], corner[stuck], atol=1e-12)
    assert ((w * steps).sum(1) >= np.minimum(rise, most) - 1e-9 * np.abs(w).sum(1)).all()
    for i in np.flatnonzero(~out_of_reach & (rise > 0)):
        step = cp.Variable(z.shape[1])
        inside = [z[i] + step >= BOX.low, z[i] + step <= BOX.high, w[i] @ step >= rise[i]]
        shortest = cp.Problem(cp.Minimize(cp.norm(step, MEASURE[norm])), inside)
        best = shortest.solve(solver="CLARABEL")
        np.testing.assert_allclose(np.linalg.norm(steps[i], float(MEASURE[norm])), best, atol=1e-6)


def test_projection_onto_an_l2_ball_in_the_box_is_exact():
    rng = np.random.default_rng(1)
    with jax.enable_x64(True):
        for eps in (0.0, 0.6, 5.0):
            x = np.clip(rng.uniform(-0.9, 1.4, size=6), *BOX)
            z = x + rng.normal(size=6)
            z[0] = x[0]
            found = np.asarray(within_l2(jnp.asarray(x), jnp.asarray(z), jnp.asarray(eps), BOX))
            near = cp.Variable(6)
            inside = [cp.norm(near - x) <= eps, near >= BOX.low, near <= BOX.high]
            nearest = cp.Problem(cp.Minimize(cp.norm(near - z)), inside)
            best = nearest.solve(solver="CLARABEL")
            assert np.linalg.norm(found - x) <= eps + 1e-9
            assert found.min() >= BOX.low
            assert found.max() <= BOX.high
            np.testing.assert_allclose(np.linalg.norm(found - z), best, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_ends_just_past_the_boundary_of_two_classes(norm):
    """Affine, box active: the exact distance, and 0.1 % of the clean gap beyond it."""
    rng = np.random.default_rng(2)
    kernel = rng.normal(size=(6, 2)).astype(np.float32)
    x = images(3, 5)

    def logits_fn(x):
        return x @ kernel

    logits = x @ kernel
    y = logits.argmax(1).astype(np.int32)
    x_adv = np.asarray(jr.attacks.fab(logits_fn, x, y, key=KEY, norm=norm, num_steps=20))
    rows = np.arange(5)
    gap, gap_adv = (z[rows, y] - z[rows, 1 - y] for z in (logits, x_adv @ kernel))
    w = (kernel[:, 1] - kernel[:, 0]) * np.where(y == 0, 1, -1)[:, None]
    steps = jax.vmap(lambda x, w, r: shortest_step(x, w, r, jr.Box(), norm))(x, w, gap)
    best = np.linalg.norm(steps, float(MEASURE[norm]), axis=1)
    found = np.linalg.norm(x_adv - x, float(MEASURE[norm]), axis=1)
    assert (found >= best * (1 - 1e-5)).all()
    assert (found <= best * 1.005).all()
    assert (gap_adv < 0).all()
    assert (gap_adv >= -1.1e-3 * gap).all()


def test_final_search_is_three_steps_of_false_position():
    """A parabola on a line, by hand: gap x^2 - 0.25 from 0 to 1, aimed at 0.25e-3."""

    def model(x, key):
        return jnp.stack([jnp.zeros(()), x[0] ** 2 - 0.25])

    goal = runs.Goal(model, jr.losses.margin, jnp.array(0))
    rule = runs.Rule(jr.Box(), "linf", 1, 1, jnp.ones(()), 0.1, 1.05, 0.9, jr.gradients.exact)
    found = runs.final_search(goal, jnp.zeros(1), KEY, runs.Best(jnp.ones(1), jnp.ones(())), rule)
    near, far = 0.0, 1.0
    for _ in range(3):
        middle = near + (far - near) * (0.25e-3 + 0.25 - near**2) / (far**2 - near**2)
        near, far = (near, middle) if middle**2 > 0.25 else (middle, far)
    np.testing.assert_allclose(found[0], far, rtol=1e-5)
    np.testing.assert_allclose(far, 1.0)  # from below, false position does not move the far end


def test_restarts_find_what_the_slope_at_the_clean_image_hides():
    """From 0.5 the gap falls to the left before it rises past 0.4; to the right it rises to 0.9."""

    def logits_fn(x):
        gap = jnp.where(x[:, 0] > 0.45, 2.5 * (x[:, 0] - 0.9), 10 * (0.4 - x[:, 0]))
        return jnp.stack([jnp.zeros_like(gap), gap], -1)

    x, y = np.full((8, 1), 0.5, np.float32), np.zeros(8, np.int32)
    once, again = (
        np.asarray(jr.attacks.fab(logits_fn, x, y, key=KEY, num_steps=8, num_restarts=runs))[:, 0]
        for runs in (1, 3)
    )
    np.testing.assert_allclose(once, 0.9, atol=2e-3)
    left = again < 0.5
    assert 0 < left.sum() < 8  # each restart goes left in one case of two
    np.testing.assert_allclose(again[left], 0.4, atol=2e-3)
    np.testing.assert_allclose(again[~left], 0.9, atol=2e-3)


def test_restarts_begin_within_half_of_their_radius():
    """And within half of the least distance found."""
    x = jnp.full(60, 1.0)
    radius = jnp.asarray(10.0)
    rule = runs.Rule(jr.Box(0.0, 2.0), "l1", 1, 2, radius, 0.1, 1.05, 0.9, jr.gradients.exact)
    for distance, half in ((0.4, 0.2), (np.inf, 5.0)):
        start = runs._random_start(x, KEY, runs.Best(x, jnp.asarray(distance)), rule)
        np.testing.assert_allclose(jnp.sum(jnp.abs(start - x)), half, rtol=1e-5)


def test_the_radius_of_restarts_is_the_balls_or_the_authors():
    logits_fn, _, x, y = problem(6, batch=2)
    fab = functools.partial(jr.attacks.fab, num_steps=2, num_restarts=3)
    find = functools.partial(fab, logits_fn, x, y, key=KEY)
    ball = jr.Ball("linf", jnp.array([0.02, 0.3], jnp.float32))
    handed = jr.attacks.against(fab)(logits_fn, x, y, key=KEY, ball=ball)
    np.testing.assert_array_equal(handed, find(restart_radius=ball.eps))
    own = functools.partial(fab, restart_radius=0.3)
    kept = jr.attacks.against(own)(logits_fn, x, y, key=KEY, ball=ball)
    np.testing.assert_array_equal(kept, find(restart_radius=0.3))
    wide = jr.Box(-1.0, 1.0)
    authors = find(box=wide, norm="l2")
    np.testing.assert_array_equal(authors, find(box=wide, norm="l2", restart_radius=2.0))
    assert not np.array_equal(authors, find(box=wide, norm="l2", restart_radius=0.2))
    with pytest.raises(ValueError, match="restart_radius must be finite"):
        find(restart_radius=-1.0)


def test_only_the_gap_of_two_logits_is_differentiated():
    """As many pull-backs for 3 classes as for 30, where fab takes one a class."""

    def gradients(attack, classes):
        kernel = jnp.asarray(np.random.default_rng(0).normal(size=(6, classes)), jnp.float32)
        x = np.zeros((1, 6), np.float32)
        run = functools.partial(attack, num_steps=10)
        count = jr.evaluation._count.count
        return count(jr.attacks.against(run), jax.tree_util.Partial(jnp.matmul, b=kernel), x,
                     jr.Ball("linf", 0.1))[0]  # fmt: skip

    two = functools.partial(jr.attacks.fab_targeted, num_targets=2)
    assert gradients(two, 3) == gradients(two, 30) == 20
    assert gradients(jr.attacks.fab_targeted, 3) == 20  # there are no nine rivals
    assert gradients(jr.attacks.fab, 3) == 30
    assert gradients(jr.attacks.fab, 30) == 300


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alpha_max": 1.5}, "alpha_max must lie in"),
        ({"eta": 0.9}, "eta must be finite and at least 1"),
        ({"beta": 1.0}, "beta must lie in"),
        ({"num_restarts": 0}, "num_restarts must be"),
        ({"norm": "l0"}, "norm must be one of"),
        ({"num_targets": 0}, "num_targets must be"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_wrong_settings_are_refused(wrong, message):
    logits_fn, _, x, y = problem(6)
    with pytest.raises(ValueError, match=message):
        jr.attacks.fab_targeted(logits_fn, x, y, key=KEY, **wrong)
