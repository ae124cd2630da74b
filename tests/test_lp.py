"""The Kolter-Wong bound: against the linear program, brute force, and exact arithmetic."""

import functools
import itertools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from sklearn.datasets import load_digits

import jaxrobust as jr
from jaxrobust import certify, objectives
from jaxrobust.certify import _common
from jaxrobust.layers import Conv, Dense, Flatten, Relu, Sigmoid
from jaxrobust.threat import Box
from jaxrobust.types import Batch

KEY = jax.random.key(0)
seeds = st.integers(0, 2**32 - 1)
boxes = st.sampled_from([Box(), None])


def dense(rng, inputs, outputs, scale=1.0):
    kernel = rng.normal(size=(inputs, outputs)) * scale / np.sqrt(inputs)
    return Dense(kernel, rng.normal(size=outputs) * 0.3)


def mlp(rng, widths, scale=1.0):
    pairs = [(dense(rng, *sizes, scale), Relu()) for sizes in itertools.pairwise(widths)]
    return [layer for pair in pairs for layer in pair][:-1]


def forward(layers, x):
    for layer in layers:
        x = np.maximum(x, 0) if isinstance(layer, Relu) else x @ layer.kernel + layer.bias
    return x


def single(layers):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), layers)


def sides(x, eps, box):
    low, high = x - eps, x + eps
    return (low, high) if box is None else (np.maximum(low, box.low), np.minimum(high, box.high))


def relaxed_minimum(layers, low, high, label, other):
    """Least margin of the linear program of a network with one hidden layer: the oracle."""
    (w, b), (v, a) = ((layer.kernel, layer.bias) for layer in layers[::2])
    centre, radius = (low + high) / 2, (high - low) / 2
    middle, reach = centre @ w + b, radius @ np.abs(w)
    below, above = middle - reach, middle + reach
    d, m = w.shape
    rows, limits = [], []
    for j in range(m):
        unit = np.eye(m)[j]
        if above[j] <= 0:
            rows.append(np.r_[np.zeros(d), unit])
            limits.append(0.0)
            continue
        slope = 1.0 if below[j] >= 0 else above[j] / (above[j] - below[j])
        rows += [np.r_[w[:, j], -unit], np.r_[-slope * w[:, j], unit]]
        limits += [-b[j], slope * (b[j] - min(below[j], 0.0))]
    cost = np.r_[np.zeros(d), v[:, label] - v[:, other]]
    ranges = [*zip(low, high, strict=True), *([(0, None)] * m)]
    solved = linprog(cost, np.array(rows), np.array(limits), bounds=ranges)
    assert solved.success
    return solved.fun + a[label] - a[other]


@given(seeds, st.integers(2, 3), st.integers(1, 6), st.floats(0.0, 0.6), boxes)
@settings(max_examples=60, deadline=None)
def test_the_bound_is_below_the_linear_program(seed, inputs, hidden, eps, box):
    rng = np.random.default_rng(seed)
    layers = mlp(rng, (inputs, hidden, 3), 2.0)
    x, y = rng.uniform(size=(2, inputs)), rng.integers(0, 3, 2)
    margins = certify.lp(layers, x, y, eps=eps, box=box).margins
    for row, other in itertools.product(range(2), range(3)):
        if other != y[row]:
            best = relaxed_minimum(layers, *sides(x[row], eps, box), y[row], other)
            assert margins[row, other] <= best + 1e-9


def theorem_1(layers, x, eps, label, other):
    """The dual objective as printed, for one hidden layer: nu_3 = -c, Eq. 6 to 8."""
    (w, b), (v, a) = ((layer.kernel.T, layer.bias) for layer in layers[::2])
    low, high = (w @ x + b + s * eps * np.abs(w).sum(1) for s in (-1, 1))
    nu_3 = np.eye(len(a))[other] - np.eye(len(a))[label]
    hat = v.T @ nu_3
    cross = (low < 0) & (high > 0)
    slope = np.where(cross, high / (high - low), low >= 0)
    nu_2 = slope * np.maximum(hat, 0) - slope * np.maximum(-hat, 0)
    hat_1 = w.T @ nu_2
    ends = (low * np.maximum(nu_2, 0))[cross].sum()
    return -nu_3 @ a - nu_2 @ b - x @ hat_1 - eps * np.abs(hat_1).sum() + ends


