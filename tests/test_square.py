"""Square: its schedule and patterns by hand, and what its search keeps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import images, problem

import jaxrobust as jr
from jaxrobust.attacks import _square as search
from jaxrobust.attacks import _square_patterns as patterns
from jaxrobust.evaluation._count import count

KEY = jax.random.key(6)


@pytest.mark.parametrize(
    ("num_queries", "rescale", "turns"),
    [
        (10_000, True, [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]),
        (5000, False, [11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]),
        (5000, True, [6, 26, 101, 251, 501, 1001, 2001, 3001, 4001]),
        (100, True, [1, 1, 3, 6, 11, 21, 41, 61, 81]),
    ],
)
def test_when_p_is_halved(num_queries, rescale, turns):
    assert search.halvings(num_queries, rescale) == turns
    if rescale:  # the schedule as it is written: of iterations rescaled and rounded down
        past = [int(t / num_queries * 10_000) for t in range(num_queries)]
        halved = np.searchsorted([*search.HALVED_AFTER], past)
        np.testing.assert_array_equal(np.flatnonzero(np.diff(halved)) + 1, np.unique(turns))


def test_sizes_of_the_squares():
    sides = [25, 18, 13, 9, 6, 4, 3, 2, 2, 1]  # the root of .8 * 784 / 2^k, rounded
    assert search.sizes(0.8, 28, 28, "linf") == [(s, s) for s in sides]
    odd = [25, 19, 13, 9, 7, 5, 3, 3, 3, 3]
    assert search.sizes(0.8, 28, 28, "l2") == [(s, s) for s in odd]
    assert search.sizes(0.8, 1, 6, "linf")[:4] == [(1, 5), (1, 2), (1, 1), (1, 1)]
    assert search.sizes(1.0, 3, 3, "l2")[0] == (3, 3)


def test_patterns():
    upper, lower = np.array([[1, 5, 1]]), np.array([[1, 1, 1], [1, 5, 1]])  # 1 and 1 + 1/4
    expected = np.concatenate([upper / np.sqrt(27), -lower / np.sqrt(30)]) / np.sqrt(2)
    np.testing.assert_allclose(patterns.pattern(3, 3), expected)
    bank = patterns.bank([(5, 5), (3, 3)])
    np.testing.assert_allclose(np.sum(bank**2, (2, 3)), 1)
    np.testing.assert_allclose(bank[1, 1, :3, :3], expected.T)
    assert (bank[1, :, 3:] == 0).all()
    assert patterns.pattern(1, 1) == -1
    tile, upright, lying = patterns.tiles(12, 17)  # squares of 2
    assert tile.shape == upright.shape == lying.shape == (12, 17)
    assert tile.max() + 1 == 6 * 8
    np.testing.assert_allclose(np.sum(upright**2), 48)
    assert (upright[:, -1] == 0).all()  # the column left over


def bright(x):
    """Class 1 where the mean of the image is above 0.8."""
    mean = x.reshape(len(x), -1).mean(-1)
    return jnp.stack([0.8 - mean, 0 * mean], -1)


@pytest.mark.parametrize("shape", [(7,), (6, 5, 3)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_images_lie_on_the_sphere(norm, shape):
    x, y = 0.25 + 0.5 * images(0, 3, shape), np.zeros(3, np.int32)
    eps = 0.125 if norm == "linf" else 0.25
    margin = lambda z: np.asarray(jax.vmap(jr.losses.margin)(bright(z), y))
    before = margin(x)
    for num_queries in (15, 60):
        few = functools.partial(jr.attacks.square, num_queries=num_queries, rescale=False)
        x_adv = np.asarray(few(bright, x, y, key=KEY, ball=jr.Ball(norm, eps)))
        delta = (x_adv - x).reshape(3, -1)
        sizes = np.abs(delta) if norm == "linf" else np.linalg.norm(delta, axis=1)
        np.testing.assert_allclose(sizes, eps, rtol=1e-5)
        after = margin(x_adv)
        assert (after >= before).all()  # the same draws, and more
        before = after


def test_budget_and_an_early_end():
    logits_fn, _, x, y = problem(0)
    few = functools.partial(jr.attacks.square, num_queries=50)
    assert count(few, logits_fn, x, jr.Ball("linf", 0.1)) == (0, 50)
    wrong = ((y + 1) % 3).astype(np.int32)  # any image will do: the start comes back
    ball = jr.Ball("linf", 0.01)
    first = functools.partial(jr.attacks.square, num_queries=1, rescale=False)
    call = {"key": KEY, "ball": ball}
    np.testing.assert_array_equal(
        few(logits_fn, x, wrong, rescale=False, **call), first(logits_fn, x, wrong, **call)
    )


@pytest.mark.usefixtures("untyped")
def test_wrong_input_is_refused():
    logits_fn, _, x, y = problem(1)
    ball = jr.Ball("linf", 0.1)
    with pytest.raises(ValueError, match="norm must be linf or l2 for square"):
        jr.attacks.square(logits_fn, x, y, key=KEY, ball=jr.Ball("l1", 0.1))
    for wrong in ({"num_queries": 0}, {"p_init": 0.0}, {"p_init": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            jr.attacks.square(logits_fn, x, y, key=KEY, ball=ball, **wrong)
    video = np.zeros((2, 3, 4, 4, 1), np.float32)
    with pytest.raises(ValueError, match="one to three axes"):
        jr.attacks.square(bright, video, np.zeros(2, np.int32), key=KEY, ball=ball)
