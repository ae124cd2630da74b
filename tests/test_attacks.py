"""Attacks against closed forms, and the parts that compose them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import EPS, NORMS, images, problem

import jaxrobust as jr

KEY = jax.random.key(3)


def linear(seed=0, dims=6, classes=2):
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(dims, classes)).astype(np.float32)
    return jr.layers.Dense(kernel, np.zeros(classes, np.float32))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", ["fgsm", "bim", "pgd"])
def test_exact_on_a_linear_model(norm, name):
    """Two classes, box not active: the margin falls by eps times the dual norm of the gap."""
    layer = linear()
    logits_fn = jax.tree_util.Partial(jr.layers.apply, [layer])
    x = np.random.default_rng(1).uniform(0.4, 0.6, size=(8, 6)).astype(np.float32)
    y = np.asarray(logits_fn(x)).argmax(-1)
    eps = {"linf": 0.05, "l2": 0.1, "l1": 0.15}[norm]
    attack = getattr(jr.attacks, name)
    if name == "pgd":  # long steps, so that the random start is forgotten
        attack = functools.partial(attack, step_size=eps)
    x_adv = attack(logits_fn, x, y, key=KEY, ball=jr.Ball(norm, eps))
    gap = layer.kernel[:, 0] - layer.kernel[:, 1]
    signs = np.where(y == 0, 1, -1)
    fall = signs * ((x - np.asarray(x_adv)) @ gap)
    best = eps * np.linalg.norm(gap, {"linf": 1, "l2": 2, "l1": np.inf}[norm])
    np.testing.assert_allclose(fall, best, rtol=1e-4)


def test_targeted_reaches_its_target():
    layer = linear(classes=4)
    logits_fn = jax.tree_util.Partial(jr.layers.apply, [layer])
    x = images(2, 12)
    target = ((np.asarray(logits_fn(x)).argmax(-1) + 1) % 4).astype(np.int32)
    x_adv = jr.attacks.pgd(
        logits_fn, x, target, key=KEY, ball=jr.Ball("linf", 0.9),
        loss=jr.losses.targeted(jr.losses.margin),
    )  # fmt: skip
    margin = jax.vmap(jr.losses.margin)
    before, after = (np.asarray(margin(logits_fn(z), target)) for z in (x, x_adv))
    assert (after < before).all()
    hits = np.asarray(logits_fn(x_adv)).argmax(-1) == target
    np.testing.assert_array_equal(hits, after < 0)
    assert hits.any()


def test_restarts_only_help_and_stop_at_success():
    logits_fn, _, x, y = problem(5, batch=64)
    ball = jr.Ball("linf", 0.08)
    few = functools.partial(jr.attacks.pgd, num_steps=3)
    once = few(logits_fn, x, y, key=KEY, ball=ball)
    often = few(logits_fn, x, y, key=KEY, ball=ball, num_restarts=8)
    wrong_once = np.asarray(logits_fn(once)).argmax(-1) != y
    wrong_often = np.asarray(logits_fn(often)).argmax(-1) != y
    assert (wrong_often | ~wrong_once).all()
    assert wrong_often.sum() >= wrong_once.sum()
    # The first run is the same run: where it succeeded, its image is what comes back.
    np.testing.assert_allclose(
        np.asarray(often)[wrong_once], np.asarray(once)[wrong_once], atol=1e-6
    )


def test_step_size_one_a_row():
    logits_fn, _, x, y = problem(6)
    steps = jnp.linspace(0.0, 0.07, len(x))
    x_adv = jr.attacks.pgd(
        logits_fn, x, y, key=KEY, ball=jr.Ball("linf", 0.2), num_steps=1, step_size=steps,
        random_start=False,
    )  # fmt: skip
    np.testing.assert_allclose(np.abs(np.asarray(x_adv) - x).max(1), steps, atol=1e-6)


def test_trace_is_of_the_run_that_pgd_returns():
    logits_fn, _, x, y = problem(7)
    options = {"key": KEY, "ball": jr.Ball("l2", 0.4), "num_steps": 6, "num_restarts": 2}
    x_adv, trace = jr.attacks.pgd_trace(logits_fn, x, y, **options)
    np.testing.assert_allclose(x_adv, jr.attacks.pgd(logits_fn, x, y, **options), atol=1e-6)
    assert trace.loss.shape == trace.gradient_norm.shape == trace.success.shape == (8, 6)
    assert (trace.loss[:, -1] >= trace.loss[:, 0] - 1e-3).all()
    start_wrong = np.asarray(trace.success)[:, 0]
    assert start_wrong.mean() < 0.8


@pytest.mark.parametrize("chunk", [1, 3, 8, 20])
def test_on_alive_is_the_attack_on_the_living(chunk):
    logits_fn, _, x, y = problem(8)
    keys = jax.random.split(KEY, len(x))
    ball = jr.Ball("linf", jnp.linspace(0.02, 0.1, len(x)))
    everyone = np.asarray(jr.attacks.fgsm(logits_fn, x, y, key=keys, ball=ball))
    alive = np.array([True, False, True, True, False, False, True, False])
    got = jr.attacks.on_alive(jr.attacks.fgsm, chunk)(
        logits_fn, x, y, jnp.asarray(alive), key=keys, ball=ball
    )
    np.testing.assert_allclose(got, np.where(alive[:, None], everyone, x), atol=1e-6)
    nobody = jr.attacks.on_alive(jr.attacks.fgsm, chunk)(
        logits_fn, x, y, jnp.zeros(8, bool), key=keys, ball=ball
    )
    np.testing.assert_array_equal(nobody, x)


def test_first_success_is_the_worst_case_over_its_members():
    logits_fn, _, x, y = problem(9, batch=40)
    y = y.copy()
    y[:4] = (y[:4] + 1) % 3  # wrong from the start
    ball = jr.Ball("linf", 0.1)
    members = {"fgsm": jr.attacks.fgsm, "pgd": functools.partial(jr.attacks.pgd, num_steps=5)}
    x_adv = jr.attacks.first_success(members, chunk=16)(logits_fn, x, y, key=KEY, ball=ball)
    report = jr.evaluate(logits_fn, (x, y), attacks=members, ball=ball, key=KEY, batch_size=10)
    robust = np.asarray(logits_fn(x_adv)).argmax(-1) == y
    np.testing.assert_array_equal(robust, report.examples["robust"])
    np.testing.assert_array_equal(x_adv[:4], x[:4])
    with pytest.raises(ValueError, match="members"):
        jr.attacks.first_success({})


@pytest.mark.parametrize("norm", NORMS)
def test_randomised_models_get_a_fresh_key_at_every_step(norm):
    def fn(x, key):
        return jnp.stack([x.sum(-1), jnp.zeros(len(x))], -1) * jax.random.normal(key, (1, 1))

    x, y = images(0, 6), np.zeros(6, np.int32)
    _, trace = jr.attacks.pgd_trace(
        jr.Randomized(fn), x, y, key=KEY, ball=jr.Ball(norm, EPS[norm]), num_steps=8
    )
    assert (np.std(np.asarray(trace.gradient_norm), axis=1) > 1e-3).all()


def test_labels_that_a_program_closes_over_are_looked_at_too():
    logits_fn = jax.tree_util.Partial(lambda x: x * jnp.array([2.0, 1.0]))
    x, key = jnp.full((2, 2), 0.5), jax.random.key(0)

    def run(y):
        search = lambda: jr.attacks.fgsm(logits_fn, x, y, key=key, ball=jr.Ball("linf", 0.1))
        return jax.jit(search)()

    assert run(jnp.array([0, 1])).shape == x.shape
    with pytest.raises(ValueError, match=r"y must hold labels in 0\.\.1; got labels from -1"):
        run(jnp.array([0, -1]))
