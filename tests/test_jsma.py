"""JSMA against a search over all pairs in NumPy, and against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import random_layers

import jaxrobust as jr
from jaxrobust.attacks._jsma import _best_pair

KEY = jax.random.key(0)


def every_pair(jacobian, target, free, sign):
    """The best pair of the matrix of all scores, or None; the definition, as it is written."""
    alpha = jacobian[target]
    beta = jacobian.sum(0) - alpha
    best, pair = 0.0, None
    for p in range(len(alpha)):
        for q in range(p):
            a, b = alpha[p] + alpha[q], beta[p] + beta[q]
            if free[p] and free[q] and sign * a > 0 > sign * b and -a * b > best:
                best, pair = -a * b, [p, q]
    return pair


def every_feature(jacobian, target, free, sign):
    alpha = jacobian[target]
    beta = jacobian.sum(0) - alpha
    good = free & (sign * alpha > 0) & (sign * beta < 0)
    scores = np.where(good, -alpha * beta, 0)
    return [scores.argmax()] if good.any() else None


def reference(outputs, jacobian, x, target, *, box, theta, gamma, pairs):
    """Targeted JSMA of one image by its `outputs` of shape `(classes,)` and their Jacobian."""
    low, high = box
    x_adv, free = x.copy(), (x < high) if theta > 0 else (x > low)
    search = every_pair if pairs else every_feature
    for _ in range(int(np.floor(x.size * gamma / (2 if pairs else 1)))):
        if np.argmax(outputs(x_adv)) == target:
            break
        chosen = search(np.asarray(jacobian(x_adv)), target, free, np.sign(theta))
        if chosen is None:
            break
        x_adv[chosen] = np.clip(x_adv[chosen] + theta * (high - low), low, high)
        free[chosen] = False
    return x_adv if np.argmax(outputs(x_adv)) == target else x


@pytest.mark.parametrize(
    ("on", "theta", "gamma", "pairs"),
    [
        ("logits", 1.0, 1.0, True),
        ("logits", -0.4, 1.0, True),
        ("logits", -0.6, 0.8, False),
        ("softmax", 0.5, 0.7, True),
        ("softmax", -1.0, 1.0, False),
    ],
)
def test_is_the_search_over_all_pairs(on, theta, gamma, pairs):
    box, found = jr.Box(-1.0, 2.0), 0
    with jax.enable_x64(True):
        layers = jax.tree.map(lambda w: np.asarray(w, np.float64), random_layers(3, (9, 12, 4)))
        logits_fn = jax.tree_util.Partial(jr.layers.apply, layers)
        rng = np.random.default_rng(0)
        x = np.clip(rng.uniform(-1.5, 2.5, size=(12, 9)), *box)
        y = np.asarray(logits_fn(x)).argmax(1)
        target = (y + 1 + np.arange(12) % 3) % 4
        x_adv = jr.attacks.jsma(
            logits_fn, x, y, key=KEY, box=box, target=target, on=on, pairs=pairs, theta=theta,
            gamma=gamma,
        )  # fmt: skip

        def outputs(x):
            logits = logits_fn(x[None])[0]
            return jax.nn.softmax(logits) if on == "softmax" else logits

        both = jax.jit(outputs), jax.jit(jax.jacobian(outputs))
        for row in range(12):
            expected = reference(
                *both, x[row], target[row], box=box, theta=theta, gamma=gamma, pairs=pairs
            )
            np.testing.assert_allclose(x_adv[row], expected, atol=1e-12)
            found += (expected != x[row]).any()
    assert found >= 3


def test_the_best_pair_is_exact_in_float32():
    """The same float score as the whole matrix gives, for points in every arrangement."""
    rng = np.random.default_rng(1)
    search = jax.jit(_best_pair)
    for case in range(60):
        rise, fall = rng.normal(size=(2, 17)).astype(np.float32)
        if case % 4 == 1:  # many ties
            rise, fall = np.round(rise), np.round(fall)
        if case % 4 == 2:  # all of them maximal
            fall = -rise + np.float32(2)
        if case % 4 == 3:  # few good ones, most of them excluded
            rise[rng.random(17) < 0.7] = -np.inf
            fall[np.isinf(rise)] = -np.inf
        both = rise[:, None] + rise, fall[:, None] + fall
        good = (both[0] > 0) & (both[1] > 0) & ~np.eye(17, dtype=bool)
        with np.errstate(invalid="ignore"):
            scores = np.where(good, both[0] * both[1], 0)
        chosen = np.flatnonzero(search(rise, fall))
        if scores.max() == 0:
            assert len(chosen) == 0
        else:
            assert len(chosen) == 2
            assert scores[tuple(chosen)] == scores.max()


def test_fewest_features_where_greed_is_right():
    """Two classes, an affine model, one grey image: the largest weights, as few as will do."""
    rng = np.random.default_rng(2)
    weights = rng.normal(size=12).astype(np.float32)
    x = np.full((1, 3, 2, 2), 0.5, np.float32)
    gap = np.linspace(0.1, 2.0, 6).astype(np.float32)
    gains = 0.5 * np.sort(weights[weights > 0])[::-1]
    needed = np.array([1 + (np.cumsum(gains) <= g).sum() for g in gap])
    assert len(set(needed.tolist())) > 2
    for row in (0, 2, 5):

        def logits_fn(x, row=row):
            score = (x - 0.5).reshape(len(x), -1) @ weights - gap[row]
            return jnp.stack([0 * score, score], -1)

        def changed(x=x, logits_fn=logits_fn, **settings):
            y = np.zeros(1, np.int32)
            x_adv = jr.attacks.jsma(logits_fn, x, y, key=KEY, on="softmax", **settings)
            return int((np.asarray(x_adv) != x).sum())

        assert changed(pairs=False) == needed[row]
        assert changed() in (needed[row], needed[row] + 1)
        if needed[row] > 1:
            assert changed(pairs=False, gamma=(needed[row] - 0.5) / 12) == 0


def test_saturated_probabilities_do_not_hide_the_target():
    """Logits of a distilled network: the softmax's own derivative is zero in float32."""
    kernel = np.random.default_rng(3).normal(size=(10, 3)).astype(np.float32)

    def logits_fn(scale):
        return lambda x: scale * (x @ kernel)

    x = np.full((4, 10), 0.5, np.float32) + 0.01 * np.arange(4, dtype=np.float32)[:, None]
    y = np.asarray(logits_fn(1.0)(x)).argmax(1)
    plain, hot = (
        np.asarray(jr.attacks.jsma(logits_fn(s), x, y, key=KEY, on="softmax")) for s in (1.0, 1e3)
    )
    np.testing.assert_array_equal(plain, hot)
    assert (plain != x).any(1).all()


