"""Carlini and Wagner's attacks against exact distances, their own claims, and a count of steps."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import jaxrobust as jr
from jaxrobust import losses
from jaxrobust.attacks._box_descent import METHODS, adam_start, adam_step, place, variable_of
from jaxrobust.evaluation._count import count

KEY = jax.random.key(5)
L2 = functools.partial(jr.attacks.carlini_wagner_l2, key=KEY)
L0 = functools.partial(jr.attacks.carlini_wagner_l0, key=KEY)
LINF = functools.partial(jr.attacks.carlini_wagner_linf, key=KEY)
QUICK = {"num_steps": 100, "num_searches": 4, "learning_rate": 0.05, "initial_c": 0.1}
OBJECTIVES = {f"f{i}": getattr(losses, f"f{i}") for i in range(1, 8)}


@functools.cache
def affine(dims=8, classes=3, batch=4):
    """An affine classifier and images in the middle of the box, where it is not in the way."""
    rng = np.random.default_rng(classes)
    kernel = rng.normal(size=(dims, classes)).astype(np.float32)
    x = rng.uniform(0.4, 0.6, size=(batch, dims)).astype(np.float32)
    logits_fn = jax.tree_util.Partial(lambda weights, x: x @ weights, jnp.asarray(kernel))
    return logits_fn, kernel, x, (x @ kernel).argmax(1).astype(np.int32)


def exact(kernel, x, y, norm, kappa=0.0):
    """Distance to where each other class leads by kappa over the true one; inf for itself."""
    dual = {"l2": 2, "linf": 1}[norm]
    gaps, sizes = x @ kernel, kernel.T[:, None] - kernel.T[None]
    own = gaps[np.arange(len(x)), y][:, None]
    lengths = np.linalg.norm(sizes, dual, axis=-1)[y]
    other = lengths > 0
    return np.where(other, (own - gaps + kappa) / np.where(other, lengths, 1.0), np.inf)


def l2(x, x_adv):
    return np.linalg.norm((np.asarray(x_adv) - x).reshape(len(x), -1), axis=1)


def linf(x, x_adv):
    return np.abs(np.asarray(x_adv) - x).reshape(len(x), -1).max(1)


@pytest.mark.parametrize(
    ("steps", "rate", "most"), [(1000, 0.01, 1.02), (60, 0.05, 1.25)], ids=["full", "few"]
)
def test_l2_finds_the_exact_distance_of_an_affine_classifier(steps, rate, most):
    logits_fn, kernel, x, y = affine()
    x_adv = L2(logits_fn, x, y, num_steps=steps, num_searches=7, learning_rate=rate, initial_c=1e-2)
    ratio = l2(x, x_adv) / exact(kernel, x, y, "l2").min(1)
    assert (np.asarray(logits_fn(x_adv)).argmax(1) != y).all()
    assert ratio.max() <= most
    assert ratio.min() >= 1 - 1e-4


def test_linf_comes_near_the_exact_distance_of_an_affine_classifier():
    """A limit at which no c up to the largest succeeds ends the row: up to 1 / 0.9 too far."""
    logits_fn, kernel, x, y = affine()
    x_adv = np.asarray(LINF(logits_fn, x, y, num_steps=200, initial_c=0.1))
    ratio = np.abs(x_adv - x).max(1) / exact(kernel, x, y, "linf").min(1)
    assert (np.asarray(logits_fn(x_adv)).argmax(1) != y).all()
    assert ratio.max() <= 1 / 0.9 + 1e-3
    assert ratio.min() >= 1 - 1e-4


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective(name):
    """Two classes, where f1, f4 and f5, which ask for one half, ask for the class."""
    logits_fn, kernel, x, y = affine(classes=2)
    method = METHODS[int(name[1]) % 3]
    settings = QUICK | {"num_searches": 5}
    x_adv = L2(logits_fn, x, y, loss=OBJECTIVES[name], method=method, **settings)
    outputs = logits_fn(x_adv)
    assert (np.asarray(outputs).argmax(1) != y).all()
    reached = np.asarray(jax.vmap(OBJECTIVES[name])(outputs, y))
    assert (reached >= -1e-6).all()
    assert (l2(x, x_adv) <= 1.3 * exact(kernel, x, y, "l2").min(1)).all()


@pytest.mark.parametrize(
    ("attack", "method"),
    [(L2, METHODS[0]), (L2, "clipped"), (L2, "projected"), (L0, "clipped"), (LINF, "projected")],
)
def test_targets_are_reached_and_what_cannot_be_comes_back_clean(attack, method):
    affine_fn, _, x, y = affine()
    settings = {"num_steps": 60, "learning_rate": 0.05, "initial_c": 1.0}
    settings |= {"num_searches": 3} if attack is L2 else {"largest_c": 20.0}

    def logits_fn(x):  # a class that never leads
        return jnp.concatenate([affine_fn(x), jnp.full((len(x), 1), -100.0)], -1)

    target = np.where(np.arange(len(x)) == 1, 3, (y + 1) % 3).astype(np.int32)
    x_adv = np.asarray(attack(logits_fn, x, y, target=target, method=method, **settings))
    reached = np.asarray(logits_fn(x_adv)).argmax(1) == target
    np.testing.assert_array_equal(reached, target != 3)
    np.testing.assert_array_equal(x_adv[1], x[1])


def test_kappa_is_the_margin_that_is_left():
    logits_fn, kernel, x, y = affine()
    kappa = 0.5
    x_adv = L2(logits_fn, x, y, kappa=kappa, **QUICK)
    margin = np.asarray(jax.vmap(losses.margin)(logits_fn(x_adv), y))
    assert (margin >= kappa - 1e-5).all()
    assert (l2(x, x_adv) <= 1.1 * exact(kernel, x, y, "l2", kappa).min(1)).all()
    own = L2(logits_fn, x, y, loss=losses.confident(losses.f6, kappa), **QUICK)
    np.testing.assert_array_equal(own, x_adv)  # that of the loss is kept
    # Wrong already, though not by so much: no success yet.
    again = L2(logits_fn, np.asarray(x_adv), y, kappa=2 * kappa, **QUICK)
    margin = np.asarray(jax.vmap(losses.margin)(logits_fn(again), y))
    assert (margin >= 2 * kappa - 1e-5).all()


def test_a_penalty_has_to_vanish_too():
    """A detector that objects to a bright first pixel, told through an embedding."""
    kernel = jnp.array([[-1.0, 1.0], [-0.5, 0.5]])

    def with_embedding(x):
        return (x - 0.5) @ kernel, x

    def too_bright(outputs, y):
        return jnp.maximum(0.0, outputs[1][0] - 0.45)

    x, y = np.full((2, 2), 0.4, np.float32), np.zeros(2, np.int32)
    free = np.asarray(L2(with_embedding, x, y, **QUICK))
    np.testing.assert_allclose(free, [[0.52, 0.46]] * 2, atol=0.01)
    penalized = losses.penalized(losses.f6, too_bright)
    fmn = functools.partial(jr.attacks.fmn, key=KEY, norm="l2", num_steps=200, step_size=0.1)
    for attack, target in itertools.product((functools.partial(L2, **QUICK), fmn), (None, 1 - y)):
        held = np.asarray(attack(with_embedding, x, y, loss=penalized, target=target))
        np.testing.assert_allclose(held, [[0.45, 0.6]] * 2, atol=0.02)
        assert (held[:, 0] <= 0.45).all()


def test_the_search_for_c_and_the_images_it_keeps():
    """More searches never do worse, since the nearest image of all is kept."""
    logits_fn, _, x, y = affine()
    settings = {"num_steps": 30, "learning_rate": 0.05, "initial_c": 1e-2}
    found = []
    for num_searches in (3, 9):
        x_adv = np.asarray(L2(logits_fn, x, y, num_searches=num_searches, **settings))
        wrong = np.asarray(logits_fn(x_adv)).argmax(1) != y
        found.append(np.where(wrong, l2(x, x_adv), np.inf))
    assert np.isfinite(found[-1]).all()
    assert (found[1] <= found[0]).all()
    assert (found[1] < found[0]).any()


def steps_taken(attack, x, y, **settings):
    """How often the model was run, for all rows together."""
    calls = []

    def told(x):
        jax.debug.callback(lambda _: calls.append(1), x[0, 0])
        return affine()[0](x)

    x_adv = jax.block_until_ready(attack(told, x, y, **settings))
    jax.effects_barrier()
    return x_adv, len(calls)


def num_changed(x, x_adv):
    return (np.asarray(x_adv) != x).sum(1)


@pytest.mark.parametrize(
    ("attack", "settings", "distance", "factor"),
    [
        (L2, {"num_searches": 4}, l2, 1.01),
        (L0, {"largest_c": 100.0}, num_changed, 1.0),
        (LINF, {}, linf, 1.02),
    ],
)
def test_aborting_early_saves_steps_and_costs_no_distance(attack, settings, distance, factor):
    _, _, x, y = affine()
    settings = {"num_steps": 200, "learning_rate": 0.05, "initial_c": 0.1, **settings}
    early, few = steps_taken(attack, x, y, **settings)
    late, many = steps_taken(attack, x, y, abort_early=False, **settings)
    assert few < 0.6 * many
    assert (distance(x, early) <= factor * distance(x, late)).all()


def test_wrong_rows_cost_nothing():
    _, _, x, y = affine()
    wrong = ((y + 1) % 3).astype(np.int32)
    x_adv, runs = steps_taken(L2, x, wrong, **QUICK)
    np.testing.assert_array_equal(x_adv, x)
    assert runs <= len(x)


def test_what_is_counted():
    logits_fn, _, x, _ = affine()
    against = functools.partial(jr.attacks.carlini_wagner_l2, num_steps=7, num_searches=3)
    spent = count(jr.attacks.against(against), logits_fn, x, jr.Ball("l2", 0.1))
    assert spent == (21, 22)  # one forward finds the images that are wrong already
    noisy = functools.partial(against, gradient=jr.gradients.smoothed(0.1, 2))
    _, forwards = count(jr.attacks.against(noisy), logits_fn, x, jr.Ball("l2", 0.1))
    assert forwards == 1 + 21 * 3


@pytest.mark.parametrize(
    ("attack", "gradient"),
    [
        (L2, jr.gradients.smoothed(0.3, 2)),
        (L2, jr.gradients.hessian_direction()),
        (L0, jr.gradients.eot(2)),
        (LINF, jr.gradients.smoothed(0.3, 2)),
    ],
)
def test_success_is_the_image_s_own_whatever_the_gradient(attack, gradient):
    """Noise carries images over the boundary that are not past it themselves."""
    logits_fn, _, x, y = affine()
    settings = {"num_steps": 40, "learning_rate": 0.05, "initial_c": 1.0}
    settings |= {"num_searches": 3} if attack is L2 else {"largest_c": 4.0}
    x_adv = attack(logits_fn, x, y, gradient=gradient, **settings)
    moved = (np.asarray(x_adv) != x).any(1)
    assert moved.any()
    assert (np.asarray(logits_fn(x_adv)).argmax(1) != y)[moved].all()


def test_l0_changes_the_one_pixel_that_can_do_it_alone():
    """Brute force over single entries: the largest weight suffices, no other does."""
    weights = np.array([0.3, 0.2, 3.0, 0.4, 0.1], np.float32)
    logits_fn = lambda x: jnp.stack([0 * x[:, 0], (x - 0.5) @ weights - 1.0], -1)
    x, y = np.full((2, 5), 0.5, np.float32), np.zeros(2, np.int32)
    x_adv = np.asarray(L0(logits_fn, x, y, num_steps=60, learning_rate=0.05, initial_c=1.0))
    np.testing.assert_array_equal(x_adv != x, [[False, False, True, False, False]] * 2)
    margin = np.asarray(jax.vmap(losses.margin)(logits_fn(x_adv), y))
    assert (margin >= 0.01 - 1e-5).all()


def test_l0_counts_a_colour_pixel_as_one():
    """One pixel of three channels does what takes three pixels of one channel."""
    weights = np.zeros((2, 3, 3), np.float32)
    weights[0, 0] = 1.0  # three channels together: 1.5 of the 1.2 that are wanted
    weights[1] = np.diag([0.9, 0.9, 0.9])  # a channel here and there: three pixels, 1.35

    def logits_fn(x):
        return jnp.stack([0 * x[:, 0, 0, 0], jnp.sum((x - 0.5) * weights, (1, 2, 3)) - 1.2], -1)

    x, y = np.full((2, 2, 3, 3), 0.5, np.float32), np.zeros(2, np.int32)
    settings = {"num_steps": 60, "learning_rate": 0.05, "initial_c": 1.0, "largest_c": 100.0}
    x_adv = np.asarray(L0(logits_fn, x, y, **settings))
    pixels = (x_adv != x).any(-1)
    np.testing.assert_array_equal(pixels, [[[True, False, False], [False] * 3]] * 2)


@pytest.mark.parametrize("method", ["change_of_variable", "clipped"])
def test_constants_hold_in_any_box(method):
    """The same images in another box are attacked alike."""
    box = (-3.0, 252.0)
    with jax.enable_x64(True):
        _, kernel, x, y = affine()
        low, width = box[0], box[1] - box[0]
        x, kernel = x.astype(np.float64), kernel.astype(np.float64)
        there = L2(lambda x: (x - low) / width @ kernel, low + width * x, y, box=jr.Box(*box),
                   method=method, **QUICK)  # fmt: skip
        here = L2(lambda x: x @ kernel, x, y, method=method, **QUICK)
        np.testing.assert_allclose((np.asarray(there) - low) / width, here, atol=1e-6)


def test_places_and_their_rates():
    """Against automatic differentiation; and all methods start at the image."""
    x = jnp.array([0.0, 0.25, 1.0, 0.5])
    box = jr.Box(-0.5, 1.0)
    for method in METHODS:
        start = variable_of(method, x, x, box)
        np.testing.assert_allclose(place(method, start, x, box).x_adv, x, atol=1e-5)
        there = start + jnp.array([0.1, -0.3, -0.2, 0.0])
        at = place(method, there, x, box)
        for value, rate in ((0, at.x_rate), (1, at.delta_rate)):
            jacobian = jax.jacobian(lambda v: place(method, v, x, box)[value])(there)  # noqa: B023
            np.testing.assert_allclose(rate, jnp.diag(jacobian), atol=1e-6)


def test_pixels_at_the_edge_of_the_box_keep_a_slope():
    variable = jnp.array([-12.0, -9.5, -7.25, 0.0, 8.0, 11.0])
    rate = place("change_of_variable", variable, jnp.zeros(6), jr.Box()).x_rate
    np.testing.assert_allclose(rate, 0.5 / np.cosh(np.float64(variable)) ** 2, rtol=1e-5)


def test_pixels_at_the_edge_of_the_box_come_back():
    """Long steps drive them out there, where 1 - tanh^2 rounds to 0."""
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(40, 2)).astype(np.float32)
    x = rng.choice([0, 0.05, 0.1, 0.9, 1], size=(6, 40)).astype(np.float32)
    logits_fn = jax.tree_util.Partial(lambda weights, x: x @ weights, jnp.asarray(kernel))
    y = np.asarray(logits_fn(x)).argmax(1).astype(np.int32)
    x_adv = LINF(logits_fn, x, y, num_steps=100, learning_rate=0.3)
    assert (np.asarray(logits_fn(x_adv)).argmax(1) != y).all()
    slope = (kernel[:, 1] - kernel[:, 0]) * np.where(y == 0, 1, -1)[:, None]
    exact = [least_linf(row, w) for row, w in zip(x, slope, strict=True)]
    assert np.median(linf(x, x_adv) / exact) < 1.5


def least_linf(x, slope):
    """The least linf distance within [0, 1] at which `slope'x` is 0, by bisection."""

    def over(eps):
        return slope @ x + np.abs(slope) @ np.minimum(eps, np.where(slope > 0, 1 - x, x))

    return scipy.optimize.brentq(over, 0, 1)


def test_adam_is_optax_adam():
    slopes = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    optimiser = optax.adam(0.1)
    theirs, ours = optimiser.init(jnp.zeros(5)), adam_start(jnp.zeros(5))
    for slope in slopes:
        update, theirs = optimiser.update(jnp.asarray(slope), theirs)
        ours, move = adam_step(ours, jnp.asarray(slope), 0.1)
        np.testing.assert_allclose(-move, update, rtol=2e-5, atol=1e-7)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("attack", "change", "message"),
    [
        (L2, {"method": "tanh"}, "method must be one of change_of_variable, clipped, projected"),
        (L2, {"num_steps": 0}, "num_steps must be"),
        (L2, {"num_searches": 0}, "num_searches must be"),
        (L2, {"learning_rate": 0.0}, "learning_rate must be positive"),
        (L2, {"initial_c": np.nan}, "initial_c must be finite"),
        (L2, {"initial_c": 1e11}, "initial_c must be below 1e\\+10"),
        (L0, {"initial_c": 4.0, "largest_c": 2.0}, "initial_c must be below 2"),
        (LINF, {"kappa": -1.0}, "kappa must be finite"),
        (LINF, {"loss": losses.margin}, "loss must be one of losses.f1 to f7"),
        (L2, {"loss": losses.targeted(losses.f6)}, "loss must not be targeted"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(attack, change, message):
    logits_fn, _, x, y = affine()
    with pytest.raises(ValueError, match=message):
        attack(logits_fn, x, y, **change)
