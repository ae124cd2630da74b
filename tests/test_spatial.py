"""Certificates of flows against attacks, brute force and print; Algorithms 1 and 2."""

import dataclasses
import functools
import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_flow import CASES, inverse

import jaxrobust as jr
from jaxrobust import flow
from jaxrobust.attacks import spatial_lower_bound
from jaxrobust.certify import (
    _displacements,
    sdp_constants,
    spatial,
    spatial_constants,
    spatial_layers,
    two_layers,
)
from jaxrobust.certify._displacements import pull, reach
from jaxrobust.certify._spatial import _changes
from jaxrobust.certify._spatial_constants import scaling_error
from jaxrobust.flow import FlowBall
from jaxrobust.layers import Dense, Flatten, Relu
from jaxrobust.threat import Box

SDP = ("sdp_l2", "sdp")
BOUNDS = (*SDP, "spectral", "frobenius")  # of networks of two layers
PAPER = Box(-1.0, 1.0)  # of inputs that need be no images


def ids(value):
    return str(value)


def net(seed, inputs, hidden=8, classes=3, dtype=np.float32):
    rng = np.random.default_rng(seed)

    def dense(fan_in, fan_out):
        kernel = rng.normal(size=(fan_in, fan_out)) / np.sqrt(fan_in)
        return Dense(kernel.astype(dtype), rng.normal(size=fan_out).astype(dtype) / 5)

    return [Flatten(), dense(inputs, hidden), Relu(), dense(hidden, classes)]


def linear(v):
    """`f_0 - f_1 = v'x`."""
    kernel = np.stack([v, np.zeros_like(v)], 1)
    return [Flatten(), Dense(kernel, np.zeros(2))]


def checkered(shape, low=0.0, high=1.0):
    return np.where(np.indices(shape[:2]).sum(0) % 2, high, low).astype(np.float32)


@functools.partial(jax.jit, static_argnames="rule")
@functools.partial(jax.vmap, in_axes=(0, 0, 0, 0, None, None))
def attacked(layers, x, y, starts, eps, rule):
    """Smallest margin found for each network and example: steepest ascent from each start."""
    ball = FlowBall(eps, rule)

    def gaps(r):
        logits = jr.layers.apply(layers, jax.vmap(flow.warp, (0, 0))(x, r))
        own = jnp.arange(logits.shape[1]) == y[:, None]
        return jnp.sum(jnp.where(own, logits, 0), 1) - jnp.where(own, -jnp.inf, logits).max(1)

    def step(state, size):
        r, best = state
        uphill = -jax.grad(lambda r: gaps(r).sum())(r)
        r = jax.vmap(lambda r, g: ball.project(ball.step(r, g, size * eps)))(r, uphill)
        return (r, jnp.minimum(best, gaps(r))), None

    start = jax.vmap(ball.project)(starts)
    return jax.lax.scan(step, (start, gaps(start)), 0.3 * 0.9 ** jnp.arange(40.0))[0][1]


@pytest.mark.parametrize(
    ("shape", "rule", "count"),
    [
        ((4, 3), "dirichlet", 40),
        ((3, 4), "zero_mean", 30),
        ((2, 2, 3), (1, 0), 20),
        ((1, 12), "dirichlet", 10),
    ],
    ids=ids,
)
def test_no_flow_does_worse_than_what_is_proved(shape, rule, count):
    """On 100 random networks, at two radii, each bound under the attack's own budget and rule."""
    networks = [net(seed, 12, dtype=np.float64) for seed in range(count)]
    rng = np.random.default_rng(1)
    x = rng.uniform(-0.3, 1.3, size=(count, 2, *shape)).clip(0, 1)
    x[:, 0] = np.broadcast_to(checkered(shape).reshape(shape[:2] + (1,) * (len(shape) - 2)), shape)
    starts = 5
    r = rng.normal(size=(count, 2 * starts, *shape[:2], 2))
    constants = [
        {b: spatial_constants(n, shape[:2], rule, bound=b, tol=1e-3) for b in SDP} for n in networks
    ]
    logits = np.stack([jr.layers.apply(n, x_n) for n, x_n in zip(networks, x, strict=True)])
    y = logits.argmax(-1).astype(np.int32)
    with jax.enable_x64(True):
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *networks)
        many = [jnp.asarray(np.repeat(a, starts, 1)) for a in (x, y)]
        for eps in (0.05, 1.5):
            found = attacked(stacked, *many, jnp.asarray(r), eps, rule)
            found = np.asarray(found).reshape(count, 2, starts).min(-1)
            for n, network in enumerate(networks):
                for which in BOUNDS:
                    bound = spatial(
                        network, x[n], y[n], ball=FlowBall(eps, rule), bound=which,
                        constants=constants[n].get(which),
                    )  # fmt: skip
                    assert (bound.margins.min(1) <= found[n] + 1e-9).all(), which
                    assert np.isfinite(bound.margins.min(1)).all()


