"""Radii from two probabilities: against exact arithmetic, brute force and one another."""

import decimal
import itertools
import math
from decimal import Decimal

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from jaxrobust.certify import cohen_radius, pixeldp_radius, renyi_radius

RADII = {"renyi": renyi_radius, "cohen": cohen_radius, "pixeldp": pixeldp_radius}
every = pytest.mark.parametrize("radius", RADII.values(), ids=RADII.keys())

TABLE = [  # p1, p2, Rényi, Cohen, PixelDP (its epsilon at most 1)
    (0.6, 0.4, 0.202, 0.253, 0.0592),
    (0.8, 0.1, 0.912, 1.062, 0.3615),
    (0.9, 0.05, 1.249, 1.463, 0.4800),
    (0.99, 0.01, 1.908, 2.326, 0.5549),
    (0.999, 0.001, 2.576, 3.090, 0.5689),
]

EXTREMES = [
    (0.9, 1e-12), (0.9, 1e-300), (0.5, 5e-324), (1 - 1e-3, 1e-9), (1 - 1e-12, 1e-12),
    (1 - 2.0**-53, 2.0**-53), (1 - 1e-9, 1e-30), (0.5 + 1e-9, 0.5 - 1e-9), (0.3 + 1e-12, 0.3),
    (0.1 + 1e-6, 0.1), (0.02, 0.015), (0.4, 0.39999), (1e-6, 1e-7), (1e-20, 1e-25), (0.51, 0.49),
    (0.7, 0.3), (0.2, 0.0),
]  # fmt: skip


def simplex(num):
    """All p1 > p2 with p1 + p2 <= 1 on a grid, and near its edges."""
    ps = np.concatenate([[1e-12, 1e-6], np.arange(1, num) / num, [1 - 1e-6, 1 - 1e-12]])
    pairs = [(a, b) for a, b in itertools.product(ps, [0.0, *ps]) if a > b and a + b <= 1]
    return np.array(pairs).T


def renyi_square(p1, p2, t):
    """`L^2` of order 1 + t for sigma 1, in exact decimals."""
    mean = (((p1 / p2) ** -t + 1) / 2) ** (-1 / t) * p2
    return -2 / (1 + t) * (1 - p1 - p2 + 2 * mean).ln()


def pixeldp_at(p1, p2, budget):
    failure = (p1 - (2 * budget).exp() * p2) / (1 + budget.exp())
    return budget / (2 * (Decimal("1.25") / failure).ln()).sqrt()


def highest(f, points):
    """Greatest value over a dense grid, refined by golden sections around its best point."""
    values = [f(point) for point in points]
    best = max(range(len(values)), key=values.__getitem__)
    low, high = points[max(best - 1, 0)], points[min(best + 1, len(points) - 1)]
    golden = (Decimal(5).sqrt() - 1) / 2
    for _ in range(60):
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if f(a) > f(b) else (a, high)
    return max([*values, f((low + high) / 2)])


@pytest.mark.parametrize("p1,p2,renyi,cohen,pixeldp", TABLE)
def test_published_values(p1, p2, renyi, cohen, pixeldp):
    assert abs(renyi_radius(p1, p2, 1.0) - renyi) < 6e-4
    assert abs(cohen_radius(p1, p2, 1.0) - cohen) < 6e-4
    assert abs(pixeldp_radius(p1, p2, 1.0) - pixeldp) < 6e-5


@pytest.mark.parametrize("p1,p2", [pair for pair in EXTREMES if pair[1] > 0])
def test_renyi_is_the_supremum_over_all_orders_rounded_down(p1, p2):
    """In 60 digits, orders from 1 + 1e-6 to 101 and the limit."""
    with decimal.localcontext(decimal.Context(prec=60, Emin=-(10**6), Emax=10**6)):
        a, b = Decimal(p1), min(Decimal(p2), 1 - Decimal(p1))
        orders = [Decimal(10) ** (Decimal(k) / 25) for k in range(-150, 51)]
        limit = -2 * (1 - (a.sqrt() - b.sqrt()) ** 2).ln()
        truth = max(highest(lambda t: renyi_square(a, b, t), orders), limit).sqrt()
        share = Decimal(float(renyi_radius(p1, p2, 1.0))) / truth
        assert 1 - Decimal("1e-6") < share <= 1


@pytest.mark.parametrize("p1,p2", EXTREMES)
def test_pixeldp_is_the_supremum_over_all_budgets_rounded_down(p1, p2):
    with decimal.localcontext(decimal.Context(prec=60, Emin=-(10**6), Emax=10**6)):
        a, b = Decimal(p1), min(Decimal(p2), 1 - Decimal(p1))
        most = min(Decimal(1), (a / b).ln() / 2) if b else Decimal(1)
        shares = [Decimal(k) / 2000 for k in range(1, 2000)] + [1 - Decimal("1e-30")]
        truth = highest(lambda share: pixeldp_at(a, b, share * most), shares)
        share = Decimal(float(pixeldp_radius(p1, p2, 1.0))) / truth
        assert 1 - Decimal("1e-6") < share <= 1


def test_renyi_at_the_limit_of_order_one():
    """With both probabilities below 1/6 and close, no order beats the limit."""
    p1, p2 = np.array([0.02, 0.1, 0.15]), np.array([0.015, 0.09, 0.149])
    limit = np.sqrt(-2 * np.log1p(-((np.sqrt(p1) - np.sqrt(p2)) ** 2)))
    np.testing.assert_allclose(renyi_radius(p1, p2, 1.0), limit, rtol=1e-9)
    p1 = np.array([0.1, 0.5, 0.999])
    np.testing.assert_allclose(renyi_radius(p1, 0.0, 1.0), np.sqrt(-2 * np.log1p(-p1)), rtol=1e-9)
    # And it is approached from p2 > 0.
    np.testing.assert_allclose(
        renyi_radius(p1, 1e-300, 1.0), np.sqrt(-2 * np.log1p(-p1)), rtol=1e-9
    )


