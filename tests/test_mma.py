"""MMA training: algorithm 2 by hand, margins of affine models, radii that follow their examples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrobust as jr
from jaxrobust import objectives
from jaxrobust.types import Batch

KEY = jax.random.key(3)
ATTACK = functools.partial(jr.attacks.adaptive_norm_pgd, search="soft_margin", num_steps=10)
WIDE = jr.Box(-9.0, 9.0)
SLOPE, BIAS = np.array([1.0, -0.5, 0.2, 0.7]), -0.4
PARAMS = {"slope": jnp.asarray(SLOPE, jnp.float32), "bias": jnp.asarray(BIAS, jnp.float32)}


def forward(params, model_state, x):
    gap = x @ params["slope"] + params["bias"]
    return jnp.stack([jnp.zeros_like(gap), gap], -1), model_state


def data(n=24, seed=0):
    """Images, mostly right labels, and exact linf margins: 0 where the model is wrong."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(size=(n, 4)).astype(np.float32)
    gap = x @ SLOPE + BIAS
    y = np.where(np.arange(n) % 5 == 0, gap < 0, gap > 0).astype(np.int32)
    margin = np.where((gap > 0) == (y == 1), np.abs(gap) / np.abs(SLOPE).sum(), 0.0)
    return x, y, margin


def make(attack=ATTACK, forward=forward, num_examples=24, box=WIDE, **options):
    options = {"eps_min": 0.05, "d_max": 0.2} | options
    return objectives.mma(forward, attack, num_examples=num_examples, box=box, **options)


def evaluate(objective, params, batch, state=None, model_state=None):
    @jax.jit
    def step(params, state, batch):
        return objective.value_and_grad(params, model_state or {}, state, batch, key=KEY)

    return step(params, objective.init(params, KEY) if state is None else state, batch)


def whole(x, y, index=None):
    index = np.arange(len(x)) if index is None else index
    return Batch(jnp.asarray(x), jnp.asarray(y), jnp.asarray(index))


def close(left, right, **tolerance):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


def test_the_radius_on_an_affine_model_is_the_exact_margin():
    x, y, margin = data()
    out, _ = evaluate(make(d_max=0.2), PARAMS, whole(x, y))
    bracket = 1.05 * 0.2 / 2**10
    radius = np.asarray(out.state.radius)
    exact = np.clip(margin, 0.05, 1.05 * 0.2)
    assert (radius >= exact * (1 - 1e-4)).all()
    assert (radius <= np.minimum(exact + bracket, 1.05 * 0.2) + 1e-6).all()
    inside = (margin > 0.05) & (margin < 0.2)
    assert inside.sum() >= 3
    close(out.metrics["margin"], np.minimum(margin, 0.21).mean(), atol=2 * bracket)
    close(out.metrics["attacked"], ((margin > 0) & (margin < 0.2)).mean())
    close(out.metrics["accuracy"], (margin > 0).mean())
    assert int(out.metrics["clipped"]) == 0


@pytest.mark.parametrize("clean_weight", [1 / 3, 0.0])
def test_the_loss_is_that_of_algorithm_2(clean_weight):
    """Sum over B0, 1/3 over B1 and 2/3 over B1adv; OMMA: B0 and B1adv. Exact images by hand."""
    x, y, margin = data()
    side = np.where(y == 1, -1.0, 1.0)[:, None] * np.sign(SLOPE)

    def exact(logits_fn, x, y, *, key, box):
        return (x + margin[:, None] * side).astype(x.dtype)

    near = (margin > 0) & (margin < 0.2)
    assert near.any()
    assert (margin > 0.2).any()
    assert (margin == 0).any()

    def by_hand(params):
        each = lambda x: optax.softmax_cross_entropy_with_integer_labels(
            forward(params, {}, jnp.asarray(x, jnp.float32))[0], y
        )
        wrong = jnp.where(margin == 0, each(x), 0.0).sum()
        right = jnp.where(margin > 0, each(x), 0.0).sum()
        attacked = jnp.where(near, each(x + margin[:, None] * side), 0.0).sum()
        return (wrong + clean_weight * right + (1 - clean_weight) * attacked) / len(x)

    out, grads = evaluate(make(exact, clean_weight=clean_weight), PARAMS, whole(x, y))
    close((out.loss, grads), jax.value_and_grad(by_hand)(PARAMS))
    step = 1e-2  # the gradient is that of the images held fixed
    for sign in ([1, 0, 0, 0], [0, 0, 1, 0]):
        moved = lambda h, sign=sign: {**PARAMS, "slope": PARAMS["slope"] + h * jnp.array(sign)}
        difference = (by_hand(moved(step)) - by_hand(moved(-step))) / (2 * step)
        close(
            jnp.vdot(grads["slope"], jnp.array(sign, jnp.float32)), difference, rtol=1e-3, atol=2e-5
        )


def train(objective, x, y, params=PARAMS, num_epochs=3, rate=0.0, **options):
    return jr.train.fit(
        objective, params, optax.sgd(rate), (x, y), key=KEY, num_epochs=num_epochs,
        batch_size=8, box=WIDE, **options,
    )  # fmt: skip


def test_radii_follow_their_examples_through_shuffling():
    x, y, margin = data()
    seen = train(make(d_max=0.3), x, y).objective_state.radius
    np.testing.assert_allclose(seen, np.clip(margin, 0.05, 0.315), atol=1.05 * 0.3 / 2**10 + 1e-6)


