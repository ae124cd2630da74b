"""Penetration distortion maximisation: by hand, against NumPy loops, and what pairs are drawn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import jaxrobust as jr
from jaxrobust import losses, objectives
from jaxrobust.objectives._reduce_variance import class_variance
from jaxrobust.objectives._siamese import Pairs, draw_pairs, pair_loss
from jaxrobust.types import Batch

KEY = jax.random.key(0)
ALL = {
    "reverse_cross_entropy": objectives.reverse_cross_entropy,
    "reduce_variance": objectives.reduce_variance,
    "siamese": objectives.siamese,
    "pdm": objectives.pdm,
}
Y = np.array([0, 2, 2, 1, 0, 2, 3])  # 1 and 3 have one row each, 4 has none


def forward(params, model_state, x):
    embedding = x @ params["w"]
    return (embedding @ params["v"], embedding), model_state


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    shapes = {"w": (4, 3), "v": (3, 5)}
    return {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in shapes.items()}


@pytest.fixture
def batch():
    x = np.random.default_rng(1).normal(size=(len(Y), 4)).astype(np.float32)
    return Batch(jnp.asarray(x), jnp.asarray(Y), jnp.arange(len(Y)))


def eagerly(objective, params, batch, model_state=None, key=KEY):
    state = objective.init(params, key)
    return objective.value_and_grad(params, model_state or {}, state, batch, key=key)


step = jax.jit(eagerly, static_argnums=0)


# NumPy, one example after the other.


def rce_loop(logits, y):
    total = []
    for z, label in zip(logits, y, strict=True):
        p = np.exp(z - z.max())
        p /= p.sum()
        total.append(-sum(np.log(p[j]) for j in range(z.size) if j != label) / (z.size - 1))
    return np.array(total)


def variance_loop(embedding, y):
    variances = []
    for c in set(y.tolist()):
        rows = embedding[y == c]
        mean = sum(rows) / len(rows)
        variances.append(sum(float((z - mean) @ (z - mean)) for z in rows) / len(rows))
    return sum(variances) / len(variances)


def siamese_loop(embedding, pairs):
    off = []
    for i, (j, same, kept) in enumerate(zip(*map(np.asarray, pairs), strict=True)):
        if kept:
            a, b = embedding[i], embedding[j]
            off.append(abs(a @ b / np.linalg.norm(a) / np.linalg.norm(b) - same))
    return np.mean(off)


def test_reverse_cross_entropy_by_hand():
    z = jnp.log(jnp.array([1.0, 2.0, 1.0]))  # softmax 1/4, 1/2, 1/4
    np.testing.assert_allclose(losses.reverse_cross_entropy(z, jnp.array(1)), 2 * np.log(2), 1e-6)
    np.testing.assert_allclose(losses.reverse_cross_entropy(z, jnp.array(0)), 1.5 * np.log(2), 1e-6)
    # Two classes: plain cross-entropy of the reversed logits.
    two = jnp.array([0.3, -1.2])
    for y in (jnp.array(0), jnp.array(1)):
        np.testing.assert_allclose(
            losses.reverse_cross_entropy(two, y), losses.cross_entropy(-two, y), rtol=1e-6
        )
    # No smaller than log(L - 1), however far the logits go.
    far = losses.reverse_cross_entropy(jnp.array([-1e4, 0.0, 0.0, 0.0]), jnp.array(0))
    np.testing.assert_allclose(far, np.log(3), rtol=1e-6)


def test_reverse_cross_entropy_against_a_loop_and_its_slope():
    rng = np.random.default_rng(2)
    logits, y = rng.normal(size=(50, 6)).astype(np.float32) * 5, rng.integers(0, 6, 50)
    graded = jax.vmap(jax.value_and_grad(losses.reverse_cross_entropy))
    value, slope = graded(jnp.asarray(logits), jnp.asarray(y))
    np.testing.assert_allclose(value, rce_loop(logits.astype(np.float64), y), rtol=1e-5)
    reverse = np.where(np.arange(6) == y[:, None], 0, 1 / 5)
    np.testing.assert_allclose(slope, jax.nn.softmax(logits) - reverse, atol=1e-6)
    with_more = (jnp.asarray(logits[0]), jnp.zeros(4))
    np.testing.assert_allclose(
        losses.reverse_cross_entropy(with_more, jnp.asarray(y[0])), value[0], rtol=1e-6
    )


@pytest.mark.parametrize("y", [-1, 5])
def test_reverse_cross_entropy_of_a_label_out_of_range_is_nan(y):
    assert np.isnan(losses.reverse_cross_entropy(jnp.zeros(5), jnp.array(y)))
    with pytest.raises(ValueError, match="at least two classes; got 1"):
        losses.reverse_cross_entropy(jnp.zeros(1), jnp.array(0))


def test_reverse_cross_entropy_decides_by_the_least_logit():
    """A trained network is right by softmax(-z), and always wrong by softmax(+z)."""
    rng = np.random.default_rng(3)
    y = np.arange(96) % 3
    x = np.clip(np.eye(3, 4)[y] * 0.4 + 0.3 + 0.05 * rng.normal(size=(96, 4)), 0, 1)
    x = x.astype(np.float32)

    def affine(params, model_state, x):
        return x @ params, model_state

    def accuracy(logits_fn):
        return jr.evaluate(
            logits_fn, (x, y), attacks={"fgsm": jr.attacks.fgsm}, ball=jr.Ball("linf", 0.01),
            key=KEY, batch_size=96,
        )  # fmt: skip

    def logits_of(params, x):
        return affine(params, {}, x)[0]

    done = jr.train.fit(
        objectives.reverse_cross_entropy(affine), jnp.zeros((4, 3)), optax.adam(0.3), (x, y),
        key=KEY, num_epochs=20, batch_size=32,
    )  # fmt: skip
    raw = jax.tree_util.Partial(logits_of, done.params)
    assert accuracy(jr.transforms.reversed_logits(raw)).clean_accuracy == 1.0
    assert accuracy(jr.transforms.reversed_logits(raw)).robust_accuracy > 0.9
    assert accuracy(raw).clean_accuracy == 0.0
    batch = Batch(jnp.asarray(x), jnp.asarray(y), jnp.arange(96))
    out, _ = step(objectives.reverse_cross_entropy(affine), done.params, batch)
    assert float(out.metrics["accuracy"]) == 1.0
    with_features = lambda p, s, x: ((x @ p, x), s)
    assert (
        float(step(objectives.pdm(with_features), done.params, batch)[0].metrics["accuracy"]) == 1
    )


def test_class_variance_by_hand():
    """Rows at distance 1 of their class's mean, and one that is its class."""
    z = jnp.array([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0], [0.0, 1.0], [0.0, 3.0]])
    assert float(class_variance(z, jnp.array([0, 0, 1, 2, 2]))) == pytest.approx(2 / 3)
    assert float(class_variance(z, jnp.array([0, 0, 5, 7, 7]))) == pytest.approx(2 / 3)
    line = jnp.array([[0.0], [6.0], [3.0], [5.0]])
    assert float(class_variance(line, jnp.array([0, 0, 1, 1]))) == pytest.approx((9 + 1) / 2)


