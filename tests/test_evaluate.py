"""The judge: what it counts, what it refuses to believe, and that nothing else moves it."""

import dataclasses
import functools
import html
import io
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contracts import images, problem
from rich.console import Console
from scipy.stats import beta

import jaxrobust as jr
from jaxrobust import flow

KEY = jax.random.key(11)
PGD = functools.partial(jr.attacks.pgd, num_steps=5)
ATTACKS = {"fgsm": jr.attacks.fgsm, "bim": jr.attacks.bim, "pgd": PGD}
BALL = jr.Ball("linf", 0.15)


def run(logits_fn, x, y, **changes):
    options = {"attacks": ATTACKS, "ball": BALL, "key": KEY, "batch_size": 4} | changes
    return jr.evaluate(logits_fn, (x, y), **options)


@pytest.fixture(scope="module")
def case():
    logits_fn, layers, x, y = problem(0, batch=50)
    y = y.copy()
    y[::7] = (y[::7] + 1) % 3  # some clean mistakes
    return logits_fn, layers, x, y


def test_numbers_are_those_of_the_table(case):
    logits_fn, _, x, y = case
    report = run(logits_fn, x, y)
    table = report.examples
    clean = np.asarray(logits_fn(x)).argmax(-1) == y
    np.testing.assert_array_equal(table["clean_correct"], clean)
    assert report.clean_accuracy == clean.mean()
    standing = clean.copy()
    for name in ATTACKS:
        np.testing.assert_array_equal(table[f"ran/{name}"], standing)  # survivors only
        standing &= ~table[f"success/{name}"]
        assert report.accuracy_after[name] == standing.mean()
        assert ((table["broken_by"] == name) == (clean & table[f"success/{name}"])).all()
    assert report.robust_accuracy == standing.mean()
    assert 0 < report.robust_accuracy < report.clean_accuracy
    assert report.accuracy_under == {}
    k, n = clean.sum(), len(y)
    low, high = report.intervals["clean"]
    np.testing.assert_allclose(low, beta.ppf(0.025, k, n - k + 1))
    np.testing.assert_allclose(high, beta.ppf(0.975, k + 1, n - k))


def test_worst_case_is_the_same_with_all_attacks_on_all_rows(case):
    logits_fn, _, x, y = case
    survivors, everyone = run(logits_fn, x, y), run(logits_fn, x, y, survivors_only=False)
    assert survivors.robust_accuracy == everyone.robust_accuracy
    assert survivors.accuracy_after == everyone.accuracy_after
    assert all(record.rows == 50 for record in everyone.attacks.values())
    assert min(everyone.accuracy_under.values()) >= everyone.robust_accuracy
    assert everyone.accuracy_under["fgsm"] == everyone.accuracy_after["fgsm"]


def test_order_of_attacks_changes_nobodys_draws(case):
    logits_fn, _, x, y = case
    forward = run(logits_fn, x, y, survivors_only=False)
    backward = run(
        logits_fn, x, y, survivors_only=False, attacks=dict(reversed(list(ATTACKS.items())))
    )
    for name in ATTACKS:
        np.testing.assert_array_equal(
            forward.examples[f"success/{name}"], backward.examples[f"success/{name}"]
        )
        np.testing.assert_array_equal(
            forward.examples[f"distance/{name}"], backward.examples[f"distance/{name}"]
        )


def test_batch_size_and_neighbours_change_nothing_in_float64():
    with jax.enable_x64(True):
        logits_fn, _, x, y = problem(1, batch=20)
        logits_fn = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), logits_fn)
        x = x.astype(np.float64)
        whole = run(logits_fn, x, y, batch_size=5, keep_images=20)
        other = run(logits_fn, x, y, batch_size=2, keep_images=20)
        np.testing.assert_allclose(
            whole.images["adversarial"], other.images["adversarial"], atol=1e-6
        )
        np.testing.assert_array_equal(whole.examples["robust"], other.examples["robust"])


def test_four_devices_and_one_give_the_same_bits(case, tmp_path):
    logits_fn, _, x, y = case
    assert jax.device_count() == 4
    here = run(logits_fn, x, y, keep_images=50)
    code = (
        "import sys, numpy as np, jax; sys.path.insert(0, 'tests')\n"
        "import test_evaluate as t\n"
        "assert jax.device_count() == 1\n"
        "f, _, x, y = t.problem(0, batch=50); y = y.copy(); y[::7] = (y[::7] + 1) % 3\n"
        f"t.run(f, x, y, keep_images=50).save({str(tmp_path)!r})\n"
    )
    # One device, all else compiled alike.
    flags = os.environ["XLA_FLAGS"].replace("device_count=4", "device_count=1")
    environment = dict(os.environ, XLA_FLAGS=flags)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    with np.load(tmp_path / "examples.npz") as stored:
        there = dict(stored)
    for name, array in here.arrays().items():
        np.testing.assert_array_equal(array, there[name], err_msg=name)


