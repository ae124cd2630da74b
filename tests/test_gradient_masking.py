"""The cures, and the zoo of masked defences at tiny size on scikit-learn's digits."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from experiments import records
from experiments.gradient_masking import config, evaluate, layers, models, tables, train, zoo
from jaxrobust.diagnosis import SYMPTOMS

SIZES = dataclasses.replace(
    config.SIZES["cpu"]["digits"], num_steps=500, num_images=64, attack_steps=20
)
BALL = jr.Ball("linf", SIZES.eps)
KEY = jax.random.key(0)


@functools.cache
def data():
    return train.load(SIZES)


SHORT = dataclasses.replace(SIZES, num_steps=150, batch=64)
"""For Madry's training, whose steps are ten times as long."""


@functools.cache
def defence(name, seed):
    sizes = SHORT if name == "madry" else SIZES
    return (zoo.MASKED | zoo.CONTROLS)[name](sizes, data(), jax.random.key(seed))


def found(name, seed):
    one = defence(name, seed)
    return jr.diagnose(
        one.logits_fn, data().x_test, data().y_test, key=KEY, ball=BALL, batch_size=16,
        num_steps=10, num_queries=50, detectors=one.detectors,
    )  # fmt: skip


def accuracy(name, attack):
    one = defence(name, 0)
    x_adv = attack(one.logits_fn, data().x_test, data().y_test, key=KEY, ball=BALL)
    assert float(np.abs(x_adv - data().x_test).max()) <= SIZES.eps + 1e-6
    return float(np.mean(np.asarray(one.logits_fn(x_adv)).argmax(-1) == data().y_test))


@pytest.mark.parametrize("name", ["compressed", "distilled"])
def test_masked_defences_are_flagged_by_the_right_symptom(name):
    diagnosis = found(name, 0)
    assert set(diagnosis.names) & set(defence(name, 0).symptoms), diagnosis
    assert diagnosis.warnings


@pytest.mark.parametrize("name", ["natural", "madry"])
def test_honest_networks_raise_no_warning(name):
    diagnosis = found(name, 0)
    assert diagnosis.warnings == [], diagnosis
    assert diagnosis.clean_accuracy > 0.6


@functools.cache
def recorded():
    """What the experiment found of the whole zoo, on five seeds, by the thresholds of today."""
    folder = Path(records.__file__).parent / "gradient_masking/results/cpu/digits"
    seeds = {name: [] for name in zoo.MASKED | zoo.CONTROLS}
    limits = {name: symptom.threshold for name, symptom in SYMPTOMS.items()}
    for name, content in records.read(folder).items():
        assert content["sizes"] == records.plain(config.SIZES["cpu"]["digits"])
        assert content["thresholds"] == limits
        seeds[name.rpartition(" ")[0]].append(content["found"])
    assert {len(found) for found in seeds.values()} == {5}
    return seeds


@pytest.mark.parametrize("name", zoo.MASKED)
def test_masked_defences_were_flagged_and_cured(name):
    for one in recorded()[name]:
        names = [each["name"] for each in one["findings"]["found"]]
        assert set(names) & set(one["symptoms"])
        assert "warning" in [each["severity"] for each in one["findings"]["found"]]
        assert one["is"] < 0.1
        assert one["seems"] > 2 * one["is"]


@pytest.mark.parametrize("name", zoo.CONTROLS)
def test_honest_networks_raised_no_warning(name):
    for one in recorded()[name]:
        assert {each["severity"] for each in one["findings"]["found"]} <= {"note"}


@pytest.mark.parametrize("name", ["compressed", "distilled"])
def test_what_seems_robust_is_not(name):
    plain = zoo.climb(SIZES.attack_steps, 1, loss=jr.losses.cross_entropy)
    assert accuracy(name, plain) > 0.4
    assert accuracy(name, defence(name, 0).attack) < 0.1


def chain(x):
    """Two classes behind the purifier: whether what it makes of the image is brighter than 0.4."""
    mean = jnp.mean(layers.purified(x), -1)
    return jnp.stack([0.4 - mean, mean - 0.4], -1)


