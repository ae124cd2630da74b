"""Bounds on explicit networks: brute force, closed forms, and exact rational arithmetic."""

import dataclasses
import decimal
import functools
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrobust import certify
from jaxrobust import layers as network
from jaxrobust.certify import _common, _enclosure
from jaxrobust.layers import Conv, Dense, Flatten, Relu, Sigmoid
from jaxrobust.threat import Ball, Box
from jaxrobust.types import MarginBound

NORMS = ("linf", "l2", "l1")
BOUNDS = {"interval": certify.interval, "spectral": certify.spectral,
          "frobenius": certify.frobenius}  # fmt: skip
every_bound = pytest.mark.parametrize("bound", BOUNDS.values(), ids=BOUNDS)
every_norm = pytest.mark.parametrize("norm", NORMS)
seeds = st.integers(0, 2**32 - 1)


def dense(rng, inputs, outputs):
    kernel = rng.normal(size=(inputs, outputs)) / np.sqrt(inputs)
    return Dense(kernel.astype(np.float32), rng.normal(size=outputs).astype(np.float32))


def mlp(rng, widths):
    pairs = [(dense(rng, *sizes), Relu()) for sizes in itertools.pairwise(widths)]
    return [layer for pair in pairs for layer in pair][:-1]


def batch(rng, rows, dims, classes):
    return rng.uniform(size=(rows, *dims)), rng.integers(0, classes, rows)


def forward(layers, x):
    """The network in float64, dense layers only."""
    for layer in layers:
        if isinstance(layer, Dense):
            x = x @ np.float64(layer.kernel) + np.float64(layer.bias)
        elif isinstance(layer, Relu):
            x = np.maximum(x, 0)
        elif isinstance(layer, Sigmoid):
            x = 0.5 + 0.5 * np.tanh(0.5 * x)
    return x


def margins_at(layers, x, label):
    logits = forward(layers, x)
    return logits[:, [label]] - logits


def in_ball(rng, x, eps, norm, box=None):
    """Vertices and random points of the ball around one example, clipped to the box."""
    d = x.size
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=d)))
    axes = np.concatenate([np.eye(d), -np.eye(d)])
    draws = rng.normal(size=(200, d))
    unit = {
        "linf": np.concatenate([signs, rng.uniform(-1, 1, (200, d))]),
        "l2": np.concatenate([signs / np.sqrt(d), axes,
                              draws / np.linalg.norm(draws, axis=1, keepdims=True)]),
        "l1": np.concatenate([axes, signs / d, rng.dirichlet(np.ones(d), 200)]),
    }[norm]  # fmt: skip
    points = x + eps * (1 - 1e-12) * unit  # inside the ball, whatever rounding does
    return points if box is None else np.clip(points, *box)


@given(seeds, st.sampled_from(NORMS), st.sampled_from([(4,), (3, 5), (5, 4, 4)]))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("method", BOUNDS)
def test_no_point_of_the_ball_is_below_the_bound(method, seed, norm, hidden):
    rng = np.random.default_rng(seed)
    d, classes, eps = 6, 3, rng.uniform(0.0, 0.4)
    layers = mlp(rng, (d, *hidden, classes))
    x, y = batch(rng, 4, (d,), classes)
    x[0] = rng.integers(0, 2, d)  # a corner of the box
    box = Box() if method == "interval" else None
    margins = BOUNDS[method](layers, x, y, eps=eps, norm=norm).margins
    for row in range(len(x)):
        points = in_ball(rng, x[row], eps, norm, box)
        seen = margins_at(layers, points, y[row]).min(0)
        seen[y[row]] = np.inf
        assert (margins[row] <= seen + 1e-12).all()


@given(seeds, st.sampled_from(NORMS), st.sampled_from([(4,), (5, 4)]), st.floats(0.2, 20.0))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("in_front", [False, True])
def test_no_point_is_below_the_bound_of_a_network_of_sigmoids(
    method, in_front, seed, norm, hidden, steepness
):
    rng = np.random.default_rng(seed)
    layers = [
        Sigmoid() if isinstance(layer, Relu) else layer for layer in mlp(rng, (6, *hidden, 3))
    ]
    layers[0] = Dense(layers[0].kernel * np.float32(steepness), layers[0].bias)
    layers = [Sigmoid(), *layers] if in_front else layers
    x, y = batch(rng, 4, (6,), 3)
    eps = rng.uniform(0.0, 0.4)
    margins = BOUNDS[method](layers, x, y, eps=eps, norm=norm).margins
    for row in range(len(x)):
        points = in_ball(rng, x[row], eps, norm, Box() if method == "interval" else None)
        seen = margins_at(layers, points, y[row]).min(0)
        seen[y[row]] = np.inf
        assert (margins[row] <= seen + 1e-12).all()