def test_attacks_are_not_believed(case):
    logits_fn, _, x, y = case

    def far(logits_fn, x, y, *, key, ball):
        return jnp.clip(jnp.asarray(x) + 0.5, 0, 2)

    def broken(logits_fn, x, y, *, key, ball):
        return jnp.full_like(x, jnp.nan)

    report = run(logits_fn, x, y, attacks={"far": far, "broken": broken}, keep_images=50)
    assert {f.name for f in report.findings} == {
        "outside the ball: far", "attack failed: broken",
    }  # fmt: skip
    moved = np.abs(report.images["adversarial"] - report.images["clean"])
    assert moved.max() <= 0.15 + 1e-6
    assert not report.examples["success/broken"].any()
    assert np.nanmin(report.examples["distance/far"]) > 0.15
    # Judged after projection: exactly what the projected image does.
    projected = np.clip(np.clip(x + 0.5, 0, 1), x - np.float32(0.15), x + np.float32(0.15))
    fooled = np.asarray(logits_fn(np.clip(projected, 0, 1))).argmax(-1) != y
    ran = report.examples["ran/far"]
    np.testing.assert_array_equal(report.examples["success/far"][ran], fooled[ran])


def test_minimum_norm_attacks_give_the_curve_and_their_distances():
    """A margin that is a sum of pixels: an image of sum s breaks at |s - 2| / 4 in linf."""

    def model(x):
        return jnp.stack([x.sum((1, 2)), 4 - x.sum((1, 2))], -1)

    x = np.array([0.55, 0.6, 0.7, 0.45], np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)
    y = np.array([0, 0, 0, 0])  # the last is wrong
    attacks = {"deepfool": jr.attacks.against(jr.attacks.deepfool)}
    report = run(model, x, y, attacks=attacks, ball=jr.Ball("linf", 0.07))
    assert report.findings == []  # of images outside the ball: that is their trade
    assert report.examples["robust"].tolist() == [False, True, True, False]
    np.testing.assert_array_equal(
        report.accuracy_at(np.array([0.0, 0.07, 0.15, 0.25])), [0.75, 0.5, 0.25, 0.0]
    )
    linf = report.examples["linf/deepfool"]
    # DeepFool's step is longer by 1e-4, and all of it by 2 %.
    np.testing.assert_allclose(linf[:3], 1.02 * np.array([0.0501, 0.1001, 0.2001]), atol=1e-6)
    np.testing.assert_allclose(report.examples["l2/deepfool"][:3], 2 * linf[:3], rtol=1e-5)
    assert report.examples["l0/deepfool"][:3].tolist() == [4, 4, 4]
    assert np.isnan(linf[3])
    assert report.attacks["deepfool"].median["linf"] == pytest.approx(linf[1])


def test_the_curve_of_a_minimum_norm_attack_is_the_same_behind_others(case):
    logits_fn, _, x, y = case
    free = jr.attacks.against(jr.attacks.deepfool)
    radii = np.array([0.0, 0.03, 0.06, 0.1, 0.15, 0.3])
    alone = run(logits_fn, x, y, attacks={"deepfool": free})
    behind = run(logits_fn, x, y, attacks={"pgd": PGD, "deepfool": free}, keep_images=50)
    assert len(set(alone.accuracy_at(radii))) > 3
    assert (behind.accuracy_at(radii) <= alone.accuracy_at(radii)).all()
    np.testing.assert_array_equal(behind.examples["ran/deepfool"], alone.examples["clean_correct"])
    assert behind.attacks["deepfool"].rows == behind.examples["clean_correct"].sum()
    # It takes no credit for what was broken before, nor its picture.
    broken = behind.examples["broken_by"] == "pgd"
    assert behind.attacks["pgd"].successes == broken.sum()
    assert behind.attacks["deepfool"].successes == (
        (behind.examples["broken_by"] == "deepfool").sum()
    )
    only = run(logits_fn, x, y, attacks={"pgd": PGD}, keep_images=50)
    for kept in ("adversarial", "clean"):
        np.testing.assert_array_equal(behind.images[kept][broken], only.images[kept][broken])
    members = {"pgd": PGD, "last": jr.attacks.against(jr.attacks.deepfool, survivors_only=True)}
    last = run(logits_fn, x, y, attacks=members)
    assert last.attacks["last"].rows == only.examples["robust"].sum()
    assert last.robust_accuracy == behind.robust_accuracy