def test_reparametrisation_undoes_the_purifier():
    """All pixels at 0.3, which it makes 0.25 of: PGD has no gradient, the code has."""
    x, y = np.full((2, 3), 0.3, np.float32), np.zeros(2, int)
    ball = jr.Ball("linf", 0.2)
    pgd = functools.partial(jr.attacks.pgd, num_steps=5, random_start=False)
    coded = jr.attacks.reparametrize(
        layers.unpurified, pgd, encoder=layers.purified, codes=jr.Ball("linf", 0.3)
    )
    slope = jax.grad(lambda x: jr.losses.margin(chain(x[None])[0], jnp.array(0)))(x[0])
    assert float(jnp.abs(slope).max()) < 1e-20
    x_adv = coded(chain, x, y, key=KEY, ball=ball)
    assert (np.asarray(chain(x_adv)).argmax(-1) == 1).all()
    assert float(np.abs(x_adv - x).max()) <= 0.2 + 1e-6
    # A row does not depend on its neighbours, and equal draws give equal results.
    one = coded(chain, x[:1], y[:1], key=KEY, ball=ball)
    np.testing.assert_allclose(one[0], x_adv[0], atol=1e-6)


def test_reparametrisation_by_nothing_is_the_attack_itself():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2)), jnp.float32)
    x = np.random.default_rng(1).uniform(size=(4, 3)).astype(np.float32)
    y = np.asarray(x @ w).argmax(-1)
    ball = jr.Ball("linf", 0.1)
    same = jr.attacks.reparametrize(
        lambda z: z, jr.attacks.fgsm, encoder=lambda x: x, codes=jr.Ball("linf", 0.1)
    )
    logits_fn = lambda x: x @ w
    plain = jr.attacks.fgsm(logits_fn, x, y, key=KEY, ball=ball)
    np.testing.assert_allclose(same(logits_fn, x, y, key=KEY, ball=ball), plain, atol=1e-6)
    smaller = jr.Ball("linf", np.array([0.0, 0.02, 0.05, 0.1]))  # brought into the ball at call
    moved = np.abs(same(logits_fn, x, y, key=KEY, ball=smaller) - x).max(-1)
    assert (moved <= smaller.eps + 1e-6).all()
    assert moved[1] > 0


def test_reparametrisation_takes_carlini_and_wagner():
    """On a linear model of `2 z` the nearest code is the nearest image's half."""
    w = jnp.array([[1.0, -1.0], [0.5, -0.5]])
    x, y = np.array([[0.6, 0.5]], np.float32), np.array([0])
    logits_fn = lambda x: (x - 0.4) @ w
    settings = {"num_steps": 100, "num_searches": 5, "initial_c": 0.1}
    cw = functools.partial(jr.attacks.carlini_wagner_l2, **settings)
    coded = jr.attacks.reparametrize(
        lambda z: 2 * z, jr.attacks.against(cw), encoder=lambda x: x / 2,
        codes=jr.Ball("l2", 1.0, box=jr.Box(0.0, 0.5)),
    )  # fmt: skip
    x_adv = np.asarray(coded(logits_fn, x, y, key=KEY, ball=jr.Ball("l2", 1.0)))
    nearest = float((x[0] - 0.4) @ np.array([1.0, 0.5])) / np.hypot(1.0, 0.5)
    assert np.asarray(logits_fn(x_adv)).argmax(-1) == 1
    assert nearest <= np.linalg.norm(x_adv - x) <= 1.1 * nearest


def test_mistakes_are_refused(untyped):
    for settings, what in (
        ({"decoder": 3}, "decoder must be a function of arrays; got 3"),
        ({"encoder": "x"}, "encoder must be a function of arrays; got 'x'"),
        ({"attack": jr.attacks.deepfool}, "wrapped in attacks.against"),
    ):
        right = {"decoder": jnp.array, "encoder": jnp.array, "attack": jr.attacks.fgsm}
        with pytest.raises(ValueError, match=what):
            jr.attacks.reparametrize(**(right | settings), codes=BALL)
    with pytest.raises(ValueError, match="ball must be"):
        jr.attacks.reparametrize(lambda z: z, jr.attacks.fgsm, encoder=lambda x: x, codes=1.0)
    wrong = jr.attacks.reparametrize(
        lambda z: z[:, :1], jr.attacks.fgsm, encoder=lambda x: x, codes=BALL
    )
    x, y = np.full((1, 2), 0.5, np.float32), np.array([0])
    with pytest.raises(ValueError, match=r"decoder must return images of shape \(1, 2\)"):
        wrong(lambda x: x, x, y, key=KEY, ball=BALL)


X = jnp.asarray(np.random.default_rng(3).uniform(size=(3, 8, 8, 1)), jnp.float32)