@pytest.mark.parametrize("seed", range(8))
def test_lemma_1_by_brute_force(seed):
    """Least divergence over all Q with another winner, by optimisation over the simplex."""
    rng = np.random.default_rng(seed)
    k = 3 + seed % 4
    p = np.sort(rng.dirichlet(np.full(k, 0.7)) + 0.01)[::-1]
    p /= p.sum()

    def least_divergence(order, other):
        found = minimize(
            lambda q: np.sum(p * (q / p) ** order),
            np.full(k, 1 / k),
            jac=lambda q: order * (q / p) ** (order - 1),
            bounds=[(1e-9, 1)] * k,
            constraints=[
                {"type": "eq", "fun": lambda q: q.sum() - 1},
                {"type": "ineq", "fun": lambda q: q[other] - q[0]},
            ],
            method="SLSQP",
            options={"ftol": 1e-13, "maxiter": 500},
        )
        return np.log(found.fun) / (order - 1)

    def radius(order):
        return np.sqrt(2 / order * min(least_divergence(order, i) for i in range(1, k)))

    best = minimize_scalar(
        lambda a: -radius(a), bounds=(1.01, 4), method="bounded", options={"xatol": 1e-3}
    )
    ours = float(renyi_radius(p[0], p[1], 1.0))
    limit = math.sqrt(-2 * math.log1p(-((math.sqrt(p[0]) - math.sqrt(p[1])) ** 2)))
    np.testing.assert_allclose(ours, max(-best.fun, limit), rtol=2e-5)


def test_renyi_and_pixeldp_are_below_cohen_everywhere():
    p1, p2 = simplex(60)
    renyi, cohen, pixeldp = (f(p1, p2, 1.0) for f in RADII.values())
    assert np.isfinite(renyi).all()
    assert (renyi <= cohen).all()
    assert (pixeldp <= cohen).all()
    assert (renyi > 0).all()


def test_pixeldp_is_below_renyi_from_a_sum_of_a_fifth_on_but_not_everywhere():
    p1, p2 = simplex(60)
    enough = p1 + p2 >= 0.2
    assert (pixeldp_radius(p1, p2, 1.0) < renyi_radius(p1, p2, 1.0))[enough].all()
    assert pixeldp_radius(0.01, 1e-4, 1.0) > 1.5 * renyi_radius(0.01, 1e-4, 1.0)


@every
def test_monotone(radius):
    ps = np.linspace(0.001, 0.999, 400)
    for p2 in (0.0, 1e-8, 0.05, 0.3, 0.45):
        legal = ps[ps + p2 <= 1]
        found = radius(legal, p2, 1.0)
        assert (found[1:] >= found[:-1] * (1 - 1e-9)).all()
    for p1 in (0.2, 0.5, 0.9, 0.999):
        legal = ps[ps + p1 <= 1]
        found = radius(p1, legal, 1.0)
        assert (found[1:] <= found[:-1] * (1 + 1e-9)).all()


@every
def test_abstains_unless_p1_wins(radius):
    """The formulas alone are symmetric, and would certify the loser."""
    p1 = np.array([0.4, 0.5, 0.0, 0.3])
    p2 = np.array([0.5, 0.5, 0.0, 1.0])
    np.testing.assert_array_equal(radius(p1, p2, 2.0), 0)


@every
def test_scales_with_sigma_and_broadcasts(radius):
    p1, sigma = np.array([[0.6], [0.9]]), np.array([0.5, 1.0, 2.0])
    grid = radius(p1, 0.05, sigma)
    assert grid.shape == (2, 3)
    assert grid.dtype == np.float64
    np.testing.assert_allclose(grid, radius(p1, 0.05, 1.0) * sigma, rtol=1e-12)
    assert radius(0.6, 0.05, 1.0).shape == ()
    assert radius(np.zeros((0, 2)), 0.1, 1.0).shape == (0, 2)


@every
def test_an_upper_end_above_what_is_left_is_cut(radius):
    assert radius(0.7, 0.5, 1.0) == radius(0.7, 1 - 0.7, 1.0)


def test_infinite_only_where_it_is_true():
    """A class that is certain under noise at one image is certain at all."""
    assert renyi_radius(1.0, 0.0, 1.0) == np.inf
    assert renyi_radius(1.0, 0.9, 1.0) == np.inf  # cut to 0
    assert renyi_radius(1 - 2.0**-53, 0.0, 1.0) < 9
    assert cohen_radius(1.0, 0.0, 1.0) == np.inf
    assert cohen_radius(0.1, 0.0, 1.0) == np.inf
    assert cohen_radius(1 - 2.0**-53, 5e-324, 1.0) < 24
    assert pixeldp_radius(1.0, 0.0, 1.0) < 0.5705


@every
@pytest.mark.parametrize(
    "change,message",
    [
        ({"p1": 1.1}, "p1"), ({"p1": np.nan}, "p1"), ({"p2": -0.1}, "p2"),
        ({"sigma": 0.0}, "sigma"), ({"sigma": np.inf}, "sigma"), ({"sigma": -1.0}, "sigma"),
    ],
)  # fmt: skip
def test_wrong_input_is_refused(radius, change, message):
    arguments = {"p1": 0.8, "p2": 0.1, "sigma": 1.0} | change
    with pytest.raises(ValueError, match=message):
        radius(**arguments)