def test_the_next_attack_starts_from_the_last_radius():
    x, y, _ = data()
    handed = []

    def spy(logits_fn, x, y, *, key, box, norm, radius, d_max):
        handed.append((radius, norm, d_max))
        return x

    stored = jnp.linspace(0.0, 1.0, 24)
    rows = np.array([3, 20, 11])
    state = make().init(PARAMS, KEY)._replace(radius=stored)
    objective = make(spy, norm="l2")
    objective.value_and_grad(PARAMS, {}, state, whole(x[rows], y[rows], rows), key=KEY)
    (radius, norm, d_max), *rest = handed
    close(radius, np.clip(stored[rows], 0.05, 0.21))
    assert (norm, d_max, rest) == ("l2", 0.2, [])
    close(make().init(PARAMS, KEY).radius, np.full(24, 0.05))


def test_diverged_images_are_clipped_and_counted():
    x, y, margin = data()
    right = np.flatnonzero(margin > 0)
    nan, far, none = right[:3]

    def broken(logits_fn, x, y, *, key, box):
        return (x + 0.1).at[nan].set(jnp.nan).at[far].set(8.0).at[none].set(x[none])

    out, grads = evaluate(make(broken), PARAMS, whole(x, y))
    assert int(out.metrics["clipped"]) == 2
    close(out.state.radius[jnp.array([nan, far, none])], jnp.array([0.05, 0.21, 0.21]))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((out, grads)))
    close(out.metrics["attacked"], (len(right) - 3) / 24)
    again, _ = evaluate(make(), PARAMS, whole(x, y), out.state)
    assert int(again.metrics["clipped"]) == 0


def test_any_minimum_norm_attack_will_do():
    x, y, margin = data()
    fmn = functools.partial(jr.attacks.fmn, num_steps=60, step_size=0.3)
    out, _ = evaluate(make(fmn), PARAMS, whole(x, y))
    np.testing.assert_allclose(out.state.radius, np.clip(margin, 0.05, 0.21), rtol=0.02)


def test_rows_that_the_state_does_not_have_show():
    x, y, _ = data()
    out, _ = evaluate(make(num_examples=23), PARAMS, whole(x, y))
    assert np.isnan(out.loss)
    batch = whole(x, y)
    below = batch._replace(index=batch.index.at[0].set(-1))
    out, _ = evaluate(make(), PARAMS, below)
    assert np.isnan(out.loss)


def test_the_attack_sees_evaluation_mode_and_the_state_goes_through_both_passes():
    x, y, _ = data(8)

    def train_mode(params, model_state, x):
        return forward(params, {}, x)[0], {"seen": model_state["seen"] + len(x)}

    frozen = lambda params, model_state, x: (forward(params, {}, x)[0], model_state)
    state = {"seen": jnp.array(0)}
    with pytest.raises(ValueError, match="eval_forward"):
        evaluate(make(forward=train_mode), PARAMS, whole(x, y), model_state=state)
    for clean_weight, seen in ((1 / 3, 16), (0.0, 8)):
        objective = make(forward=train_mode, eval_forward=frozen, clean_weight=clean_weight)
        out, _ = evaluate(objective, PARAMS, whole(x, y), model_state=state)
        assert int(out.model_state["seen"]) == seen


def test_training_widens_margins_and_a_resumed_run_ends_in_the_same_bits(tmp_path):
    digits = jr.data.load("digits", "train")
    x, y = digits.x[:256], digits.y[:256]
    model = jr.models.mlp((24,))
    network = objectives.from_module(model.apply)
    params = model.init(jax.random.key(1), x[:1])["params"]
    few = functools.partial(ATTACK, num_steps=5)
    mma = objectives.mma(network, few, num_examples=256, eps_min=0.05, d_max=0.3)

    def run(objective, num_epochs, **options):
        return jr.train.fit(
            objective, params, optax.adam(5e-3), (x, y), key=KEY, num_epochs=num_epochs,
            batch_size=64, **options,
        )  # fmt: skip

    straight = run(mma, 16)
    run(mma, 5, directory=tmp_path)
    resumed = run(mma, 16, directory=tmp_path, resume=True)
    pairs = zip(jax.tree.leaves(straight[:3]), jax.tree.leaves(resumed[:3]), strict=True)
    for a, b in pairs:
        np.testing.assert_array_equal(a, b)
    plain = run(objectives.cross_entropy(network), 16)

    def margin(params):
        one = evaluate(mma, params, whole(x, y))[0]
        return float(one.metrics["margin"])

    assert margin(straight.params) > 1.1 * margin(plain.params)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attack": jr.attacks.pgd}, "attack must take box=, which seeks the least distance"),
        ({"attack": None}, "attack must take box=, which seeks the least distance"),
        ({"num_examples": 0}, "num_examples must be"),
        ({"norm": "l1"}, "norm must be one of linf, l2"),
        ({"clean_weight": 1.0}, "clean_weight must lie in"),
        ({"eps_min": 0.3}, "eps_min must be at most d_max; got 0.3"),
        ({"eps_min": 0.0}, "eps_min must be positive"),
        (
            {"attack": functools.partial(jr.attacks.adaptive_norm_pgd, norm="l2")},
            "attack must leave norm, radius and d_max to mma.* got norm",
        ),
        ({"d_max": np.inf}, "d_max must be finite"),
        ({"box": (1.0, 0.0)}, "box must be a pair"),
    ],
)
def test_what_cannot_be_meant_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)