def test_minimum_norm_attacks_inside_others_may_leave_the_ball(case):
    logits_fn, _, x, y = case
    free = jr.attacks.against(jr.attacks.deepfool)
    attacks = {
        "transfer": jr.attacks.transfer(logits_fn, free),
        "pinned": jr.attacks.at_eps(free, 0.01),
        "partial": functools.partial(free),
        "all": functools.partial(jr.attacks.at_eps(jr.attacks.transfer(logits_fn, free), 0.01)),
    }
    report = run(logits_fn, x, y, attacks=attacks, ball=jr.Ball("linf", 0.02))
    assert report.findings == []
    for name, attack in attacks.items():
        assert jr.attacks.is_minimum_norm(attack)
        assert jr.attacks.is_transfer(attack) is (name in ("transfer", "all"))
        assert report.attacks[name].outside > 0
        assert report.attacks[name].rows == report.examples["clean_correct"].sum()
    for attack in (PGD, jr.attacks.at_eps(PGD, 0.1), jr.attacks.first_success({"free": free})):
        assert not jr.attacks.is_minimum_norm(attack)


def test_an_attack_of_another_norm_is_told(case):
    """Carlini and Wagner's l2 attack in linf leaves what a linf attack breaks; nobody is misled."""
    logits_fn, _, x, y = case
    least = jr.attacks.against(functools.partial(jr.attacks.carlini_wagner_l2, num_steps=50))
    attacks = {"cw": jr.attacks.at_eps(least, 0.1), "fmn": jr.attacks.against(jr.attacks.fmn)}
    (told,) = run(logits_fn, x, y, attacks=attacks, ball=jr.Ball("linf", 0.1)).findings
    assert (told.name, told.severity) == ("other norm: cw", "note")
    assert run(logits_fn, x, y, attacks=attacks, ball=jr.Ball("l2", 0.1)).findings == []


def test_curve_over_eps_from_recorded_distances(case):
    logits_fn, _, x, y = case
    radii = (0.02, 0.05, 0.1, 0.15)
    pinned = {f"{eps}": jr.attacks.at_eps(PGD, eps) for eps in radii}
    report = run(logits_fn, x, y, attacks=pinned)
    accuracies = report.accuracy_at(np.array([0.0, *radii]))
    assert accuracies[0] == report.clean_accuracy
    assert accuracies[-1] == report.robust_accuracy
    assert (np.diff(accuracies) <= 0).all()
    for eps, accuracy in zip(radii, accuracies[1:], strict=True):
        assert accuracy == report.accuracy_after[f"{eps}"]


def test_counts_of_gradients_and_forwards(case):
    logits_fn, _, x, y = case
    attacks = {
        "fgsm": jr.attacks.fgsm,
        "pgd": functools.partial(jr.attacks.pgd, num_steps=7),
        "restarts": functools.partial(jr.attacks.pgd, num_steps=7, num_restarts=3),
        "smoothed": functools.partial(
            jr.attacks.pgd, num_steps=7, gradient=jr.gradients.smoothed(0.1, 4)
        ),
        "codes": jr.attacks.reparametrize(
            lambda z: jnp.repeat(z, x[0].size, 1).reshape(-1, *x.shape[1:]),
            functools.partial(jr.attacks.pgd, num_steps=7),
            encoder=lambda x: x.reshape(len(x), -1)[:, :1], codes=jr.Ball("linf", 0.1),
        ),  # of a size of their own
    }  # fmt: skip
    records = run(logits_fn, x, y, attacks=attacks).attacks
    assert (records["codes"].gradients, records["codes"].forwards) == (7, 7)
    assert (records["fgsm"].gradients, records["fgsm"].forwards) == (1, 1)
    assert (records["pgd"].gradients, records["pgd"].forwards) == (7, 7)
    assert (records["restarts"].gradients, records["restarts"].forwards) == (21, 24)
    assert (records["smoothed"].gradients, records["smoothed"].forwards) == (7, 28)


def test_one_trace_for_all_evaluations_of_one_shape():
    _, layers, x, y = problem(3, batch=20)
    batches = []

    def attack(logits_fn, x, y, *, key, ball):
        batches.append(len(x))
        return jr.attacks.fgsm(logits_fn, x, y, key=key, ball=ball)

    for scale in (1.0, 0.5, 2.0):
        weights = jax.tree.map(lambda w, s=scale: jnp.asarray(w) * s, layers)
        logits_fn = jax.tree_util.Partial(jr.layers.apply, weights)
        run(logits_fn, x, y, attacks={"fgsm": attack})
    # The batch on each device once, and one row once for the count of gradients.
    assert sorted(batches) == [1, 4]


def test_attacks_that_differ_in_a_pinned_radius_share_a_program(case):
    logits_fn, _, x, y = case
    traces = []

    def attack(logits_fn, x, y, *, key, ball):
        traces.append(len(x))
        return jr.attacks.fgsm(logits_fn, x, y, key=key, ball=ball)

    pinned = {f"{eps}": jr.attacks.at_eps(attack, eps) for eps in (0.01, 0.03, 0.1)}
    report = run(logits_fn, x, y, attacks=pinned)
    assert sum(length > 1 for length in traces) == 1
    found = [np.nanmax(report.examples[f"distance/{name}"]) for name in pinned]
    np.testing.assert_allclose(found, [0.01, 0.03, 0.1], rtol=1e-4)


