"""Auto-PGD: its timetable, its halving, and its steps against a plain transcription."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import EPS, problem

import jaxrobust as jr
from jaxrobust.attacks import _apgd_run as run
from jaxrobust.evaluation._count import count

KEY = jax.random.key(5)


@pytest.mark.parametrize(
    ("num_steps", "norm", "lengths"),
    [
        (100, "linf", [22, 19, 16, 13, 10, 7, 6, 6]),
        (100, "l2", [22, 19, 16, 13, 10, 7, 6, 6]),
        (200, "linf", [44, 38, 32, 26, 20, 14, 12, 12]),
        (10, "linf", [2] + 8 * [1]),
        (1, "l2", [1]),
        (100, "l1", 25 * [4]),
        (30, "l1", 30 * [1]),
    ],
)
def test_checkpoints(num_steps, norm, lengths):
    assert run.windows(num_steps, norm) == lengths


def test_timetable_of_larger_radii():
    table = run.plan(100, "l1", True)
    np.testing.assert_array_equal(table.factor, [3] * 31 + [2] * 31 + [1] * 41)
    np.testing.assert_array_equal(np.flatnonzero(table.begins), [0, 31, 62])
    assert (table.window == ~table.begins).all()  # a step from one checkpoint to the next
    short = run.plan(3, "l1", True)
    np.testing.assert_array_equal(short.factor, [3, 3, 2, 2, 1, 1])


def pace(**changes):
    fields = {"size": 1.0, "rises": 0, "seen": 0.0, "halved": False, "share": 0.2, "support": 100.0}
    return run.Pace(**{k: jnp.asarray(v) for k, v in (fields | changes).items()})


@pytest.mark.parametrize(
    ("before", "window", "loss", "halves"),
    [
        ({"rises": 16}, 22, 1.0, True),  # 16.5 rises are three quarters
        ({"rises": 17}, 22, 1.0, False),
        ({"rises": 12}, 16, 1.0, True),  # exactly three quarters: as in the authors' code
        ({"rises": 13}, 16, 1.0, False),
        ({"rises": 22, "seen": 1.0}, 22, 1.0, True),  # neither halved nor better
        ({"rises": 22, "seen": 1.0, "halved": True}, 22, 1.0, False),
        ({"rises": 0, "seen": 1.0, "halved": True}, 22, 1.0, True),
    ],
)
def test_halving(before, window, loss, halves):
    after, back = run.halving(pace(**before), window, jnp.asarray(loss))
    assert bool(back) is bool(after.halved) is halves
    assert float(after.size) == (0.5 if halves else 1.0)
    assert int(after.rises) == 0
    assert float(after.seen) == loss


@pytest.mark.parametrize(
    ("changed", "size", "fewer", "expected"),
    [(94, 0.3, True, 0.9), (95, 0.3, False, 0.2), (120, 0.1, False, 0.09)],
)
def test_sparsity(changed, size, fewer, expected):
    after, back = run.sparser(pace(size=size), jnp.asarray(float(changed)), 200, 0.9)
    assert bool(back) is fewer
    np.testing.assert_allclose(after.size, expected, rtol=1e-6)
    np.testing.assert_allclose(after.share, changed / 300, rtol=1e-6)
    assert float(after.support) == changed


CENTRE = np.array([0.31, -0.12, 0.05])
SCALE = np.array([1.0, 30.0, 5.0])


def value(x):
    return -np.sum(SCALE * (x - CENTRE) ** 2)


def slope(x):
    return -2 * SCALE * (x - CENTRE)


def transcribed(norm, start, eps, num_steps):
    """Algorithm 1 around the origin, line by line; all iterates, the best, and the step sizes."""

    def project(z):
        return np.clip(z, -eps, eps) if norm == "linf" else z * min(1, eps / np.linalg.norm(z))

    def steepest(g):
        return np.sign(g) if norm == "linf" else g / np.linalg.norm(g)

    marks = np.cumsum(run.windows(num_steps, norm))
    points, losses, steps = [start], [value(start)], [2 * eps]
    here = before = best = start
    seen, halved, last_mark = value(start), True, 0
    for t in range(num_steps):
        moved = project(here + steps[-1] * steepest(slope(here)))
        a = 0.75 if t else 1.0
        here, before = project(here + a * (moved - here) + (1 - a) * (here - before)), here
        points.append(here)
        losses.append(value(here))
        best = here if losses[-1] > value(best) else best
        if t + 1 in marks:
            window = t + 1 - last_mark
            rises = sum(losses[i + 1] > losses[i] for i in range(last_mark, t + 1))
            halve = rises <= 0.75 * window or (not halved and seen >= value(best))
            seen, halved, last_mark = value(best), halve, t + 1
            if halve:
                steps.append(steps[-1] / 2)
                here = best
    return np.array(points), best, steps


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steps_are_those_of_the_algorithm(norm):
    """On a narrow valley, where steps too long oscillate."""
    with jax.enable_x64(True):
        ball = jr.Ball(norm, jnp.asarray(0.25), jr.Box(-9.0, 9.0))
        x = jnp.zeros(3)
        start = np.asarray(run.random_start(x, ball, KEY))
        np.testing.assert_allclose(ball.distance(x, jnp.asarray(start)), 0.25)  # on the sphere
        points, best, steps = transcribed(norm, start, 0.25, 60)
        assert 3 < len(steps) < 9

        @functools.partial(jax.jit, static_argnums=0)
        def climbed(stop):
            def evaluate(image, t):
                f = lambda x: -jnp.sum(SCALE * (x - CENTRE) ** 2)
                return *jax.value_and_grad(f)(image), t == stop

            return run.ascend(evaluate, x, ball, KEY, 60, False, jnp.asarray(True))

        whole = climbed(-1)
        np.testing.assert_allclose(whole.image, best, atol=1e-9)
        np.testing.assert_allclose(whole.loss, value(best), atol=1e-9)
        assert not whole.reached
        for stop in (0, 40):
            stopped = climbed(stop)  # at an image that is not the best
            np.testing.assert_allclose(stopped.image, points[stop], atol=1e-9)
            assert stopped.reached


def test_budget():
    logits_fn, _, x, _ = problem(0)
    counted = lambda attack, norm="linf": count(attack, logits_fn, x, jr.Ball(norm, 0.1))
    apgd = functools.partial(jr.attacks.apgd, num_steps=7)
    assert counted(apgd) == (8, 16)  # and a plain forward each, which XLA merges
    assert counted(functools.partial(apgd, num_restarts=2)) == (16, 32)
    averaged = functools.partial(apgd, gradient=jr.gradients.eot(4))
    assert counted(averaged) == (8, 16)  # a model that ignores its key is asked once
    noise = lambda x, key: logits_fn(x) + jax.random.normal(key, (len(x), 3))
    assert count(averaged, jr.Randomized(noise), x, jr.Ball("linf", 0.1)) == (8, 32)
    larger = functools.partial(jr.attacks.apgd, num_steps=10, larger_eps=True)
    assert counted(larger, "l1") == (13, 26)
    targeted = functools.partial(jr.attacks.apgd_targeted, num_steps=7)
    assert counted(targeted) == (16, 33)  # two wrong classes


def test_larger_radii_end_in_the_ball():
    logits_fn, _, x, y = problem(1, sizes=(40, 8, 3))
    eps = EPS["l1"] / 3
    margin = lambda z: np.asarray(jax.vmap(jr.losses.margin)(logits_fn(z), y))
    x_adv = jr.attacks.apgd(
        logits_fn, x, y, key=KEY, ball=jr.Ball("l1", eps), num_steps=20, larger_eps=True
    )
    assert (np.abs(np.asarray(x_adv) - x).sum(1) <= eps * (1 + 1e-5)).all()
    assert (margin(x_adv) > margin(x)).all()


def test_a_lucky_draw_does_not_end_the_search():
    """Noise breaks every image now and then; the corner of the ball is what breaks it often."""

    def noisy(x, key):
        return jnp.stack([x.sum(-1) - 2, jax.random.normal(key, (len(x),))], -1)

    x, y = np.full((4, 4), 0.5, np.float32), np.zeros(4, np.int32)
    for attack in (jr.attacks.apgd, jr.attacks.apgd_targeted):
        x_adv = attack(
            jr.Randomized(noisy), x, y, key=KEY, ball=jr.Ball("linf", 0.25), num_steps=30,
            gradient=jr.gradients.eot(20),
        )  # fmt: skip
        np.testing.assert_allclose(x_adv, 0.25, atol=1e-6)


@pytest.mark.usefixtures("untyped")
def test_wrong_counts_are_refused():
    logits_fn, _, x, y = problem(2)
    call = {"key": KEY, "ball": jr.Ball("linf", 0.1)}
    for wrong in ({"num_steps": 0}, {"num_restarts": 0}, {"num_steps": 2, "larger_eps": True}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            jr.attacks.apgd(logits_fn, x, y, **call, **wrong)
    with pytest.raises(ValueError, match="num_targets"):
        jr.attacks.apgd_targeted(logits_fn, x, y, **call, num_targets=0)
