"""What every certificate promises: attack <= truth <= certificate, whichever they are."""

import functools

import jax
import numpy as np
import pytest
from contracts import (
    CASES,
    CERTIFICATES,
    EPS,
    NORMS,
    TAKES_A_NORM,
    TIGHT_ON_AFFINE,
    certificate,
    images,
    problem,
    random_layers,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrobust as jr

cases = pytest.mark.parametrize(("name", "norm"), CASES)
certificates = pytest.mark.parametrize(
    "certify", [certificate(name, "linf") for name in CERTIFICATES], ids=CERTIFICATES.keys()
)
KEY = jax.random.key(0)


def smallest_margins(logits, y):
    others = np.where(np.eye(logits.shape[1], dtype=bool)[y], -np.inf, logits)
    return logits[np.arange(len(y)), y] - others.max(1)


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=200, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), share=st.floats(0.05, 1.5), scale=st.floats(0.2, 3.0))
def test_no_attack_finds_less_than_what_is_proved(norm, seed, share, scale):
    """On random networks, radii and images; every attack shape is compiled once."""
    layers = random_layers(seed, scale=scale)
    logits_fn = jax.tree_util.Partial(jr.layers.apply, layers)
    x = images(seed, 8)
    y = np.asarray(logits_fn(x)).argmax(-1).astype(np.int32)
    eps = EPS[norm] * share
    ball = jr.Ball(norm, eps)
    pgd = functools.partial(jr.attacks.pgd, num_steps=10, loss=jr.losses.margin)
    bounds = {
        name: certificate(name, norm)(layers, x, y, eps=eps)
        for name in CERTIFICATES
        if (name, norm) in CASES
    }
    for attack in (jr.attacks.fgsm, pgd):
        x_adv = attack(logits_fn, x, y, key=KEY, ball=ball)
        logits = np.asarray(jr.layers.apply(layers, x_adv), np.float64)
        found = smallest_margins(logits, y)
        for name, bound in bounds.items():
            proved = bound.margins.min(1)
            # Slack: the network is evaluated in float32 here, and proved in exact arithmetic.
            assert (proved <= found + 1e-4 * (1 + np.abs(logits).max(1))).all(), name
            assert not (bound.certified & (logits.argmax(1) != y)).any(), name


@cases
def test_monotone_in_eps(name, norm):
    _, layers, x, y = problem(1)
    previous = None
    for share in (0.0, 0.1, 0.5, 1.0, 3.0):
        margins = certificate(name, norm)(layers, x, y, eps=EPS[norm] * share).margins
        if previous is not None:
            assert (margins <= previous + 1e-9).all()
        previous = margins


@cases
def test_says_what_it_speaks_of(name, norm):
    _, layers, x, y = problem(2)
    bound = certificate(name, norm)(layers, x, y, eps=0.05)
    assert (bound.norm, bound.eps) == (norm, 0.05)
    assert bound.margins.shape == (8, 3)
    assert bound.margins.dtype == np.float64
    assert np.isposinf(bound.margins[np.arange(8), y]).all()
    assert bound.certified.dtype == bool
    assert bound.method
    assert len(bound.proof) > 40


@pytest.mark.parametrize(("name", "norm"), sorted(TIGHT_ON_AFFINE))
def test_tight_on_affine_networks(name, norm):
    layers = random_layers(3, sizes=(6, 3))
    x = np.random.default_rng(0).uniform(0.4, 0.6, size=(8, 6)).astype(np.float32)
    kernel, bias = np.float64(layers[-1].kernel), np.float64(layers[-1].bias)
    logits = x.astype(np.float64) @ kernel + bias
    y = logits.argmax(1).astype(np.int32)
    eps = 0.05  # the box does not bind
    dual = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    margins = certificate(name, norm)(layers, x, y, eps=eps).margins
    for b in range(8):
        for i in range(3):
            if i != y[b]:
                gap = kernel[:, y[b]] - kernel[:, i]
                truth = logits[b, y[b]] - logits[b, i] - eps * np.linalg.norm(gap, dual)
                np.testing.assert_allclose(margins[b, i], truth, atol=1e-9)


@certificates
def test_wrong_labels_are_not_certified_and_weights_must_be_finite(certify):
    _, layers, x, y = problem(4)
    wrong = ((y + 1) % 3).astype(np.int32)
    assert not certify(layers, x, wrong, eps=0.0).certified.any()
    for value in (np.nan, np.inf):
        kernel = np.array(layers[-1].kernel)
        kernel[1, 2] = value
        broken = [*layers[:-1], jr.layers.Dense(kernel, layers[-1].bias)]
        with pytest.raises(ValueError, match=r"kernel must be finite; entry \(1, 2\)"):
            certify(broken, x, y, eps=0.0)


@certificates
@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -0.1}, "eps"),
        ({"eps": np.nan}, "eps"),
        ({"layers": []}, "layers"),
        ({"layers": ["relu"]}, "layer"),
        ({"x": np.full((8, 6), np.nan, np.float32)}, "x must be finite"),
        ({"x": np.zeros((8, 5), np.float32)}, "6|5"),
        ({"y": np.full(8, 9, np.int32)}, "labels"),
        ({"y": np.zeros(5, np.int32)}, "label"),
    ],
)
def test_wrong_input_is_refused(certify, change, message):
    _, layers, x, y = problem(5)
    arguments = {"layers": layers, "x": x, "y": y, "eps": 0.1} | change
    with pytest.raises(ValueError, match=message):
        certify(arguments.pop("layers"), arguments.pop("x"), arguments.pop("y"), **arguments)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("name", TAKES_A_NORM)
def test_an_unknown_norm_is_refused(name):
    _, layers, x, y = problem(5)
    with pytest.raises(ValueError, match="norm"):
        CERTIFICATES[name](layers, x, y, eps=0.1, norm="l7")


@certificates
def test_tracers_are_refused(certify):
    _, layers, x, y = problem(6)
    with pytest.raises(ValueError, match="trac"):
        jax.jit(lambda x: certify(layers, x, y, eps=0.1).margins)(x)


@cases
def test_in_evaluate_nothing_is_both_certified_and_broken(name, norm):
    logits_fn, layers, x, y = problem(7)
    proof = jr.certify.on_layers(CERTIFICATES[name], layers)
    report = jr.evaluate(
        logits_fn, (x, y), attacks={"fgsm": jr.attacks.fgsm}, ball=jr.Ball(norm, EPS[norm] / 2),
        key=KEY, certificates={"bound": proof}, batch_size=4,
    )  # fmt: skip
    assert report.certified_accuracy["bound"] <= report.robust_accuracy
    assert not report.findings