def test_weights_committed_to_one_device(case):
    logits_fn, _, x, y = case
    committed = jax.device_put(logits_fn, jax.devices()[2])
    assert run(committed, x, y).robust_accuracy == run(logits_fn, x, y).robust_accuracy


def test_float32_at_other_batch_sizes_agrees_in_success():
    """Rounding at other compiled shapes can flip single sign steps, but hardly an outcome."""
    data = jr.data.load("digits", "test")
    model = jr.models.small_cnn()
    params = model.init(jax.random.key(0), data.x[:1])["params"]
    forward = jr.objectives.from_module(model.apply)
    train = jr.data.load("digits", "train")
    fitted = jr.train.fit(
        jr.objectives.cross_entropy(forward), params, optax.adam(3e-3), (train.x, train.y),
        key=KEY, num_epochs=4, batch_size=64,
    )  # fmt: skip
    logits_fn = jax.tree_util.Partial(model.apply, {"params": fitted.params})
    ball = jr.Ball("linf", 0.06)
    one, other = (
        run(logits_fn, data.x, data.y, ball=ball, attacks={"pgd": PGD}, batch_size=size)
        for size in (100, 37)
    )
    assert 0.2 < one.robust_accuracy < 0.9
    assert (one.examples["robust"] == other.examples["robust"]).mean() >= 0.995
    assert abs(one.robust_accuracy - other.robust_accuracy) <= 0.003


def test_a_gradient_that_is_not_finite_is_reported_as_such(case):
    logits_fn, _, x, y = case

    def masked(x):  # the norm of zero has no gradient
        return logits_fn(x) + 0 * jnp.linalg.norm(x * 0, axis=-1, keepdims=True)

    report = run(masked, x, y, attacks={"pgd": PGD})
    finding, other = report.findings
    assert other.name == "gradients not finite"
    assert finding.name == "attack failed: pgd"
    assert finding.value == report.attacks["pgd"].rows
    assert "gradient" in finding.meaning


def test_a_class_may_be_ruled_out_by_minus_infinity(case):
    logits_fn, _, x, y = case

    def without_last(x):
        return jnp.concatenate([logits_fn(x), jnp.full((len(x), 1), -jnp.inf)], -1)

    assert run(without_last, x, y).robust_accuracy == run(logits_fn, x, y).robust_accuracy


def test_certificates_alone(case):
    logits_fn, layers, x, y = case
    bounds = {"interval": jr.certify.on_layers(jr.certify.interval, layers)}
    report = run(logits_fn, x, y, attacks={}, ball=jr.Ball("linf", 0.01), certificates=bounds)
    assert 0 < report.certified_accuracy["interval"] <= report.robust_accuracy
    assert report.robust_accuracy == report.clean_accuracy


def test_randomised_models_are_judged_with_votes():
    def fn(x, key):
        return jnp.stack([x.sum(-1), 3 - x.sum(-1)], -1) + jax.random.normal(key, (x.shape[0], 2))

    model = jr.Randomized(fn)
    x = np.concatenate([images(0, 40) * 0.2, 0.8 + 0.2 * images(1, 40)]).astype(np.float32)
    y = (x.sum(-1) < 1.5).astype(np.int32)
    attacks = {"pgd": functools.partial(PGD, gradient=jr.gradients.eot(4))}
    one = run(model, x, y, attacks=attacks)
    many = run(model, x, y, attacks=attacks, votes=25)
    assert many.clean_accuracy > one.clean_accuracy - 0.02
    assert many.clean_accuracy > 0.95
    again = run(model, x, y, attacks=attacks, votes=25)
    np.testing.assert_array_equal(many.examples["robust"], again.examples["robust"])
    with pytest.raises(ValueError, match="votes"):
        run(lambda x: x[:, :3], x, y, votes=3)


def test_probabilities_are_noticed(case):
    logits_fn, _, x, y = case
    report = run(lambda x: jax.nn.softmax(logits_fn(x)), x, y)
    assert [f.name for f in report.findings] == ["probabilities"]


def test_nan_logits_count_as_wrong(case):
    logits_fn, _, x, y = case
    report = run(lambda x: jnp.where(x[:, :1] > 0.5, jnp.nan, logits_fn(x)), x, y)
    bad = x[:, 0] > 0.5
    assert not report.examples["clean_correct"][bad].any()
    assert not report.examples["robust"][bad].any()
    assert any("not finite" in f.name for f in report.findings)