@every_norm
def test_a_sigmoid_counts_a_quarter(norm):
    rng = np.random.default_rng(19)
    first, _, second = mlp(rng, (8, 5, 3))
    x, y = batch(rng, 6, (8,), 3)
    others = np.arange(3) != y[:, None]
    for bound in (certify.spectral, certify.frobenius):
        clean, at = (bound([first, Sigmoid(), second], x, y, eps=e, norm=norm).margins[others]
                     for e in (0.0, 0.25))  # fmt: skip
        relu = [bound([first, Relu(), second], x, y, eps=e, norm=norm).margins[others]
                for e in (0.0, 0.25)]  # fmt: skip
        np.testing.assert_allclose(clean - at, (relu[0] - relu[1]) / 4, rtol=1e-10)


def test_the_sigmoid_of_the_host_lies_within_its_bounds():
    rng = np.random.default_rng(20)
    values = rng.normal(size=300) * 10 ** rng.uniform(-20, 3, 300)
    values[:9] = [0.0, -0.0, 36.7, 37.5, -708.3, -740.0, -745.2, -1e4, 1e4]
    low, high = _enclosure.sigmoid(values)
    decimal.setcontext(decimal.Context(prec=60))
    for value, below, above in zip(values.tolist(), low.tolist(), high.tolist(), strict=True):
        exact = 1 / (1 + (-decimal.Decimal(value)).exp())
        assert decimal.Decimal(below) <= exact <= decimal.Decimal(above)
    assert (high - low <= 2.0**-42 * high + 1e-300).all()
    low, high = _enclosure.sigmoid(np.array([-1e308, 1e308, np.nan]))
    assert low[0] == 0 < high[0] < 1e-300
    assert 1 - 1e-12 < low[1] < high[1] == 1
    assert np.isnan([low[2], high[2]]).all()


def test_the_interval_of_a_sigmoid_is_that_of_its_ends():
    layers = [Dense(np.array([[1.0, -2.0]]), np.zeros(2)), Sigmoid(), Dense(np.eye(2), np.zeros(2))]
    x, y = np.array([[0.5]]), np.array([0])
    at = certify.interval(layers, x, y, eps=0.25).margins[0, 1]
    assert at == pytest.approx(1 / (1 + np.exp(-0.25)) - 1 / (1 + np.exp(0.5)), abs=1e-12)
    np.testing.assert_allclose(
        network.apply(layers, jnp.array([[0.5], [-300.0]])),
        [[1 / (1 + np.exp(-0.5)), 1 / (1 + np.exp(1.0))], [0.0, 1.0]], atol=1e-6,
    )  # fmt: skip


@every_norm
@pytest.mark.parametrize("flatten", [False, True])
def test_interval_is_exact_for_one_affine_layer(norm, flatten):
    rng = np.random.default_rng(0)
    layers = mlp(rng, (12, 4))
    x, y = batch(rng, 30, (12,), 4)
    eps = 0.3
    margins = certify.interval(
        [Flatten(), *layers] if flatten else layers,
        x.reshape(30, 3, 4) if flatten else x, y, eps=eps, norm=norm, box=Box(-9.0, 9.0),
    ).margins  # fmt: skip
    kernel = np.float64(layers[0].kernel)
    dual = {"linf": 1, "l2": 2, "l1": np.inf}[norm]
    for row in range(30):
        slopes = np.linalg.norm(kernel[:, [y[row]]] - kernel, dual, axis=0)
        exact = margins_at(layers, x[row : row + 1], y[row])[0] - eps * slopes
        others = np.arange(4) != y[row]
        np.testing.assert_allclose(margins[row, others], exact[others], rtol=0, atol=1e-12)
        assert margins[row, y[row]] == np.inf


