"""Distillation: worked by hand, against NumPy, and what it does to logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrobust as jr
from jaxrobust import objectives
from jaxrobust.types import Batch

KEY = jax.random.key(0)


def forward(params, model_state, x):
    return x @ params, model_state


def affine(weights, x):
    return x @ weights


def step(objective, params, x, y):
    batch = Batch(jnp.asarray(x), jnp.asarray(y), jnp.arange(len(y)))
    state = objective.init(params, KEY)
    return objective.value_and_grad(params, {}, state, batch, key=KEY)


def test_worked_by_hand():
    """Teacher's odds 3:1 at T = 2, student's 1:1: the loss is log 2, its slope half of 1/2 - p."""
    teacher = jax.tree_util.Partial(affine, jnp.array([[2 * np.log(3.0), 0.0]], jnp.float32))
    objective = objectives.distillation(forward, teacher, temperature=2.0)
    out, grads = step(objective, jnp.zeros((1, 2)), np.ones((1, 1), np.float32), np.array([0]))
    np.testing.assert_allclose(out.loss, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(grads, [[(0.5 - 0.75) / 2, (0.5 - 0.25) / 2]], rtol=1e-6)
    assert float(out.metrics["accuracy"]) == 1.0  # ties go to class 0


def test_value_and_gradient_are_numpys():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(7, 5)).astype(np.float32)
    teacher, student = rng.normal(size=(2, 5, 4)).astype(np.float32)
    y = rng.integers(0, 4, 7)

    def softmax(z):
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    for temperature in (1.0, 7.0, 100.0):
        p, q = (softmax(x @ w / temperature) for w in (teacher, student))
        model = jax.tree_util.Partial(affine, teacher)
        objective = objectives.distillation(forward, model, temperature=temperature)
        out, grads = step(objective, jnp.asarray(student), x, y)
        np.testing.assert_allclose(out.loss, -(p * np.log(q)).sum(1).mean(), rtol=1e-5)
        np.testing.assert_allclose(
            grads, x.T @ (q - p) / (7 * temperature), rtol=1e-4, atol=1e-5 / temperature
        )
        np.testing.assert_allclose(out.metrics["accuracy"], ((x @ student).argmax(1) == y).mean())


def test_a_teacher_is_trained_at_the_same_temperature():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(6, 5)).astype(np.float32), rng.integers(0, 3, 6)
    params = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    hot = step(objectives.cross_entropy(forward, temperature=10.0), params, x, y)
    cool = step(objectives.cross_entropy(forward), params / 10, x, y)
    np.testing.assert_allclose(hot[0].loss, cool[0].loss, rtol=1e-6)
    np.testing.assert_allclose(hot[1], cool[1] / 10, rtol=1e-5, atol=1e-7)
    for objective in (objectives.cross_entropy, functools.partial(objectives.distillation,
                                                                  teacher=affine)):  # fmt: skip
        for wrong in (0.0, -1.0, np.inf, np.nan):
            with pytest.raises(ValueError, match="temperature must be"):
                objective(forward, temperature=wrong)


def blobs():
    rng = np.random.default_rng(2)
    y = np.arange(96) % 3
    centres = np.eye(3, 4) * 0.4 + 0.3
    return np.clip(centres[y] + 0.08 * rng.normal(size=(96, 4)), 0, 1).astype(np.float32), y


def test_logits_grow_by_the_temperature_and_hide_the_gradient(tmp_path):
    """Teacher and student at T = 100, with a checkpoint of the teacher; then the attacks."""
    x, y = blobs()
    temperature = 100.0
    fit = functools.partial(
        jr.train.fit, params=jnp.zeros((4, 3)), optimizer=optax.adam(3.0), data=(x, y), key=KEY,
        num_epochs=30, batch_size=32,
    )  # fmt: skip
    hot = fit(objectives.cross_entropy(forward, temperature=temperature)).params
    plain = fit(objectives.cross_entropy(forward), optimizer=optax.adam(0.03)).params
    teacher = jax.tree_util.Partial(affine, hot)
    objective = objectives.distillation(forward, teacher, temperature=temperature)
    done = fit(objective, directory=tmp_path / "run")
    again = fit(objective, directory=tmp_path / "run", resume=True)
    np.testing.assert_array_equal(done.params, again.params)
    np.testing.assert_array_equal(teacher.args[0], done.objective_state.teacher[0])  # lives on

    student, ordinary = (jax.tree_util.Partial(affine, w) for w in (done.params, plain))
    assert (np.asarray(student(x)).argmax(1) == y).mean() > 0.95
    # Adam scales with its rate: the ordinary network, a hundred times larger.
    ratio = np.abs(np.asarray(student(x))).mean() / np.abs(np.asarray(ordinary(x))).mean()
    assert 30 < ratio < 300
    entropy_slope = jax.vmap(jax.grad(lambda x, y: jr.losses.cross_entropy(student(x[None])[0], y)))
    assert (np.abs(entropy_slope(x, y)).max(1) == 0).mean() > 0.5
    attack = functools.partial(
        jr.attacks.pgd, key=KEY, ball=jr.Ball("linf", 0.3), num_steps=5, random_start=False
    )

    def accuracy(x_adv):
        return (np.asarray(student(x_adv)).argmax(1) == y).mean()

    masked = accuracy(attack(student, x, y))
    seen = accuracy(attack(student, x, y, loss=jr.losses.margin))
    cooled = accuracy(attack(lambda x: student(x) / temperature, x, y))
    assert seen == cooled < 0.2 < 0.5 < masked


def test_adds_up_and_refuses_a_random_teacher():
    params = jnp.eye(3)
    both = objectives.add(
        objectives.cross_entropy(forward), objectives.distillation(forward, affine_of(params))
    )
    x, y = np.eye(3, dtype=np.float32), np.arange(3)
    out, grads = step(both, params, x, y)
    assert np.isfinite(float(out.loss))
    assert grads.shape == params.shape
    with pytest.raises(ValueError, match="teacher must be deterministic"):
        objectives.distillation(forward, jr.Randomized(lambda x, key: x))


def affine_of(weights):
    return jax.tree_util.Partial(affine, weights)