def test_a_certificate_that_contradicts_an_attack_is_reported(case):
    logits_fn, _, x, y = case

    def liar(x, y, *, key, ball):
        margins = np.ones((len(y), 3))
        return jr.MarginBound(margins, ball.norm, float(ball.eps), "liar", "none")

    report = run(logits_fn, x, y, certificates={"liar": liar})
    assert [f.name for f in report.findings] == ["certified and broken: liar"]
    report = run(logits_fn, x, (y + 1) % 3, attacks={}, certificates={"liar": liar})
    assert report.certified_accuracy["liar"] == report.clean_accuracy < 1  # right and certified
    (finding,) = report.findings
    assert finding.value == len(y) - round(report.clean_accuracy * len(y))
    assert "without any attack" in finding.meaning

    def other(x, y, *, key, ball):
        return jr.MarginBound(np.ones((len(y), 3)), "l2", float(ball.eps), "other", "none")

    with pytest.raises(ValueError, match="must speak of linf"):
        run(logits_fn, x, y, certificates={"other": other})


class KilledError(Exception):
    """Stands for a kill between two batches."""


def test_a_killed_evaluation_ends_with_identical_results(case, tmp_path):
    logits_fn, layers, x, y = case
    bounds = {"interval": jr.certify.on_layers(jr.certify.interval, layers)}
    options = {"certificates": bounds, "keep_images": 10}
    straight = run(logits_fn, x, y, **options)
    from jaxrobust.evaluation import _store

    save, count = _store.Store.save, 0

    def dying(self, *args):
        nonlocal count
        save(self, *args)
        count += 1
        if count % 3 == 0:
            raise KilledError

    starts = 0
    _store.Store.save = dying
    try:
        while True:
            starts += 1
            try:
                resumed = run(logits_fn, x, y, directory=tmp_path, **options)
                break
            except KilledError:
                continue
    finally:
        _store.Store.save = save
    assert starts > 3
    for name, array in straight.arrays().items():
        np.testing.assert_array_equal(array, resumed.arrays()[name], err_msg=name)
    # A damaged batch is computed again; a folder of another evaluation is refused.
    files = sorted(tmp_path.glob("*.npz"))
    files[0].write_bytes(files[0].read_bytes()[:50])
    files[1].write_bytes(b"")
    repaired = run(logits_fn, x, y, directory=tmp_path, **options)
    assert repaired.robust_accuracy == straight.robust_accuracy
    inside = x.copy()
    inside[20] = 1 - inside[20]
    weaker = ATTACKS | {"pgd": functools.partial(jr.attacks.pgd, num_steps=2)}
    other_layers = {"interval": jr.certify.on_layers(jr.certify.interval, layers[:-1] * 1)}
    for change in (
        {"key": jax.random.key(1)}, {"ball": jr.Ball("linf", 0.1)}, {"batch_size": 2},
        {"ball": jr.Ball("linf", 0.15, jr.Box(-1.0, 1.0))}, {"attacks": weaker},
        {"certificates": other_layers},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="another evaluation"):
            run(logits_fn, x, y, directory=tmp_path, **{**options, **change})
    other = jax.tree.map(lambda w: w * 2, logits_fn)
    with pytest.raises(ValueError, match="its model is"):
        run(other, x, y, directory=tmp_path, **options)
    with pytest.raises(ValueError, match="its model is"):  # weights out of sight, in a closure
        run(lambda x: logits_fn(x), x, y, directory=tmp_path, **options)
    with pytest.raises(ValueError, match="its images is"):
        run(logits_fn, inside, y, directory=tmp_path, **options)


def test_an_attack_may_be_called_as_a_stage_is(case, tmp_path):
    logits_fn, _, x, y = case
    report = run(logits_fn, x, y, attacks={"clean": jr.attacks.fgsm}, directory=tmp_path)
    assert report.accuracy_after["clean"] < report.clean_accuracy


@pytest.mark.usefixtures("untyped")
def test_data_is_a_pair_or_what_load_returns(case):
    logits_fn, _, x, y = case
    options = {"attacks": {"fgsm": jr.attacks.fgsm}, "ball": jr.Ball("linf", 0.1), "key": KEY}
    pair = jr.evaluate(logits_fn, (x, y), **options)
    loaded = jr.evaluate(logits_fn, jr.data.Dataset(x, y, 3), **options)
    np.testing.assert_array_equal(pair.examples["robust"], loaded.examples["robust"])
    for wrong in (x, (x, y, 3), {"image": x}):
        with pytest.raises(ValueError, match=r"data must be \(x, y\)"):
            jr.evaluate(logits_fn, wrong, **options)


def test_a_report_prints_as_a_few_words(case):
    logits_fn, _, x, y = case
    report = run(logits_fn, x, y)
    shown = repr(report)
    assert len(shown) < 300
    assert f"clean {report.clean_accuracy:.4g}" in shown
    assert f"robust {report.robust_accuracy:.4g}" in shown
    assert "findings: none" in shown