def test_one_hidden_layer_gives_the_formula_of_the_paper():
    rng = np.random.default_rng(0)
    layers = mlp(rng, (12, 20, 4))
    x, y = rng.uniform(size=(10, 12)), rng.integers(0, 4, 10)
    margins = certify.lp(layers, x, y, eps=0.1, box=None).margins
    for row, other in itertools.product(range(10), range(4)):
        if other != y[row]:
            expected = theorem_1(layers, x[row], 0.1, y[row], other)
            assert margins[row, other] == pytest.approx(expected, abs=1e-12)


@given(seeds, st.sampled_from([(5,), (4, 5), (5, 4, 4)]), st.floats(0.0, 0.5), boxes)
@settings(max_examples=60, deadline=None)
def test_no_point_of_the_ball_is_below_the_bound(seed, hidden, eps, box):
    """A dense grid with its corners, then descent from the best of it."""
    rng = np.random.default_rng(seed)
    layers = mlp(rng, (3, *hidden, 3), rng.uniform(0.5, 3.0))
    x, y = rng.uniform(size=(2, 3)), rng.integers(0, 3, 2)
    x[0] = rng.integers(0, 2, 3)  # a corner of the box
    margins = certify.lp(layers, x, y, eps=eps, box=box).margins
    for row in range(2):
        low, high = sides(x[row], eps, box)
        axes = [np.linspace(*ends, 9) for ends in zip(low, high, strict=True)]
        points = np.stack([a.ravel() for a in np.meshgrid(*axes)], -1)
        for other in set(range(3)) - {int(y[row])}:
            best, width = points, (high - low) / 8
            for _ in range(4):
                logits = forward(layers, best)
                gap = logits[:, y[row]] - logits[:, other]
                assert margins[row, other] <= gap.min() + 1e-12
                around = best[gap.argmin()] + width * rng.uniform(-1, 1, (100, 3))
                best, width = np.clip(around, low, high), width / 3


@pytest.mark.parametrize("box", [Box(), None])
def test_pgd_finds_nothing_below_the_bound(box):
    rng = np.random.default_rng(1)
    layers = mlp(rng, (20, 15, 10, 4))
    x, y = rng.uniform(size=(30, 20)), rng.integers(0, 4, 30)
    ball = jr.Ball("linf", 0.05, Box(-1.0, 2.0) if box is None else box)
    x_adv = jr.attacks.pgd(
        jax.tree_util.Partial(jr.layers.apply, single(layers)), jnp.asarray(x, jnp.float32),
        jnp.asarray(y), key=KEY, ball=ball, num_steps=30, loss=jr.losses.margin,
    )  # fmt: skip
    logits = forward(layers, np.clip(np.float64(x_adv), *sides(x, 0.05, box)))
    found = logits[np.arange(30), y][:, None] - logits
    margins = certify.lp(layers, x, y, eps=0.05, box=box).margins
    others = np.arange(4) != y[:, None]
    assert (margins[others] <= found[others] + 1e-12).all()


@pytest.mark.parametrize("box", [Box(), None])
@pytest.mark.parametrize("depth", [1, 3])
def test_affine_networks_get_their_true_margin(box, depth):
    rng = np.random.default_rng(2)
    layers = [dense(rng, *sizes) for sizes in itertools.pairwise((6, 5, 4, 3)[-depth - 1 :])]
    d = layers[0].kernel.shape[0]
    x, y = rng.uniform(size=(8, d)), rng.integers(0, 3, 8)
    margins = certify.lp(layers, x, y, eps=0.3, box=box).margins
    corners = np.array(list(itertools.product((0, 1), repeat=d)))
    for row in range(8):
        low, high = sides(x[row], 0.3, box)
        logits = forward(layers, low + corners * (high - low))
        truth = (logits[:, [y[row]]] - logits).min(0)
        others = np.arange(3) != y[row]
        np.testing.assert_allclose(margins[row, others], truth[others], rtol=0, atol=1e-12)


def test_relus_that_do_not_switch_cost_nothing():
    """Two affine layers in a row, and dead and active units: intervals alone would lose here."""
    rng = np.random.default_rng(3)
    first, _, second = mlp(rng, (5, 8, 3))
    first = Dense(first.kernel, np.where(np.arange(8) % 2, 50.0, -50.0))
    x, y = rng.uniform(size=(6, 5)), rng.integers(0, 3, 6)
    margins = certify.lp([first, Relu(), second], x, y, eps=0.2).margins
    kept = np.arange(8) % 2 == 1
    linear = [
        Dense(first.kernel[:, kept], first.bias[kept]),
        Dense(second.kernel[kept], second.bias),
    ]
    np.testing.assert_allclose(margins, certify.lp(linear, x, y, eps=0.2).margins, atol=1e-12)
    assert (certify.interval(linear, x, y, eps=0.2).margins < margins - 0.1).any()


