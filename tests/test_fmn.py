"""FMN against closed forms and a hand-worked schedule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import problem

import jaxrobust as jr

KEY = jax.random.key(6)


def by_hand(slope, bias, x, num_steps, step_size, gamma):
    """The radius rule in linf for the two logits `(0, slope . x + bias)` of class 0, no box."""
    here, eps, best, closest = x.copy(), np.inf, x, np.inf
    for t in range(num_steps):
        cosine = (1 + np.cos(np.pi * t / num_steps)) / 2
        alpha = step_size / 100 + (step_size - step_size / 100) * cosine
        change = 0.001 + (gamma - 0.001) * cosine
        gap, size = slope @ here + bias, np.abs(here - x).max()
        if gap > 0:
            if size < closest:
                best, closest = here.copy(), size
            eps = min(eps * (1 - change), closest)
        elif closest < np.inf:
            eps = eps * (1 + change)
        else:
            eps = (size + abs(gap) / np.abs(slope).sum()) * (1 + change)
        here = here + alpha * slope / np.linalg.norm(slope)
        here = x + np.clip(here - x, -eps, eps)
    return best


def test_follows_the_published_schedule():
    slope, bias = np.array([1.0, -0.5, 0.2]), -0.9
    x = np.array([0.4, 0.6, 0.5])

    def logits_fn(x):
        gap = x @ jnp.asarray(slope) + bias
        return jnp.stack([jnp.zeros_like(gap), gap], -1)

    with jax.enable_x64(True):
        found = jr.attacks.fmn(
            logits_fn, x[None], np.zeros(1, np.int32), key=KEY, box=jr.Box(-9.0, 9.0),
            num_steps=17, step_size=0.3, gamma=0.2,
        )  # fmt: skip
    np.testing.assert_allclose(found[0], by_hand(slope, bias, x, 17, 0.3, 0.2), rtol=1e-10)


def test_long_l2_steps_do_not_get_stuck_at_the_box():
    """The gradient points out of the box almost everywhere; a clipped step would lose its length.

    Pixel 0 alone can cross, at distance 0.5.
    """
    weight = jnp.array([1.0, 5.0, 5.0, 5.0])

    def logits_fn(x):
        gap = (x - jnp.array([1.0, 1.0, 1.0, 1.0])) @ weight + 0.5
        return jnp.stack([jnp.zeros_like(gap), gap], -1)

    x = np.array([[0.0, 1.0, 1.0, 1.0]], np.float32)
    found = np.asarray(
        jr.attacks.fmn(
            logits_fn, x, np.zeros(1, np.int32), key=KEY, norm="l2", num_steps=60, step_size=5.0
        )
    )
    np.testing.assert_array_equal(found[0, 1:], x[0, 1:])
    assert 0.5 < found[0, 0] <= 0.505


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gamma": 0.0}, "gamma must lie in"),
        ({"gamma": 1.0}, "gamma must lie in"),
        ({"step_size": -1.0}, "step_size must be"),
        ({"norm": "l0"}, "norm must be one of"),
        ({"num_steps": 0}, "num_steps must be"),
        *(
            ({"loss": loss}, "loss must be 0 where it begins to succeed")
            for loss in (
                jr.losses.cross_entropy,
                functools.partial(jr.losses.cross_entropy),
                jr.losses.soft_margin,
                jr.losses.generalized_cross_entropy(0.7),
                jr.losses.f1,
                jr.losses.penalized(jr.losses.hinge, lambda outputs, y: jnp.zeros(())),
            )
        ),
        (
            {"loss": jr.losses.selective(jr.losses.f6, lambda outputs, y: jnp.zeros(()))},
            "loss must not be losses.selective",
        ),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_wrong_settings_are_refused(wrong, message):
    logits_fn, _, x, y = problem(6)
    with pytest.raises(ValueError, match=message):
        jr.attacks.fmn(logits_fn, x, y, key=KEY, **wrong)


@pytest.mark.parametrize(
    "loss",
    [
        jr.losses.confident(jr.losses.f6, 0.1),
        jr.losses.penalized(jr.losses.f6, lambda outputs, y: jnp.zeros(())),
        lambda outputs, y: 2 * jr.losses.margin(outputs, y),
    ],
)
def test_losses_that_end_at_the_boundary_are_taken(loss):
    logits_fn, _, x, y = problem(6)
    x_adv = jr.attacks.fmn(logits_fn, x, y, key=KEY, loss=loss, num_steps=30)
    assert (np.asarray(logits_fn(x_adv)).argmax(1) != y).all()