def test_interval_is_exact_for_one_affine_layer_where_the_box_cuts_the_ball():
    rng = np.random.default_rng(1)
    layers = mlp(rng, (6, 3))
    x, y = batch(rng, 10, (6,), 3)
    margins = certify.interval(layers, x, y, eps=0.5, box=Box(0.0, 1.0)).margins
    for row in range(10):
        corners = in_ball(rng, x[row], 0.5, "linf", Box())
        exact = margins_at(layers, corners, y[row]).min(0)
        others = np.arange(3) != y[row]
        np.testing.assert_allclose(margins[row, others], exact[others], atol=1e-11)


def test_a_relu_in_front_keeps_the_ball():
    """relu moves no two points apart, so behind it the dual norm still speaks of the ball."""
    rng = np.random.default_rng(2)
    layers = mlp(rng, (40, 3))
    x, y = batch(rng, 5, (40,), 3)
    plain = certify.interval(layers, x, y, eps=0.3, norm="l2", box=Box(-5.0, 5.0))
    behind = certify.interval([Relu(), *layers], x, y, eps=0.3, norm="l2", box=Box(-5.0, 5.0))
    assert (behind.margins >= plain.margins - 1e-12).all()


@every_bound
@every_norm
def test_margins_fall_as_eps_grows(bound, norm):
    rng = np.random.default_rng(3)
    layers = mlp(rng, (8, 6, 5, 3))
    x, y = batch(rng, 20, (8,), 3)
    sweep = [bound(layers, x, y, eps=e, norm=norm).margins for e in (0.0, 1e-9, 0.01, 0.1, 1.0)]
    for smaller, larger in itertools.pairwise(sweep):
        assert (larger <= smaller).all()


@every_norm
def test_two_layers_give_the_formulas_of_the_paper(norm):
    """Eq. 17 and Eq. 18 of Raghunathan et al. 2018, whose eps sqrt(d) is the l2 radius."""
    rng = np.random.default_rng(4)
    layers = mlp(rng, (30, 20, 5))
    x, y = batch(rng, 10, (30,), 5)
    w, v = np.float64(layers[0].kernel), np.float64(layers[2].kernel)
    radius = 0.05 * (np.sqrt(30) if norm == "linf" else 1.0)
    logits = forward(layers, x)
    clean = logits[np.arange(10), y][:, None] - logits
    slopes = np.linalg.norm(v[:, y].T[:, :, None] - v[None], axis=1)
    others = np.arange(5) != y[:, None]
    for bound, size in ((certify.spectral, np.linalg.norm(w, 2)),
                        (certify.frobenius, np.linalg.norm(w))):  # fmt: skip
        margins = bound(layers, x, y, eps=0.05, norm=norm).margins
        expected = clean - radius * size * slopes
        np.testing.assert_allclose(margins[others], expected[others], rtol=0, atol=1e-6)
        assert (margins[others] <= expected[others] + 1e-12).all()


@given(seeds, st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3),
       st.integers(1, 3), st.sampled_from(["SAME", "VALID"]))  # fmt: skip
@settings(max_examples=15, deadline=None)  # a compilation each
def test_conv_equals_the_network_with_the_conv_written_out(
    seed, channels, height, width, down, right, padding
):
    rng = np.random.default_rng(seed)
    shape = (5, 4, channels)
    conv = Conv(
        rng.normal(size=(height, width, channels, 3)).astype(np.float32),
        np.zeros(3, np.float32), (down, right), padding,
    )  # fmt: skip
    pixels = int(np.prod(shape))
    # Each response to a unit image is one weight, so float32 makes no error here.
    matrix = np.asarray(network.apply([conv, Flatten()], jnp.eye(pixels).reshape(pixels, *shape)))
    bias = rng.normal(size=3).astype(np.float32)
    written_out = Dense(matrix, np.resize(bias, matrix.shape[1]))
    conv = Conv(conv.kernel, bias, conv.strides, conv.padding)
    head = dense(rng, matrix.shape[1], 3)
    x, y = batch(rng, 3, shape, 3)
    as_conv, as_dense = [conv, Relu(), Flatten(), head], [Flatten(), written_out, Relu(), head]
    for norm in NORMS:
        one, two = (certify.interval(layers, x, y, eps=0.1, norm=norm).margins
                    for layers in (as_conv, as_dense))  # fmt: skip
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-11)
    one, two = (certify.frobenius(layers, x, y, eps=0.1).margins for layers in (as_conv, as_dense))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-10)
    # The norm of the written-out matrix is exact, the convolution's an upper side of it.
    one, two = (certify.spectral(layers, x, y, eps=0.1).margins for layers in (as_conv, as_dense))
    assert (one <= two + 1e-8).all()


