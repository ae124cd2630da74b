"""TRADES, bilateral, fast and free adversarial training, and schedules, against work by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrobust as jr
from jaxrobust import attacks, losses, objectives
from jaxrobust.types import Batch

KEY = jax.random.key(0)
BALL = jr.Ball("linf", 0.1)


def forward(params, model_state, x):
    return jnp.tanh(x @ params["w"]) @ params["v"], model_state


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(6, 5)), "v": rng.normal(size=(5, 4))}
    params = jax.tree.map(lambda w: jnp.array(w, jnp.float32), params)
    x = jnp.array(rng.uniform(size=(8, 6)), jnp.float32)
    return params, Batch(x, jnp.array(rng.integers(0, 4, 8)), jnp.arange(8))


def evaluate(objective, params, batch, state=None):
    state = objective.init(params, KEY) if state is None else state
    return objective.value_and_grad(params, {}, state, batch, key=KEY)


def close(left, right, **tolerance):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


def softmax(logits):
    logits = np.asarray(logits, np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def moved_up(logits_fn, x, y, *, key, ball, **options):
    """An attack whose images do not depend on the weights."""
    return x + ball.eps


def test_trades_is_the_clean_loss_and_beta_times_the_divergence(case):
    params, batch = case
    objective = objectives.trades(forward, moved_up, ball=BALL, beta=3.0)
    out, _ = evaluate(objective, params, batch)
    p, q = (softmax(forward(params, {}, x)[0]) for x in (batch.x, batch.x + 0.1))
    clean = -np.log(p[np.arange(8), batch.y])
    divergence = np.sum(p * np.log(p / q), 1)
    np.testing.assert_allclose(out.loss, np.mean(clean + 3 * divergence), rtol=1e-5)
    np.testing.assert_allclose(out.metrics["divergence"], divergence.mean(), rtol=1e-4)
    close(out.metrics["accuracy"], np.mean(p.argmax(1) == batch.y))
    close(out.metrics["adversarial_accuracy"], np.mean(q.argmax(1) == batch.y))


def test_trades_with_beta_0_is_cross_entropy(case):
    params, batch = case
    attack = functools.partial(attacks.pgd, num_steps=2)
    out, grads = evaluate(objectives.trades(forward, attack, ball=BALL, beta=0.0), params, batch)
    plain, plain_grads = evaluate(objectives.cross_entropy(forward), params, batch)
    assert out.loss == plain.loss
    close(grads, plain_grads, rtol=1e-6)


def test_the_attack_of_trades_climbs_the_divergence_from_near_the_image(case):
    params, batch = case
    seen = []

    def attack(logits_fn, x, y, *, key, ball, loss, start, step_size):
        assert loss is losses.kl
        jax.debug.callback(lambda x, start: seen.append((x, start)), x[0], start[0])
        return attacks.pgd(
            logits_fn, x, y, key=key, ball=ball, loss=loss, start=start, num_steps=5,
            step_size=step_size,
        )  # fmt: skip

    found = []
    for size in (0.0, 0.05):
        sized = functools.partial(attack, step_size=size)
        out, _ = evaluate(objectives.trades(forward, sized, ball=BALL), params, batch)
        found.append(float(out.metrics["divergence"]))
    jax.effects_barrier()
    assert found[1] > 100 * found[0] >= 0
    moves = [start - x for x, start in seen]
    assert 0.0005 < np.std(moves) < 0.0015


def test_pgd_starts_where_it_is_told(case):
    params, batch = case
    logits_fn = lambda x: forward(params, {}, x)[0]
    start = batch.x + jnp.linspace(-0.3, 0.3, 6)
    still = attacks.pgd(
        logits_fn, batch.x, batch.y, key=KEY, ball=BALL, num_steps=1, step_size=0.0, start=start
    )
    close(still, np.clip(start, np.maximum(batch.x - 0.1, 0), np.minimum(batch.x + 0.1, 1)))
    with pytest.raises(ValueError, match="start must hold"):
        attacks.pgd(
            logits_fn, batch.x, batch.y, key=KEY, ball=BALL, start=start, num_restarts=2
        )  # fmt: skip


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12),
    label=st.integers(0, 11),
    beta=st.floats(0.0625, 128, width=32),
    gamma=st.floats(0.0009765625, 1, width=32),
)
@settings(max_examples=60, deadline=None)
def test_adversarial_labels_are_those_of_the_paper(logits, label, beta, gamma):
    z, n = jnp.array(logits, jnp.float32), len(logits)
    c = label % n
    found = np.asarray(objectives.adversarial_labels(beta, gamma)(z, jnp.array(c)), np.float64)
    others = np.delete(found, c)
    assert np.all(found >= 0)
    np.testing.assert_allclose(found.sum(), 1, rtol=1e-5)
    # The true class has beta times the most of the others, and so an eps_y within these ends.
    np.testing.assert_allclose(found[c], beta * others.max(), rtol=1e-5)
    eps = 1 - found[c]
    assert 1 / (1 + beta) - 1e-6 <= eps <= 1 / (1 + beta / (n - 1)) + 1e-6
    # The formula as printed, at that eps_y.
    v = -np.log(softmax(z))
    v = np.delete(v, c)
    printed = eps / (n - 1) * (v - v.min() + gamma) / (v.mean() - v.min() + gamma)
    np.testing.assert_allclose(others, printed, rtol=2e-3, atol=1e-6)


def test_smoothed_labels_and_the_pairs_of_eps_and_beta_that_the_paper_gives():
    for eps, beta in ((0.1, 81.0), (0.5, 9.0), (0.9, 1.0)):
        equal = jnp.zeros(10)
        smooth = objectives.smoothed_labels(eps)(equal, jnp.array(3))
        close(smooth, np.where(np.arange(10) == 3, 1 - eps, eps / 9))
        close(objectives.adversarial_labels(beta)(equal, jnp.array(3)), smooth)


def test_cross_entropy_with_probabilities():
    z, p = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.2, 0.3, 0.5])
    close(losses.cross_entropy(z, p), -np.sum(p * np.log(softmax(z))))
    sure = jax.nn.one_hot(1, 3)
    close(losses.cross_entropy(z, sure), losses.cross_entropy(z, jnp.array(1)))


def test_the_most_confusing_class_is_the_likeliest_wrong_one(case):
    params, batch = case
    logits_fn = lambda x: forward(params, {}, x)[0]
    targets = []

    def attack(logits_fn, x, y, *, key, ball, loss):
        targets.append(np.asarray(y))
        return x

    attacks.most_confusing(attack)(logits_fn, batch.x, batch.y, key=KEY, ball=BALL)
    z = np.array(logits_fn(batch.x))
    z[np.arange(8), batch.y] = -np.inf
    np.testing.assert_array_equal(targets[0], z.argmax(1))
    one = functools.partial(attacks.pgd, num_steps=1, step_size=0.1)
    x_adv = attacks.most_confusing(one)(logits_fn, batch.x, batch.y, key=KEY, ball=BALL)
    towards = functools.partial(one, loss=losses.targeted(losses.cross_entropy))
    close(x_adv, towards(logits_fn, batch.x, z.argmax(1), key=KEY, ball=BALL))
    assert attacks.is_transfer(attacks.transfer(logits_fn, attacks.most_confusing(one)))


def test_bilateral_is_madry_of_its_parts(case):
    params, batch = case
    fixed = objectives.bilateral(forward, moved_up, ball=BALL, beta=2.0, gamma=0.5)
    out, _ = evaluate(fixed, params, batch)
    z, z_adv = (np.asarray(forward(params, {}, x)[0]) for x in (batch.x, batch.x + 0.1))
    expected = []
    for row, row_adv, c in zip(z, z_adv, np.asarray(batch.y), strict=True):
        w = np.delete(row, c).max() - row + 0.5
        w[c] = 2 * np.delete(w, c).max()
        expected.append(-np.sum(w / w.sum() * np.log(softmax(row_adv))))
    np.testing.assert_allclose(out.loss, np.mean(expected), rtol=1e-5)
    close(out.metrics["adversarial_accuracy"], np.mean(z_adv.argmax(1) == batch.y))
    one = functools.partial(attacks.pgd, num_steps=1, step_size=BALL.eps)
    towards = attacks.most_confusing(one)
    la = objectives.adversarial_labels(9.0)
    whole = evaluate(objectives.bilateral(forward, towards, ball=BALL), params, batch)
    parts = evaluate(objectives.madry(forward, towards, ball=BALL, labels=la), params, batch)
    close(whole, parts)


def test_labels_are_no_function_of_the_weights(case):
    """The gradient is that of the cross-entropy with the labels as they are now."""
    params, batch = case
    objective = objectives.bilateral(forward, moved_up, ball=BALL)
    _, grads = evaluate(objective, params, batch)
    now = jax.vmap(objectives.adversarial_labels())(forward(params, {}, batch.x)[0], batch.y)

    def loss(params):
        return optax.softmax_cross_entropy(forward(params, {}, batch.x + 0.1)[0], now).mean()

    close(grads, jax.grad(loss)(params))


def test_fast_adversarial_training_is_one_step_from_a_random_start(case):
    params, batch = case
    fast = functools.partial(attacks.pgd, num_steps=1, step_size=1.25 * BALL.eps)
    out, grads = evaluate(objectives.madry(forward, fast, ball=BALL), params, batch)
    rows = jax.vmap(jax.random.fold_in, (None, 0))(KEY, jnp.arange(8))
    keys = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, 0))[0])(rows)
    start = jax.vmap(BALL.sample)(batch.x, keys)
    sure = objectives.cross_entropy(forward)
    ascent = jax.grad(lambda x: evaluate(sure, params, batch._replace(x=x))[0].loss)(start)
    moved = start + 0.125 * jnp.sign(ascent)
    moved = jnp.clip(jnp.clip(moved, batch.x - 0.1, batch.x + 0.1), 0, 1)
    close(
        (out.loss, grads),
        (lambda o, g: (o.loss, g))(*evaluate(sure, params, batch._replace(x=moved))),
    )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_free_adversarial_training_is_its_algorithm(norm):
    """Three steps on one batch and one on the next, of a linear model, by hand."""
    rng = np.random.default_rng(3)
    x = rng.uniform(0.2, 0.8, size=(2, 2, 3)).astype(np.float32)
    y = np.array([[1, 0], [0, 0]])
    eps, rate, w = 0.15, 0.5, rng.normal(size=(3, 2)).astype(np.float32)
    linear = lambda params, state, x: (x @ params, state)
    objective = objectives.free(linear, ball=jr.Ball(norm, eps), shape=(2, 3), step_size=0.1)
    params, state = jnp.array(w), objective.init(None, KEY)
    delta = np.zeros((2, 3))
    for turn in (0, 0, 0, 1):
        batch = Batch(jnp.array(x[turn]), jnp.array(y[turn]), jnp.arange(2))
        out, grads = objective.value_and_grad(params, {}, state, batch, key=KEY)
        params, state = params - rate * grads, out.state
        at = x[turn] + delta
        error = softmax(at @ w) - np.eye(2)[y[turn]]
        climb = error @ w.T / 2
        if norm == "linf":
            delta = np.clip(delta + 0.1 * np.sign(climb), -eps, eps)
        else:
            delta = delta + 0.1 * climb / np.linalg.norm(climb, axis=1, keepdims=True)
            length = np.linalg.norm(delta, axis=1, keepdims=True)
            delta = delta * np.minimum(1, eps / length)
        delta = np.clip(x[turn] + delta, 0, 1) - x[turn]
        w = w - rate * at.T @ error / 2
        close((params, state.delta), (w, delta), atol=1e-5)


def test_any_number_follows_a_schedule_and_says_so(case):
    params, batch = case
    objective = objectives.scheduled(
        lambda eps, beta: objectives.trades(
            forward, moved_up, ball=jr.Ball("linf", eps), beta=beta
        ),
        eps=optax.linear_schedule(0.0, 0.2, 4),
        beta=optax.piecewise_constant_schedule(6.0, {2: 0.5}),
    )  # fmt: skip
    step = jax.jit(lambda state: evaluate(objectives.add(objective), params, batch, state))
    state, shown = (objective.init(params, KEY),), []
    for t in range(4):
        out, _ = step(state)
        state = out.state
        shown.append((float(out.metrics["eps"]), float(out.metrics["beta"])))
        ball = jr.Ball("linf", 0.05 * t)
        fixed = objectives.trades(forward, moved_up, ball=ball, beta=shown[-1][1])
        np.testing.assert_allclose(out.loss, evaluate(fixed, params, batch)[0].loss, rtol=1e-5)
    close(shown, [(0, 6), (0.05, 6), (0.1, 3), (0.15, 3)])
    assert state[0].step == 4


def test_attacks_and_labels_see_a_model_with_a_state_in_evaluation_mode(case):
    params, batch = case

    def train_mode(params, model_state, x):
        mean = x.mean(0)
        return forward(params, {}, x - mean)[0], {"mean": mean}

    def eval_mode(params, model_state, x):
        return forward(params, {}, x - model_state["mean"])[0], model_state

    state = {"mean": batch.x.mean(0) + 0.1}
    labels = objectives.adversarial_labels()
    for make in (
        functools.partial(objectives.trades, attack=attacks.pgd),
        functools.partial(objectives.madry, attack=attacks.pgd, labels=labels),
    ):
        blind = make(train_mode, ball=BALL)
        with pytest.raises(ValueError, match="eval_forward"):
            blind.value_and_grad(params, state, (), batch, key=KEY)
    seen = []

    def attack(logits_fn, x, y, *, key, ball, loss, start):
        outputs = logits_fn(x)
        jax.debug.callback(lambda *pair: seen.append(pair), outputs[0][0], outputs[1][0])
        return x

    both = objectives.trades(train_mode, attack, ball=BALL, eval_forward=eval_mode)
    out, _ = both.value_and_grad(params, state, (), batch, key=KEY)
    jax.effects_barrier()
    frozen = np.asarray(eval_mode(params, state, batch.x)[0])
    for logits, reference in seen:
        close(logits, reference)
        assert np.any(np.all(np.isclose(frozen, logits, rtol=1e-4), axis=1))
    close(out.model_state["mean"], batch.x.mean(0))


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: objectives.trades(forward, moved_up, ball=BALL, beta=-1.0), "beta must"),
        (lambda: objectives.trades(forward, moved_up, ball=BALL, sigma=-1.0), "sigma must"),
        (lambda: objectives.adversarial_labels(gamma=0.0), "gamma must be positive"),
        (lambda: objectives.adversarial_labels(beta=float("nan")), "beta must"),
        (lambda: objectives.smoothed_labels(1.5), "at most 1"),
        (lambda: objectives.free(forward, ball=BALL, shape=(8,)), "shape must be that of a batch"),
        (lambda: objectives.free(forward, ball=BALL, shape=(0, 6)), "shape must be an integer"),
        (lambda: objectives.scheduled(lambda: None), "at least one schedule"),
        (lambda: jr.transforms.ensemble([]), "at least one model"),
        (lambda: jr.transforms.ensemble(forward), "must be a list of models"),
        (
            lambda: objectives.madry(forward, None, ball=BALL),
            "attack must take ball=, which stays within it",
        ),
        (lambda: objectives.madry(forward, attacks.fmn, ball=BALL), "attack must take ball="),
        (lambda: objectives.madry(forward, moved_up, ball=BALL, labels=0.5), "labels must be"),
        (
            lambda: objectives.trades(forward, attacks.fgsm, ball=BALL),
            "attack must take ball= and loss= and start=, as attacks.pgd does",
        ),
        (lambda: attacks.most_confusing(attacks.apgd_targeted), "attack must take loss="),
        (lambda: jr.transforms.crop_and_flip(jnp.ones((3, 3)), KEY), "x must be one image"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_free_wants_batches_of_its_shape(case):
    params, batch = case
    objective = objectives.free(forward, ball=BALL, shape=(4, 6))
    with pytest.raises(ValueError, match=r"that of a batch, \(8, 6\); got \(4, 6\)"):
        evaluate(objective, params, batch)


def test_an_ensemble_is_the_mean_of_probabilities_and_a_pytree(case):
    params, batch = case
    model = lambda p: jax.tree_util.Partial(lambda p, x: forward(p, {}, x)[0], p)
    second = jax.tree.map(lambda w: 2 * w[::-1], params)
    both = jr.transforms.ensemble([model(params), model(second)])
    mean = (softmax(model(params)(batch.x)) + softmax(model(second)(batch.x))) / 2
    close(jax.jit(lambda f, x: f(x))(both, batch.x), np.log(mean), rtol=1e-4)
    assert len(jax.tree.leaves(both)) == 4
    x_adv = attacks.pgd(both, batch.x, batch.y, key=KEY, ball=BALL, num_steps=3)
    at = lambda x: jax.vmap(losses.cross_entropy)(both(x), batch.y).mean()
    assert at(x_adv) > at(batch.x)
    noisy = jr.transforms.gaussian_noise(lambda x: x, 0.5)
    mixed = jr.transforms.ensemble([lambda x: x, noisy, noisy])
    parts = [softmax(batch.x)] + [
        softmax(noisy(batch.x, jax.random.fold_in(KEY, i))) for i in (1, 2)
    ]
    assert isinstance(mixed, jr.Randomized)
    close(mixed(batch.x, KEY), np.log(np.mean(parts, 0)), rtol=1e-4)


def test_crop_and_flip_moves_and_mirrors_and_nothing_else():
    x = np.random.default_rng(0).uniform(0.1, 1, size=(5, 4, 2)).astype(np.float32)
    padded = np.pad(x, [(1, 1), (1, 1), (0, 0)])
    legal = {}
    for i in range(3):
        for j in range(3):
            crop = padded[i : i + 5, j : j + 4]
            legal[crop.tobytes()] = (i, j, False)
            legal[crop[:, ::-1].tobytes()] = (i, j, True)
    keys = jax.random.split(KEY, 300)
    move = functools.partial(jr.transforms.crop_and_flip, padding=1)
    found = np.asarray(jax.vmap(move, (None, 0))(jnp.array(x), keys))
    assert {legal[image.tobytes()] for image in found} == set(legal.values())
    still = jax.vmap(functools.partial(move, flip=False), (None, 0))(jnp.array(x), keys)
    assert not any(legal[image.tobytes()][2] for image in np.asarray(still))