def test_memory_mapped_data_and_save(case, tmp_path):
    logits_fn, _, x, y = case
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    report = run(logits_fn, mapped, y)
    report.save(tmp_path)
    with np.load(tmp_path / "examples.npz") as stored:
        again = jr.Report.restored(report.summary(), dict(stored))
    assert again.summary() == report.summary()


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.full((50, 6), np.nan, np.float32)}, "must be finite"),
        ({"x": np.full((50, 6), 255.0, np.float32)}, "0-255"),
        ({"x": np.zeros((50, 6), np.uint8)}, "floating point"),
        ({"x": np.zeros((0, 6), np.float32)}, "non-empty"),
        ({"y": np.full(50, 3, np.int32)}, "labels in 0..2"),
        ({"y": np.zeros((50, 3), np.int32)}, "one-hot"),
        ({"y": np.zeros(49, np.int32)}, "one label for each"),
        ({"attacks": {}}, "attacks must be"),
        ({"attacks": {"cw": jr.attacks.carlini_wagner_l2}}, "attack 'cw' must .* attacks.against"),
        ({"attacks": {"odd": 3}}, "attack 'odd' must take ball="),
        ({"x": np.zeros((50, 6), np.float16)}, "float32 or float64"),
        ({"certificates": [jr.certify.lp]}, "certificates must be a dictionary"),
        ({"certificates": {"lp": jr.certify.lp}}, "certificate 'lp' must take ball=.*on_layers"),
        ({"certificates": {"lp": 3}}, "certificate 'lp' must take"),
        ({"key": jax.random.key(0, impl="rbg")}, "threefry"),
        ({"key": 0}, "typed key"),
        ({"key": jax.random.split(KEY, 50)}, "single key"),
        ({"batch_size": 0}, "batch_size"),
        ({"ball": jr.Ball("linf", np.array(-1.0))}, "eps"),
        ({"ball": jr.Ball("linf", 8.0)}, "eps must be in the units of x"),
        ({"logits_fn": lambda x: x.sum(-1)}, "logits_fn must return"),
        ({"attacks": {"odd": lambda f, x, y, *, key, ball: x[:, :2]}}, "attack 'odd': must return"),
    ],
)
def test_wrong_input_is_refused(case, change, message):
    logits_fn, _, x, y = case
    arguments = {"logits_fn": logits_fn, "x": x, "y": y} | change
    with pytest.raises(ValueError, match=message):
        run(arguments.pop("logits_fn"), arguments.pop("x"), arguments.pop("y"), **arguments)


def test_evaluate_refuses_a_bound_of_a_smaller_box():
    """A wrapper that keeps lp's own box speaks of fewer images than the ball holds."""
    logits_fn, layers, x, y = problem(0)
    certificate = jr.certify.on_layers(
        lambda layers, x, y, *, eps: jr.certify.lp(layers, x, y, eps=eps), layers
    )
    wide = jr.Ball("linf", 0.3, jr.Box(-1.0, 1.0))
    with pytest.raises(ValueError, match=r"must hold for all of the box \(-1.0, 1.0\)"):
        jr.evaluate(
            logits_fn, (x, y), attacks={}, certificates={"lp": certificate}, ball=wide,
            key=jax.random.key(0),
        )  # fmt: skip


def test_logits_that_break_under_attack_are_reported():
    def fragile(x):
        off = jnp.any(jnp.abs(x - 0.5) > 0.01, -1, keepdims=True)
        return jnp.where(off, jnp.nan, jnp.stack([x.sum(-1), x[:, 0] * 0], -1))

    x, y = np.full((4, 3), 0.5, np.float32), np.zeros(4, np.int32)
    report = run(fragile, x, y, attacks={"fgsm": jr.attacks.fgsm})
    assert report.robust_accuracy == 0
    assert [f.name for f in report.findings] == ["logits not finite: fgsm"]
    assert report.findings[0].value == 4


def quantised(x):
    """No derivative at all: the host computes it."""
    shape = jax.ShapeDtypeStruct((*x.shape[:-1], 2), x.dtype)

    def on_host(x):
        level = np.floor(np.asarray(x) * 20) / 20
        return np.stack([level.sum(-1), 1.5 - level.sum(-1)], -1).astype(x.dtype)

    return jax.pure_callback(on_host, shape, x, vmap_method="expand_dims")


def test_black_box_attacks_need_no_gradient_of_the_model():
    x = images(3, 12, (3,)) * 0.2 + 0.3
    y = np.asarray(quantised(jnp.asarray(x))).argmax(-1)
    guessing = functools.partial(PGD, gradient=jr.gradients.spsa(8, 0.1))
    source = lambda x: jnp.stack([x.sum(-1), 1.5 - x.sum(-1)], -1)
    attacks = {"spsa": guessing, "transfer": jr.attacks.transfer(source, PGD)}
    report = run(quantised, x, y, attacks=attacks, survivors_only=False)
    assert report.findings == []
    assert report.attacks["spsa"].gradients == 0
    assert report.attacks["spsa"].forwards >= 5 * 16
    assert max(report.accuracy_under.values()) < 0.5


