"""The semidefinite certificate against brute force, cvxpy, closed forms and bad duals."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import problem, random_layers
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import jaxrobust as jr
from jaxrobust.certify import load_sdp_constants, sdp, sdp_constants, sdp_cvxpy, two_layers
from jaxrobust.certify._sdp_proof import lower, pair_matrix, scaled_upper, shifted_upper
from jaxrobust.layers import Conv, Dense, Flatten, Relu, Sigmoid


def net(seed, inputs=4, hidden=5, classes=2, activation=None):
    rng = np.random.default_rng(seed)
    return [
        Dense(rng.normal(size=(inputs, hidden)), rng.normal(size=hidden)),
        Relu() if activation is None else activation,
        Dense(rng.normal(size=(hidden, classes)), rng.normal(size=classes)),
    ]


def signs(n):
    return np.array(list(itertools.product([-1.0, 1.0], repeat=n)))


def steepest(layers):
    """`max |W' diag(v) s|_1` over s in {0, 1}^m: the largest l1 gradient, by enumeration."""
    v = layers[2].kernel[:, 0] - layers[2].kernel[:, 1]
    active = (signs(len(v)) + 1) / 2
    return np.abs((active * v) @ layers[0].kernel.T).sum(1).max()


def quadratic(matrix):
    """`max y'My / 4` over signs y."""
    y = signs(len(matrix))
    return np.einsum("ij,jk,ik->i", y, matrix, y).max() / 4


def corrected(layers):
    a, _ = pair_matrix(two_layers(layers), 0, 1)
    rows, columns = a.shape
    return np.block([[np.zeros((rows, rows)), a], [a.T, np.zeros((columns, columns))]])


def printed(layers):
    """Eq. 9 as the paper prints it: the constant meets s, through the sum of the inputs."""
    v = layers[2].kernel[:, 0] - layers[2].kernel[:, 1]
    w = layers[0].kernel.T
    hidden, inputs = w.shape
    matrix = np.zeros((1 + inputs + hidden,) * 2)
    matrix[0, 1 + inputs :] = w.sum(1) * v
    matrix[1 : 1 + inputs, 1 + inputs :] = w.T * v
    return matrix + matrix.T


def test_the_bound_is_never_below_enumeration_and_the_matrix_is_exact():
    below = 0
    for seed in range(300):
        layers = net(seed, inputs=3, hidden=4)
        true = steepest(layers)
        assert quadratic(corrected(layers)) == pytest.approx(true, rel=1e-12)
        assert sdp_constants(layers).upper[0, 1] / 4 >= true
        below += quadratic(printed(layers)) < true - 1e-9
    assert below > 60  # Eq. 9 as printed is no bound


def test_the_misprint_in_one_dimension():
    """W = (1, -1) as one row, v = 1: the slope is 2, Eq. 9 as printed says 1."""
    layers = [
        Dense(np.array([[1.0], [-1.0]]), np.zeros(1)), Relu(),
        Dense(np.array([[1.0, 0.0]]), np.zeros(2)),
    ]  # fmt: skip
    assert steepest(layers) == 2.0
    assert quadratic(printed(layers)) == 1.0
    assert sdp_constants(layers).upper[0, 1] / 4 == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize(
    ("inputs", "hidden", "seed"),
    [(*sizes, seed) for sizes in ((6, 4), (9, 14), (20, 8)) for seed in range(5)]
    + [(26, 31, 0), (26, 31, 1)],  # most of the time is CVXPY's
)
def test_both_solvers_meet_cvxpy(inputs, hidden, seed):
    layers = net(seed, inputs, hidden)
    options = {"solver": "CLARABEL"}
    optimum = sdp_cvxpy(layers, 0, 1, form="primal", **options)
    if seed == 0 or hidden < 10:
        assert sdp_cvxpy(layers, 0, 1, form="dual", **options) == pytest.approx(optimum, rel=1e-6)
    for solver in ("mixing", "dual"):
        constants = sdp_constants(layers, solver=solver, tol=2e-6)
        # Clarabel's own optimum is good to about 1e-8.
        assert optimum * (1 - 1e-7) <= constants.upper[0, 1] <= optimum * (1 + 1e-5)
        assert constants.lower[0, 1] <= constants.upper[0, 1]
        assert constants.gap <= 2.1e-6


@pytest.mark.parametrize("solver", ["mixing", "dual"])
def test_duals_prove_the_bound_independently(solver):
    """NumPy alone: the duals, scaled, make `diag(c) - M` positive and sum to the bound."""
    assert not jax.config.jax_enable_x64
    layers = random_layers(1, sizes=(9, 14, 4))
    constants = sdp_constants(layers, solver=solver)
    network = two_layers(layers)
    for n, (i, j) in enumerate(itertools.combinations(range(4), 2)):
        v = np.float64(network.last)[:, i] - np.float64(network.last)[:, j]
        w = np.float64(network.kernel).T
        a = np.vstack([v @ w, v[:, None] * w])
        p, q = constants.left[n], constants.right[n]
        sigma = np.linalg.svd(a / np.sqrt(np.outer(p, q)), compute_uv=False)[0]
        c = sigma * np.concatenate([p * np.sqrt(q.sum() / p.sum()), q * np.sqrt(p.sum() / q.sum())])
        m = np.block([[np.zeros((15, 15)), a], [a.T, np.zeros((9, 9))]])
        assert np.linalg.eigvalsh(np.diag(c) - m)[0] >= -1e-9
        assert c.sum() <= constants.upper[i, j] <= c.sum() * (1 + 1e-9)


@pytest.mark.parametrize("activation", [Relu(), Sigmoid()])
def test_no_attack_from_any_start_beats_the_bound(activation):
    layers = [Flatten(), *net(7, 6, 8, 3, activation)]
    layers = jax.tree.map(lambda a: a.astype(np.float32), layers)
    logits_fn = jax.tree_util.Partial(jr.layers.apply, layers)
    x = np.random.default_rng(0).uniform(0.3, 0.7, size=(8, 6)).astype(np.float32)
    y = np.asarray(logits_fn(x)).argmax(-1).astype(np.int32)
    eps = 0.25
    bound = sdp(layers, x, y, eps=eps)
    for loss in (jr.losses.margin, jr.losses.cross_entropy):
        x_adv = jr.attacks.pgd(
            logits_fn, x, y, key=jax.random.key(0), ball=jr.Ball("linf", eps, jr.Box(-1.0, 2.0)),
            num_steps=20, num_restarts=50, loss=loss,
        )  # fmt: skip
        logits = np.float64(logits_fn(x_adv))
        margins = logits[np.arange(8), y][:, None] - logits
        assert (bound.margins - 1e-5 <= margins)[np.arange(3) != y[:, None]].all()


def test_sigmoids_have_a_quarter_of_the_slope():
    relu, sigmoid = (sdp_constants(net(3, activation=f)).upper[0, 1] for f in (Relu(), Sigmoid()))
    assert sigmoid == pytest.approx(relu / 4, rel=1e-6)


def test_exact_on_one_affine_layer():
    """Eq. 2 falls out: `eps |w_y - w_i|_1`."""
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(7, 4)), rng.normal(size=4)
    x, y = rng.uniform(size=(5, 7)), np.array([0, 1, 2, 3, 0])
    bound = sdp([Dense(kernel, bias)], x, y, eps=0.2)
    logits = x @ kernel + bias
    for b, label in enumerate(y):
        for i in set(range(4)) - {label}:
            slope = np.abs(kernel[:, label] - kernel[:, i]).sum()
            true = logits[b, label] - logits[b, i] - 0.2 * slope
            assert true - 1e-6 * slope <= bound.margins[b, i] <= true


def test_linear_in_eps_and_solved_once():
    _, layers, x, y = problem(2)
    constants = sdp_constants(layers)
    at = {eps: sdp(layers, x, y, eps=eps, constants=constants).margins for eps in (0.0, 0.1, 0.2)}
    others = np.isfinite(at[0.0])
    lost = at[0.0][others] - at[0.1][others]
    np.testing.assert_allclose(at[0.0][others] - at[0.2][others], 2 * lost, rtol=1e-9)
    assert (lost > 0).all()


@pytest.mark.usefixtures("untyped")
def test_constants_are_constants():
    layers = net(3)
    x, y = np.full((1, 4), 0.5), np.array([0])
    with pytest.raises(ValueError, match=r"constants must be what sdp_constants.*got ndarray"):
        sdp(layers, x, y, eps=0.1, constants=sdp_constants(layers).upper)


def test_a_network_that_tells_no_classes_apart_has_no_gap():
    same = Dense(np.ones((5, 3)), np.zeros(3))  # one column thrice: every difference is zero
    dead = Dense(np.zeros((4, 5)), np.zeros(5))
    alive = Dense(np.ones((4, 5)), np.zeros(5))
    for layers in ([dead, Relu(), same], [alive, Relu(), same]):
        constants = sdp_constants(layers)
        assert constants.gap == 0
        assert constants.upper.max() < 1e-200


def test_the_gap_reaches_from_the_bound_to_the_relaxation():
    _, layers, x, y = problem(3)
    rough, fine = (sdp(layers, x, y, eps=0.3, solver="dual", tol=t) for t in (0.1, 1e-7))
    others = np.isfinite(rough.margins)
    assert (rough.gap[others] > 0).all()
    assert (rough.margins <= fine.margins).all()
    assert (fine.margins <= rough.margins + rough.gap + 1e-9)[others].all()


BAD = {
    "zero": lambda c: 0 * c,
    "negative": lambda c: -c,
    "huge": lambda c: c * 1e300,
    "tiny": lambda c: c * 1e-300,
    "shuffled": lambda c: np.random.default_rng(0).permutation(c, axis=1),
    "random": lambda c: np.random.default_rng(1).normal(size=c.shape),
    "nan": lambda c: np.where(np.arange(c.shape[1]) == 1, np.nan, c),
    "infinite": lambda c: np.where(np.arange(c.shape[1]) == 1, np.inf, c),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("side", [0, 1, (0, 1)])
def test_bad_duals_give_a_valid_bound_or_none(bad, side):
    layers = random_layers(4, sizes=(6, 8, 3))
    good = sdp_constants(layers)
    duals = [good.left, good.right]
    for s in np.atleast_1d(side):
        duals[s] = BAD[bad](duals[s])
    given_ = sdp_constants(layers, duals=tuple(duals))
    assert (given_.upper >= good.lower * (1 - 1e-9)).all()
    if bad in ("nan", "infinite"):
        assert np.isposinf(given_.upper[0, 1])
    x = np.full((1, 6), 0.5)
    margins = sdp(layers, x, np.array([0]), eps=0.1, constants=given_).margins
    assert not np.isnan(margins).any()


@given(
    matrix=arrays(np.float64, (3, 4), elements=st.floats(-1e3, 1e3, allow_subnormal=False)),
    left=arrays(np.float64, 3, elements=st.floats(-10, 1e3)),
    right=arrays(np.float64, 4, elements=st.floats(-10, 1e3)),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_duals_bound_every_feasible_point(matrix, left, right):
    rng = np.random.default_rng(0)
    for upper in (scaled_upper(matrix, left, right), shifted_upper(matrix, left, right)):
        for _ in range(5):
            u, v = rng.normal(size=(3, 7)), rng.normal(size=(4, 7))
            assert lower(matrix, u, v) <= upper * (1 + 1e-12) + 1e-9
        corners = 2 * np.abs(signs(3) @ matrix).sum(1).max()
        assert corners <= upper * (1 + 1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e8, 1e30, 1e300])
def test_any_scale_of_the_weights(scale):
    layers = net(5)
    scaled = [Dense(layers[0].kernel * scale, layers[0].bias), *layers[1:]]
    constants = sdp_constants(scaled)
    assert constants.gap <= 1e-4
    assert constants.upper[0, 1] == pytest.approx(scale * sdp_constants(layers).upper[0, 1], 1e-3)


@pytest.mark.parametrize("solver", ["mixing", "dual"])
def test_dead_networks_move_nothing_and_overflowing_ones_prove_nothing(solver):
    layers = net(6)
    dead = [layers[0], Relu(), Dense(np.ones((5, 2)), np.zeros(2))]
    assert sdp_constants(dead, solver=solver).upper[0, 1] == pytest.approx(0.0, abs=1e-12)
    half = [Dense(layers[0].kernel * (np.arange(4) < 2)[:, None], np.zeros(5)), *layers[1:]]
    assert sdp_constants(half, solver=solver).gap <= 1e-4
    huge = [
        Dense(layers[0].kernel * 1e200, np.zeros(5)),
        Relu(),
        Dense(layers[2].kernel * 1e200, np.zeros(2)),
    ]
    with np.errstate(over="ignore", invalid="ignore"):
        broken = sdp_constants(huge, solver=solver)
    assert np.isposinf(broken.upper[0, 1])
    assert broken.gap == math.inf


def test_constants_are_saved_and_proved_again(tmp_path):
    layers = random_layers(8, sizes=(6, 8, 3))
    constants = sdp_constants(layers)
    path = tmp_path / "constants.npz"
    constants.save(path)
    loaded = load_sdp_constants(path, layers)
    np.testing.assert_array_equal(loaded.upper, constants.upper)
    assert loaded.gap <= constants.gap + 1e-12
    with pytest.raises(ValueError, match="another network"):
        load_sdp_constants(path, random_layers(9, sizes=(6, 8, 3)))
    with pytest.raises(ValueError, match="another network"):
        sdp(random_layers(9), np.zeros((1, 6)), np.array([0]), eps=0.1, constants=constants)
    # What the file claims is not believed.
    with np.load(path) as stored:
        content = dict(stored)
    np.savez(path, **(content | {"upper": 0 * content["upper"], "right": content["right"] ** 3}))
    assert (load_sdp_constants(path, layers).upper >= constants.lower).all()
    whole = path.read_bytes()
    for damaged in (whole[:100], whole[:-30], b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="path must hold"):
            load_sdp_constants(path, layers)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        (random_layers(0, sizes=(6, 5, 4, 3)), {}, "certify.lp"),
        ([Conv(np.ones((2, 2, 1, 3)), np.zeros(3)), Relu(), Flatten()], {}, "certify.lp"),
        ([Dense(np.ones((6, 3)), np.zeros(3)), Relu()], {}, "certify.lp"),
        (random_layers(0), {"solver": "simplex"}, "solver must be"),
        (random_layers(0), {"tol": 0.0}, "tol must be"),
        (random_layers(0), {"duals": (np.ones((2, 9)), np.ones((3, 6)))}, "duals must have"),
        (
            [Dense(np.ones((6, 5)), np.zeros(5)), Relu(), Dense(np.ones((4, 3)), np.zeros(3))],
            {},
            "must fit",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(layers, options, message):
    with pytest.raises(ValueError, match=message):
        sdp_constants(layers, **options)


@pytest.mark.parametrize(("arguments", "message"), [((5, 0), "i must"), ((0, 5), "j must")])
def test_cvxpy_refuses_classes_that_are_not_there(arguments, message):
    with pytest.raises(ValueError, match=message):
        sdp_cvxpy(random_layers(0), *arguments)


def exactly(matrix):
    return [[Fraction(float(value)) for value in row] for row in matrix]


@pytest.mark.parametrize("seed", range(20))
def test_forming_a_pair_errs_by_no_more_than_is_said(seed):
    """In rational arithmetic, with weights that cancel; twice the sum of the entries' errors."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(6, 1)) * 10.0 ** rng.integers(0, 8)
    layers = [
        Dense(rng.normal(size=(3, 6)) * 10.0 ** rng.integers(-5, 5, size=(3, 6)), np.zeros(6)),
        Relu() if seed % 2 else Sigmoid(),
        Dense(shared + rng.normal(size=(6, 2)), np.zeros(2)),
    ]
    a, error = pair_matrix(two_layers(layers), 0, 1)
    kernel, last = exactly(layers[0].kernel), exactly(layers[2].kernel)
    slope = 1 if seed % 2 else Fraction(1, 4)
    v = [row[0] - row[1] for row in last]
    true = [[slope * sum(v[k] * kernel[n][k] for k in range(6)) for n in range(3)]]
    true += [[slope * v[k] * kernel[n][k] for n in range(3)] for k in range(6)]
    off = sum(
        abs(x - y) for r, s in zip(exactly(a), true, strict=True) for x, y in zip(r, s, strict=True)
    )
    assert 0 < 2 * off <= Fraction(error)