@pytest.mark.parametrize(("shape", "rule"), CASES, ids=ids)
def test_displacements_are_proved(shape, rule):
    limits = reach(shape, rule)
    close = flow.largest_displacement(shape, rule)
    assert (limits.pixels >= close).all()
    np.testing.assert_allclose(limits.pixels, close, atol=1e-9)
    norm = np.sqrt(np.linalg.eigvalsh(inverse(shape, rule)).max())
    assert norm * (1 - 1e-12) <= limits.norm <= norm + 1e-9


@pytest.mark.parametrize("rule", ["dirichlet", "zero_mean", (1, 0)], ids=ids)
def test_displacements_are_above_the_rational_ones(rule):
    shape, size = (2, 3), 6
    lines = [_displacements._line(n, rule == "dirichlet") for n in shape]
    whole = np.kron(lines[0], np.eye(3)) + np.kron(np.eye(2), lines[1])
    matrix = [[Fraction(int(entry)) for entry in row] for row in whole]
    kept = list(range(size))
    if rule == "zero_mean":
        matrix = [[entry + Fraction(1, size) for entry in row] for row in matrix]
    elif rule != "dirichlet":
        kept.remove(3)
    inverse = rational_inverse([[matrix[i][j] for j in kept] for i in kept])
    for place, pixel in enumerate(kept):
        square = inverse[place][place] - (Fraction(1, size) if rule == "zero_mean" else 0)
        proved = Fraction(float(reach(shape, rule).pixels.ravel()[pixel])) ** 2
        assert square <= proved <= square * (1 + Fraction(1, 10**12))


def rational_inverse(matrix):
    n = len(matrix)
    rows = [row + [Fraction(i == j) for j in range(n)] for i, row in enumerate(matrix)]
    for i in range(n):
        rows[i] = [entry / rows[i][i] for entry in rows[i]]
        for k in range(n):
            if k != i:
                rows[k] = [a - rows[k][i] * b for a, b in zip(rows[k], rows[i], strict=True)]
    return [row[n:] for row in rows]


def test_displacements_in_chunks(monkeypatch):
    whole = reach((4, 5), "zero_mean")
    monkeypatch.setattr(_displacements, "_FLOATS_AT_ONCE", 45)
    reach.cache_clear()
    np.testing.assert_allclose(reach((4, 5), "zero_mean").pixels, whole.pixels, rtol=1e-14)


def test_norms_of_mnist():
    assert [round(reach((28, 28), rule).norm, 2) for rule in ("dirichlet", "zero_mean")] == [
        4.93,
        6.31,
    ]


def test_how_far_a_pixel_changes():
    """The closed form is the largest change over the disc, of the worst of images."""
    angles = np.linspace(0, np.pi / 2, 2001)
    for t in (0.0, 1e-3, 0.3, 0.7, 0.75, 0.95, 1.0, 2.0):
        a, b = np.minimum(t * np.cos(angles), 1), np.minimum(t * np.sin(angles), 1)
        most = (a + b - a * b).max() * (1 - 1e-15)
        found = _changes(t, np.ones(1))[0]
        assert most <= found <= most + 1e-6
        assert found <= math.sqrt(2) * t * (1 + 1e-15) + 1e-200
    x = np.ones((3, 3), np.float32)
    x[1, 1] = 0
    moved = flow.warp(jnp.asarray(x), jnp.full((3, 3, 2), 0.3 / math.sqrt(2)))
    assert float(moved[1, 1]) == pytest.approx(_changes(0.3, np.ones(1))[0], rel=1e-6)


@pytest.mark.parametrize("rule", ["dirichlet", "zero_mean", (0, 1)], ids=ids)
def test_affine_networks_are_exact_over_the_box(rule):
    """Equation 16: the least margin over all vertices of the box of pixel changes."""
    shape, eps = (2, 3), 0.2
    v = np.random.default_rng(0).normal(size=6)
    x = np.random.default_rng(1).uniform(size=(1, *shape))
    limits = reach(shape, rule).pixels
    moved = limits > 0
    radius = (_changes(eps, limits)[moved] / limits[moved]).max()
    corners = np.array(list(itertools.product([-1, 1], repeat=6))) * radius * limits.ravel()
    y = np.array([0], np.int32)
    bound = spatial(linear(v), x, y, ball=FlowBall(eps, rule), bound="sdp")
    exact = (v @ (x.reshape(6, 1) + corners.T)).min()
    np.testing.assert_allclose(bound.margins[0, 1], exact, rtol=1e-9)
    assert radius <= math.sqrt(2) * eps
    assert bound.margins[0, 1] <= exact


def test_in_l2_affine_networks_are_exact():
    v = np.array([3.0, 0.0, -4.0, 0.0])
    x, y = np.full((1, 2, 2), 0.5), np.array([0], np.int32)
    bound = spatial(linear(v), x, y, ball=FlowBall(0.1))
    change = math.sqrt(2) * 0.1 * reach((2, 2)).norm * 5
    np.testing.assert_allclose(bound.margins[0, 1], -0.5 - change, rtol=1e-9)