def test_class_variance_against_a_loop_and_its_slope():
    rng = np.random.default_rng(4)
    z, y = rng.normal(size=(40, 7)).astype(np.float32), rng.integers(0, 9, 40)
    value, slope = jax.value_and_grad(class_variance)(jnp.asarray(z), jnp.asarray(y))
    np.testing.assert_allclose(value, variance_loop(z.astype(np.float64), y), rtol=1e-5)
    present = len(set(y.tolist()))
    expected = [2 * (z[i] - z[y == y[i]].mean(0)) / (y == y[i]).sum() / present for i in range(40)]
    np.testing.assert_allclose(slope, expected, atol=1e-6)
    # Far from the origin nothing cancels.
    far = class_variance(jnp.asarray(z + 1000), jnp.asarray(y))
    np.testing.assert_allclose(far, value, rtol=1e-3)


def test_class_variance_of_collapsed_classes_is_nothing():
    rng = np.random.default_rng(5)
    y = rng.integers(0, 5, 64)
    centres = rng.normal(size=(5, 8)).astype(np.float32) * 100
    collapsed = jnp.asarray(centres[y]), jnp.asarray(y)
    value, slope = jax.jit(jax.value_and_grad(class_variance))(*collapsed)
    assert float(value) == 0
    np.testing.assert_array_equal(slope, 0)
    # As of classes of one row each.
    value, slope = jax.value_and_grad(class_variance)(jnp.asarray(centres), jnp.arange(5))
    assert float(value) == 0
    np.testing.assert_array_equal(slope, 0)