def test_a_convolution_with_one_patch_a_pixel_has_the_norm_of_its_kernel():
    rng = np.random.default_rng(5)
    conv = Conv(rng.normal(size=(2, 2, 3, 4)), np.zeros(4), (2, 2), "VALID")
    layers = [conv, Relu(), Flatten(), dense(rng, 16, 2)]
    x, y = batch(rng, 1, (4, 4, 3), 2)
    sizes = [certify.spectral(layers, x, y, eps=e, norm="l2").margins[0, 1 - y[0]] for e in (0, 1)]
    head = np.float64(layers[-1].kernel)
    expected = np.linalg.norm(conv.kernel.reshape(12, 4), 2) * np.linalg.norm(head @ [1, -1])
    assert sizes[0] - sizes[1] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("taps", [[1.0, 0.0, 0.2], [1.0, 0.2, 0.0], [0.1, 1.0, 0.1]])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("upright", [False, True])
def test_a_convolution_that_barely_mixes_has_nearly_its_own_norm(taps, stride, upright):
    """Here the sums of absolute weights are the best of the upper sides."""
    kernel, strides, x = np.reshape(taps, (1, 3, 1, 1)), (1, stride), np.zeros((1, 1, 61, 1))
    if upright:
        kernel, strides, x = kernel.swapaxes(0, 1), strides[::-1], x.swapaxes(1, 2)
    conv = Conv(kernel, np.zeros(1), strides, "VALID")
    written_out = [np.sum([t * np.eye(1, 61, p + i)[0] for i, t in enumerate(taps)], axis=0)
                   for p in range(0, 59, stride)]  # fmt: skip
    layers = [conv, Relu(), Flatten(), Dense(np.eye(len(written_out), 2), np.zeros(2))]
    at = certify.spectral(layers, x, np.array([0]), eps=1.0, norm="l2").margins[0, 1]
    exact = np.sqrt(2) * np.linalg.norm(written_out, 2)
    bound = np.sqrt(2) * np.sqrt(sum(taps) * max(sum(taps[i::stride]) for i in range(stride)))
    assert exact <= -at <= bound * (1 + 1e-12)


