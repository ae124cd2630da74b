"""The judge with detectors: what it counts, by hand, and that nothing else changes."""

import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from rich.console import Console

import jaxrobust as jr
from jaxrobust import detect, losses

KEY = jax.random.key(5)
BALL = jr.Ball("linf", 1.0)


def model(x):
    """Class 1 to the right of the middle; the embedding is the image."""
    return jnp.stack([0.5 - x[:, 0], x[:, 0] - 0.5], -1), x


def quiet(outputs):
    """Rejects where the second number is above 0.8."""
    return 0.8 - outputs[1][:, 1]


def cross(logits_fn, x, y, *, key, ball):
    """To the right, from below."""
    return x.at[:, 0].add(jnp.where((x[:, 0] < 0.5) & (x[:, 1] < 0.3), 0.5, 0.0))


def loud(logits_fn, x, y, *, key, ball):
    """To the right, so that it shows."""
    left = (x[:, 0] < 0.5)[:, None]
    return jnp.where(left, jnp.stack([x[:, 0] + 0.5, jnp.full_like(x[:, 0], 0.9)], -1), x)


X = np.array([[0.2, 0.1], [0.2, 0.9], [0.2, 0.5], [0.8, 0.5], [0.9, 0.2]], np.float32)
Y = np.array([0, 0, 0, 0, 1])


def run(x=X, y=Y, logits_fn=model, **changes):
    options = {
        "attacks": {"cross": cross, "loud": loud}, "ball": BALL, "key": KEY, "batch_size": 2,
        "detectors": {"quiet": quiet},
    } | changes  # fmt: skip
    return jr.evaluate(logits_fn, (x, y), **options)


def test_every_number_by_hand():
    report = run()
    table, found = report.examples, report.detectors["quiet"]
    right = np.array([True, True, True, False, True])
    np.testing.assert_array_equal(table["clean_correct"], right)
    # What cross broke meets loud, too.
    for name in ("cross", "loud"):
        np.testing.assert_array_equal(table[f"ran/{name}"], right)
    np.testing.assert_array_equal(table["success/loud"], [True, True, True, False, False])
    np.testing.assert_allclose(table["score/quiet"], [0.7, -0.1, 0.3, 0.3, 0.6], atol=1e-6)
    np.testing.assert_allclose(
        table["score/quiet/loud"], [-0.1, -0.1, -0.1, np.nan, 0.6], atol=1e-6
    )
    assert found.false_positive_rate == 1 / 4
    assert found.clean_accuracy == 3 / 5  # row 1 is right and rejected, row 3 wrong
    assert found.detection_rate == {"cross": 0.0, "loud": 1.0}
    assert found.auc == {"cross": 0.5, "loud": pytest.approx(2.5 / 3)}
    assert found.accuracy == {"cross": 3 / 5, "loud": 4 / 5}
    assert found.robust_accuracy == 2 / 5
    np.testing.assert_array_equal(table["joint/quiet"], [False, False, True, False, True])
    assert report.robust_accuracy == 1 / 5  # as if there were no detector
    assert report.accuracy_after == {"cross": 3 / 5, "loud": 1 / 5}
    low, high = report.intervals["joint robust quiet"]
    assert low < 2 / 5 < high
    assert {"joint clean quiet", "joint quiet cross", "joint quiet loud"} <= set(report.intervals)
    curve = report.roc("quiet", "loud")
    np.testing.assert_allclose(curve.false_positive, [0, 1 / 3, 1], atol=1e-6)
    np.testing.assert_allclose(curve.detected, [0, 1, 1], atol=1e-6)
    assert "with quiet 0.4" in repr(report)


def test_where_nothing_is_right_or_breaks_there_is_no_rate(tmp_path):
    report = run(X[3:], np.array([0, 0]))
    found = report.detectors["quiet"]
    assert found.false_positive_rate is None
    assert found.detection_rate == found.auc == {"cross": None, "loud": None}
    assert found.clean_accuracy == found.robust_accuracy == 0
    assert report.roc("quiet", "loud") is None
    page = jr.report.save(report, tmp_path).read_text()
    assert "Detectors" in page
    assert not list((tmp_path / "figures").glob("detection-*"))