@pytest.mark.parametrize(("shape", "rule"), CASES, ids=ids)
def test_how_hard_flows_pull_together(shape, rule):
    """Against all patterns of signs: `max_s sqrt((s w)'G(s w))` is at s = 1 where G has no sign."""
    weights = np.random.default_rng(2).exponential(size=(3, *shape))
    weights[1, 0, 0] = 0.0
    found = pull(weights, rule)
    if rule == "zero_mean":
        assert np.isinf(found).all()
        return
    g = inverse(shape, rule)
    signs = np.array(list(itertools.product([-1, 1], repeat=min(g.shape[0], 10))))
    signs = np.pad(signs, ((0, 0), (0, g.shape[0] - signs.shape[1])), constant_values=1)
    for w, value in zip(weights.reshape(3, -1), found, strict=True):
        most = math.sqrt(np.einsum("ki,ij,kj->k", signs * w, g, signs * w).max())
        assert most * (1 - 1e-12) <= value <= most * (1 + 1e-9) + 1e-12
        assert pull(1e-290 * w.reshape(1, *shape), rule) >= 1e-290 * most


@pytest.mark.parametrize(
    ("shape", "rule"),
    [((4, 5), "dirichlet"), ((3, 3, 2), (1, 2)), ((3, 3, 2), "zero_mean")],
    ids=ids,
)
def test_the_linear_bound_is_above_attacks_and_below_the_paper(shape, rule):
    count, starts = 20, 4
    rng = np.random.default_rng(3)
    kernels = rng.normal(size=(count, math.prod(shape), 3))
    x = rng.uniform(-0.3, 1.3, size=(count, 2, *shape)).clip(0, 1)
    y = np.argmax(np.einsum("bnp,bpk->bnk", x.reshape(count, 2, -1), kernels), -1).astype(np.int32)
    r = rng.normal(size=(count, 2 * starts, *shape[:2], 2))
    with jax.enable_x64(True):
        layers = [Flatten(), Dense(jnp.asarray(kernels), jnp.zeros((count, 3)))]
        many = [jnp.asarray(np.repeat(a, starts, 1)) for a in (x, y)]
        for eps in (0.05, 1.5):
            found = attacked(layers, *many, jnp.asarray(r), eps, rule)
            found = np.asarray(found).reshape(count, 2, starts).min(-1)
            for n, kernel in enumerate(kernels):
                one = [Flatten(), Dense(kernel, np.zeros(3))]
                least = {
                    which: spatial(one, x[n], y[n], ball=FlowBall(eps, rule), bound=which).margins
                    for which in ("linear", "sdp", "spectral")
                }
                assert (least["linear"].min(1) <= found[n] + 1e-9).all()
                assert (least["linear"] >= least["sdp"] - 1e-9).all()
                assert (least["linear"] >= least["spectral"] - 1e-9).all()


def test_the_linear_bound_is_attained_by_a_chess_board():
    """Where weights and pixels alternate, and all pixels move right and down alike."""
    shape = (9, 9)
    v = np.where(np.indices(shape).sum(0) % 2, 1.0, -1.0)
    v[-1] = v[:, -1] = 0.0  # what lies outside shows the same as the border
    eps = 1e-3
    bound = spatial(
        linear(v.ravel()), checkered(shape)[None], np.array([0], np.int32), ball=FlowBall(eps),
        bound="linear",
    )  # fmt: skip
    a = (inverse(shape, "dirichlet") @ np.abs(v).ravel()).reshape(shape)
    r = np.stack([a, a], -1)
    r *= eps / math.sqrt(flow.quadratic_variation(jnp.asarray(r), "dirichlet"))
    moved = np.float64(flow.warp(jnp.asarray(checkered(shape)), jnp.asarray(r)))
    clean, reached = (float(np.sum(v * image)) for image in (checkered(shape), moved))
    assert bound.gap is None
    assert bound.method == "spatial linear"
    lost = clean - bound.margins[0, 1]
    assert 0.99 * lost <= clean - reached <= lost


ONE_PIXEL = np.array([[[0.0, 1.0], [1.0, 1.0]]])  # what lies right of and below the dark one


@pytest.mark.parametrize("which", [*BOUNDS, "linear"])
@pytest.mark.parametrize("eps", [1e-150, 1e-165, 1e-250, 5e-323, 5e-324])
def test_tiny_radii(eps, which):
    """What underflows must not vanish: weights may be huge, and margins tiny."""
    weight = min(0.1 / eps, 1e300)
    kernel = np.zeros((4, 2))
    kernel[0, 0] = -weight
    with jax.enable_x64(True):
        r = FlowBall(1.0).step(jnp.zeros((2, 2, 2)), jnp.zeros((2, 2, 2)).at[0, 0].set(1.0), 1e-6)
        gain = float(flow.warp(jnp.asarray(ONE_PIXEL[0]), r)[0, 0])
    lost = float(Fraction(gain) * Fraction(weight) * Fraction(eps) * 10**6)  # to first order
    for share in (0.5, 0.99):
        layers = [Flatten(), Dense(kernel, np.array([share * lost, 0.0]))]
        bound = spatial(layers, ONE_PIXEL, np.array([0], np.int32), ball=FlowBall(eps), bound=which)
        assert bound.margins[0, 1] < 0


