"""Losses against their formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrobust as jr
from jaxrobust import losses

logits_and_label = st.tuples(
    st.lists(st.floats(-20, 20, width=32, allow_subnormal=False), min_size=3, max_size=3),
    st.integers(0, 2),
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


SEVEN = [getattr(losses, f"f{i}") for i in range(1, 8)]
EXACT = [losses.f2, losses.f3, losses.f6, losses.f7]


def paper_f(number, z, t):
    """Carlini and Wagner's objectives as corrected, in NumPy, for a target t."""
    f = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    others = np.delete(np.arange(z.size), t)
    gap_f, gap_z = f[others].max() - f[t], z[others].max() - z[t]
    return {
        1: -np.log2(f[t]) - 1,
        2: max(gap_f, 0),
        3: np.log1p(np.exp(gap_f)) - np.log(2),
        4: max(0.5 - f[t], 0),
        5: -np.log(2 * f[t]),
        6: max(gap_z, 0),
        7: np.log1p(np.exp(gap_z)) - np.log(2),
    }[number]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-8, 8, width=32, allow_subnormal=False), min_size=4, max_size=4),
    st.integers(0, 3),
)
def test_carlini_wagner_objectives(values, t):
    z = np.array(values)
    with jax.enable_x64(True):
        logits, target = jnp.asarray(z), jnp.asarray(t)
        for number, loss in enumerate(SEVEN, 1):
            got = losses.targeted(loss)(logits, target)
            np.testing.assert_allclose(-got, paper_f(number, z, t), atol=1e-9)
            # Untargeted: the best over all other classes, as the paper attacks.
            best = min(paper_f(number, z, i) for i in range(4) if i != t)
            np.testing.assert_allclose(-loss(logits, target), best, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-60, 60), min_size=4, max_size=4, unique=True), st.integers(0, 3))
def test_which_objectives_are_zero_exactly_on_success(values, t):
    """Logits a twentieth apart, so that no tie and no rounding decides."""
    logits, target = jnp.asarray(values, jnp.float32) / 20, jnp.asarray(t)
    for aim in (lambda loss: loss, losses.targeted):
        for loss in SEVEN:
            reached = bool(losses.success(aim(loss), logits, target))
            claimed = float(aim(loss)(logits, target)) >= 0
            assert reached or not claimed  # one half implies it
            if loss in EXACT:
                assert claimed == reached


@pytest.mark.parametrize("loss", SEVEN)
def test_confidence_is_a_margin_of_logits(loss):
    sure = losses.confident(loss, 2.0)
    for gap in (1.9, 2.1):
        logits = jnp.array([0.0, gap, -30.0])
        assert bool(losses.success(sure, logits, jnp.array(0))) == (gap > 2)
        assert bool(losses.success(losses.targeted(sure), logits, jnp.array(1))) == (gap > 2)
        if loss in EXACT:
            assert (float(sure(logits, jnp.array(0))) >= 0) == (gap > 2)
    assert losses.confident(losses.targeted(loss), 2.0) == losses.targeted(sure)


@pytest.mark.usefixtures("untyped")
def test_confidence_needs_a_loss_that_has_it():
    assert losses.confident(losses.margin, 0.0) is losses.margin
    with pytest.raises(ValueError, match=r"kappa above 0 needs one of losses.f1 to f7"):
        losses.confident(losses.margin, 1.0)
    with pytest.raises(ValueError, match="kappa must be finite and at least 0; got -1"):
        losses.confident(losses.f6, -1.0)


def test_dlr_by_hand_and_at_any_scale():
    logits, y = jnp.array([3.0, 5.0, 1.0, -1.0]), jnp.array(0)
    np.testing.assert_allclose(losses.dlr(logits, y), (5 - 3) / (5 - 1), rtol=1e-6)
    np.testing.assert_allclose(losses.dlr(logits, jnp.array(1)), -(5 - 3) / (5 - 1), rtol=1e-6)
    towards = losses.targeted_dlr(logits, y, jnp.array(2))
    np.testing.assert_allclose(towards, (1 - 3) / (5 - (1 - 1) / 2), rtol=1e-6)
    for scale in (1e-3, 1e3):
        np.testing.assert_allclose(losses.dlr(scale * logits, y), losses.dlr(logits, y), rtol=1e-5)
        scaled = losses.targeted_dlr(scale * logits, y, jnp.array(2))
        np.testing.assert_allclose(scaled, towards, rtol=1e-5)


def test_dlr_of_few_classes():
    three = jnp.array([3.0, 5.0, 1.0])
    towards = losses.targeted_dlr(three, jnp.array(0), jnp.array(2))
    np.testing.assert_allclose(towards, (1 - 3) / (5 - 1), rtol=1e-6)
    two = jnp.array([3.0, 5.0])
    assert float(losses.dlr(two, jnp.array(0))) == 2
    assert float(losses.targeted_dlr(two, jnp.array(0), jnp.array(1))) == 2


def test_a_penalty_is_paid_and_stays_one_where_the_loss_is_targeted():
    def penalty(outputs, y):
        return jax.nn.relu(outputs[1] - 1.0)

    both = losses.penalized(losses.f6, penalty)
    logits = jnp.array([0.0, 1.0])
    for embedding, paid in ((0.5, 0.0), (3.0, 2.0)):
        outputs = (logits, jnp.asarray(embedding))
        for loss, y in ((both, 0), (losses.targeted(both), 1)):
            assert float(loss(outputs, jnp.asarray(y))) == -paid
            assert bool(losses.success(loss, outputs, jnp.asarray(y))) == (paid == 0)
    assert losses.confident(both, 1.0).loss.kappa == 1.0