def test_the_parts_are_what_they_say():
    bits = layers.thermometer(X)
    np.testing.assert_array_equal(bits.sum(-1), np.ceil(X * layers.LEVELS))
    np.testing.assert_allclose(layers.thermometer(X, hard=False).sum(-1), X * layers.LEVELS, 1e-5)
    coarse = layers.compressed(X)
    np.testing.assert_allclose(layers.compressed(coarse), coarse, atol=1e-4)  # a fixed point
    np.testing.assert_allclose(layers.compressed(jnp.full_like(X, 0.5)), 0.5, atol=1e-6)
    assert 0.01 < float(jnp.abs(coarse - X).max()) < 1
    z = jnp.linspace(0, 1, 27)
    np.testing.assert_allclose(layers.purified(layers.unpurified(z)), z, atol=1e-3)
    np.testing.assert_allclose(layers.purified(z), jnp.round(4 * z) / 4, atol=1e-3)
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40)), jnp.float32)
    winners = layers.k_winners(hidden)
    assert ((winners != 0).sum(-1) == 2).all()
    keys = jax.random.split(KEY, 2000)
    mean = jax.vmap(lambda key: layers.pruned(hidden, key))(keys).mean(0)
    np.testing.assert_allclose(mean, jax.nn.relu(hidden), atol=0.3)  # pruning is unbiased
    moved = layers.resized_and_padded(X, KEY)
    assert moved.shape == X.shape
    assert float(moved.max()) <= 1.0001


def test_local_dimension_is_that_of_the_reference():
    """Of points in a cube of dimension d, the estimate is about d."""
    rng = np.random.default_rng(0)
    for d in (1, 3):
        reference = rng.uniform(size=(500, d))
        inside = rng.uniform(0.3, 0.7, size=(300, d))
        wide = lambda z: jnp.asarray(np.pad(z, ((0, 0), (0, 6 - z.shape[1]))), jnp.float32)
        dimension = layers.local_dimension(wide(inside), wide(reference))
        assert jnp.median(dimension) == pytest.approx(d, rel=0.3)


def test_the_detector_rejects_as_few_clean_images_as_it_says():
    params = defence("natural", 0).logits_fn.args[0]
    _, hidden = layers.dense(params, jnp.asarray(data().x[:600]))
    most = jnp.quantile(layers.local_dimension(hidden[300:], hidden[:300]), 0.95)
    outputs = models.with_dimension(params, hidden[:300], most, jnp.asarray(data().x[300:600]))
    assert np.mean(models.accepted(outputs) < 0) == pytest.approx(0.05, abs=0.01)
    others = models.with_dimension(params, hidden[:300], most, jnp.asarray(data().x[600:900]))
    assert np.mean(models.accepted(others) < 0) < 0.15
    passes = np.asarray([models.rejected((o, s), 0) for o, s in zip(*outputs, strict=True)]) == 0
    assert (np.asarray(outputs[1])[passes] >= 0).all()


def test_measurements_are_told_in_tables_and_on_a_page(tmp_path):
    place = evaluate.Place(tmp_path, "smoke", "digits")
    found = jr.diagnosis.Findings(
        "linf", 0.2, 16, 0.9, {}, {"saturated logits": 0.75}, {"saturated logits": 0.05}, []
    )
    flagged = jr.Finding("saturated logits", 0.75, 0.05, [0], "It says.", "Try.")
    for name in ("natural", "distilled"):
        about = {"name": f"{name} 0", "sizes": place.sizes, "seed": 0}
        told = dataclasses.replace(found, found=[flagged] if name == "distilled" else [])
        numbers = {
            "row": "a row", "symptoms": ["saturated logits"], "cure": "a cure", "seems": 0.7,
            "is": 0.0, "findings": told.summary(),
        }  # fmt: skip
        records.keep(place.folder / f"{name}-0.json", about, lambda numbers=numbers: numbers, "")
    shown = tables.tables(place.folder.parent)
    defences = shown["defences digits"]
    assert "| 90.0 ± 0.0 | 70.0 ± 0.0 | 1 of 1 by saturated logits | a cure |" in defences
    assert "warnings in 0 of 1" in defences
    row = "| saturated logits | 0.75, 0.75 to 0.75 | 0.05 | 0.75, 0.75 to 0.75 | distilled 1/1 |"
    assert row in shown["thresholds"]
    evaluate.page(place)
    assert "It says." in (place.folder / "page" / "index.html").read_text()
