"""AN-PGD against exact margins, on both sides of its start radius."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import problem

import jaxrobust as jr

KEY = jax.random.key(6)
WIDE = jr.Box(-9.0, 9.0)
DUAL = {"linf": 1, "l2": 2}
RNG = np.random.default_rng(0)
SLOPE, BIAS = np.array([1.0, -0.5, 0.2, 0.7]), -0.4
X = RNG.uniform(size=(6, 4))
ATTACK = functools.partial(jr.attacks.adaptive_norm_pgd, key=KEY, num_steps=10)


def affine(x):
    gap = x @ jnp.asarray(SLOPE) + BIAS
    return jnp.stack([jnp.zeros_like(gap), gap], -1)


LABELS = (X @ SLOPE + BIAS > 0).astype(np.int32)


@pytest.mark.parametrize("search", ["margin", "soft_margin"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_margin_of_an_affine_classifier(norm, search):
    """From radii below and above it; with two classes the soft margin is the margin.

    In l2 the direction keeps up to a fifth of the random start, as steps of 2.5 radii shrink it by
    no more, and the way is longer by the cosine.
    """
    slack = {"linf": 1e-9, "l2": 0.05}[norm]
    exact = np.abs(X @ SLOPE + BIAS) / np.linalg.norm(SLOPE, DUAL[norm])
    with jax.enable_x64(True):
        for radius in (0.3 * exact, 2 * exact, 0.01):
            for num_bisections in (10, 30):
                found = ATTACK(
                    affine, X, LABELS, box=WIDE, norm=norm, radius=jnp.asarray(radius), d_max=1.0,
                    num_bisections=num_bisections, search=search,
                )  # fmt: skip
                far = np.linalg.norm(found - X, {"linf": np.inf, "l2": 2}[norm], axis=1)
                assert (far >= exact * (1 - 1e-9)).all()
                assert (far <= exact * (1 + slack) + 1.05 / 2**num_bisections).all()


def test_ten_bisections_by_hand():
    """One pixel and the boundary at 0.3: brackets from [0.1, 1.05], halved towards it."""
    logits_fn = lambda x: jnp.concatenate([0.3 - x, x - 0.3], -1)
    low, high = 0.1, 1.05
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (low, middle) if middle > 0.3 else (middle, high)
    with jax.enable_x64(True):
        found = ATTACK(
            logits_fn, np.zeros((1, 1)), np.zeros(1, np.int32), box=WIDE, radius=0.1, d_max=1.0
        )
    np.testing.assert_allclose(found, high, rtol=1e-12)


def test_beyond_the_largest_margin_is_not_found():
    far = np.abs(X @ SLOPE + BIAS) / np.abs(SLOPE).sum()
    limit = float(np.sort(far)[2])
    with jax.enable_x64(True):
        found = ATTACK(affine, X, LABELS, box=WIDE, radius=0.5 * limit, d_max=limit)
    missed = far > 1.05 * limit
    assert 0 < missed.sum() < len(X)
    np.testing.assert_array_equal((np.asarray(found) == X).all(1), missed)


def test_the_soft_margin_ends_before_the_boundary():
    network, _, x, y = problem(3)
    logits_fn = lambda x: 6 * network(x)
    soft = jax.vmap(jr.losses.soft_margin)
    found = ATTACK(logits_fn, x, y, search="soft_margin", num_bisections=20)
    values = np.asarray(soft(logits_fn(found), y))
    moved = np.asarray(found != x).any(1)
    assert moved.sum() >= 3
    np.testing.assert_allclose(values[moved], 0.0, atol=1e-3)
    inside = np.asarray(logits_fn(found)).argmax(1) == y
    assert inside[moved].all()
    hard = ATTACK(logits_fn, x, y, num_bisections=20)
    crossed = np.asarray(logits_fn(hard)).argmax(1) != y
    assert crossed.sum() >= 3
    np.testing.assert_array_equal(crossed, np.asarray(hard != x).any(1))


def test_soft_margin_is_the_log_odds():
    logits = jnp.asarray(RNG.normal(size=(5, 4)), jnp.float32)
    y = jnp.array([0, 1, 2, 3, 0])
    p = jax.nn.softmax(logits)[jnp.arange(5), y]
    values = jax.vmap(jr.losses.soft_margin)(logits, y)
    np.testing.assert_allclose(values, jnp.log((1 - p) / p), rtol=1e-4, atol=1e-5)
    assert (values >= jax.vmap(jr.losses.margin)(logits, y)).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"norm": "l1"}, "norm must be one of linf, l2"),
        ({"search": "hard"}, "search must be one of"),
        ({"num_steps": 0}, "num_steps must be"),
        ({"num_bisections": 0}, "num_bisections must be"),
        ({"radius": -1.0}, "radius must be"),
        ({"d_max": np.ones(3)}, "d_max must be"),
        ({"loss": jr.losses.targeted(jr.losses.margin)}, "loss must not be targeted"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_wrong_settings_are_refused(wrong, message):
    logits_fn, _, x, y = problem(6)
    with pytest.raises(ValueError, match=message):
        ATTACK(logits_fn, x, y, **wrong)
