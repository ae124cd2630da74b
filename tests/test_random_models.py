"""What counts as success: on a randomised model, next to the boundary, and where logits are NaN."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import ATTACKS, MINIMUM_NORM, problem

import jaxrobust as jr
from jaxrobust.attacks._lift import DRAWS, ROUNDING, over_draws, reached
from jaxrobust.evaluation._count import count
from jaxrobust.flow import FlowBall

KEY = jax.random.key(4)


def test_a_success_holds_in_every_fresh_draw():
    """Also where the draw at hand succeeds; and a model without randomness is not asked again."""
    x = jnp.linspace(0.2, 0.8, 3)
    asked = []

    def told(threshold, x, key):
        draw = jax.random.uniform(key)
        jax.debug.callback(lambda draw: asked.append(float(draw)), draw)
        return jnp.stack([0 * x[:, 0], jnp.where(draw > threshold, 1.0, -1.0) + 0 * x[:, 0]], -1)

    @jax.jit
    def judged(threshold, outputs):
        model = jr.per_example(jr.Randomized(jax.tree_util.Partial(told, threshold)))
        return reached(model, jr.losses.margin, jnp.array(0), x, KEY, outputs)

    def run(threshold, outputs):
        asked.clear()
        hit = bool(judged(threshold, jnp.array(outputs)))
        jax.effects_barrier()
        return hit, list(asked)

    assert run(0.0, [1.0, 0.0]) == (False, [])  # the draw at hand fails
    hit, draws = run(0.0, [0.0, 1.0])
    assert hit
    assert len(set(draws)) == len(draws) == DRAWS
    assert float(jax.random.uniform(KEY)) not in draws
    threshold = sorted(draws)[2]  # of the draws, three fail
    hit, fewer = run(threshold, [0.0, 1.0])
    assert not hit
    assert fewer == draws[: len(fewer)]
    assert [draw > threshold for draw in fewer] == [True] * (len(fewer) - 1) + [False]
    model = jr.per_example(jr.Randomized(jax.tree_util.Partial(told, threshold)))
    wrong, mean = over_draws(model, x, jnp.array(0), KEY)
    assert not wrong
    np.testing.assert_allclose(mean, (DRAWS - 6) / DRAWS, rtol=1e-6)


def test_what_success_costs():
    logits_fn, _, x, _ = problem(0)
    random = jr.Randomized(lambda x, key: logits_fn(x) + 0.01 * jax.random.normal(key, (len(x), 3)))
    attack = jr.attacks.against(functools.partial(jr.attacks.fmn, num_steps=7))
    ball = jr.Ball("linf", 0.1)
    assert count(attack, logits_fn, x, ball) == (7, 14)
    assert count(attack, random, x, ball) == (7, 14 + 7 * DRAWS)
    both = jr.attacks.first_success({"fgsm": jr.attacks.fgsm, "bim": jr.attacks.bim}, chunk=1)
    assert count(both, logits_fn, x, ball) == (11, 11 + 3)
    assert count(both, random, x, ball) == (11, 11 + 3 * DRAWS)


def brighter(x):
    """By how much the last column is brighter than the first."""
    return x[:, :, -1].mean((1, 2)) - x[:, :, 0].mean((1, 2))


def unsure(x, key):
    """Class 1 where the last column is brighter, and nearly half of the draws where it is not."""
    gap = brighter(x)
    draw = jax.random.normal(key, (len(x),))
    return jnp.stack([0 * gap, gap + jnp.where(gap > 0, 0.01, 1.0) * draw], -1)


@pytest.mark.parametrize("name", ["flow", "flow_pgd", "rotation_translation"])
def test_no_lucky_draw_is_a_success_of_a_spatial_attack(name):
    """Moved by a pixel, the last column is the brighter one."""
    x = np.float32([0.6, 0.2, 0.9, 0.5])[:, None] * np.ones((6, 3, 4, 1), np.float32)
    settings = {
        "flow": {"num_steps": 30},
        "flow_pgd": {"num_steps": 20, "ball": FlowBall(4.0)},
        "rotation_translation": {"num_angles": 1, "max_shift": 1.0, "num_shifts": 5},
    }
    attack = functools.partial(getattr(jr.attacks, name), **settings[name])
    x_adv = np.asarray(attack(jr.Randomized(unsure), x, np.zeros(6, np.int32), key=KEY))
    assert (brighter(x_adv) > 0).all()


AFFINE = np.array([[0.0, 1.0], [0.0, -2.0], [0.0, 0.5], [0.0, 1.5]], np.float32)


def wavering(x, key):
    """An affine margin and noise as wide as it is at the images."""
    return x @ AFFINE + 0.3 * jax.random.normal(key, (len(x), 2)) * jnp.array([0.0, 1.0])


def cases(batch=32):
    """Images with a margin of one standard deviation: one draw in six is wrong."""
    x = np.random.default_rng(0).uniform(0.3, 0.7, size=(batch, 4)).astype(np.float32)
    x -= ((x @ AFFINE[:, 1] + 0.3) / (AFFINE[:, 1] @ AFFINE[:, 1]))[:, None] * AFFINE[:, 1]
    return x, np.zeros(batch, np.int32)


def shares_wrong(x, num_draws=100):
    """How often each image is misread."""
    draws = jax.vmap(lambda key: jnp.argmax(wavering(jnp.asarray(x), key), -1))
    return np.asarray(draws(jax.random.split(KEY, num_draws))).mean(0)


@pytest.mark.parametrize("eps", [0.04, 0.1])
def test_autoattack_leaves_no_more_than_pgd_on_a_random_model(eps):
    """In the smaller ball few images can be brought over; in the larger all, nearly for good."""
    x, y = cases()
    ball = jr.Ball("linf", eps)
    noisy = jr.Randomized(wavering)
    pgd = functools.partial(jr.attacks.pgd, num_steps=100, gradient=jr.gradients.eot(20))
    theirs = shares_wrong(pgd(noisy, x, y, key=KEY, ball=ball))
    ours = shares_wrong(jr.attacks.autoattack(noisy, x, y, key=KEY, ball=ball, version="rand"))
    assert (ours <= 0.5).sum() <= (theirs <= 0.5).sum()
    assert ours.mean() > theirs.mean() - 0.02
    assert shares_wrong(x).max() < 0.4


def test_first_success_judges_by_all_draws_and_keeps_the_likeliest():
    """One step in the right direction, then one in the wrong one: neither is proof against luck."""
    x, y = cases()

    def step(size, logits_fn, x, y, *, key, ball):
        return jnp.clip(x + size * jnp.sign(AFFINE[:, 1]), 0, 1)

    good, bad = (functools.partial(step, size) for size in (0.08, -0.05))
    noisy, ball = jr.Randomized(wavering), jr.Ball("linf", 0.1)
    both = jr.attacks.first_success({"good": good, "bad": bad}, chunk=8)
    x_adv = both(noisy, x, y, key=KEY, ball=ball)
    np.testing.assert_allclose(x_adv, good(noisy, x, y, key=KEY, ball=ball), atol=1e-6)


def off_the_grid(x):
    """Right on all 8-bit images, and NaN between them."""
    levels = 255 * x.reshape(len(x), -1)
    off = jnp.any(jnp.abs(levels - jnp.round(levels)) > 1e-3, -1, keepdims=True)
    total = x.reshape(len(x), -1).sum(-1)
    return jnp.where(off, jnp.nan, jnp.stack([total, 0 * total], -1))


def test_an_image_at_which_nothing_is_predicted_is_a_success_and_a_finding():
    """Of attacks that keep successes; `test_attack_oracle` asks all others."""
    levels = np.random.default_rng(0).integers(60, 200, size=(2, 3, 2))
    x, y = (levels / 255).astype(np.float32), np.zeros(2, np.int32)
    attacks = {
        "fmn": jr.attacks.against(functools.partial(jr.attacks.fmn, num_steps=5)),
        "flow": lambda *given, ball, **key: jr.attacks.flow(*given, num_steps=5, **key),
    }
    for name, attack in attacks.items():
        report = jr.evaluate(
            off_the_grid, (x, y), attacks={name: attack}, ball=jr.Ball("l2", 2.0), key=KEY,
            batch_size=2,
        )  # fmt: skip
        assert report.robust_accuracy == 0
        (finding,) = report.findings
        assert (finding.name, finding.value) == (f"logits not finite: {name}", 2)


@pytest.mark.parametrize("kappa", [0.0, 2.0])
def test_logits_of_nan_reach_any_confidence(kappa):
    loss = jr.losses.confident(jr.losses.f6, kappa)
    for logits in ([jnp.nan, 0.0], [jnp.inf, 0.0], [0.0, jnp.inf]):
        args = jr.per_example(lambda x: x), jnp.array(0), jnp.zeros(2), KEY, jnp.array(logits)
        assert reached(args[0], loss, *args[1:])
        assert not reached(args[0], jr.losses.targeted(loss), *args[1:])


def test_boundary_ends_where_any_compilation_sees_success():
    """A walk long enough to come within rounding, judged one by one, and in float64."""
    logits_fn, layers, x, y = problem(3, batch=48)
    x_adv = MINIMUM_NORM["boundary"](logits_fn, x, y, key=KEY, num_steps=1500)
    alone = np.array([jnp.argmax(logits_fn(x_adv[row : row + 1])) for row in range(len(x))])
    assert (alone != y).all()
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), layers)
        judged = jr.layers.apply(wide, jnp.asarray(x_adv, jnp.float64))
        assert (np.asarray(judged).argmax(1) != y).all()


@pytest.mark.parametrize(
    ("name", "settings"), [("deepfool", {"overshoot": 0.0}), ("jsma", {"theta": -0.0005})]
)
def test_success_exceeds_the_rounding_of_large_logits(name, settings):
    """Logits around 1000, whose last place is 6e-5."""
    logits_fn = lambda x: 1000 + jnp.stack([x.sum(-1), 0 * x[:, 0] + 3.0], -1)
    x, y = np.full((4, 6), 0.5001, np.float32), np.zeros(4, np.int32)
    x_adv = MINIMUM_NORM[name](logits_fn, x, y, key=KEY, **settings)
    margin = np.asarray(jax.vmap(jr.losses.margin)(logits_fn(x_adv), y))
    assert (margin > ROUNDING * np.finfo(np.float32).eps * 1000).all()


@pytest.mark.parametrize("name", ["apgd", "apgd_targeted", "pgd with restarts", "square"])
def test_nor_does_a_search_within_a_ball_end_at_less(name):
    """A quarter of the random starts is wrong by less than rounding."""
    logits_fn = lambda x: 1000 + jnp.stack([x.sum(-1), 0 * x[:, 0] + 3.0], -1)
    x, y = np.full((64, 6), 0.5001, np.float32), np.zeros(64, np.int32)
    x_adv = ATTACKS[name](logits_fn, x, y, key=KEY, ball=jr.Ball("linf", 0.0006))
    margin = np.asarray(jax.vmap(jr.losses.margin)(logits_fn(x_adv), y))
    assert (margin > ROUNDING * np.finfo(np.float32).eps * 1000).all()