def test_a_selective_loss_is_the_loss_until_it_is_reached_and_then_the_penalty():
    penalty = lambda outputs, y: jax.nn.relu(outputs[1])
    loss = losses.selective(losses.margin, penalty)
    slope = jax.grad(lambda outputs, loss, y: loss(outputs, jnp.asarray(y)))
    for form, hit, missed in ((loss, 0, 1), (losses.targeted(loss), 1, 0)):
        for seen in (0.0, 3.0, 1e6):
            outputs = (jnp.array([0.0, 1.0]), jnp.asarray(seen))
            assert float(form(outputs, jnp.asarray(hit))) == (
                pytest.approx(-np.log(seen)) if seen else 100
            )
            assert float(form(outputs, jnp.asarray(missed))) == -101
            assert bool(losses.success(form, outputs, jnp.asarray(hit))) == (seen == 0)
            assert not losses.success(form, outputs, jnp.asarray(missed))
        outputs = (jnp.array([0.0, 1.0]), jnp.asarray(3.0))
        logits, seen = slope(outputs, form, hit)
        assert (float(seen), logits.tolist()) == (pytest.approx(-1 / 3), [0, 0])
        logits, seen = slope(outputs, form, missed)
        assert (float(seen), logits.tolist()) == (0, [1, -1])


@pytest.mark.parametrize("loss", SEVEN)
def test_untargeted_confidence_is_over_the_true_class_alone(loss):
    """Two wrong classes at the top, close together: one of them need not beat the other."""
    sure = losses.confident(loss, 1.0)
    logits, y = jnp.array([0.0, 5.0, 4.9]), jnp.array(0)
    assert bool(losses.success(sure, logits, y))
    if loss in EXACT:
        assert float(sure(logits, y)) >= 0
        near = jnp.array([0.0, 0.9, 0.8])
        assert float(sure(near, y)) < 0
        slope = jax.grad(sure)(near, y)
        assert slope[1] > 0 > slope[0]
        assert slope[2] == 0 or loss in (losses.f2, losses.f3)


def test_dlr_leaves_out_classes_that_are_ruled_out():
    some = jnp.array([3.0, 5.0, 1.0, -1.0])
    more = jnp.concatenate([some, jnp.full(3, -jnp.inf)])
    for y, target in ((0, 2), (1, 3)):
        assert float(losses.dlr(more, jnp.array(y))) == float(losses.dlr(some, jnp.array(y)))
        aims = (jnp.array(y), jnp.array(target))
        assert float(losses.targeted_dlr(more, *aims)) == float(losses.targeted_dlr(some, *aims))
    two = jnp.array([3.0, 5.0, -jnp.inf, -jnp.inf, -jnp.inf])
    slope = jax.grad(losses.dlr)(two, jnp.array(0))
    np.testing.assert_array_equal(slope, [-1, 1, 0, 0, 0])


@pytest.mark.usefixtures("untyped")
def test_a_target_is_given_once():
    with pytest.raises(ValueError, match="must not be targeted already"):
        losses.targeted(losses.targeted(losses.margin))


def test_a_penalty_that_drowns_the_loss_does_not_where_it_is_selective():
    """Class 1 where x0 > 0.5, which a steep penalty dislikes more than the logits like it."""
    model = lambda x: (jnp.stack([0.0 * x[:, 0], x[:, 0] - 0.5], -1), x[:, 0])
    penalty = lambda outputs, y: 100 * jnp.maximum(0.0, outputs[1] - 0.2)
    x, y = jnp.array([[0.4], [0.3]]), jnp.array([0, 0])
    for form, broken in ((losses.penalized, False), (losses.selective, True)):
        x_adv = jr.attacks.apgd(
            model, x, y, key=jax.random.key(0), ball=jr.Ball("linf", 0.4), num_steps=50,
            loss=form(losses.f6, penalty),
        )  # fmt: skip
        assert (np.asarray(x_adv)[:, 0] > 0.5).tolist() == [broken] * 2
    assert (np.asarray(x_adv) < 0.55).all()  # near the least that is misclassified


@pytest.mark.parametrize("name", ["bim", "pgd", "apgd", "square", "second_order"])
def test_attacks_within_a_ball_please_a_detector_too(name):
    """Class 1 where x0 > 0.5; the detector passes x1 <= 0.6, and is only met by the penalty."""
    model = lambda x: (jnp.stack([0.0 * x[:, 0], 4 * (x[:, 0] - 0.5)], -1), x[:, 1])
    hinge = lambda outputs, y: 4 * jnp.maximum(0.0, outputs[1] - 0.6)
    settings = {"second_order": {"sigma": 0.01, "num_steps": 40}, "square": {"num_queries": 300}}
    attack = functools.partial(
        getattr(jr.attacks, name), **settings.get(name, {"num_steps": 40}),
        key=jax.random.key(0), ball=jr.Ball("linf", 0.4),
    )  # fmt: skip
    x, y = jnp.array([[0.4, 0.9], [0.3, 0.95]]), jnp.array([0, 0])
    logits, seen = model(attack(model, x, y, loss=losses.f6))
    assert (logits.argmax(-1) == 1).all()
    assert (seen > 0.6).any()
    logits, seen = model(attack(model, x, y, loss=losses.penalized(losses.f6, hinge)))
    assert (logits.argmax(-1) == 1).all()
    assert (seen <= 0.6).all()