# What is printed, each with its counterexample.


def test_as_printed_moving_everything_costs_nothing():
    """M is singular: at eps = 0 an edge may move, and f change by whole weights."""
    everywhere = jnp.ones((3, 4, 2))
    assert flow.quadratic_variation(everywhere, "zero_mean") == 0  # M'M as printed
    x = jnp.zeros((3, 4)).at[:, 2:].set(1.0)
    assert jnp.abs(flow.warp(x, everywhere) - x).sum() == 3


def test_as_printed_proposition_2_has_no_eps():
    ball = FlowBall(3.0)
    r = ball.step(jnp.zeros((4, 4, 2)), jnp.zeros((4, 4, 2)).at[1, 1, 0].set(1.0), 3.0)
    assert abs(r[1, 1, 0]) > 2.9 * flow.largest_displacement((4, 4))[1, 1]


def test_as_printed_slopes_are_the_pixels():
    """A constant image never changes; print takes its slope for its value."""
    x = jnp.ones((4, 4))
    slope = jax.grad(lambda r: flow.warp(x, r).sum())(jnp.full((4, 4, 2), 0.1))
    assert jnp.all(slope == 0)
    layers = linear(np.ones(16, np.float32))
    found = spatial_lower_bound(layers, (4, 4), 1, ball=FlowBall(0.5, box=PAPER), num_steps=0)
    assert found.surrogate > 0.5
    assert abs(float(found.loss)) < 0.5 * float(found.surrogate)


def test_as_printed_the_norms_are_no_bounds():
    """`eps |W| |v|` leaves out the slope along both axes and |M^-1|."""
    shape, eps = (6, 6), 0.1
    x = checkered(shape)
    v = np.where(x > 0, -1.0, 1.0).ravel()
    with jax.enable_x64(True):
        r = FlowBall(eps).step(jnp.zeros((*shape, 2)), jnp.ones((*shape, 2)), eps)
        moved = np.asarray(flow.warp(jnp.asarray(x, jnp.float64), r))
    change = v @ (moved - x).ravel()
    assert change > eps * np.linalg.norm(v)  # of one layer, whose norms are one and the same
    assert change <= math.sqrt(2) * eps * reach(shape).norm * np.linalg.norm(v)


def test_as_printed_the_semidefinite_bound_is_none():
    """Without eps: Algorithm 1, on the paper's own range of inputs, does worse; not than ours."""
    shape = (3, 4)
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(12, 1)).astype(np.float32)  # one unit, always active
    first = Dense(kernel, np.full(1, 100, np.float32))
    last = np.array([[0.0, 1.0]], np.float32)
    layers = [Flatten(), first, Relu(), Dense(last, np.zeros(2, np.float32))]
    constants = spatial_constants(layers, shape, bound="sdp")
    printed = 2 * constants.upper[0, 1] / 4  # 2 max s' diag(v) W diag(lambda) t
    found = spatial_lower_bound(layers, shape, 0, ball=FlowBall(7.84, box=PAPER))
    assert float(found.loss) > 1.2 * printed
    x = np.asarray(found.x)[None]
    for bound in BOUNDS:
        clean, least = (
            spatial(
                layers, x, np.array([0], np.int32), ball=FlowBall(eps, box=PAPER), bound=bound,
                constants=constants if bound == "sdp" else None,
            ).margins[0, 1]
            for eps in (0.0, 7.84)
        )  # fmt: skip
        assert float(found.loss) <= clean - least + 1e-4, bound


def test_as_printed_equation_16_is_no_bound():
    """`2 eps |v' diag(lambda)|_1` for inputs of [-1, 1] lacks a slope, even where `r_0 = r_1`."""
    v, x, eps = np.zeros((5, 5)), np.ones((5, 5)), 0.1
    v[2, 2], x[2, 2] = 1.0, -1.0
    printed = 2 * eps * reach((5, 5)).pixels[2, 2]
    change = {}
    with jax.enable_x64(True):
        uphill = jnp.zeros((5, 5, 2)).at[2, 2].set(1.0)
        for name, budget in (("ours", eps), ("theirs", math.sqrt(2) * eps)):  # |M r_0| = eps
            r = FlowBall(budget).step(jnp.zeros((5, 5, 2)), uphill, budget)
            change[name] = float(np.sum(v * (flow.warp(jnp.asarray(x), r) - x)))
    assert change["ours"] > 1.3 * printed
    assert change["theirs"] > 1.9 * printed
    bound = spatial(
        linear(-v.ravel()), x[None], np.array([0], np.int32), ball=FlowBall(eps, box=PAPER),
        bound="linear",
    )  # fmt: skip
    assert change["ours"] <= 1 - bound.margins[0, 1]