def test_untargeted_goes_for_the_runner_up():
    kernel = np.random.default_rng(4).normal(size=(10, 4)).astype(np.float32)
    logits_fn = lambda x: x @ kernel
    x = np.random.default_rng(5).uniform(0, 0.5, size=(8, 10)).astype(np.float32)
    logits = np.asarray(logits_fn(x))
    attack = functools.partial(jr.attacks.jsma, on="softmax")
    y, runner_up = logits.argsort(1)[:, -1], logits.argsort(1)[:, -2]
    aimed = np.asarray(attack(logits_fn, x, y, key=KEY, target=runner_up))
    free = np.asarray(attack(logits_fn, x, y, key=KEY))
    hit = (aimed != x).any(1)
    assert hit.sum() >= 4
    assert (np.asarray(logits_fn(free)).argmax(1) != y)[hit].all()
    assert ((free != x).sum(1) <= (aimed != x).sum(1))[hit].all()


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"on": "probabilities"}, "on must be one of logits, softmax"),
        ({"theta": 0.0}, "theta must lie in"),
        ({"theta": 1.5}, "theta must lie in"),
        ({"gamma": 0.0}, "gamma must lie in"),
        ({"gamma": 0.1}, "gamma must allow a step"),
    ],
)
def test_wrong_settings_are_refused(change, message):
    x, y = np.full((2, 6), 0.5, np.float32), np.zeros(2, np.int32)
    with pytest.raises(ValueError, match=message):
        jr.attacks.jsma(lambda x: x, x, y, key=KEY, **change)
