"""The second-order attack: PGD along smoothed gradients, in the published settings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import EPS, NORMS, problem

import jaxrobust as jr
from jaxrobust.evaluation._count import count

KEY = jax.random.key(5)
STEPS = {"linf": EPS["linf"] / 10, "l2": 2.5 * EPS["l2"] / 20, "l1": 2.5 * EPS["l1"] / 20}


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_is_pgd_with_a_smoothed_gradient_bit_for_bit(norm, fresh):
    logits_fn, _, x, y = problem(0)
    ball = jr.Ball(norm, EPS[norm])
    x_adv = jr.attacks.second_order(logits_fn, x, y, key=KEY, ball=ball, sigma=0.2, fresh=fresh)
    by_hand = jr.attacks.pgd(
        logits_fn, x, y, key=KEY, ball=ball, num_steps=20, step_size=STEPS[norm],
        random_start=False, gradient=jr.gradients.smoothed(0.2, 10, fresh=fresh),
    )  # fmt: skip
    np.testing.assert_array_equal(x_adv, by_hand)


def test_shared_noise_is_another_attack_than_fresh_noise():
    logits_fn, _, x, y = problem(1)
    run = functools.partial(
        jr.attacks.second_order, logits_fn, x, y, key=KEY, ball=jr.Ball("l2", 0.5), sigma=0.3
    )
    assert not np.array_equal(run(fresh=True), run(fresh=False))


def test_a_step_and_a_loss_of_ones_own():
    logits_fn, _, x, y = problem(2)
    ball = jr.Ball("linf", 0.1)
    run = functools.partial(
        jr.attacks.second_order, logits_fn, x, y, key=KEY, ball=ball, sigma=0.0, num_samples=1
    )
    once = run(num_steps=1, step_size=0.03)
    assert np.abs(np.asarray(once) - x).max() == pytest.approx(0.03, abs=1e-6)
    assert np.abs(np.asarray(run(num_steps=1)) - x).max() == pytest.approx(0.01, abs=1e-6)
    by_margin = run(loss=jr.losses.margin)
    plain = jr.attacks.pgd(
        logits_fn, x, y, key=KEY, ball=ball, num_steps=20, step_size=0.01, random_start=False,
        loss=jr.losses.margin,
    )  # fmt: skip
    np.testing.assert_allclose(by_margin, plain, atol=1e-6)  # no noise: bim


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_leaves_a_stationary_point_where_gradients_do_not(norm):
    """At the top of a ridge the gradient vanishes; the paper's reason for a second order."""

    def logits_fn(x):  # correct at the centre, wrong on both sides of it
        bend = jnp.sum((x - 0.5) ** 2, axis=-1)
        return jnp.stack([jnp.full_like(bend, 0.02), bend], axis=-1)

    x, y = np.full((6, 3), 0.5, np.float32), np.zeros(6, np.int32)
    ball = jr.Ball(norm, 0.3)
    still = jr.attacks.bim(logits_fn, x, y, key=KEY, ball=ball)
    np.testing.assert_array_equal(still, x)
    estimators = {
        "smoothed": jr.gradients.smoothed(0.1, 10),
        "perturbed": jr.gradients.perturbed(0.1),
        "hessian": jr.gradients.hessian_direction(3),
    }
    for gradient in estimators.values():
        x_adv = jr.attacks.pgd(
            logits_fn, x, y, key=KEY, ball=ball, random_start=False, gradient=gradient
        )
        assert (np.argmax(logits_fn(x_adv), -1) == 1).all()
    x_adv = jr.attacks.second_order(logits_fn, x, y, key=KEY, ball=ball, sigma=0.1)
    assert (np.argmax(logits_fn(x_adv), -1) == 1).all()


def test_its_trace_is_that_of_pgd():
    """Loss, gradient norm and success of every step, of the run that `second_order` returns."""
    logits_fn, _, x, y = problem(3)
    ball = jr.Ball("l2", 0.8)
    x_adv = jr.attacks.second_order(logits_fn, x, y, key=KEY, ball=ball, sigma=0.1)
    traced, trace = jr.attacks.pgd_trace(
        logits_fn, x, y, key=KEY, ball=ball, num_steps=20, random_start=False,
        gradient=jr.gradients.smoothed(0.1, 10),
    )  # fmt: skip
    np.testing.assert_allclose(traced, x_adv, atol=1e-6)
    assert trace.loss.shape == trace.gradient_norm.shape == trace.success.shape == (8, 20)
    assert not trace.success[:, 0].any()  # from the clean image, which the labels are of
    assert trace.success[:, -1].any()
    assert (trace.loss[:, -1] > trace.loss[:, 0]).all()
    assert (trace.gradient_norm > 0).all()


def flops(attack, logits_fn, x, y):
    run = jax.jit(lambda x, y: attack(logits_fn, x, y, key=KEY, ball=jr.Ball("l2", 0.5)))
    return run.lower(x, y).compile().cost_analysis()["flops"]


def test_tracing_costs_pgd_nothing():
    """Its model is looked at once a step, as its gradient needs, and not to judge the steps."""
    logits_fn, _, x, y = problem(4)
    smoothed = jr.gradients.smoothed(0.1, 3)
    for gradient, each in ((jr.gradients.exact, 1), (smoothed, 3)):
        options = {"num_steps": 6, "gradient": gradient, "random_start": False}
        pgd = functools.partial(jr.attacks.pgd, **options)
        trace = functools.partial(jr.attacks.pgd_trace, **options)
        first = lambda *args, trace=trace, **kwargs: trace(*args, **kwargs)[0]
        assert count(pgd, logits_fn, x, jr.Ball("l2", 0.1)) == (6, 6 * each)
        assert count(first, logits_fn, x, jr.Ball("l2", 0.1)) == (6, 6 * (each + 1))
        # Where the trace is thrown away, what it cost is gone from the program.
        assert flops(first, logits_fn, x, y) == flops(pgd, logits_fn, x, y)


def test_sigma_and_counts_are_checked():
    logits_fn, _, x, y = problem(5)
    ball = jr.Ball("l2", 0.5)
    for wrong in ({"sigma": -0.1}, {"sigma": 0.1, "num_samples": 0}):
        with pytest.raises(ValueError, match=next(reversed(wrong)).replace("num_samples", "n")):
            jr.attacks.second_order(logits_fn, x, y, key=KEY, ball=ball, **wrong)
