"""Objectives against hand-made losses and gradients."""

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
BALL = jr.Ball("linf", 0.1)


def forward(params, model_state, x):
    return jnp.tanh(x @ params["w"]) @ params["v"], model_state


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    params = {"w": jnp.array(rng.normal(size=(6, 5))), "v": jnp.array(rng.normal(size=(5, 3)))}
    x = jnp.array(rng.uniform(size=(8, 6)), jnp.float32)
    batch = Batch(x, jnp.array(rng.integers(0, 3, 8)), jnp.arange(8))
    return jax.tree.map(lambda w: w.astype(jnp.float32), params), batch


def evaluate(objective, params, batch, state=None):
    state = objective.init(params, KEY) if state is None else state
    return objective.value_and_grad(params, {}, state, batch, key=KEY)


def close(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_cross_entropy_is_optax(case):
    params, batch = case

    def loss(params):
        logits = forward(params, {}, batch.x)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.y).mean()

    out, grads = evaluate(objectives.cross_entropy(forward), params, batch)
    value, expected = jax.value_and_grad(loss)(params)
    close((out.loss, grads), (value, expected))
    hits = forward(params, {}, batch.x)[0].argmax(-1) == batch.y
    close(out.metrics, {"accuracy": hits.mean()})


def test_hinge(case):
    params, batch = case
    out, _ = evaluate(objectives.hinge(forward), params, batch)
    logits = np.asarray(forward(params, {}, batch.x)[0])
    expected = [
        max(0, 1 + max(row[i] for i in range(3) if i != y) - row[y])
        for row, y in zip(logits, np.asarray(batch.y), strict=True)
    ]
    np.testing.assert_allclose(out.loss, np.mean(expected), rtol=1e-5)


def test_madry_is_the_loss_at_the_attacked_images_and_no_derivative_of_the_attack(case):
    params, batch = case
    attack = functools.partial(jr.attacks.pgd, num_steps=3)
    out, grads = evaluate(objectives.madry(forward, attack, ball=BALL), params, batch)
    logits_fn = jax.tree_util.Partial(lambda p, x: forward(p, {}, x)[0], params)
    x_adv = attack(logits_fn, batch.x, batch.y, key=KEY, ball=BALL)
    clean, expected = evaluate(
        objectives.cross_entropy(forward), params, batch._replace(x=x_adv)
    )  # fmt: skip
    close((out.loss, grads), (clean.loss, expected))
    assert float(out.loss) > float(
        evaluate(objectives.cross_entropy(forward), params, batch)[0].loss
    )


def test_madry_follows_a_schedule_of_eps(case):
    params, batch = case
    warmup = optax.linear_schedule(0.0, 0.1, 4)
    objective = objectives.scheduled(
        lambda eps: objectives.madry(forward, jr.attacks.fgsm, ball=jr.Ball("linf", eps)),
        eps=warmup,
    )
    state, seen = objective.init(params, KEY), []
    for _ in range(6):
        out, _ = evaluate(objective, params, batch, state)
        state = out.state
        seen.append(float(out.metrics["eps"]))
    np.testing.assert_allclose(seen, [0, 0.025, 0.05, 0.075, 0.1, 0.1], atol=1e-7)


def test_objectives_add_up_and_scale(case):
    params, batch = case
    clean = objectives.cross_entropy(forward)
    robust = objectives.madry(forward, jr.attacks.fgsm, ball=BALL)
    mixed = objectives.add(objectives.scale(0.25, clean), objectives.scale(0.75, robust), clean)
    out, grads = evaluate(mixed, params, batch)
    first, first_grads = evaluate(clean, params, batch)
    second, second_grads = evaluate(robust, params, batch)
    np.testing.assert_allclose(out.loss, 1.25 * first.loss + 0.75 * second.loss, rtol=1e-5)
    close(grads, jax.tree.map(lambda a, b: 1.25 * a + 0.75 * b, first_grads, second_grads))
    assert set(out.metrics) == {"accuracy", "adversarial_accuracy", "accuracy_2"}


def test_sums_thread_the_model_state_and_give_each_its_own_key(case):
    params, batch = case

    def counting(params, model_state, x):
        return forward(params, {}, x)[0], {"calls": model_state["calls"] + 1}

    keys = []

    def attack(logits_fn, x, y, *, key, ball):
        keys.append(jax.random.key_data(key))
        return x

    robust = objectives.madry(counting, attack, ball=BALL, eval_forward=counting)
    both = objectives.add(robust, robust)
    out, _ = both.value_and_grad(params, {"calls": 0}, both.init(params, KEY), batch, key=KEY)
    assert out.model_state == {"calls": 2}
    assert not np.array_equal(*keys)


def test_an_empty_sum_is_refused(untyped):
    with pytest.raises(ValueError, match="at least one objective"):
        objectives.add()
    with pytest.raises(ValueError, match="one by one; got list"):
        objectives.add([objectives.cross_entropy(forward)])


def test_the_attack_sees_a_model_with_a_state_in_evaluation_mode(case):
    """In training mode a batch of one is its own mean, and has no gradient."""
    params, batch = case

    def train_mode(params, model_state, x):
        mean = x.mean(0)
        return forward(params, {}, x - mean)[0], {"mean": mean}

    def eval_mode(params, model_state, x):
        return forward(params, {}, x - model_state["mean"])[0], model_state

    attack = functools.partial(jr.attacks.fgsm)
    state = {"mean": batch.x.mean(0)}
    blind = objectives.madry(train_mode, attack, ball=BALL)
    with pytest.raises(ValueError, match="eval_forward"):
        blind.value_and_grad(params, state, blind.init(params, KEY), batch, key=KEY)
    seeing = objectives.madry(train_mode, attack, ball=BALL, eval_forward=eval_mode)
    out, _ = seeing.value_and_grad(params, state, seeing.init(params, KEY), batch, key=KEY)
    clean = objectives.cross_entropy(train_mode)
    assert float(out.loss) > float(clean.value_and_grad(params, state, (), batch, key=KEY)[0].loss)