def test_black_box_attacks_that_find_more_are_reported(case):
    logits_fn, _, x, y = case
    hidden = lambda x: logits_fn(jnp.round(x * 1e4) / 1e4)  # no gradient
    attacks = {"pgd": PGD, "transfer": jr.attacks.transfer(logits_fn, PGD)}
    report = run(hidden, x, y, attacks=attacks)
    names = [f.name for f in report.findings]
    assert "gradient masking suspected: transfer" in names
    assert "zero gradients" in names


def test_a_model_without_derivative_is_a_finding():
    def flat(logits_fn, x, y, *, key, ball):  # asks for a gradient, and does without
        return jr.attacks.pgd(lambda x: x[:, :2], x, y, key=key, ball=ball, num_steps=1)

    x = images(4, 4, (3,))
    y = np.asarray(quantised(jnp.asarray(x))).argmax(-1)
    report = run(quantised, x, y, attacks={"flat": flat})
    assert "no gradients" in [f.name for f in report.findings]


SMOOTH = flow.FlowBall(3.0)


def flows(logits_fn, x, y, *, key, ball):
    """The best of some random flows of the ball."""

    def one(x, y, key, eps):
        at = dataclasses.replace(ball, eps=eps)
        draw = lambda key: flow.warp(x, at.sample(x.shape[:2], key, x.dtype))
        moved = jax.vmap(draw)(jax.random.split(key, 20))
        return moved[jnp.argmax(jax.vmap(jr.losses.margin, (0, None))(logits_fn(moved), y))]

    eps = jnp.broadcast_to(jnp.asarray(ball.eps, x.dtype), len(x))
    keys = jr.types.row_keys(key, len(x))
    return jnp.clip(jax.vmap(one)(x, y, keys, eps), *ball.box)


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(4)
    x = rng.uniform(size=(30, 4, 5)).astype(np.float32)
    kernel = rng.normal(size=(20, 3))
    kernel = jnp.asarray(kernel - kernel.mean(0), jnp.float32)  # no class by brightness
    logits_fn = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, kernel)
    y = np.asarray(logits_fn(x)).argmax(-1).astype(np.int32)
    y[::9] = (y[::9] + 1) % 3
    return logits_fn, x, y


def claim(x, y, *, key, ball):
    """Certifies everything."""
    return jr.MarginBound(np.ones((len(y), 3)), ball.norm, float(ball.eps), "claim", "none")


def test_flows_are_judged_by_class_and_their_budget_is_not(pictures, tmp_path):
    logits_fn, x, y = pictures
    report = run(logits_fn, x, y, attacks={"flows": flows}, ball=SMOOTH, keep_images=30)
    assert (report.norm, report.eps, report.measured) == ("flow dirichlet", 3.0, False)
    assert 0 < report.robust_accuracy < report.clean_accuracy < 1
    # Images count as they came back.
    right = np.asarray(logits_fn(report.images["adversarial"])).argmax(-1) == y
    correct = report.examples["clean_correct"]
    np.testing.assert_array_equal(right & correct, report.examples["robust"])
    broken = correct & ~report.examples["robust"]
    distance = report.examples["distance"]
    assert np.isnan(distance[broken]).all()
    assert (distance[~correct] == 0).all()
    assert np.isinf(distance[report.examples["robust"]]).all()
    moved = report.images["adversarial"] - x
    np.testing.assert_allclose(
        report.examples["l2/flows"][broken],
        np.linalg.norm(moved.reshape(30, -1), axis=1)[broken], rtol=1e-5,
    )  # fmt: skip
    assert report.attacks["flows"].median["l2"] > 0
    (finding,) = report.findings
    assert finding.name == "budget not re-checked"
    assert finding.value == broken.sum()
    with pytest.raises(ValueError, match="evaluate at each radius"):
        report.accuracy_at(0.1)
    # Wherever a report is read, it says so.
    page = html.unescape(jr.report.save(report, tmp_path).read_text())
    assert "kept to flow dirichlet 3 was not re-checked" in page
    assert "kept to this budget was not re-checked" in page
    assert "A threat that moves pixels" in page
    found = jr.report.load(tmp_path)
    console = Console(width=10_000, file=io.StringIO())
    jr.report.print_tables(found, console)
    assert "Finding: budget not re-checked" in console.file.getvalue()
    again = found.entries[0].reports["flow dirichlet 3"]
    assert again.summary() == report.summary()
    assert not json.loads((tmp_path / "report.json").read_text())["entries"][0]["reports"][0][
        "summary"
    ]["measured"]
    summary = report.summary()
    del summary["measured"]  # as older ones were saved
    assert jr.Report.restored(summary, report.arrays()).measured