def test_a_score_that_is_no_number_is_a_rejection():
    def broken(outputs):
        return jnp.where(outputs[1][:, 1] < 0.15, jnp.nan, 1.0)

    found = run(detectors={"broken": broken}).detectors["broken"]
    assert found.false_positive_rate == 1 / 4
    assert found.detection_rate == {"cross": 1.0, "loud": 0.0}


def test_without_detectors_nothing_is_different():
    plain = run(detectors=None)
    assert plain.detectors == {}
    assert not [name for name in plain.examples if name.startswith(("score", "joint"))]
    # All rows against all rows: a detector only adds.
    watched, plain = (
        run(survivors_only=False, detectors=d).examples for d in ({"quiet": quiet}, None)
    )
    assert set(watched) - set(plain) == {
        "score/quiet", "score/quiet/cross", "score/quiet/loud", "joint/quiet"
    }  # fmt: skip
    for name, column in plain.items():
        np.testing.assert_array_equal(watched[name], column)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    y = np.arange(160) % 2
    centre = np.where(y[:, None] == 0, 0.3, 0.7)
    x = np.clip(centre + 0.08 * rng.normal(size=(160, 2)), 0, 1).astype(np.float32)
    density = detect.kernel_density(x[:80], y[:80], num_classes=2, bandwidth=0.05)
    density = detect.calibrated(density, model(jnp.asarray(x[80:120])), rate=0.1)
    return density, x[120:], y[120:]


def aware(density, attack):
    return jr.attacks.through(Partial(detect.exposed, detector=density), attack)


def test_only_the_attack_that_knows_the_detector_passes(case):
    density, x, y = case
    cw = functools.partial(
        jr.attacks.carlini_wagner_l2, num_steps=150, num_searches=6, initial_c=0.01
    )
    loss = losses.penalized(losses.f6, detect.hinge())
    attacks = {
        "cw": jr.attacks.against(cw),
        "cw-wb": aware(density, jr.attacks.against(functools.partial(cw, loss=loss))),
    }
    report = run(x, y, attacks=attacks, detectors={"density": density}, batch_size=10)
    found = report.detectors["density"]
    assert found.detection_rate["cw"] > 0.9
    assert found.detection_rate["cw-wb"] == 0
    assert found.accuracy["cw-wb"] < found.accuracy["cw"]
    assert found.robust_accuracy <= found.accuracy["cw-wb"]
    assert report.attacks["cw-wb"].gradients == 900  # the attack on the model itself, counted
    assert [f.name for f in report.findings] == ["other norm: cw", "other norm: cw-wb"]
    table = report.examples
    fooled = table["success/cw"] & table["success/cw-wb"]
    assert (table["l2/cw-wb"] > table["l2/cw"])[fooled].all()


def test_a_killed_evaluation_ends_with_the_same_scores(case, tmp_path):
    density, x, y = case
    detectors = {"density": density, "mean": lambda outputs: jnp.mean(outputs[1], -1) - 0.5}
    attacks = {"fgsm": jr.attacks.fgsm, "pgd": jr.attacks.pgd}
    options = {"attacks": attacks, "ball": jr.Ball("linf", 0.3), "directory": tmp_path}
    go = functools.partial(run, x, y, detectors=detectors, **options)
    whole = go()
    for path in sorted(tmp_path.glob("*.npz"))[::2]:
        path.unlink()
    resumed, fresh = go(), run(x, y, detectors=detectors, **{**options, "directory": None})
    for other in (resumed, fresh):
        assert other.detectors == whole.detectors
        for name, column in whole.examples.items():
            np.testing.assert_array_equal(other.examples[name], column, name)
    with pytest.raises(ValueError, match="holds another evaluation: its detectors"):
        run(x, y, detectors={"density": density}, **options)
    moved = dataclasses.replace(density, thresholds=density.thresholds + 1)
    with pytest.raises(ValueError, match="holds another evaluation: its detectors"):
        run(x, y, detectors={**detectors, "density": moved}, **options)