def test_as_printed_slopes_have_the_wrong_sign_and_range():
    """Between 0 and 1 the slope is +1, printed -1; on a chess board of -1 and 1 it reaches 4."""
    x = jnp.array([[0.0, 1.0]])
    slope = jax.grad(lambda r: flow.warp(x, r)[0, 0])(jnp.full((1, 2, 2), 0.25))
    assert slope[0, 0, 1] == 1
    board = jnp.asarray(checkered((3, 3), -1.0))
    slope = jax.grad(lambda r: flow.warp(board, r)[0, 0])(jnp.full((3, 3, 2), 1e-6))
    assert float(slope[0, 0].sum()) == pytest.approx(4.0, abs=1e-4)


def test_as_printed_one_displacement_for_both_axes_is_not_best():
    """An image that varies along one axis: all of the budget in one part goes farther."""
    x = jnp.tile(jnp.arange(6.0) / 5, (6, 1))
    v = jnp.ones((6, 6))
    lost = lambda r: float(jnp.sum(v * (flow.warp(x, r) - x)))
    ball, none = FlowBall(0.3), jnp.zeros((6, 6, 2))
    one = ball.step(none, none.at[..., 1].set(1.0), 0.3)
    both = ball.step(none, none.at[...].set(1.0), 0.3)
    assert lost(one) == pytest.approx(math.sqrt(2) * lost(both), rel=1e-4)


def test_as_printed_both_parts_count():
    """Equation 3 says `|M r|`; Proposition 1's own sum is `sqrt(2) |M r|` for equal parts."""
    part = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    once = FlowBall(1.0).distance(jnp.stack([part, jnp.zeros((4, 4))], -1))
    twice = FlowBall(1.0).distance(jnp.stack([part, part], -1))
    assert float(twice) == pytest.approx(math.sqrt(2) * float(once), rel=1e-5)


# The certificate's own manners.


def test_what_it_says_of_itself():
    layers, x, y = net(0, 12), np.full((2, 3, 4), 0.5, np.float32), np.array([0, 1], np.int32)
    for rule, name in [("dirichlet", "flow dirichlet"), ((0, 1), "flow (0, 1)")]:
        for which in BOUNDS:
            bound = spatial(layers, x, y, ball=FlowBall(0.1, rule), bound=which)
            assert (bound.norm, bound.eps, bound.method) == (name, 0.1, f"spatial {which}")
            assert bound.box == Box(0.0, 1.0)
            assert bound.margins.shape == (2, 3)
            assert np.isposinf(bound.margins[[0, 1], [0, 1]]).all()
            assert len(bound.proof) > 80
            if which in SDP:
                assert (bound.gap >= 0).all()
                assert bound.gap.max() < 1e-3
            else:
                assert bound.gap is None


@pytest.mark.parametrize("which", BOUNDS)
def test_radii_from_none_to_huge(which):
    layers, y = net(3, 12), np.array([0, 1], np.int32)
    x = np.random.default_rng(0).uniform(size=(2, 3, 4)).astype(np.float32)
    constants = spatial_constants(layers, (3, 4), bound=which) if which in SDP else None
    given = functools.partial(spatial, layers, x, y, bound=which, constants=constants)
    logits = np.float64(jr.layers.apply(layers, x))
    clean = logits[[0, 1], y][:, None] - logits
    margins = [given(ball=FlowBall(eps)).margins for eps in (0, 1e-3, 0.1, 1.0, 30.0, 1e30)]
    others = np.arange(3) != y[:, None]
    np.testing.assert_allclose(margins[0][others], clean[others], atol=1e-5)
    for smaller, larger in itertools.pairwise(margins):
        assert (larger <= smaller).all()
    # No change is larger than the box, however far flows go.
    assert (margins[-1] >= margins[-2] - 1e-6).all()
    assert np.isfinite(margins[-1][others]).all()


def test_changes_scale_with_the_box():
    layers, y = net(4, 12), np.array([1], np.int32)
    x = np.full((1, 3, 4), 0.5, np.float32)
    for which in BOUNDS:
        lost = []
        for box in (Box(0.0, 1.0), Box(-1.0, 1.0), Box(0.0, 255.0)):
            near, far = (
                spatial(layers, x, y, ball=FlowBall(e, box=box), bound=which).margins[0, 0]
                for e in (0.0, 0.1)
            )
            lost.append(near - far)
        np.testing.assert_allclose(np.divide(lost, lost[0]), [1, 2, 255], rtol=1e-9)


def test_colours_move_together():
    """Three equal channels, a third of the weight each: as one channel with all of it."""
    v = np.random.default_rng(2).normal(size=4)
    x, y = np.random.default_rng(3).uniform(size=(1, 2, 2)), np.array([0], np.int32)
    thirds, in_colour = linear(np.repeat(v / 3, 3)), np.repeat(x[..., None], 3, -1)
    for which in ("sdp", "sdp_l2", "spectral"):
        one = spatial(linear(v), x, y, ball=FlowBall(0.1), bound=which).margins[0, 1]
        three = spatial(thirds, in_colour, y, ball=FlowBall(0.1), bound=which).margins[0, 1]
        np.testing.assert_allclose(three, one, rtol=1e-9)
        assert one < v @ x.ravel()