def test_pair_loss_by_hand():
    z = jnp.array([[1.0, 0.0], [3.0, 4.0], [0.0, -2.0], [5.0, 0.0]])
    pairs = Pairs(
        jnp.array([1, 2, 2, 0]),
        jnp.array([True, False, True, True]),
        jnp.array([True, True, True, False]),
    )
    # |0.6 - 1|, |-0.8 - 0|, the third with itself; the fourth is left out.
    np.testing.assert_allclose(pair_loss(z, pairs), (0.4 + 0.8 + 0) / 3, rtol=1e-6)
    away = np.asarray(jax.grad(lambda z: pair_loss(z, pairs._replace(partner=jnp.arange(4))))(z))
    np.testing.assert_array_equal(away, 0)
    none = pairs._replace(kept=jnp.zeros(4, bool))
    assert float(pair_loss(z, none)) == 0


@pytest.mark.parametrize("same_class", [0.0, 0.4, 1.0])
def test_siamese_against_a_loop_on_the_pairs_it_draws(params, batch, same_class):
    embedding = np.asarray(forward(params, {}, batch.x)[0][1], np.float64)
    objective = objectives.siamese(forward, same_class=same_class)
    for seed in range(5):
        key = jax.random.key(seed)
        out, _ = step(objective, params, batch, key=key)
        pairs = draw_pairs(batch.y, key, same_class)
        np.testing.assert_allclose(out.loss, siamese_loop(embedding, pairs), rtol=1e-5)
        assert out.metrics == {"siamese": out.loss}


def test_cosines_do_not_feel_lengths():
    rng = np.random.default_rng(6)
    z = rng.normal(size=(6, 3)).astype(np.float32)
    pairs = Pairs(jnp.array([1, 2, 3, 4, 5, 0]), jnp.arange(6) % 2 == 0, jnp.ones(6, bool))
    value, slope = jax.value_and_grad(pair_loss)(z, pairs)
    for size in (1e-30, 1e-10, 1e10, 1e30):
        scaled, scaled_slope = jax.value_and_grad(pair_loss)(
            jnp.asarray(z * np.float32(size)), pairs
        )
        np.testing.assert_allclose(scaled, value, rtol=1e-5)
        np.testing.assert_allclose(scaled_slope * np.float32(size), slope, rtol=1e-4, atol=1e-6)
    # A direction is at right angles to its slope.
    np.testing.assert_allclose(np.sum(slope * z, 1), 0, atol=1e-6)


def drawn(y, same_class, draws=20_000):
    keys = jax.random.split(KEY, draws)
    return jax.tree.map(
        np.asarray, jax.jit(jax.vmap(lambda key: draw_pairs(jnp.asarray(y), key, same_class)))(keys)
    )


def test_labels_and_rows_of_pairs_have_the_right_distribution():
    """Every row's partners, against the probabilities of Algorithm 1 within the batch."""
    q = 0.3
    y = np.array([0, 0, 0, 0, 1, 1, 2])
    pairs = drawn(y, q)
    assert pairs.kept.all()
    # Rows choose by themselves: as many agree as two coins do.
    both = (pairs.same[:, 0] == pairs.same[:, 1]).mean()
    assert abs(both - (q**2 + (1 - q) ** 2)) < 0.015
    for i in range(len(y)):
        assert stats.binomtest(int(pairs.same[:, i].sum()), len(pairs.same), q).pvalue > 1e-3
        expected = np.zeros(len(y))
        alike = (y == y[i]) & (np.arange(len(y)) != i)
        expected[alike if alike.any() else i] += q / max(alike.sum(), 1)
        for c in {0, 1, 2} - {y[i]}:
            expected[y == c] += (1 - q) / 2 / (y == c).sum()
        counts = np.bincount(pairs.partner[:, i], minlength=len(y))
        possible = expected > 0
        assert counts[~possible].sum() == 0
        test = stats.chisquare(counts[possible], expected[possible] * len(pairs.same))
        assert test.pvalue > 1e-3
        own = pairs.partner[:, i] != i
        np.testing.assert_array_equal(y[pairs.partner[own, i]] == y[i], pairs.same[own, i])