def written_out(conv, shape):
    """The convolution as a dense layer behind a `Flatten`."""
    pixels = int(np.prod(shape))
    plain = Conv(np.float32(conv.kernel), np.zeros(len(conv.bias), np.float32), conv.strides,
                 conv.padding)  # fmt: skip
    # Each response to a unit image is one weight, so float32 makes no error here.
    ones = jnp.eye(pixels).reshape(pixels, *shape)
    matrix = np.asarray(jr.layers.apply([plain, Flatten()], ones))
    return Dense(np.float64(matrix), np.resize(conv.bias, matrix.shape[1]))


CONVS = [((1, 1), "SAME"), ((2, 2), "SAME"), ((1, 2), "VALID"), ((3, 3), "SAME")]


@pytest.mark.parametrize(("strides", "padding"), CONVS)
def test_a_convolution_gives_what_its_matrix_gives(strides, padding):
    rng = np.random.default_rng(4)

    def conv(inputs, outputs, size, strides, padding):
        kernel = np.float64(np.float32(rng.normal(size=(*size, inputs, outputs)) / 2))
        return Conv(kernel, rng.normal(size=outputs) * 0.3, strides, padding)

    first, shape = conv(2, 3, (2, 3), strides, padding), (5, 6, 2)
    inner = jax.eval_shape(
        lambda x: jax.lax.conv_general_dilated(
            x, single(first).kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        ), jnp.zeros((1, *shape)),
    ).shape[1:]  # fmt: skip
    second = conv(3, 2, (2, 2), (2, 1), "SAME")
    matrices = [written_out(first, shape), written_out(second, inner)]
    head = mlp(rng, (matrices[1].kernel.shape[1], 4, 3))
    as_conv = [first, Relu(), second, Relu(), Flatten(), *head]
    as_dense = [Flatten(), matrices[0], Relu(), matrices[1], Relu(), *head]
    x, y = rng.uniform(size=(5, *shape)), rng.integers(0, 3, 5)
    one, two = (certify.lp(layers, x, y, eps=0.05).margins for layers in (as_conv, as_dense))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-10)
    loose = certify.interval(as_conv, x, y, eps=0.05).margins
    assert one[one < np.inf].mean() > loose[loose < np.inf].mean()
    traced = jax.jit(certify.lp_margins)(single(as_conv), jnp.asarray(x, jnp.float32), y, eps=0.05)
    np.testing.assert_allclose(traced, one, atol=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_the_box_helps_and_a_larger_radius_does_not(seed):
    """Not a theorem, as slopes change with the bounds; on such networks it holds."""
    rng = np.random.default_rng(seed)
    layers = mlp(rng, (20, 30, 20, 4))
    x, y = rng.choice([0.0, 0.3, 1.0], (10, 20)), rng.integers(0, 4, 10)
    sweep = [
        [certify.lp(layers, x, y, eps=e, box=box).margins for e in (0.0, 0.01, 0.05, 0.1, 0.3)]
        for box in (Box(), None)
    ]
    for boxed, free in zip(*sweep, strict=True):
        assert (boxed >= free - 1e-12).all()
    for run in sweep:
        for smaller, larger in itertools.pairwise(run):
            assert (larger <= smaller + 1e-12).all()


def test_queries_and_rows_in_chunks_give_the_same(monkeypatch):
    rng = np.random.default_rng(5)
    conv = Conv(rng.normal(size=(3, 3, 2, 3)), np.ones(3))
    layers = [conv, Relu(), Flatten(), *mlp(rng, (48, 9, 7, 3))]
    x, y = rng.uniform(size=(7, 4, 4, 2)), rng.integers(0, 3, 7)
    whole = certify.lp(layers, x, y, eps=0.02).margins
    monkeypatch.setattr(_common, "_FLOATS_AT_ONCE", 3 * 16 * 18)  # three rows of patches
    assert len(list(_common.in_chunks(_common.read(layers, x, y, 0.1, "linf")))) == 3
    np.testing.assert_allclose(certify.lp(layers, x, y, eps=0.02).margins, whole, atol=1e-12)


def exact_margin(layers, x, label):
    """`f_label - f_other` of a two-class network, in rational arithmetic."""
    h = list(x)
    for layer in layers:
        if isinstance(layer, Relu):
            h = [max(v, Fraction(0)) for v in h]
        else:
            columns = zip(layer.kernel.T.tolist(), layer.bias.tolist(), strict=True)
            h = [
                sum((Fraction(w) * v for w, v in zip(column, h, strict=True)), Fraction(b))
                for column, b in columns
            ]
    return h[label] - h[1 - label]


def cancelling(rng, inputs, outputs):
    """Weights near 1e4 in pairs that nearly cancel: what they give is what rounding leaves over."""
    half = rng.uniform(-1e4, 1e4, (inputs, outputs // 2))
    pair = half * (1 + rng.normal(size=half.shape) * 1e-9)
    return np.concatenate([half, pair], axis=1)


@pytest.mark.parametrize("deep", [False, True])
def test_rounding_never_lifts_the_bound_above_the_exact_margin(deep):
    rng = np.random.default_rng(6)
    lifted = 0
    for _ in range(60):
        layers = [Dense(cancelling(rng, 3, 4), rng.uniform(-1, 1, 4) * 1e-3), Relu()]
        if deep:
            layers += [Dense(rng.normal(size=(4, 4)), rng.normal(size=4)), Relu()]
        second = rng.uniform(-1e4, 1e4, (2, 2))
        second = np.concatenate([second, -second * (1 + rng.normal(size=(2, 2)) * 1e-9)])
        layers.append(Dense(second, np.zeros(2)))
        x, label = rng.uniform(size=(1, 3)), 0
        exact = exact_margin(layers, map(Fraction, x[0].tolist()), label)
        logits = forward(layers, x)[0]
        lifted += Fraction(float(logits[0] - logits[1])) > exact
        margin = certify.lp(layers, x, np.array([label]), eps=0.0).margins[0, 1]
        assert float(exact) - 1e-2 <= margin  # products of 1e8, so not much was given away
        assert Fraction(margin.item()) <= exact
        for eps in (2.0**-30, 2.0**-4):
            low = certify.lp(layers, x, np.array([label]), eps=eps, box=None).margins[0, 1]
            for signs in itertools.product((-1, 1), repeat=3):
                corner = [Fraction(v) + s * Fraction(eps)
                          for v, s in zip(x[0].tolist(), signs, strict=True)]  # fmt: skip
                assert Fraction(low.item()) <= exact_margin(layers, corner, label)
    assert lifted > 10  # plain float64 does lift it: the test can fail


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e-5, 1.0, 1e150, 1e300])
def test_underflow_and_overflow_certify_nothing_that_is_wrong(scale):
    rng = np.random.default_rng(7)
    finite = 0
    for _ in range(40):
        sizes = itertools.pairwise((3, 4, 4, 2))
        powers = np.exp2(rng.integers(-20, 20, 3)) * np.array([scale, 1 / scale, 1.0])
        layers = []
        for (n, m), power in zip(sizes, rng.permutation(powers), strict=True):
            layers += [Dense(rng.normal(size=(n, m)) * power, rng.normal(size=m) * 1e-8), Relu()]
        layers, x = layers[:-1], rng.uniform(size=(1, 3))
        margin = certify.lp(layers, x, np.array([0]), eps=0.0).margins[0, 1]
        exact = exact_margin(layers, map(Fraction, x[0].tolist()), 0)
        assert margin == -np.inf or Fraction(margin.item()) <= exact
        finite += margin > -np.inf
    assert finite > 0


def test_a_row_that_overflows_loses_no_other():
    rng = np.random.default_rng(8)
    layers = mlp(rng, (4, 5, 5, 3))
    x, y = rng.uniform(size=(3, 4)), rng.integers(0, 3, 3)
    alone = certify.lp(layers, x, y, eps=0.01, box=None).margins
    x[1] = [1.7e308, -1.7e308, 1.7e308, 1.7e308]
    layers[0] = Dense(layers[0].kernel, layers[0].bias)
    beside = certify.lp(layers, x, y, eps=0.01, box=None).margins
    np.testing.assert_allclose(beside[[0, 2]], alone[[0, 2]], atol=1e-12)
    assert (beside[1, np.arange(3) != y[1]] == -np.inf).all()


def test_the_result_says_what_it_speaks_of():
    layers = mlp(np.random.default_rng(10), (4, 5, 3))
    x, y = np.full((2, 4), 0.5), np.array([0, 1])
    boxed = certify.lp(layers, x, y, eps=0.25)
    free = certify.lp(layers, x, y, eps=0.25, box=None)
    assert (boxed.norm, boxed.eps, boxed.method) == ("linf", 0.25, "lp")
    assert "within the box [0, 1]" in boxed.proof
    assert "without a box" in free.proof
    assert "float32 is not covered" in boxed.proof
    outside = certify.lp(layers, x + 1, y, eps=0.1, box=None)
    assert np.isfinite(outside.margins[[0, 1], [1, 0]]).all()


@pytest.mark.usefixtures("untyped")
def test_wrong_arguments_are_refused():
    rng = np.random.default_rng(11)
    layers = mlp(rng, (4, 5, 3))
    x, y = np.full((2, 4), 0.5), np.array([0, 1])
    with pytest.raises(ValueError, match=r"layers\[1\] is a Sigmoid"):
        certify.lp([layers[0], Sigmoid(), layers[2]], x, y, eps=0.1)
    with pytest.raises(ValueError, match="box"):
        certify.lp(layers, x, y, eps=0.1, box=Box(1.0, 0.0))
    with pytest.raises(ValueError, match="in the box"):
        certify.lp(layers, x + 1, y, eps=0.1)
    for eps in (-0.05, "0.05", True):
        with pytest.raises(ValueError, match="eps must be"):
            objectives.lp_robust(lambda p, s, x: (x, s), lambda p: layers, eps=eps)
    for wrong in (Sigmoid(), "relu"):
        with pytest.raises(ValueError, match=r"layers\[1\] is a (Sigmoid|str)"):
            certify.lp_margins([layers[0], wrong, layers[2]], x, y, eps=0.1)


@pytest.mark.parametrize("box", [Box(), None])
@pytest.mark.parametrize("hidden", [(), (30,), (20, 15), (12, 10, 8)])
@pytest.mark.parametrize("ending", [[], [Relu()]])
def test_the_function_to_differentiate_has_the_value_of_the_certificate(box, hidden, ending):
    rng = np.random.default_rng(12)
    layers = [*mlp(rng, (12, *hidden, 4)), *ending]
    x, y = rng.uniform(size=(20, 12)), rng.integers(0, 4, 20)
    proved = certify.lp(layers, x, y, eps=0.1, box=box).margins
    traced = jax.jit(functools.partial(certify.lp_margins, box=box))(
        single(layers), jnp.asarray(x, jnp.float32), jnp.asarray(y), eps=0.1
    )
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, proved, atol=1e-4)


