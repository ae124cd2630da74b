"""Losses against their formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrobust import losses

logits_and_label = st.tuples(
    st.lists(st.floats(-20, 20, width=32), min_size=3, max_size=3), st.integers(0, 2)
)


@settings(max_examples=50, deadline=None)
@given(logits_and_label)
def test_values(case):
    logits, y = jnp.array(case[0], jnp.float32), jnp.array(case[1])
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    np.testing.assert_allclose(losses.cross_entropy(logits, y), expected, rtol=1e-5, atol=1e-6)
    others = max(v for i, v in enumerate(case[0]) if i != case[1])
    gap = others - case[0][case[1]]
    np.testing.assert_allclose(losses.margin(logits, y), gap, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(losses.hinge(logits, y), max(0, 1 + gap), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        losses.targeted(losses.margin)(logits, y), -gap, rtol=1e-5, atol=1e-5
    )
    hit = int(np.argmax(np.float32(case[0]))) == case[1]
    assert bool(losses.success(losses.margin, logits, y)) is not hit
    assert bool(losses.success(losses.targeted(losses.margin), logits, y)) is hit


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.hinge])
def test_models_that_return_more_than_logits(loss):
    logits, y = jnp.array([1.0, 2.0, 0.5]), jnp.array(0)
    assert float(loss((logits, jnp.zeros(4)), y)) == float(loss(logits, y))


def test_finite_gradients_far_out():
    for loss in (losses.cross_entropy, losses.margin, losses.hinge):
        gradient = jax.grad(loss)(jnp.array([1e4, -1e4, 0.0]), jnp.array(1))
        assert np.isfinite(np.asarray(gradient)).all()


def test_logits_that_are_not_finite_predict_nothing():
    broken = jnp.array([jnp.nan, 0.0])
    assert bool(losses.success(losses.margin, broken, jnp.array(0)))
    assert not bool(losses.success(losses.targeted(losses.margin), broken, jnp.array(0)))


def test_targeted_losses_are_equal_so_that_nothing_is_retraced():
    assert losses.targeted(losses.margin) == losses.targeted(losses.margin)
    assert hash(losses.targeted(losses.margin)) == hash(losses.targeted(losses.margin))