def test_pairs_that_do_not_exist():
    one_class = drawn(np.zeros(4, int), 0.5, 200)
    np.testing.assert_array_equal(one_class.kept, one_class.same)
    assert (one_class.partner != np.arange(4))[one_class.same].all()
    assert (one_class.partner == np.arange(4))[~one_class.same].all()
    distinct = drawn(np.arange(4), 0.5, 200)
    assert distinct.kept.all()
    np.testing.assert_array_equal(distinct.partner == np.arange(4), distinct.same)
    alone = drawn(np.zeros(1, int), 0.5, 200)
    assert (alone.partner == 0).all()
    np.testing.assert_array_equal(alone.kept, alone.same)
    assert drawn(Y, 1.0, 50).same.all()
    assert not drawn(Y, 0.0, 50).same.any()


def test_pairs_of_a_batch_have_the_mean_of_pairs_of_the_training_set():
    """Algorithm 1 draws a partner from all images of a class; so, on average, does a batch."""
    rng = np.random.default_rng(7)
    y = np.arange(60) % 3
    z = (rng.normal(size=(60, 4)) + np.eye(3, 4)[y]).astype(np.float32)
    units = z / np.linalg.norm(z, axis=1, keepdims=True)
    cosines = units @ units.T
    alike = y[:, None] == y
    others = alike & ~np.eye(60, dtype=bool)
    expected = 0.5 * np.abs(1 - cosines)[others].mean() + 0.5 * np.abs(cosines)[~alike].mean()

    def one(key):
        rows_key, pair_key = jax.random.split(key)
        rows = jax.random.permutation(rows_key, 60)[:24]
        labels = jnp.asarray(y)[rows]
        return pair_loss(jnp.asarray(z)[rows], draw_pairs(labels, pair_key, 0.5))

    found = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(KEY, 4000)))
    error = found.std() / np.sqrt(4000)
    assert error < 0.002
    assert abs(found.mean() - expected) < 4 * error


def pdm_loop(params, x, y, pairs):
    """All of PDM in NumPy, float64."""
    z = x @ params["w"]
    each = rce_loop(z @ params["v"], y)
    partners = np.asarray(pairs.partner)[np.asarray(pairs.kept)]
    return each.mean() + each[partners].mean() + variance_loop(z, y) + siamese_loop(z, pairs)


@pytest.mark.parametrize("same_class", [0.0, 0.5, 1.0])
def test_pdm_is_the_sum_of_its_parts(params, batch, same_class):
    pairs = draw_pairs(batch.y, KEY, same_class)

    def partners_alone(outputs, y):  # each row as often as it was drawn
        return losses.reverse_cross_entropy(outputs, y)

    second = batch._replace(x=batch.x[pairs.partner], y=batch.y[pairs.partner])
    parts = [
        step(objectives.reverse_cross_entropy(forward), params, batch),
        step(objectives.from_loss(forward, partners_alone), params, second),
        step(objectives.reduce_variance(forward), params, batch),
        step(objectives.siamese(forward, same_class=same_class), params, batch),
    ]
    out, grads = step(objectives.pdm(forward, same_class=same_class), params, batch)
    np.testing.assert_allclose(out.loss, sum(part.loss for part, _ in parts), rtol=1e-6)
    total = jax.tree.map(lambda *each: sum(each), *(part for _, part in parts))
    for name in total:
        np.testing.assert_allclose(grads[name], total[name], rtol=1e-4, atol=1e-5)
    names = ["reverse_cross_entropy", "partner_reverse_cross_entropy", "variance", "siamese"]
    assert set(out.metrics) == {"accuracy", *names}
    for name, (part, _) in zip(names, parts, strict=True):
        np.testing.assert_allclose(out.metrics[name], part.loss, rtol=1e-6)
    hits = np.asarray(forward(params, {}, batch.x)[0][0]).argmin(1) == Y
    assert float(out.metrics["accuracy"]) == pytest.approx(hits.mean())