def test_random_models_are_scored_by_the_mean_of_their_votes(case):
    density, x, y = case
    still = jr.Randomized(lambda x, key: model(x))
    attacks = {"fgsm": jr.attacks.fgsm}
    go = functools.partial(
        run, x, y, attacks=attacks, ball=jr.Ball("linf", 0.3), detectors={"density": density}
    )
    one, three = go(logits_fn=model), go(logits_fn=still, votes=3)
    for name in ("score/density", "score/density/fgsm"):
        np.testing.assert_allclose(three.examples[name], one.examples[name], rtol=1e-5, atol=1e-5)

    def shaken(x, key):
        logits, embedding = model(x)
        return logits, embedding + 0.1 * jax.random.normal(key, embedding.shape)

    first = {"first": lambda outputs: outputs[1][:, 0]}
    noisy = functools.partial(go, logits_fn=jr.Randomized(shaken), detectors=first)
    few, many = (noisy(votes=v).examples["score/first"] - x[:, 0] for v in (1, 64))
    assert 0.05 < np.std(few) < 0.2
    assert np.std(many) < 0.03
    again = noisy(votes=64, batch_size=7).examples["score/first"]
    np.testing.assert_allclose(again, many + x[:, 0], rtol=1e-6)


def test_page_and_terminal_show_them(case, tmp_path):
    density, x, y = case
    pgd = functools.partial(jr.attacks.pgd, num_steps=3)
    report = run(
        x, y, attacks={"z": jr.attacks.fgsm, "a<b": pgd}, ball=jr.Ball("linf", 0.3),
        detectors={"density": density, "other": quiet},
    )  # fmt: skip
    page = jr.report.save(report, tmp_path).read_text()
    assert page.count("images that the classifier gets right, which leaves") == 2
    assert 'id="detectors"' in page
    figures = sorted(path.name for path in (tmp_path / "figures").glob("detection-*.svg"))
    assert figures == ["detection-0-density.svg", "detection-1-other.svg"]
    found = jr.report.load(tmp_path)
    (restored,) = found.entries[0].reports.values()
    assert restored.detectors == report.detectors
    assert list(restored.attacks) == ["z", "a<b"]
    before = (tmp_path / "index.html").read_bytes()
    jr.report.render(tmp_path)
    assert (tmp_path / "index.html").read_bytes() == before
    console = Console(width=200, file=io.StringIO())
    jr.report.print_tables(found, console)
    text = console.file.getvalue()
    assert "Detector density, classifier, linf 0.3" in text
    assert f"{report.detectors['density'].auc['z']:.4f}" in text
    # A report without detectors has no such section, nor leaves the old figures.
    page = jr.report.save(run(x, y, detectors=None), tmp_path).read_text()
    assert 'id="detectors"' not in page
    assert not list((tmp_path / "figures").glob("detection-*"))


def test_what_is_no_detector_is_refused(case, untyped):
    density, _, _ = case
    with pytest.raises(ValueError, match="detectors must be a dictionary by name; got list"):
        run(detectors=[quiet])
    with pytest.raises(ValueError, match="detector 'one' must be a function of outputs; got 1"):
        run(detectors={"one": 1})
    with pytest.raises(ValueError, match=r"'all' must return a score for each row.* got \(3, 2\)"):
        run(detectors={"all": density.scores})
    with pytest.raises(ValueError, match=r"detector 'sign' must return scores, .*; got bool"):
        run(detectors={"sign": lambda outputs: outputs[1][:, 0] > 0})
    with pytest.raises(
        ValueError, match=r"detector 'density': outputs must be a tuple \(logits, embed"
    ):
        run(logits_fn=lambda x: model(x)[0], detectors={"density": density})


def test_a_detector_of_logits_needs_no_embedding():
    report = run(
        logits_fn=lambda x: model(x)[0],
        detectors={"confident": lambda logits: jnp.max(logits, -1) - 0.35},
    )
    # The clean margins are .3, .3, .3 and .4; a row is accepted from .35 on.
    assert report.detectors["confident"].false_positive_rate == 3 / 4
