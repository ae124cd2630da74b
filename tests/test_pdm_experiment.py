"""What the detection experiment makes of images: by hand, on a plane with two classes."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from experiments.pdm import config, evaluate, tables
from jaxrobust import detect

X = np.array([[0.1, 0.5], [0.2, 0.5], [0.3, 0.5], [0.9, 0.5]], np.float32).reshape(4, 2, 1, 1)
Y = np.array([0, 0, 0, 0])  # of which the last is wrong from the start


def plane(x):
    flat = jnp.reshape(x, (len(x), -1))
    return jnp.stack([0.5 - flat[:, 0], flat[:, 0] - 0.5], -1), flat


def moved(*firsts):
    return np.concatenate([np.reshape(firsts, (4, 1, 1, 1)), X[:, 1:]], 1).astype(np.float32)


@pytest.fixture
def place(monkeypatch):
    """Class 0 is densest at .2, class 1 at .8; the threshold lies .1 on either side of that."""
    z = np.array([[0.2, 0.45], [0.2, 0.55], [0.8, 0.45], [0.8, 0.55]], np.float32)
    density = detect.kernel_density(z, np.array([0, 0, 1, 1]), num_classes=2, bandwidth=0.1)
    edge = float(density.raw(jnp.array([[0.1, 0.5]]))[0, 0])
    density = detect.kernel_density(
        z, np.array([0, 0, 1, 1]), num_classes=2, bandwidth=0.1, thresholds=edge - 1e-3
    )
    monkeypatch.setattr(evaluate, "detectors", lambda *_: {"density": density, "median": density})
    return types.SimpleNamespace(
        network=lambda name: Partial(plane), test=types.SimpleNamespace(x=X, y=Y), data="mnist",
        seed=0, sizes=types.SimpleNamespace(dear=4, adaptive=1),
    )  # fmt: skip


def test_shares_are_of_images_that_were_right_and_broken(place):
    found = evaluate.scored(place, "pdm", moved(0.8, 0.55, 0.3, 0.7))
    assert (found["num"], found["right"], found["pairs"]) == (4, 3, 2)
    assert found["distortion"] == pytest.approx((0.7 + 0.35) / 2 / np.sqrt(2), rel=1e-5)
    assert found["median distortion"] == pytest.approx(0.7 / np.sqrt(2), rel=1e-5)
    assert found["confusion"][0][:2] == [0, 2]
    # Clean .1 and .2 against .8 and .55, of which the first is as dense as can be.
    assert found["density"]["auc"] == pytest.approx(0.625)
    assert found["density"]["accepted"] == 1
    low, high = found["density"]["interval"]
    assert 0 <= low <= 0.625 <= high <= 1
    nothing = evaluate.scored(place, "pdm", X)
    assert (nothing["pairs"], nothing["median distortion"]) == (0, None)
    assert nothing["density"]["auc"] is None
    assert nothing["density"]["interval"] is None
    assert tables._pairs(found) == "2 of 3"
    assert tables._area(found).startswith("- (")  # too few


def test_the_worst_is_the_densest_that_is_misclassified(place, monkeypatch):
    """Of two attacks; a third is denser but still right, and C&W-wb's best lies outside."""
    answers = iter([moved(0.6, 0.75, 0.2, 0.9), moved(0.8, 0.65, 0.2, 0.9), *[X] * 10])
    monkeypatch.setattr(evaluate, "_batched", lambda *_: next(answers))
    far = moved(0.8, 0.8, 0.8, 0.8)
    monkeypatch.setattr(evaluate, "_carlini_wagner_wb", lambda *_: far)
    monkeypatch.setitem(config.BUDGET, "mnist", 0.55)
    monkeypatch.setattr(evaluate, "scored", lambda place, name, x_adv: {"kept": x_adv})
    kept = evaluate.within(place, "pdm")
    # .7, .6 and .5 away: only the third is near enough, by floats' rounding.
    np.testing.assert_allclose(kept["kept"][:, 0, 0, 0], [0.8, 0.75, 0.8, 0.8], atol=1e-6)
    assert kept["won"] == {
        "PGD": 1, "PGD, sum": 1, "C&W-wb": 2, "none": 0, "APGD": 0,
        **{f"APGD, y + {k}": 0 for k in range(1, 10)},
    }  # fmt: skip