def test_pdm_against_loops_and_their_differences(params, batch):
    pairs = draw_pairs(batch.y, KEY, 0.5)
    exact = {k: np.asarray(v, np.float64) for k, v in params.items()}
    x = np.asarray(batch.x, np.float64)
    out, grads = step(objectives.pdm(forward), params, batch)
    np.testing.assert_allclose(out.loss, pdm_loop(exact, x, Y, pairs), rtol=1e-5)
    for name, value in exact.items():
        for place in np.ndindex(value.shape):
            ends = []
            for sign in (1, -1):
                moved = {**exact, name: value.copy()}
                moved[name][place] += sign * 1e-6
                ends.append(pdm_loop(moved, x, Y, pairs))
            slope = (ends[0] - ends[1]) / 2e-6
            np.testing.assert_allclose(grads[name][place], slope, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_one_pass_a_step(params, batch, name):
    calls = []

    def counted(params, model_state, x):
        calls.append(x.shape)
        return forward(params, {}, x)[0], {"passes": model_state["passes"] + 1}

    out, _ = step(ALL[name](counted), params, batch, {"passes": 0})
    assert calls == [(7, 4)]
    assert out.model_state == {"passes": 1}
    assert out.state == ()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("y", [Y, np.arange(7) % 5, np.zeros(7, int)], ids=["mixed", "few", "one"])
def test_gradients_are_finite_and_programs_exact(params, batch, name, y):
    """Classes of one row, one class alone, and a row whose embedding is zero."""
    batch = batch._replace(x=batch.x.at[2].set(0.0), y=jnp.asarray(y))
    objective = ALL[name](forward)
    compiled = functools.partial(step, objective)
    found = [eagerly(objective, params, batch), compiled(params, batch), compiled(params, batch)]
    for leaf in jax.tree.leaves(found):
        assert np.isfinite(np.asarray(leaf)).all()
    for same in zip(*map(jax.tree.leaves, found[1:]), strict=True):
        np.testing.assert_array_equal(*same)
    for near in zip(*map(jax.tree.leaves, found[:2]), strict=True):
        np.testing.assert_allclose(*near, rtol=1e-5, atol=1e-6)
    collapsed = {**params, "w": jnp.zeros((4, 3))}
    _, grads = compiled(collapsed, batch)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(grads))


def test_pairs_are_the_same_compiled():
    eager = draw_pairs(jnp.asarray(Y), KEY, 0.5)
    compiled = jax.jit(draw_pairs, static_argnums=2)(jnp.asarray(Y), KEY, 0.5)
    for a, b in zip(eager, compiled, strict=True):
        np.testing.assert_array_equal(a, b)
    other = draw_pairs(jnp.asarray(Y), jax.random.key(1), 0.5)
    assert not np.array_equal(eager.partner, other.partner)


def test_parts_add_up_with_any_other_objective(params, batch):
    """Siamese and RVL beside cross-entropy, as in table 1 of paper 004."""
    both = objectives.add(
        objectives.cross_entropy(forward),
        objectives.scale(4.0, objectives.reduce_variance(forward)),
        objectives.siamese(forward),
    )
    out, _ = step(both, params, batch)
    plain, _ = step(objectives.cross_entropy(forward), params, batch)
    variance, _ = step(objectives.reduce_variance(forward), params, batch)
    expected = plain.loss + 4 * variance.loss + out.metrics["siamese"]
    np.testing.assert_allclose(out.loss, expected, rtol=1e-6)
    assert set(out.metrics) == {"accuracy", "variance", "siamese"}


def test_parts_of_one_model_share_a_pass(params, batch):
    calls = []

    def counted(params, model_state, x):
        calls.append(x.shape)
        return forward(params, {}, x)[0], {"passes": model_state["passes"] + 1}

    attack = lambda logits_fn, x, y, *, key, ball: x
    parts = (
        objectives.cross_entropy(counted),
        objectives.madry(counted, attack, ball=jr.Ball("linf", 0.1), eval_forward=counted),
        objectives.scale(4.0, objectives.reduce_variance(counted)),
        objectives.siamese(counted),
    )
    out, grads = step(objectives.add(*parts), params, batch, {"passes": 0})
    assert out.model_state == {"passes": 2}
    assert len(calls) == 2
    draws = [jax.random.fold_in(KEY, i) for i in range(4)]
    alone = [
        one.value_and_grad(params, {"passes": 0}, (), batch, key=own)
        for one, own in zip(parts, draws, strict=True)
    ]
    np.testing.assert_allclose(out.loss, sum(one.loss for one, _ in alone), rtol=1e-6)
    whole = functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), [g for _, g in alone])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, whole)
    assert set(out.metrics) == set().union(*(one.metrics for one, _ in alone))