@every_norm
def test_frobenius_is_never_above_spectral(norm):
    rng = np.random.default_rng(6)
    for stride in (1, 2, 5):
        conv = Conv(rng.normal(size=(3, 3, 2, 4)), rng.normal(size=4), (stride, stride))
        side = -(-5 // stride)
        layers = [conv, Relu(), Flatten(), *mlp(rng, (4 * side**2, 7, 3))]
        x, y = batch(rng, 5, (5, 5, 2), 3)
        loose, tight = (bound(layers, x, y, eps=0.1, norm=norm).margins
                        for bound in (certify.frobenius, certify.spectral))  # fmt: skip
        assert (loose <= tight).all()


@every_bound
@pytest.mark.parametrize("model", ["mlp", "conv"])
def test_at_radius_zero_the_correctly_classified_are_certified(bound, model):
    rng = np.random.default_rng(7)
    x, y = batch(rng, 40, (6, 6, 1), 4)
    if model == "mlp":
        layers = [Flatten(), *mlp(rng, (36, 10, 10, 4))]
    else:
        conv = Conv(rng.normal(size=(3, 3, 1, 3)), rng.normal(size=3), (2, 1), "VALID")
        layers = [conv, Relu(), Flatten(), *mlp(rng, (24, 10, 4))]
    x = jnp.asarray(x, jnp.float32)
    logits = np.asarray(network.apply(jax.tree.map(jnp.float32, layers), x))
    result = bound(layers, x, jnp.asarray(y), eps=0.0)
    np.testing.assert_array_equal(result.certified, logits.argmax(1) == y)
    assert 0 < result.certified.sum() < 40
    clean = logits[np.arange(40), y][:, None] - logits
    others = np.arange(4) != y[:, None]
    np.testing.assert_allclose(result.margins[others], clean[others], atol=2e-5)
    assert (result.margins[~others] == np.inf).all()


@every_bound
def test_the_result_says_what_it_speaks_of(bound):
    rng = np.random.default_rng(8)
    layers = mlp(rng, (4, 3))
    x, y = batch(rng, 2, (4,), 3)
    result = bound(layers, x, y, eps=0.25, norm="l1")
    assert isinstance(result, MarginBound)
    assert (result.norm, result.eps, result.method) == ("l1", 0.25, bound.__name__)
    assert result.margins.dtype == np.float64
    assert "float32 is not covered" in result.proof
    assert ("box [0, 1]" if bound is certify.interval else "box is not used") in result.proof


def cancelling_network(rng):
    """Weights near 1e4 in pairs that nearly cancel: the logits are what rounding leaves over."""
    first = rng.uniform(-1e4, 1e4, (3, 2))
    first = np.concatenate([first, first * (1 + rng.normal(size=(3, 2)) * 1e-9)], axis=1)
    second = rng.uniform(-1e4, 1e4, (2, 2))
    second = np.concatenate([second, -second * (1 + rng.normal(size=(2, 2)) * 1e-9)])
    bias = rng.uniform(-1, 1, 4) * 1e-3
    return [Dense(first, bias), Relu(), Dense(second, np.zeros(2))]


def exact_margin(layers, x, label):
    """`f_label - f_other` of a two-class network, in rational arithmetic."""
    h = [Fraction(v) for v in x]
    for layer in layers:
        if isinstance(layer, Relu):
            h = [max(v, Fraction(0)) for v in h]
        else:
            columns = layer.kernel.T.tolist()
            h = [sum((Fraction(w) * v for w, v in zip(column, h, strict=True)), Fraction(b))
                 for column, b in zip(columns, layer.bias.tolist(), strict=True)]  # fmt: skip
    return h[label] - h[1 - label]


def test_rounding_never_lifts_a_bound_above_the_exact_margin():
    rng = np.random.default_rng(9)
    lifted = 0
    for _ in range(60):
        layers = cancelling_network(rng)
        x, y = batch(rng, 1, (3,), 2)
        label = int(y[0])
        exact = exact_margin(layers, x[0].tolist(), label)
        lifted += Fraction(margins_at(layers, x, label)[0, 1 - label].item()) > exact
        for bound, norm in itertools.product(BOUNDS.values(), NORMS):
            margin = bound(layers, x, y, eps=0.0, norm=norm).margins[0, 1 - label]
            assert Fraction(margin.item()) <= exact
            assert margin >= float(exact) - 1e-3  # products of 1e8, so not much was given away
        for eps in (2.0**-30, 2.0**-4):
            low = certify.interval(layers, x, y, eps=eps, box=Box(-1.0, 2.0)).margins[0, 1 - label]
            for signs in itertools.product((-1, 1), repeat=3):
                corner = [Fraction(v) + s * Fraction(eps) for v, s in zip(x[0], signs, strict=True)]
                assert Fraction(low.item()) <= exact_margin(layers, corner, label)
    assert lifted > 10  # plain float64 does lift it: the test can fail


@every_bound
def test_the_rounding_of_biases_is_subtracted_too(bound):
    rng = np.random.default_rng(18)
    lifted = 0
    for _ in range(60):
        layers = [Dense(rng.normal(size=(2, 2)), rng.normal(size=2) * 1e8)]
        x = rng.uniform(size=(1, 2))
        exact = exact_margin(layers, x[0].tolist(), 0)
        margin = bound(layers, x, np.array([0]), eps=0.0).margins[0, 1]
        assert float(exact) - 1e-6 <= margin
        assert Fraction(margin.item()) <= exact
        lifted += Fraction(margins_at(layers, x, 0)[0, 1].item()) > exact
    assert lifted > 10


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["kernel", "bias"])
@pytest.mark.parametrize("place", [0, 2])
def test_weights_must_be_finite(bad, part, place):
    layers = mlp(np.random.default_rng(10), (4, 5, 3))
    values = np.float64(getattr(layers[place], part))
    values[..., 1] = bad
    layers[place] = dataclasses.replace(layers[place], **{part: values})
    with pytest.raises(ValueError, match=rf"layers\[{place}\].{part} must be finite; entry"):
        certify.interval(layers, np.full((2, 4), 0.5), np.array([0, 1]), eps=0.1)