@given(
    v=arrays(np.float64, 4, elements=st.floats(-10, 10, allow_subnormal=False)),
    q=arrays(np.float64, 4, elements=st.floats(0.1, 10)),
    p=st.floats(1e-3, 1e3),
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_one_row_is_bounded_in_rational_arithmetic(v, q, p):
    """`max <M, P> = 2 |a|_1` for one row; met to rounding at q = |a|, never undercut."""
    exact = 2 * sum(abs(Fraction(float(x))) for x in v)
    assert Fraction(scaled_upper(v[None], np.array([p]), q)) >= exact
    best = scaled_upper(v[None], np.array([p]), np.abs(v))
    assert exact <= Fraction(best) <= exact * (1 + Fraction(1, 10**10)) + Fraction(1, 10**9)


def test_the_loss_is_rounded_upwards():
    """The margin at eps is below the exact difference of its parts."""
    for seed in range(30):
        rng = np.random.default_rng(seed)
        layers, x, y = net(seed), rng.uniform(size=(2, 4)), np.array([0, 1])
        constants = sdp_constants(layers)
        eps = float(rng.uniform(1e-3, 10))
        clean = sdp(layers, x, y, eps=0.0, constants=constants).margins
        margins = sdp(layers, x, y, eps=eps, constants=constants).margins
        lost = Fraction(eps) * Fraction(float(constants.upper[0, 1])) / 4
        for b in range(2):
            assert Fraction(float(margins[b, 1 - b])) <= Fraction(float(clean[b, 1 - b])) - lost


@pytest.mark.parametrize("tol", [1e-9, 1e-11, 1e-13, 1e-16])
def test_the_interior_point_method_ends_where_float64_does(tol):
    """Tolerances out of reach give what was reached: no exception, no negative gap."""
    for seed in range(25):
        rng = np.random.default_rng(seed)
        graded = 10.0 ** rng.integers(-6, 6, size=4)
        layers = [
            Dense(rng.normal(size=(3, 4)) * graded, np.zeros(4)), Relu(),
            Dense(rng.normal(size=(4, 2)), np.zeros(2)),
        ]  # fmt: skip
        constants = sdp_constants(layers, solver="dual", tol=tol)
        assert 0 <= constants.gap <= 1e-6
        assert constants.upper[0, 1] / 4 >= steepest(layers) * (1 - 1e-12)


@pytest.mark.parametrize("lower_", [np.array(1e9), np.full((3, 3), 1.0), np.array([["a"]])])
def test_feasible_values_of_another_form_are_refused(tmp_path, lower_):
    layers = net(0)
    path = tmp_path / "constants.npz"
    sdp_constants(layers).save(path)
    with np.load(path) as stored:
        content = dict(stored)
    np.savez(path, **(content | {"lower": lower_}))
    with pytest.raises(ValueError, match="path must hold"):
        load_sdp_constants(path, layers)


def test_mixing_at_the_ends_of_float32():
    a = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    start = jax.random.normal(jax.random.key(0), (4, 4))
    value = jax.jit(lambda scale: jr.linalg.mixing(lambda v: scale * (a @ v), start, 50).value)
    true = float(value(1.0))
    for scale in (1e-30, 1e30):
        assert float(value(scale)) == pytest.approx(scale * true, rel=1e-4)
    dead = a.at[1].set(0.0)
    few = jax.jit(lambda t: jr.linalg.mixing(lambda v: t * (dead @ v), start, 5).value)
    slope = jax.jit(jax.grad(few))(1.0)
    assert float(slope) == pytest.approx(float(few(1.0)), rel=1e-4)
    with pytest.raises(ValueError, match="num_steps"):
        jr.linalg.mixing(lambda v: a @ v, start, 0)


def test_mixing_climbs_and_its_dual_closes():
    a = jnp.asarray(np.random.default_rng(0).normal(size=(6, 9)), jnp.float32)
    start = jax.random.normal(jax.random.key(0), (9, 6))
    values = [float(jr.linalg.mixing(lambda v: a @ v, start, n).value) for n in (1, 3, 10, 300)]
    assert values == sorted(values)
    point = jr.linalg.mixing(lambda v: a @ v, start, 300)
    assert float(point.left_dual.sum() + point.right_dual.sum()) == pytest.approx(values[-1], 1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(point.left, axis=1), 1.0, rtol=1e-5)
    dead = jr.linalg.mixing(lambda v: 0 * a @ v, start, 3)
    assert float(dead.value) == 0.0
    assert not any(bool(jnp.isnan(leaf).any()) for leaf in dead)