def test_many_radii_at_once():
    rng = np.random.default_rng(13)
    layers = single(mlp(rng, (6, 8, 7, 3)))
    x, y = jnp.asarray(rng.uniform(size=(4, 6)), jnp.float32), jnp.array([0, 1, 2, 0])
    radii = jnp.array([0.0, 0.05, 0.1])
    swept = jax.jit(jax.vmap(lambda e: certify.lp_margins(layers, x, y, eps=e)))(radii)
    for eps, margins in zip(radii, swept, strict=True):
        np.testing.assert_allclose(margins, certify.lp(layers, x, y, eps=eps).margins, atol=1e-5)


def total(layers, x, y, eps):
    margins = certify.lp_margins(layers, x, y, eps=eps)
    return jnp.sum(jnp.where(jnp.isfinite(margins), margins, 0.0))


@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_gradients_are_finite_where_units_are_dead_or_exactly_at_the_kink(eps):
    rng = np.random.default_rng(14)
    layers = single(mlp(rng, (4, 6, 5, 3)))
    kernel = layers[0].kernel.at[:, :3].set(0.0)  # l = u
    bias = layers[0].bias.at[:3].set(jnp.array([0.0, -5.0, 5.0]))
    layers = [Dense(kernel, bias), *layers[1:]]
    x, y = jnp.asarray(rng.integers(0, 2, (5, 4)), jnp.float32), jnp.array([0, 1, 2, 0, 1])
    grads = jax.jit(jax.grad(total, argnums=(0, 1, 3)))(layers, x, y, eps)
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert jnp.abs(grads[0][0].kernel).max() > 0