@every_bound
def test_an_overflow_certifies_nothing_that_is_wrong(bound):
    """Sums that leave the range of float64 on the way to a result that may lie within it."""
    rng = np.random.default_rng(17)
    finite = 0
    for _ in range(100):
        layers = [
            Dense(rng.choice([-1e308, 1e308, 1e300, 1.0], (6, 3), p=[0.4, 0.4, 0.1, 0.1]),
                  np.zeros(3)),
            Relu(),
            Dense(rng.choice([0.0, 1.0, -1.0, 1e-300, -1e-300], (3, 2)), np.zeros(2)),
        ]  # fmt: skip
        layers[0].kernel[:, 0] *= rng.choice([1.0, 1e-300])
        x = rng.uniform(0.5, 1.0, (1, 6))
        exact = exact_margin(layers, x[0].tolist(), 0)
        margin = bound(layers, x, np.array([0]), eps=1e-3, **boxed(bound, 2.0)).margins[0, 1]
        assert margin == -np.inf or Fraction(margin.item()) <= exact
        finite += margin > -np.inf
    assert finite < 100
    assert finite > 0 or bound is not certify.interval


def boxed(bound, high):
    return {"box": Box(-high, high)} if bound is certify.interval else {}


@every_bound
def test_a_row_that_overflows_loses_no_other(bound):
    rng = np.random.default_rng(11)
    layers = mlp(rng, (4, 5, 3))
    layers[0] = Dense(100 * layers[0].kernel, layers[0].bias)
    x, y = batch(rng, 3, (4,), 3)
    alone = bound(layers, x, y, eps=0.01, **boxed(bound, 1e308)).margins
    x[1] = [1e308, -1e308, 1e308, 1e308]
    beside = bound(layers, x, y, eps=0.01, **boxed(bound, 1e308)).margins
    np.testing.assert_array_equal(beside[[0, 2]], alone[[0, 2]])
    assert (beside[1, np.arange(3) != y[1]] == -np.inf).all()


@every_bound
def test_rows_in_chunks_give_the_same(bound, monkeypatch):
    rng = np.random.default_rng(12)
    layers = [Conv(rng.normal(size=(3, 3, 2, 3)), np.ones(3)), Relu(), Flatten(), dense(rng, 48, 3)]
    x, y = batch(rng, 7, (4, 4, 2), 3)
    whole = bound(layers, x, y, eps=0.01, norm="l2").margins
    monkeypatch.setattr(_common, "_FLOATS_AT_ONCE", 2 * 16 * 18)  # two rows of patches
    assert len(list(_common.in_chunks(_common.read(layers, x, y, 0.1, "l2")))) == 4
    np.testing.assert_allclose(bound(layers, x, y, eps=0.01, norm="l2").margins, whole, atol=1e-12)


@every_bound
def test_a_network_may_end_in_another_layer(bound):
    rng = np.random.default_rng(13)
    layers = [*mlp(rng, (4, 6, 3)), Relu()]
    x, y = batch(rng, 5, (4,), 3)
    plain = bound(layers, x, y, eps=0.01).margins
    identity = [*layers, Dense(np.eye(3), np.zeros(3))]
    np.testing.assert_array_equal(plain, bound(identity, x, y, eps=0.01).margins)