@pytest.mark.parametrize("name", ["reduce_variance", "siamese", "pdm"])
def test_a_model_without_embedding_is_refused(params, batch, name):
    def answer(outputs):
        return step(ALL[name](lambda p, s, x: (outputs, s)), params, batch)

    logits = jnp.zeros((7, 5))
    for outputs, came in [
        (logits, "logits alone"),
        ((logits,), "a tuple of 1"),
        ((logits, jnp.zeros(7)), r"\(7,\)"),
        ((logits, jnp.zeros((6, 3))), r"\(6, 3\)"),
    ]:
        with pytest.raises(ValueError, match=f"embedding.*got {came}"):
            answer(outputs)


@pytest.mark.parametrize("factory", [objectives.siamese, objectives.pdm])
def test_probabilities_are_checked(factory):
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="same_class must be a probability"):
            factory(forward, same_class=wrong)


def test_embeddings_of_any_shape(params, batch):
    def spatial(params, model_state, x):
        (logits, embedding), _ = forward(params, model_state, x)
        return (logits, embedding.reshape(7, 1, 3, 1)), model_state

    flat, _ = step(objectives.pdm(forward), params, batch)
    found, _ = step(objectives.pdm(spatial), params, batch)
    np.testing.assert_allclose(found.loss, flat.loss, rtol=1e-6)


def test_training_separates_the_classes():
    """All three aims at once, on clusters that overlap in directions."""
    rng = np.random.default_rng(8)
    y = np.arange(120) % 3
    centres = np.array([[0.2, 0.2, 0.5], [0.5, 0.5, 0.5], [0.8, 0.8, 0.5]])
    x = np.clip(centres[y] + 0.03 * rng.normal(size=(120, 3)), 0, 1).astype(np.float32)

    def network(params, model_state, x):
        hidden = jax.nn.relu((x - 0.5) @ params["a"] + params["b"])
        embedding = hidden @ params["c"]
        return (embedding @ params["d"], embedding), model_state

    shapes = {"a": (3, 32), "b": (32,), "c": (32, 6), "d": (6, 3)}
    start = {k: jnp.asarray(rng.normal(size=s) * 0.5, jnp.float32) for k, s in shapes.items()}
    done = jr.train.fit(
        objectives.pdm(network), start, optax.adam(0.01), (x, y), key=KEY, num_epochs=60,
        batch_size=30,
    )  # fmt: skip
    last = done.metrics[-1]
    assert last["accuracy"] == 1.0
    assert last["siamese"] < 0.1
    assert last["variance"] < 0.1
    logits_fn = jr.transforms.reversed_logits(
        jax.tree_util.Partial(lambda params, x: network(params, {}, x)[0], done.params)
    )
    logits, embedding = logits_fn(jnp.asarray(x))
    assert (np.asarray(logits).argmax(1) == y).mean() == 1.0
    units = np.asarray(embedding) / np.linalg.norm(embedding, axis=1, keepdims=True)
    alike = y[:, None] == y
    assert (units @ units.T)[alike].mean() > 0.9
    assert np.abs((units @ units.T)[~alike]).mean() < 0.2


@pytest.mark.parametrize("name", ALL)
def test_double_precision_without_implicit_promotion(params, batch, name):
    single, _ = step(ALL[name](forward), params, batch)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), params)
        exact = batch._replace(x=jnp.asarray(np.asarray(batch.x, np.float64)), y=jnp.asarray(Y))
        out, grads = step(ALL[name](forward), wide, exact)
        assert {leaf.dtype for leaf in jax.tree.leaves((out.loss, grads))} == {np.dtype(np.float64)}
        # Pairs are others: draws depend on the precision of uniform numbers.
        if name in ("reverse_cross_entropy", "reduce_variance"):
            np.testing.assert_allclose(out.loss, single.loss, rtol=1e-5)