def test_scaled_weights_and_their_error():
    """Against rationals: what scaling rounded away is within what the certificate adds."""
    layers = net(5, 6, hidden=4, dtype=np.float64)
    scaled = two_layers(spatial_layers(layers, (2, 3)))
    limits = reach((2, 3)).pixels.ravel()
    v = [abs(Fraction(a) - Fraction(b)) for a, b in two_layers(layers).last[:, :2].tolist()]
    lost = sum(
        v[k] * abs(Fraction(float(scaled.kernel[i, k])) - Fraction(float(limits[i])) * Fraction(w))
        for i, row in enumerate(two_layers(layers).kernel.tolist())
        for k, w in enumerate(row)
    )
    assert 0 < 4 * lost <= Fraction(float(scaling_error(scaled)[0, 1])) < Fraction(1, 10**13)


def test_one_solution_serves_everything():
    layers = net(6, 12)
    for which in SDP:
        constants = spatial_constants(layers, (4, 3), bound=which)
        assert constants.gap < 1e-3
        x, y = np.full((5, 4, 3), 0.25, np.float32), np.zeros(5, np.int32)
        for eps in (0.0, 0.3):
            given, solved = (
                spatial(layers, x, y, ball=FlowBall(eps), bound=which, constants=c)
                for c in (constants, None)
            )
            np.testing.assert_allclose(given.margins, solved.margins, rtol=1e-12)
    scaled = spatial_layers(layers, (4, 3))
    np.testing.assert_array_equal(
        sdp_constants(scaled).upper, spatial_constants(layers, (4, 3), bound="sdp").upper
    )


def test_the_l2_relaxation_holds_every_gradient():
    """Brute force over which units are active, and an independent look at its duals."""
    active = np.array(list(itertools.product([0, 1], repeat=8)))
    for seed in range(20):
        layers = net(seed, 12)
        network = two_layers([jax.tree.map(np.float64, layer) for layer in layers])
        v = network.last[:, 0] - network.last[:, 1]
        steepest = np.linalg.norm((active * v) @ network.kernel.T, axis=1).max()
        constants = spatial_constants(layers, (3, 4), tol=1e-5)
        assert steepest <= constants.upper[0, 1] / 4 <= 1.3 * steepest
        a = np.vstack([v @ network.kernel.T, v[:, None] * network.kernel.T])
        p = constants.left[0]
        value = 2 * np.linalg.svd(a / np.sqrt(p)[:, None])[1][0] * np.sqrt(p.sum())
        np.testing.assert_allclose(constants.upper[0, 1], value, rtol=1e-7)


def test_it_fails_closed():
    x, y = np.full((1, 3, 4), 0.5, np.float32), np.array([0], np.int32)
    layers = net(7, 12, dtype=np.float64)
    for value in (np.nan, np.inf):
        broken = np.array(layers[1].kernel)
        broken[2, 1] = value
        for which in BOUNDS:
            with pytest.raises(ValueError, match=r"kernel must be finite; entry \(2, 1\)"):
                spatial(
                    [Flatten(), Dense(broken, layers[1].bias), *layers[2:]], x, y,
                    ball=FlowBall(0.0), bound=which,
                )  # fmt: skip
    huge = [Flatten(), Dense(layers[1].kernel * 1e300, layers[1].bias), Relu(),
            Dense(layers[3].kernel * 1e300, layers[3].bias)]  # fmt: skip
    for which in BOUNDS:
        bound = spatial(huge, x, y, ball=FlowBall(0.1), bound=which)
        assert not bound.certified.any()
        assert np.isneginf(bound.margins[0, 1:]).all()
    kernel = np.full((12, 2), 1.7e308) * [1, -1]
    bound = spatial(
        [Flatten(), Dense(kernel, np.zeros(2))], x, y, ball=FlowBall(0.1), bound="linear"
    )
    assert np.isneginf(bound.margins[0, 1])


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((1, 12), np.float32)}, "x must be images of shape .*put Flatten"),
        ({"x": np.full((1, 3, 4), 2.0, np.float32)}, "x must lie in the box"),
        ({"x": np.zeros((1, 5, 3), np.float32)}, "12|15"),
        ({"ball": jr.Ball("linf", 0.1)}, "ball must be a jaxrobust.flow.FlowBall; got Ball"),
        ({"ball": FlowBall(jnp.array([0.1]))}, "eps must be a single number"),
        ({"ball": FlowBall(0.1, (3, 0))}, "null_space must be a pixel"),
        ({"bound": "lp"}, "bound must be one of sdp_l2, sdp, spectral, frobenius, linear;"),
        ({"y": np.array([7], np.int32)}, "labels"),
        ({"ball": FlowBall(0.1, box=Box(1.0, 0.0))}, "box must be"),
        ({"layers": [Flatten(), *net(0, 12)[1:], Relu()]}, "layers must be Dense, Relu or Sigmoid"),
        ({"constants": 3}, "constants must be what spatial_constants"),
        ({"bound": "spectral", "constants": 3}, "constants must be None for 'spectral'"),
        ({"bound": "linear"}, "must be one Dense for bound='linear'; got Dense, Relu, Dense"),
    ],
    ids=ids,
)
def test_wrong_input_is_refused(change, message):
    arguments = {
        "layers": net(0, 12),
        "x": np.zeros((1, 3, 4), np.float32),
        "y": np.array([0], np.int32),
        "ball": FlowBall(0.1),
    } | change
    with pytest.raises(ValueError, match=message):
        spatial(arguments.pop("layers"), arguments.pop("x"), arguments.pop("y"), **arguments)