def check_gradient(value, grads, params, rng):
    """Against central differences along random directions, in float64."""
    value = jax.jit(value)
    for _ in range(5):
        direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), params)
        ahead, behind = (
            value(jax.tree.map(lambda a, b: a + step * b, params, direction))  # noqa: B023
            for step in (1e-6, -1e-6)
        )
        pairs = zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
        along = float(sum(jnp.vdot(a, b) for a, b in pairs))
        assert along == pytest.approx(float(ahead - behind) / 2e-6, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("hidden", [(7,), (7, 6)])
def test_gradients_are_those_of_finite_differences(hidden):
    rng = np.random.default_rng(15)
    with jax.enable_x64(True):
        layers = jax.tree.map(jnp.asarray, mlp(rng, (6, *hidden, 3)))
        x, y = jnp.asarray(rng.uniform(0.2, 0.8, size=(4, 6))), jnp.array([0, 1, 2, 0])
        value = lambda p: total(p[0], p[1], y, p[2])
        point = (layers, x, jnp.asarray(0.1))
        check_gradient(value, jax.jit(jax.grad(value))(point), point, rng)


def linear_forward(params, model_state, x):
    return jr.layers.apply(params, x), model_state


def objective_case(rng):
    params = single(mlp(rng, (6, 7, 3)))
    x = jnp.asarray(rng.uniform(size=(8, 6)), jnp.float32)
    return params, Batch(x, jnp.asarray(rng.integers(0, 3, 8)), jnp.arange(8))


def test_the_objective_is_the_cross_entropy_of_the_worst_logits():
    rng = np.random.default_rng(16)
    params, batch = objective_case(rng)
    objective = objectives.lp_robust(linear_forward, lambda params: params, eps=0.05)
    state = objective.init(params, KEY)
    at = jax.jit(lambda params, batch: objective.value_and_grad(params, {}, state, batch, key=KEY))
    out, _ = at(params, batch)
    bound = certify.lp(params, batch.x, np.asarray(batch.y), eps=0.05)
    loss = np.log(1 + np.exp(-bound.margins).sum(1))  # exp(-inf) = 0 at the true class
    assert out.loss == pytest.approx(loss.mean(), abs=1e-5)
    clean = objectives.cross_entropy(linear_forward).value_and_grad(params, {}, (), batch, key=KEY)
    assert out.loss > clean[0].loss
    assert out.metrics["accuracy"] == clean[0].metrics["accuracy"]
    assert out.metrics["lp_error"] == pytest.approx(1 - bound.certified.mean())
    with jax.enable_x64(True):
        params, batch = jax.tree.map(
            lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, (params, batch)
        )
        check_gradient(lambda p: at(p, batch)[0].loss, at(params, batch)[1], params, rng)


def test_the_objective_follows_a_schedule_of_eps():
    params, batch = objective_case(np.random.default_rng(17))
    warmup = optax.linear_schedule(0.0, 0.1, 4)
    objective = objectives.scheduled(
        lambda eps: objectives.lp_robust(linear_forward, list, eps=eps), eps=warmup
    )
    state, seen = objective.init(params, KEY), []
    at = jax.jit(lambda state: objective.value_and_grad(params, {}, state, batch, key=KEY))
    for _ in range(6):
        out, _ = at(state)
        state = out.state
        seen.append((float(out.metrics["eps"]), float(out.loss)))
    radii, losses = zip(*seen, strict=True)
    np.testing.assert_allclose(radii, [0, 0.025, 0.05, 0.075, 0.1, 0.1], atol=1e-7)
    assert list(losses[:5]) == sorted(losses[:5])


def test_training_on_digits_raises_what_is_certified():
    images, labels = load_digits(return_X_y=True)
    data = (np.float32(images[:600] / 16).reshape(-1, 8, 8, 1), np.int32(labels[:600]))
    model = jr.models.mlp((32,))
    params = model.init(KEY, jnp.zeros((1, 8, 8, 1)))["params"]
    forward = objectives.from_module(model.apply)
    objective = objectives.scheduled(
        lambda eps: objectives.lp_robust(forward, lambda p: model.layers({"params": p}), eps=eps),
        eps=optax.linear_schedule(0.0, 0.05, 60),
    )
    before = certify.lp(model.layers({"params": params}), *data, eps=0.05).certified.mean()
    fit = jr.train.fit(
        objective, params, optax.adam(5e-3), data, key=KEY, num_epochs=12, batch_size=50
    )
    after = certify.lp(model.layers({"params": fit.params}), *data, eps=0.05).certified.mean()
    assert before < 0.2
    assert after > 0.5
    last = [m for m in fit.metrics if "loss" in m][-1]
    assert last["eps"] == pytest.approx(0.05)
    assert last["lp_error"] < 0.6
