"""The boundary attack: what it asks for, where it goes, and how its steps adapt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust.attacks import _boundary

KEY = jax.random.key(0)
QUICK = functools.partial(
    jr.attacks.boundary, num_steps=800, spherical_step=0.2, source_step=0.1, update_every=1
)


def ball_of_class_one(x):
    """Class 1 outside a ball of radius 0.3 around the centre; logits that tell the class only."""
    far = jnp.linalg.norm(x - 0.5, axis=-1) > 0.3
    return jax.nn.one_hot(far.astype(int), 2)


def test_finds_the_nearest_point_by_classes_alone():
    """From a point at distance r of the centre, the sphere is 0.3 - r away; no gradient exists."""
    offsets = np.array([[0.1, 0, 0], [0, 0.2, 0], [0, 0, -0.25]], np.float32)
    x = 0.5 + offsets
    x_adv = np.asarray(QUICK(ball_of_class_one, x, np.zeros(3, np.int32), key=KEY))
    assert (np.asarray(ball_of_class_one(x_adv)).argmax(1) == 1).all()
    distances = np.linalg.norm(x_adv - x, axis=1)
    best = 0.3 - np.linalg.norm(offsets, axis=1)
    assert (distances >= best - 1e-6).all()
    assert (distances <= 1.02 * best).all()


def test_never_takes_a_gradient():
    def refuses(primals, tangents):
        raise AssertionError("differentiated")

    blind = jax.custom_jvp(ball_of_class_one)
    blind.defjvp(refuses)
    x = np.full((1, 3), 0.45, np.float32)
    x_adv = QUICK(blind, x, np.zeros(1, np.int32), key=KEY, num_steps=50)
    assert (np.asarray(x_adv) != x).any()


def test_starts_from_what_is_given_and_gives_up_without_a_start():
    """Class 1 in a corner that noise does not find."""
    corner = lambda x: jax.nn.one_hot(jnp.all(x > 0.95, -1).astype(int), 2)
    x, y = np.full((2, 30), 0.9, np.float32), np.zeros(2, np.int32)
    lost = QUICK(corner, x, y, key=KEY, num_starts=3)
    np.testing.assert_array_equal(lost, x)
    start = np.stack([np.ones(30), np.zeros(30)]).astype(np.float32)
    x_adv = np.asarray(QUICK(corner, x, y, key=KEY, start=start, num_starts=3))
    assert (x_adv[0] > 0.95).all()
    # The nearest point of the corner lies halfway.
    assert np.linalg.norm(x_adv[0] - x[0]) < 0.51 * np.linalg.norm(start[0] - x[0])
    np.testing.assert_array_equal(x_adv[1], x[1])


def test_counts_its_queries():
    attack = functools.partial(QUICK, num_steps=40, num_starts=7, update_every=10)
    report = jr.evaluate(
        ball_of_class_one, (np.full((2, 3), 0.5, np.float32), np.zeros(2, np.int32)),
        attacks={"boundary": jr.attacks.against(attack)}, ball=jr.Ball("l2", 0.5), key=KEY,
        batch_size=2,
    )  # fmt: skip
    cost = report.attacks["boundary"]
    assert (cost.gradients, cost.forwards) == (0, 1 + 7 + 10 + 40 + 4)


def test_proposals_lie_on_the_sphere_and_then_nearer():
    x = jnp.full((20,), 0.5)
    state = _boundary._State(x + 0.1 * jnp.arange(20) / 20, 0.3, 0.05, None, None)
    length = float(jnp.linalg.norm(state.x_adv - x))
    for seed in range(5):
        on_sphere, candidate = _boundary._propose(state, x, jax.random.key(seed), jr.Box())
        moved = on_sphere - state.x_adv
        np.testing.assert_allclose(jnp.linalg.norm(on_sphere - x), length, rtol=1e-5)
        # A chord: the orthogonal step of .3, brought back to the sphere.
        np.testing.assert_allclose(
            jnp.linalg.norm(moved), length * np.sqrt(2 - 2 / np.sqrt(1.09)), rtol=1e-4
        )
        np.testing.assert_allclose(jnp.linalg.norm(candidate - x), 0.95 * length, rtol=1e-4)


def test_steps_follow_full_windows_of_successes():
    window = _boundary._Window(jnp.zeros(4, bool), jnp.zeros((), int))
    factors = []
    for hit in (True, True, True, False, False, False, False, False, False):
        window, factor = _boundary._judge(
            _boundary._push(window, jnp.asarray(hit)), (0.2, 0.5), 1.5
        )
        factors.append(round(float(factor), 4))
    # Three of four: grow and start anew; none of four: shrink.
    assert factors == [1, 1, 1, 1.5, 1, 1, 1, round(1 / 1.5, 4), 1]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spherical_step": 0.0}, "spherical_step must be positive"),
        ({"source_step": np.inf}, "source_step must be positive"),
        ({"step_adaptation": 1.0}, "step_adaptation must be"),
        ({"update_every": 0}, "update_every must be"),
        ({"start": np.zeros((1, 3), np.float32)}, "start must have the shape of x"),
        ({"start": np.full((2, 3), 2.0, np.float32)}, "start must lie in the box"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    x, y = np.full((2, 3), 0.5, np.float32), np.zeros(2, np.int32)
    with pytest.raises(ValueError, match=message):
        jr.attacks.boundary(ball_of_class_one, x, y, key=KEY, **change)
