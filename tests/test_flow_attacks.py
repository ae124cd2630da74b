"""Spatial attacks: their contracts, and what they find against closed forms and brute force.

The contracts of attacks within an lp ball do not fit: flows move images of two axes and more, and
far in every norm.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec
from scipy import ndimage

import jaxrobust as jr
from jaxrobust.attacks._rotation_translation import motion
from jaxrobust.flow import FlowBall, total_variation, warp

KEY = jax.random.key(3)
SHAPE = (5, 4)
STEPS = 15

flow = functools.partial(jr.attacks.flow, num_steps=STEPS)
flow_field = functools.partial(jr.attacks.flow_field, num_steps=STEPS)
grid = functools.partial(jr.attacks.rotation_translation, num_angles=5, num_shifts=3)


def flow_pgd(logits_fn, x, y, *, key, eps=2.0, box=None, **settings):
    ball = FlowBall(eps, "dirichlet", box or jr.Box())
    return jr.attacks.flow_pgd(
        logits_fn, x, y, key=key, ball=ball, **({"num_steps": STEPS} | settings)
    )


ATTACKS = {"flow": flow, "flow_pgd": flow_pgd, "grid": grid}
TARGETED = {
    "flow": flow,
    "flow_pgd": lambda *a, target, **k: flow_pgd(
        a[0], a[1], target, loss=jr.losses.targeted(jr.losses.margin), **k
    ),
    "grid": grid,
}
attacks = pytest.mark.parametrize("name", ATTACKS)


def network(weights, x):
    hidden = jax.nn.relu(x.reshape(len(x), -1) @ weights[0])
    return hidden @ weights[1] - weights[2]


@functools.cache
def problem(shape=SHAPE, classes=3, batch=6, double=False):
    rng = np.random.default_rng(batch + classes)
    dtype = np.float64 if double else np.float32
    dims = int(np.prod(shape))
    kernels = rng.normal(size=(dims, 12)), rng.normal(size=(12, classes))
    x = np.clip(rng.uniform(-0.2, 1.2, size=(batch, *shape)), 0, 1).astype(dtype)
    weights = (*(jnp.asarray(k.astype(dtype)) for k in kernels), jnp.zeros(classes, dtype))
    weights = (*weights[:2], network(weights, x).mean(0))  # so that every class has its share
    logits_fn = jax.tree_util.Partial(network, weights)
    return logits_fn, x, np.asarray(jnp.argmax(logits_fn(x), -1)).astype(np.int32)


def lawful(x, x_adv, box=(0, 1)):
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    x_adv = np.asarray(x_adv)
    assert np.isfinite(x_adv).all()
    assert box[0] <= x_adv.min() <= x_adv.max() <= box[1]


@attacks
@pytest.mark.parametrize("classes", [2, 3])
def test_lawful_repeatable_and_one_key_a_row(name, classes):
    logits_fn, x, y = problem(classes=classes)
    x_adv = ATTACKS[name](logits_fn, x, y, key=KEY)
    lawful(x, x_adv)
    assert np.any(np.argmax(logits_fn(x_adv), -1) != y)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(len(x)))
    np.testing.assert_array_equal(ATTACKS[name](logits_fn, x, y, key=keys), x_adv)
    other = ATTACKS[name](logits_fn, x, y, key=jax.random.key(4))
    assert np.array_equal(other, x_adv) is (name == "grid")


@attacks
def test_a_row_depends_on_neither_neighbours_nor_place(name):
    logits_fn, x, y = problem()
    keys = jax.random.split(KEY, len(x))
    base = np.asarray(ATTACKS[name](logits_fn, x, y, key=keys))
    order = np.array([3, 0, 5, 1, 4, 2])
    moved = ATTACKS[name](logits_fn, x[order], y[order], key=keys[order])
    np.testing.assert_array_equal(moved, base[order])
    others = x[::-1].copy()
    others[2] = x[2]
    alone = np.asarray(ATTACKS[name](logits_fn, others, y, key=keys))
    np.testing.assert_array_equal(alone[2], base[2])


@attacks
def test_constant_in_a_sharded_program_in_float64(name):
    """jit and a default shard_map, two rows on a device, change nothing; no derivative passes."""
    assert jax.device_count() == 4
    mesh = Mesh(np.array(jax.devices()), ("rows",))
    whole, rows = PartitionSpec(), PartitionSpec("rows")
    with jax.enable_x64(True):
        logits_fn, x, y = problem(batch=8, double=True)
        keys = jax.random.split(KEY, len(x))
        run = lambda logits_fn, x, y, keys: ATTACKS[name](logits_fn, x, y, key=keys)
        mapped = jax.shard_map(run, mesh=mesh, in_specs=(whole, rows, rows, rows), out_specs=rows)

        def total(x):
            x_adv = mapped(logits_fn, x, y, keys)
            return jnp.sum(x_adv), x_adv

        slope, x_adv = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(x))
        np.testing.assert_array_equal(slope, 0)
        lawful(x, x_adv)
        np.testing.assert_allclose(x_adv, run(logits_fn, x, y, keys), atol=1e-6)


@attacks
def test_one_trace_for_each_shape(name):
    (weights,), x, y = problem()[0].args, *problem()[1:]
    traces = []

    def counted(weights, x):
        traces.append(x.shape)
        return network(weights, x)

    for scale, most in ((1.0, 100), (0.5, 1), (2.0, 1)):
        before = len(traces)
        scaled = jax.tree.map(lambda w, s=scale: w * s, weights)
        ATTACKS[name](jax.tree_util.Partial(counted, scaled), x, y, key=KEY)
        assert len(traces) - before <= most


@attacks
@pytest.mark.parametrize("shape", [(5, 1, 1), (3, 4, 3), (1, 1)], ids=str)
def test_narrow_and_colour_images(name, shape):
    logits_fn, x, y = problem(shape, batch=3)
    box = jr.Box(-1.0, 2.0)
    x_adv = ATTACKS[name](logits_fn, 3 * x - 1, y, key=KEY, box=box)
    lawful(x, x_adv, box)
    if shape == (1, 1):  # a pixel alone has nowhere to look
        np.testing.assert_array_equal(x_adv, 3 * x - 1)


@attacks
def test_targets_are_reached_or_nothing_is_claimed(name):
    logits_fn, x, y = problem()
    target = ((y + 1) % 3).astype(np.int32)
    x_adv = TARGETED[name](logits_fn, x, y, key=KEY, target=target)
    lawful(x, x_adv)
    hit = np.argmax(logits_fn(x_adv), -1) == target
    assert hit.any()
    if name == "flow":
        still = (np.asarray(x_adv) == x).all((1, 2))
        np.testing.assert_array_equal(hit, ~still)


MISLEADING = {
    "constant": lambda x: jnp.zeros((len(x), 2)),
    "NaN": lambda x: jnp.full((len(x), 2), jnp.nan),
    "no gradient": lambda x: jnp.round(4 * x.reshape(len(x), -1)[:, :2]),
    "NaN below": lambda x: jnp.sqrt(x.reshape(len(x), -1)[:, :2] - 2) + x.sum((1, 2))[:, None],
    "huge": lambda x: 1e30 * x.reshape(len(x), -1)[:, :2],
}


@attacks
def test_models_that_mislead(name):
    """One program: a switch has the derivative of the branch taken alone."""
    _, x, _ = problem()
    y = np.zeros(len(x), np.int32)
    which = lambda i, x: jax.lax.switch(i, list(MISLEADING.values()), x)
    for i in range(len(MISLEADING)):
        lawful(x, ATTACKS[name](jax.tree_util.Partial(which, jnp.asarray(i)), x, y, key=KEY))


@attacks
def test_random_models_and_gradients(name):
    (weights,), x, y = problem()[0].args, *problem()[1:]
    noisy = jr.Randomized(
        lambda x, key: network(weights, x + 0.1 * jax.random.normal(key, x.shape))
    )
    gradient = {"flow": jr.gradients.eot(2), "flow_pgd": jr.gradients.smoothed(0.05, 2)}.get(name)
    settings = {} if gradient is None else {"gradient": gradient}
    lawful(x, ATTACKS[name](noisy, x, y, key=KEY, **settings))


@attacks
@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((6, 20), np.float32)}, r"\(batch, height, width"),
        ({"x": np.full((6, *SHAPE), np.nan, np.float32)}, "x must be finite"),
        ({"x": np.full((6, *SHAPE), 200.0, np.float32)}, "0-255"),
        ({"x": np.zeros((0, *SHAPE), np.float32)}, "at least one"),
        ({"y": np.full(6, 3, np.int32)}, "labels in 0..2"),
        ({"key": 0}, "typed key"),
        ({"logits_fn": lambda x: x.sum((1, 2))}, "logits_fn must return"),
        ({"box": (1.0, 0.0)}, "box must be"),
    ],
)
def test_wrong_input_is_refused(name, change, message):
    logits_fn, x, y = problem()
    given = {"logits_fn": logits_fn, "x": x, "y": y, "key": KEY} | change
    model, images, labels = (given.pop(k) for k in ("logits_fn", "x", "y"))
    with pytest.raises(ValueError, match=message):
        ATTACKS[name](model, images, labels, **given)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("attack", "settings", "message"),
    [
        (flow, {"tau": -1.0}, "tau"),
        (flow, {"num_steps": 0}, "num_steps"),
        (flow, {"kappa": -1.0}, "kappa"),
        (flow, {"learning_rate": np.nan}, "learning_rate"),
        (flow, {"target": np.full(6, 7, np.int32)}, "target"),
        (flow, {"loss": jr.losses.targeted(jr.losses.f6)}, "must not be targeted"),
        (flow_pgd, {"num_steps": 0}, "num_steps"),
        (flow_pgd, {"num_restarts": 0}, "num_restarts"),
        (flow_pgd, {"step_size": -1.0}, "step_size"),
        (flow_pgd, {"eps": np.zeros(5)}, "eps"),
        (grid, {"num_angles": 0}, "num_angles"),
        (grid, {"max_shift": -1.0}, "max_shift"),
        (grid, {"loss": jr.losses.targeted(jr.losses.margin)}, "must not be targeted"),
    ],
)
def test_wrong_settings_are_refused(attack, settings, message):
    logits_fn, x, y = problem()
    with pytest.raises(ValueError, match=message):
        attack(logits_fn, x, y, key=KEY, **settings)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("ball", "message"),
    [(jr.Ball("l2", 1.0), "FlowBall"), (FlowBall(1.0, (5, 0)), "null_space must be a pixel")],
)
def test_threats_that_do_not_fit_are_refused(ball, message):
    logits_fn, x, y = problem()
    with pytest.raises(ValueError, match=message):
        jr.attacks.flow_pgd(logits_fn, x, y, key=KEY, ball=ball)


def test_flows_that_succeed_and_no_others():
    logits_fn, x, y = problem()
    y = y.copy()
    y[0] = (y[0] + 1) % 3  # wrong already
    r = flow_field(logits_fn, x, y, key=KEY)
    image = np.asarray(flow(logits_fn, x, y, key=KEY))
    np.testing.assert_allclose(image, jax.vmap(warp)(x, r), atol=1e-6)
    moved = np.asarray(jnp.any(r != 0, (1, 2, 3)))
    assert not moved[0]
    assert moved.any()
    np.testing.assert_array_equal(image[~moved], x[~moved])
    np.testing.assert_array_equal(moved[1:], (np.argmax(logits_fn(image), -1) != y)[1:])


def test_confidence_is_reached():
    logits_fn, x, y = problem()
    image = flow(logits_fn, x, y, key=KEY, kappa=0.5)
    margins = jax.vmap(jr.losses.margin)(logits_fn(image), jnp.asarray(y))
    moved = (np.asarray(image) != x).any((1, 2))
    assert moved.any()
    assert np.all(np.asarray(margins)[moved] > 0.5)


def test_a_heavier_variation_is_a_smoother_flow():
    """Each row its own tau; the least variation at which the middle pixel can look at its right."""
    x = jnp.tile(jnp.array([[0.0, 0.0, 0.0, 1.0, 1.0]]), (1, 3, 1)).astype(jnp.float32)
    logits_fn = lambda x: jnp.stack([0.5 - x[:, 1, 2], x[:, 1, 2] - 0.5], -1)
    x, y = jnp.tile(x, (3, 1, 1)), jnp.zeros(3, jnp.int32)
    tau = jnp.array([1e-3, 1e-2, 0.05])
    r = jr.attacks.flow_field(logits_fn, x, y, key=KEY, tau=tau, num_steps=300)
    variations = jax.vmap(total_variation)(r)
    assert np.all(np.asarray(r[:, 1, 2, 1]) > 0.5)
    assert variations[2] <= 0.2  # moving everything half a pixel has none


@pytest.mark.parametrize("rule", ["dirichlet", "zero_mean", (1, 2)], ids=str)
def test_the_best_flow_of_a_linear_patch(rule):
    """Where the loss is linear in the flow, the steepest step of the whole radius is the best."""
    with jax.enable_x64(True):
        eps, shape = 0.3, (4, 5)
        ramp = jnp.asarray(np.add.outer(0.03 * np.arange(4), 0.1 * np.arange(5)))
        weight = jax.random.normal(jax.random.key(1), shape, jnp.float64).at[:1].set(0)
        weight = weight.at[-1:].set(0).at[:, 0].set(0).at[:, -1].set(0)

        def logits_fn(x):
            value = jnp.sum(weight * (x - ramp), (1, 2))
            return jnp.stack([0 * value, value], -1)

        ball = FlowBall(eps, rule)
        y = np.zeros(1, np.int32)
        attack = functools.partial(jr.attacks.flow_pgd_field, num_steps=60)
        r = attack(logits_fn, ramp[None], y, key=KEY, ball=ball)[0]
        slope = weight[..., None] * jnp.array([0.03, 0.1])
        exact = ball.step(jnp.zeros((*shape, 2)), slope, eps)
        assert ball.distance(r) <= eps * (1 + 1e-9)
        np.testing.assert_allclose(jnp.sum(slope * r), jnp.sum(slope * exact), rtol=1e-3)
        assert jnp.sum(slope * r) <= jnp.sum(slope * exact) + 1e-12


def test_budgets_are_kept_and_none_is_the_clean_image():
    logits_fn, x, y = problem()
    eps = jnp.array([0.0, 0.1, 0.5, 2.0, 50.0, 1e6])
    r = jr.attacks.flow_pgd_field(logits_fn, x, y, key=KEY, ball=FlowBall(eps), num_steps=STEPS)
    sizes = np.asarray(jax.vmap(FlowBall(1.0).distance)(r))
    assert np.all(sizes <= np.asarray(eps) * (1 + 1e-5))
    assert np.isfinite(np.asarray(r)).all()
    np.testing.assert_array_equal(r[0], 0)
    lawful(x, flow_pgd(logits_fn, x, y, key=KEY, eps=eps))
    np.testing.assert_array_equal(flow_pgd(logits_fn, x, y, key=KEY, eps=0.0), x)


@pytest.mark.parametrize("rule", ["dirichlet", "zero_mean", (0, 0)], ids=str)
def test_radii_as_large_as_numbers_get(rule):
    logits_fn, x, y = problem()
    for eps in (1e30, 2e38, 3.4e38):
        ball = FlowBall(eps, rule)
        r = jr.attacks.flow_pgd_field(logits_fn, x, y, key=KEY, ball=ball, num_steps=STEPS)
        assert np.isfinite(np.asarray(r)).all()
        lawful(x, jr.attacks.flow_pgd(logits_fn, x, y, key=KEY, ball=ball, num_steps=STEPS))
    ball, none = FlowBall(1.0, rule), jnp.zeros((5, 4, 2))
    distance, project = jax.jit(ball.distance), jax.jit(ball.project)
    for huge in (none.at[1, 1, 0].set(1.5e38), (none + 3e38).at[0, 0, 0].set(-3e38)):
        assert distance(huge) > 1e38
        assert ball.distance(huge) > 1e38
        assert distance(project(huge)) <= 1 + 1e-5


def test_a_sweep_is_a_loop_over_radii_and_more_is_no_worse():
    with jax.enable_x64(True):
        logits_fn, x, y = problem(double=True)
        run = lambda eps: flow_pgd(logits_fn, x, y, key=KEY, eps=eps)
        radii = jnp.array([0.2, 1.0])
        np.testing.assert_allclose(
            jax.vmap(run)(radii), jnp.stack([run(eps) for eps in radii]), atol=1e-9
        )
        margin = jax.jit(lambda image: jax.vmap(jr.losses.margin)(logits_fn(image), jnp.asarray(y)))
        clean, once = margin(x), margin(run(1.0))
        more = margin(flow_pgd(logits_fn, x, y, key=KEY, eps=1.0, num_restarts=3))
        assert np.all(clean <= once)
        assert np.all(once <= more)
        # What ascent finds, a thousand draws from the ball do not.
        ball = FlowBall(1.0)

        @jax.jit
        def drawn(keys):
            flows = jax.vmap(lambda k: ball.sample(SHAPE, k, jnp.float64))(keys)
            moved = lambda r: jax.vmap(lambda x: warp(x, r))(jnp.asarray(x))
            return jax.vmap(lambda r: margin(moved(r)))(flows)

        assert np.all(drawn(jax.random.split(KEY, 1000)).max(0) <= once + 1e-9)


@pytest.mark.parametrize("degrees", [-30.0, 10.0, 90.0])
def test_motions_are_those_of_scipy(degrees):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = rng.uniform(size=(7, 6))
        move = jax.jit(
            lambda x, angle, shift: warp(x, motion(x.shape, jnp.deg2rad(angle), jnp.stack(shift)))
        )
        turned = move(x, degrees, (0.0, 0.0))
        right = ndimage.rotate(x, degrees, reshape=False, order=1, mode="nearest")
        np.testing.assert_allclose(turned, right, atol=1e-9)
        moved = move(x, 0.0, (1.5, -2.0))
        right = ndimage.shift(x, (1.5, -2.0), order=1, mode="nearest")
        np.testing.assert_allclose(moved, right, atol=1e-9)
        # Zeros from outside, as published, where the border is black: first turned, then moved.
        x = np.pad(rng.uniform(size=(3, 4)), 6)
        both = move(x, degrees, (2.0, -1.0))
        right = ndimage.rotate(x, degrees, reshape=False, order=1)
        right = ndimage.shift(right, (2, -1), order=1)
        np.testing.assert_allclose(both, right, atol=1e-9)


def test_the_worst_of_the_grid_is_that_of_a_search_through_it():
    with jax.enable_x64(True):
        logits_fn, x, y = problem(double=True)
        x_adv = jr.attacks.rotation_translation(
            logits_fn, x, y, key=KEY, max_angle=40.0, max_shift=2.0, num_angles=3, num_shifts=3
        )
        moves = [
            motion(SHAPE, jnp.deg2rad(angle), jnp.array([down, right]))
            for angle in (-40.0, 0.0, 40.0)
            for down in (-2.0, 0.0, 2.0)
            for right in (-2.0, 0.0, 2.0)
        ]
        images = [jax.jit(jax.vmap(warp, (0, None)))(jnp.asarray(x), move) for move in moves]
        score = jax.jit(
            lambda image: (
                jax.vmap(jr.losses.cross_entropy)(logits_fn(image), jnp.asarray(y))
                + 100.0 * (jnp.argmax(logits_fn(image), -1) != y)
            )
        )
        best = np.max([np.asarray(score(image)) for image in images], 0)
        np.testing.assert_allclose(score(x_adv), best, rtol=1e-9)