def test_on_layers_hands_over_what_the_bound_takes():
    rng = np.random.default_rng(14)
    layers = mlp(rng, (4, 3))
    x, y = batch(rng, 2, (4,), 3)
    ball = Ball("l2", jnp.asarray(0.5), Box(-1.0, 2.0))
    for bound in BOUNDS.values():
        result = certify.on_layers(bound, layers)(x, y, key=jax.random.key(0), ball=ball)
        direct = bound(layers, x, y, eps=0.5, norm="l2", **(
            {"box": ball.box} if bound is certify.interval else {}))  # fmt: skip
        np.testing.assert_array_equal(result.margins, direct.margins)
        assert (result.norm, result.eps) == ("l2", 0.5)

    def linf_only(layers, x, y, *, eps, slack):
        return MarginBound(np.full((len(y), 3), slack), "linf", float(eps), "fake", "none")

    narrow = certify.on_layers(functools.partial(linf_only, slack=7.0), layers)
    assert narrow(x, y, key=None, ball=ball).margins.max() == 7.0


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ({"Dense_0": np.full((500, 500), 7.0)}, r"got a dict; .*layers\(variables\)"),
        (Dense(np.eye(12), np.zeros(12)), "got a Dense"),
        ([Dense(np.zeros((12, 3)), np.zeros(3))], r"put Flatten\(\) in front"),
        ([Flatten(), Dense(np.zeros((3, 12)), np.zeros(12))], r"transposed.*weight\.T"),
        ([Flatten(), Dense(np.zeros((3, 12)), np.zeros(3))], r"bias must.*transposed"),
    ],
)
def test_layers_that_do_not_fit_are_told_what_to_do(layers, message):
    x, y = np.full((2, 2, 6, 1), 0.5), np.array([0, 1])
    with pytest.raises(ValueError, match=message) as caught:
        certify.interval(layers, x, y, eps=0.1)
    assert len(str(caught.value)) < 300


def test_on_layers_respects_what_a_partial_fixed():
    layers = mlp(np.random.default_rng(14), (4, 3))
    x, y = batch(np.random.default_rng(15), 2, (4,), 3)
    ball = Ball("linf", 0.3)

    def at(bound, ball=ball):
        return certify.on_layers(bound, layers)(x, y, key=None, ball=ball)

    whole = functools.partial(certify.lp, box=None)
    expected = certify.lp(layers, x, y, eps=0.3, box=None).margins
    assert (expected < at(certify.lp).margins).any()  # the box matters here
    np.testing.assert_array_equal(at(whole).margins, expected)
    np.testing.assert_array_equal(at(functools.partial(whole, eps=0.3)).margins, expected)
    for bound, name in (
        (functools.partial(certify.lp, eps=0.1), "eps"),
        (functools.partial(certify.interval, norm="l2"), "norm"),
        (functools.partial(certify.interval, box=Box(0.0, 0.5)), "box"),
    ):
        with pytest.raises(ValueError, match=f"its {name} is fixed to"):
            at(bound)


@pytest.mark.usefixtures("untyped")
def test_on_layers_wants_the_bound_first():
    with pytest.raises(ValueError, match="bound must be a function"):
        certify.on_layers(mlp(np.random.default_rng(0), (4, 3)), certify.lp)


@every_bound
@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("eps", ["0.05", True, -0.1, np.inf, [0.1], None])
def test_a_radius_is_one_number(bound, eps):
    layers = mlp(np.random.default_rng(14), (4, 3))
    x, y = batch(np.random.default_rng(15), 2, (4,), 3)
    with pytest.raises(ValueError, match="eps"):
        bound(layers, x, y, eps=eps)


@every_bound
@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("transformation", [jax.jit, jax.vmap, jax.grad])
def test_tracers_are_refused(bound, transformation):
    rng = np.random.default_rng(15)
    layers = jax.tree.map(jnp.asarray, mlp(rng, (4, 5, 3)))
    x, y = batch(rng, 2, (4,), 3)

    def of_x(x):
        return bound(layers, x, y, eps=0.1).margins.sum()

    def of_eps(eps):
        return bound(layers, x, y, eps=eps).margins.sum()

    def of_weights(kernel):
        traced = [Dense(kernel, layers[0].bias), *layers[1:]]
        return bound(traced, x, y, eps=0.1).margins.sum()

    for name, fn, value in (("x", of_x, jnp.asarray(x, jnp.float32)), ("eps", of_eps, jnp.ones(2)),
                            ("layers", of_weights, layers[0].kernel)):  # fmt: skip
        value = value[0] if transformation is jax.grad and name == "eps" else value
        with pytest.raises(ValueError, match=f"{name} is traced"):
            transformation(fn)(value)


GOOD = mlp(np.random.default_rng(16), (4, 5, 3))
IMAGE = Conv(np.ones((3, 3, 2, 4)), np.zeros(4))