def test_constants_of_something_else_are_refused():
    layers, x, y = net(0, 12), np.zeros((1, 3, 4), np.float32), np.array([0], np.int32)
    given = functools.partial(spatial, layers, x, y, ball=FlowBall(0.1))
    by_box = spatial_constants(layers, (3, 4), bound="sdp")
    for bound, constants in [
        ("sdp_l2", by_box),
        ("sdp", spatial_constants(layers, (3, 4))),
        ("sdp", spatial_constants(layers, (4, 3), bound="sdp")),
        ("sdp", spatial_constants(layers, (3, 4), "zero_mean", bound="sdp")),
        ("sdp_l2", spatial_constants(net(1, 12), (3, 4))),
    ]:
        with pytest.raises(ValueError, match="constants must be those of these layers"):
            given(bound=bound, constants=constants)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((5, 3),), "shape must be the height and width of the images; got"),
        (((3, 0),), "shape must be the height and width"),
        (((3, 4), "ridge"), "null_space must be"),
        (((3, 4), (3, 0)), "null_space must be a pixel"),
    ],
    ids=ids,
)
def test_constants_of_wrong_images_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        spatial_constants(net(0, 12), *arguments)
    for change in ({"bound": "lp"}, {"tol": 0.0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            spatial_constants(net(0, 12), (3, 4), **change)


# Algorithms 1 and 2.


@pytest.mark.parametrize("rule", ["dirichlet", "zero_mean", (0, 0)], ids=ids)
def test_theorem_1_in_numpy(rule):
    """Fewer hidden units than pixels: the input of minimum norm at which all are 1.

    The network is one that loses at the theorem's flow: where it does not, no flow comes back.
    """
    shape, eps = (3, 4), 0.4
    layers = net(5, 12, hidden=5, classes=2)
    found = spatial_lower_bound(layers, shape, 1, ball=FlowBall(eps, rule, PAPER), num_steps=0)
    w, v = np.float64(layers[1].kernel).T, np.float64(layers[3].kernel)
    x = np.linalg.pinv(w) @ np.ones(5)
    np.testing.assert_allclose(w @ x, 1)
    x /= np.abs(x).max()
    active = w @ x + layers[1].bias > 0
    g = x * (w.T @ ((v[:, 0] - v[:, 1]) * active))
    value = eps * np.sqrt(g @ inverse(shape, rule) @ g)
    np.testing.assert_allclose(found.surrogate, value, rtol=1e-4)
    np.testing.assert_allclose(found.x.ravel(), x, atol=1e-5)
    r = (inverse(shape, rule) @ g).reshape(shape)
    size = np.linalg.norm(found.flow)
    np.testing.assert_allclose(found.flow, size * np.stack([r, r], -1) / np.sqrt(2 * np.sum(r**2)),
                               atol=1e-5)  # fmt: skip
    np.testing.assert_allclose(FlowBall(eps, rule).distance(found.flow), eps, rtol=1e-5)


def test_theorem_2_in_numpy():
    shape, eps = (3, 4), 0.4
    v = np.random.default_rng(9).normal(size=12).astype(np.float32)
    found = spatial_lower_bound(linear(v), shape, 1, ball=FlowBall(eps, box=PAPER), num_steps=0)
    x = np.linalg.eigh(np.diag(v) @ inverse(shape, "dirichlet") @ np.diag(v))[1][:, -1]
    x /= np.abs(x).max()
    got = np.asarray(found.x).ravel()
    np.testing.assert_allclose(got * np.sign(got @ x), x, atol=1e-3)
    value = eps * np.sqrt((x * v) @ inverse(shape, "dirichlet") @ (x * v))
    np.testing.assert_allclose(found.surrogate, value, rtol=1e-3)


@pytest.mark.parametrize(
    ("shape", "target", "box"),
    [((3, 4), None, PAPER), ((2, 2, 3), 2, Box(0.0, 1.0))],
    ids=ids,
)
def test_what_algorithm_1_finds_is_so_and_not_above_the_certificate(shape, target, box):
    layers = net(10, math.prod(shape))
    y = np.array([0], np.int32)
    constants = {b: spatial_constants(layers, shape[:2], bound=b) for b in SDP}
    for eps in (0.05, 0.5, 3.0):
        ball = FlowBall(eps, box=box)
        found = spatial_lower_bound(
            layers, shape, 0, ball=ball, target=target, num_midpoints=4,
            num_steps=12,
        )  # fmt: skip
        assert found.x.shape == shape
        assert ((found.x >= box.low) & (found.x <= box.high)).all()
        assert ball.distance(found.flow) <= eps * (1 + 1e-5)
        near, far = (
            np.float64(jr.layers.apply(layers, x[None])[0])
            for x in (found.x, flow.warp(found.x, found.flow))
        )
        others = [1, 2] if target is None else [target]
        loss = (far[others].max() - far[0]) - (near[others].max() - near[0])
        np.testing.assert_allclose(found.loss, loss, atol=1e-5)
        assert found.trace.shape == (13,)
        assert found.loss == max(found.trace.max(), 0)
        assert found.loss >= found.trace[0]
        assert found.loss > 0
        for which in BOUNDS:
            margins, clean = (
                spatial(
                    layers, np.asarray(found.x)[None], y, ball=FlowBall(e, box=box), bound=which,
                    constants=constants.get(which),
                ).margins[0, others]
                for e in (eps, 0.0)
            )  # fmt: skip
            assert float(found.loss) <= (clean - margins).max() + 1e-5


def test_algorithms_gain_on_their_start():
    for layers in (net(11, 36, hidden=20, classes=2), linear(np.float32(np.arange(36) - 17.5))):
        found = spatial_lower_bound(layers, (6, 6), 1, ball=FlowBall(1.0, box=PAPER))
        assert found.loss > 1.5 * max(float(found.trace[0]), 0.1)


def test_no_flow_is_a_candidate():
    """Here every iterate lowers the margin that is to grow."""
    for seed in range(100):
        layers = net(seed, 6, hidden=6, classes=2)
        found = spatial_lower_bound(layers, (2, 3), 0, ball=FlowBall(0.3), num_steps=1)
        assert found.loss >= 0
        if found.trace.max() <= 0:
            np.testing.assert_array_equal(found.flow, 0)
            return
    pytest.fail("no network puts it to the test")


def test_no_radius_no_loss_and_radii_are_swept():
    layers = net(12, 12)
    find = functools.partial(spatial_lower_bound, layers, (3, 4), 0, num_steps=5)
    losses = jax.vmap(lambda eps: find(ball=FlowBall(eps, box=PAPER)).loss)(
        jnp.array([0.0, 0.3, 3.0])
    )
    assert abs(losses[0]) < 1e-6
    assert losses[0] < losses[1] < losses[2]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [Dense(np.ones((12, 2)), np.zeros(2)), Relu()]}, "layers must be Dense"),
        ({"shape": (3, 5)}, r"shape must be \(height, width\)"),
        ({"shape": (12,)}, r"shape must be \(height, width\)"),
        ({"y": 3}, "y must be a class in 0..2; got 3"),
        ({"target": -1}, "target must be a class"),
        ({"target": 0}, "target must be another class than y"),
        ({"ball": 0.1}, "ball must be a jaxrobust.flow.FlowBall"),
        ({"ball": FlowBall(0.1, (9, 0))}, "null_space must be a pixel"),
        ({"ball": FlowBall(0.1, box=Box(1.0, 0.0))}, "box must be"),
        ({"num_midpoints": 0}, "num_midpoints"),
        ({"num_steps": -1}, "num_steps"),
    ],
    ids=ids,
)
def test_what_the_algorithms_refuse(change, message):
    arguments = {"layers": net(0, 12), "shape": (3, 4), "y": 0, "ball": FlowBall(0.1)} | change
    with pytest.raises(ValueError, match=message):
        spatial_lower_bound(
            arguments.pop("layers"), arguments.pop("shape"), arguments.pop("y"), **arguments
        )


def test_evaluate_brings_attack_and_certificate_together():
    layers, key, ball = net(13, 12), jax.random.key(0), FlowBall(0.02)
    logits_fn = jax.tree_util.Partial(jr.layers.apply, jax.tree.map(jnp.asarray, layers))
    x = np.random.default_rng(0).uniform(size=(20, 3, 4)).astype(np.float32)
    y = np.asarray(logits_fn(x)).argmax(1).astype(np.int32)
    given = {"flow_pgd": functools.partial(jr.attacks.flow_pgd, num_steps=10)}
    proved = {"spatial": jr.certify.on_layers(functools.partial(spatial, bound="spectral"), layers)}
    report = jr.evaluate(logits_fn, (x, y), attacks=given, key=key, ball=ball, certificates=proved)
    assert 0 < report.certified_accuracy["spatial"] <= report.robust_accuracy
    assert report.certificates["spatial"].norm == "flow dirichlet"
    wide = dataclasses.replace(ball, eps=3.0)
    found = jr.evaluate(logits_fn, (x, y), attacks=given, key=key, ball=wide, certificates=proved)
    assert found.certified_accuracy["spatial"] <= found.robust_accuracy < 1