def test_images_of_flows_outside_the_box_are_not_believed(pictures):
    logits_fn, x, y = pictures

    def far(logits_fn, x, y, *, key, ball):
        return x.at[:, 0].set(3.0).at[0].set(jnp.nan)

    report = run(logits_fn, x, y, attacks={"far": far}, ball=SMOOTH, keep_images=30, batch_size=8)
    assert {f.name for f in report.findings} == {
        "outside the ball: far", "attack failed: far", "budget not re-checked",
    }  # fmt: skip
    assert report.images["adversarial"].max() <= 1
    assert not report.examples["success/far"][[0, 8, 16, 24]].any()


def test_certificates_speak_of_the_flow_ball(pictures):
    logits_fn, x, y = pictures
    options = {"attacks": {"flows": flows}, "ball": SMOOTH}
    report = run(logits_fn, x, y, **options, certificates={"claim": claim})
    names = [f.name for f in report.findings]
    assert names == ["budget not re-checked", "certified and broken: claim"]
    assert report.findings[1].value == 30 - round(30 * report.robust_accuracy)
    alone = run(logits_fn, x, y, **options | {"attacks": {}}, certificates={"claim": claim})
    assert [f.name for f in alone.findings] == ["certified and broken: claim"]

    def other(x, y, *, key, ball):
        return dataclasses.replace(claim(x, y, key=key, ball=ball), norm="flow zero_mean")

    with pytest.raises(ValueError, match=r"must speak of flow dirichlet 3"):
        run(logits_fn, x, y, **options, certificates={"other": other})

    def nearer(x, y, *, key, ball):
        return dataclasses.replace(claim(x, y, key=key, ball=ball), eps=0.5)

    with pytest.raises(ValueError, match=r"is for flow dirichlet 0.5"):
        run(logits_fn, x, y, **options, certificates={"nearer": nearer})


def test_an_attack_that_keeps_to_no_budget_contradicts_no_certificate(pictures):
    logits_fn, x, y = pictures
    search = functools.partial(jr.attacks.carlini_wagner_l2, num_steps=50, initial_c=10.0)
    attacks = {"searched": jr.attacks.against(search)}
    y = np.asarray(logits_fn(x)).argmax(-1).astype(np.int32)
    options = {"ball": SMOOTH, "certificates": {"claim": claim}}
    report = run(logits_fn, x, y, attacks=attacks, **options)
    assert report.robust_accuracy < 0.5
    names = [f.name for f in report.findings]
    assert names == ["no budget kept: searched", "budget not re-checked"]
    measured = run(logits_fn, x, y, attacks=attacks, ball=jr.Ball("l2", 5.0))
    assert measured.findings == []


def test_attacks_made_of_attacks_take_flow_balls(pictures):
    logits_fn, x, y = pictures
    still = lambda logits_fn, x, y, *, key, ball: x
    attacks = {
        "flows": flows,
        "both": jr.attacks.first_success({"still": still, "flows": flows}, chunk=3),
        "transfer": jr.attacks.transfer(logits_fn, flows),
        "pinned": jr.attacks.at_eps(flows, 0.0),
    }
    report = run(logits_fn, x, y, attacks=attacks, ball=SMOOTH, survivors_only=False)
    under = report.accuracy_under
    assert max(under["flows"], under["both"], under["transfer"]) < report.clean_accuracy
    assert under["pinned"] == report.clean_accuracy
    # A radius for each row.
    radii = np.where(np.arange(30) % 2, 3.0, 0.0).astype(np.float32)
    each = run(logits_fn, x, y, attacks={"flows": flows}, ball=flow.FlowBall(radii))
    broken = each.examples["clean_correct"] & ~each.examples["robust"]
    assert broken[1::2].any()
    assert not broken[::2].any()
    np.testing.assert_array_equal(
        each.examples["robust"][1::2], ~report.examples["success/flows"][1::2]
    )


def test_an_evaluation_of_flows_goes_on_where_it_was(pictures, tmp_path):
    logits_fn, x, y = pictures
    options = {"attacks": {"flows": flows}, "ball": SMOOTH, "directory": tmp_path, "batch_size": 2}
    whole = run(logits_fn, x, y, **options)
    for file in sorted(tmp_path.glob("*.npz"))[::2]:
        file.unlink()
    again = run(logits_fn, x, y, **options)
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(array, again.arrays()[name], err_msg=name)
    for other in (flow.FlowBall(3.0, "zero_mean"), flow.FlowBall(0.5)):
        with pytest.raises(ValueError, match="another evaluation"):
            run(logits_fn, x, y, **options | {"ball": other})


@pytest.mark.usefixtures("untyped")
def test_a_threat_that_is_none_is_refused(pictures):
    logits_fn, x, y = pictures
    for wrong in (None, 0.5, SMOOTH.project):
        with pytest.raises(ValueError, match="ball must be a threat"):
            run(logits_fn, x, y, attacks={"flows": flows}, ball=wrong)
    with pytest.raises(ValueError, match=r"attack 'pgd': ball must be a jaxrobust.Ball"):
        run(logits_fn, x, y, attacks={"pgd": PGD}, ball=SMOOTH)