@every_bound
@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": []}, "layers must be a sequence of at least one layer"),
        ({"layers": GOOD[0]}, "layers must be a sequence"),
        ({"layers": [np.tanh]},
         r"layers\[0\] must be a Dense, Conv, Relu, Sigmoid or Flatten; got ufunc"),
        ({"layers": [GOOD[0], None]}, r"layers\[1\] must be .* got NoneType"),
        ({"layers": [*GOOD, dense(np.random.default_rng(0), 4, 2)]},
         r"layers\[3\] \(Dense\) takes examples of shape \(4,\); .* it gets \(3,\)"),
        ({"x": np.zeros((2, 2, 2))}, r"layers\[0\] \(Dense\) .* it gets \(2, 2\)"),
        ({"layers": [IMAGE]}, r"takes examples of shape \(height, width, 2\)"),
        ({"layers": [Conv(IMAGE.kernel, IMAGE.bias, (1, 1), "VALID")],
          "x": np.zeros((2, 4, 2, 2))}, "of at least 3 x 3"),
        ({"layers": [IMAGE], "x": np.zeros((2, 4, 4, 2))}, r"logits of shape .* \(batch, 4, 4, 4"),
        ({"layers": [Dense(np.ones(4), np.ones(4))]}, r"kernel must have shape \(inputs, outputs"),
        ({"layers": [Dense(np.ones((4, 3)), np.ones(2))]}, r"bias must have shape \(3,\)"),
        ({"layers": [Dense(np.ones((4, 3)), None)]}, r"layers\[0\].bias must be an array of float"),
        ({"layers": [Dense(np.ones((4, 3), int), np.ones(3))]}, "got int64"),
        ({"layers": [Dense(np.ones((4, 1)), np.ones(1))], "y": np.zeros(2, int)},
         "at least 2 classes"),
        ({"x": np.zeros((2, 4), np.uint8)}, "x must be floating point"),
        ({"x": np.full((2, 4), np.nan)}, "x must be finite"),
        ({"x": np.zeros(4)}, "x must be a batch"),
        ({"y": np.array([0, 3])}, "labels in 0..2"),
        ({"y": np.array([0, -1])}, "labels in 0..2"),
        ({"y": np.array([0])}, "one label for each"),
        ({"y": np.zeros(2)}, "integer labels"),
        ({"norm": "l7"}, "norm must be one of linf, l2, l1; got 'l7'"),
        ({"eps": np.array([0.1, 0.1])}, r"eps must be a single number.* got shape \(2,\)"),
        ({"eps": -0.1}, "eps must be finite and at least 0"),
        ({"eps": np.nan}, "eps must be finite"),
        ({"eps": "large"}, "eps must be a real number; got 'large'"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(bound, change, message):
    given_ = {"layers": GOOD, "x": np.full((2, 4), 0.5), "y": np.array([0, 1]), "eps": 0.1}
    with pytest.raises(ValueError, match=message):
        bound(**(given_ | change))


@every_bound
@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("strides", "padding", "message"),
    [
        ((1, 1), "FULL", "padding must be SAME or VALID; got 'FULL'"),
        (2, "SAME", "strides must be two integers >= 1; got 2"),
        ((1.0, 1), "SAME", "strides must be two integers"),
        ((0, 1), "SAME", "strides must be two integers"),
    ],
)
def test_a_misshapen_convolution_is_refused(bound, strides, padding, message):
    layers = [Conv(IMAGE.kernel, IMAGE.bias, strides, padding), Flatten()]
    with pytest.raises(ValueError, match=message):
        bound(layers, np.zeros((2, 4, 4, 2)), np.array([0, 1]), eps=0.1)


@pytest.mark.usefixtures("untyped")
def test_interval_refuses_images_outside_the_box_and_wrong_boxes():
    x, y = np.full((2, 4), 1.5), np.array([0, 1])
    with pytest.raises(ValueError, match=r"x must lie in the box \[0, 1\]"):
        certify.interval(GOOD, x, y, eps=0.1)
    certify.interval(GOOD, x, y, eps=0.1, box=Box(0.0, 2.0))
    for box in ((0.0, 2.0), Box(2.0, 0.0), Box(0.0, np.inf)):
        with pytest.raises(ValueError, match="box must be a Box"):
            certify.interval(GOOD, x, y, eps=0.1, box=box)
