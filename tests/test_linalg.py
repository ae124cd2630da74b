"""Upper sides are upper sides: against SVD, and against exact rational arithmetic."""

import math
import warnings
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxrobust import linalg
from jaxrobust.linalg import frobenius_upper, gamma, proved_upper, raised


def rng(seed):
    return np.random.default_rng(seed)


def with_spectrum(values, rows, seed=0):
    left = np.linalg.qr(rng(seed).normal(size=(rows, len(values))))[0]
    right = np.linalg.qr(rng(seed + 1).normal(size=(len(values), len(values))))[0]
    return left * np.asarray(values) @ right


METHODS = ["cholesky", "eigh"]

MATRICES = {
    "one": np.array([[-3.7]]),
    "row": rng(0).normal(size=(1, 700)),
    "column": rng(0).normal(size=(700, 1)),
    "tall": rng(1).normal(size=(300, 40)),
    "wide": rng(2).uniform(size=(40, 300)),
    "square": rng(3).normal(size=(120, 120)),
    "orthogonal": with_spectrum(np.ones(60), 60),
    "clustered": with_spectrum(1 + 1e-9 * np.arange(50), 80),
    "graded": with_spectrum(10.0 ** -np.arange(40), 60),
    "rank one": np.outer(rng(4).normal(size=50), rng(5).normal(size=30)),
    "rank deficient": rng(6).normal(size=(60, 5)) @ rng(7).normal(size=(5, 60)),
    "ones": np.ones((64, 64)),
    "huge": 1e300 * rng(8).normal(size=(20, 10)),
    "small": 1e-300 * rng(9).normal(size=(20, 10)),
    "wide range": np.array([[1e200, 1.0], [1e-200, 1e190]]),
    "one entry": np.eye(1, 30, 7),
}


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("method", METHODS)
def test_proved_upper_is_above_the_svd_and_close_to_it(name, method):
    matrix = MATRICES[name]
    # The SVD's own squares overflow where ours, after scaling, do not.
    scale = np.abs(matrix).max()
    sigma = np.linalg.svd(matrix / scale, compute_uv=False)[0]
    upper = proved_upper(matrix, method=method) / scale
    assert sigma <= upper <= sigma * (1 + 1e-9)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_proved_upper_holds_in_rational_arithmetic(data):
    rows, columns = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    entries = st.floats(-1e3, 1e3) | st.sampled_from([1.0, 1 + 2.0**-52, -1.0, 3.0])
    w = data.draw(arrays(np.float64, (rows, columns), elements=entries))
    upper = Fraction(proved_upper(w, method=data.draw(st.sampled_from(METHODS))))
    exact = [[Fraction(v) for v in row] for row in w.tolist()]
    shifted = [
        [
            upper**2 * (i == j) - sum(row[i] * row[j] for row in exact)
            for j in range(columns)
        ]
        for i in range(columns)
    ]  # fmt: skip
    assert positive_semidefinite(shifted)


SYMMETRIC = {
    "one": np.array([[-3.7]]),
    "indefinite": rng(11).normal(size=(90, 90)),
    "blocks": np.block([[np.zeros((9, 9)), MATRICES["square"][:9, :50]], [np.zeros((50, 59))]]),
    "negative": -MATRICES["tall"].T @ MATRICES["tall"],
    "negative definite": np.diag(-1.0 - np.arange(40)),
    "nearly singular": -np.outer(np.arange(30.0), np.arange(30.0)),
    "ones": np.ones((64, 64)),
    "zero diagonal": np.ones((20, 20)) - np.eye(20),
    "huge": 1e300 * rng(12).normal(size=(20, 20)),
    "small": 1e-300 * rng(13).normal(size=(20, 20)),
}
SYMMETRIC = {name: (matrix + matrix.T) / 2 for name, matrix in SYMMETRIC.items()}


@pytest.mark.parametrize("name", SYMMETRIC)
@pytest.mark.parametrize("method", METHODS)
def test_lambda_max_is_above_the_eigenvalue_and_close_to_it(name, method):
    matrix = SYMMETRIC[name]
    scale = np.abs(matrix).max()
    values = np.linalg.eigvalsh(matrix / scale)
    upper = proved_upper(matrix, "lambda_max", method=method) / scale
    norm = np.abs(values).max()
    assert values[-1] - 1e-14 * norm <= upper <= values[-1] + 1e-9 * norm


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_lambda_max_holds_in_rational_arithmetic(data):
    side = data.draw(st.integers(1, 5))
    entries = st.floats(-1e3, 1e3) | st.sampled_from([1.0, 1 + 2.0**-52, -1.0, 3.0])
    square = data.draw(arrays(np.float64, (side, side), elements=entries))
    shift = data.draw(st.sampled_from([0.0, -1e4]))  # negative definite
    matrix = np.tril(square) + np.tril(square, -1).T + shift * np.eye(side)
    upper = Fraction(proved_upper(matrix, "lambda_max", method=data.draw(st.sampled_from(METHODS))))
    assert positive_semidefinite(rational(-matrix, upper))


def altered(kind):
    """A wrong eigendecomposition in place of NumPy's."""
    honest = np.linalg.eigh

    def eigh(matrix):
        values, vectors = honest(matrix)
        noise = rng(14).normal(size=vectors.shape)
        return {
            "vectors a little off": (values, vectors + 1e-7 * noise),
            "vectors stretched": (values, 1.001 * vectors),
            "both stretched": (1.001**2 * values, 1.001 * vectors),
            "both shrunk": (0.999**2 * values, 0.999 * vectors),
            "vectors shrunk": (values, 0.999 * vectors),
            "values too small": (values - 1e-6 * np.abs(values).max(), vectors),
            "the top missing": (np.minimum(values, values[0]), vectors),
            "one vector twice": (values, vectors[:, [0, *range(len(values) - 1)]]),
            "no vectors": (values, 0 * vectors),
            "noise": (values, noise),
            "overflow": (values, 1e200 * vectors),
            "nan": (values, np.nan * vectors),
            "nan values": (np.nan * values, vectors),
        }[kind]

    return eigh


@pytest.mark.parametrize(
    "kind",
    ["vectors a little off", "vectors stretched", "vectors shrunk", "both stretched", "both shrunk",
     "values too small", "the top missing", "one vector twice", "no vectors", "noise", "overflow",
     "nan", "nan values"],
)  # fmt: skip
def test_eigenvectors_need_not_be_right(kind, monkeypatch):
    monkeypatch.setattr(np.linalg, "eigh", altered(kind))
    for name in ("indefinite", "negative", "negative definite", "ones", "huge"):
        matrix = SYMMETRIC[name]
        scale = np.abs(matrix).max()
        values = np.linalg.eigvalsh(matrix / scale)
        upper = proved_upper(matrix, "lambda_max", method="eigh") / scale
        assert values[-1] - 1e-13 * np.abs(values).max() <= upper
        assert upper <= frobenius_upper(matrix / scale) * (1 + 1e-12)
        sigma = np.linalg.norm(matrix / scale, 2)
        assert sigma * (1 - 1e-13) <= proved_upper(matrix, method="eigh") / scale


@pytest.mark.parametrize("name", ["indefinite", "negative definite", "zero diagonal"])
def test_the_factorisations_rounding_is_paid_for(name, monkeypatch):
    """By the theorem, in rational arithmetic: in double precision it is too rare to be met."""
    runs, factored = linalg._proved._cholesky_runs, []

    def watched(shifted):
        factored.append(shifted.copy())
        return runs(shifted)

    monkeypatch.setattr(linalg._proved, "_cholesky_runs", watched)
    matrix = SYMMETRIC[name] / 2.0 ** math.frexp(np.abs(SYMMETRIC[name]).max())[1]  # as it is seen
    upper = Fraction(proved_upper(matrix, "lambda_max"))
    diagonal = [Fraction(v) for v in np.diag(factored[-1]).tolist()]
    unit = Fraction(2) ** -53
    mu = max(
        d + Fraction(a) - unit * d for d, a in zip(diagonal, np.diag(matrix).tolist(), strict=True)
    )
    relative = (len(matrix) + 1) * unit / (1 - 2 * (len(matrix) + 1) * unit)
    assert upper >= mu + unit * max(diagonal) + relative * sum(diagonal)


def test_the_rounding_of_the_products_is_paid_for():
    """A diagonal matrix has exact eigenvectors: what is left is the theorem's rounding."""
    values = np.linspace(0.5, 1.0, 50)
    lost = gamma(50) * math.sqrt(50.0)  # times ||V||_F, or the norm of A or AV
    f, h = lost * math.sqrt(50.0), 2 * lost * np.linalg.norm(values)
    upper = proved_upper(np.diag(values), "lambda_max", method="eigh")
    assert 1.0 + f + h <= upper <= 1.0 + 1.1 * (f + h)
    upper = proved_upper(np.diag(-values), "lambda_max", method="eigh")
    assert -0.5 * (1 - f) + h <= upper <= -0.5 + 1.1 * (f + h)


def rational(matrix, shift=0):
    """`matrix + shift I`."""
    rows = matrix.tolist()
    return [
        [Fraction(v) + shift * (i == j) for j, v in enumerate(row)] for i, row in enumerate(rows)
    ]


def test_without_eigenvectors_the_frobenius_norm_remains(monkeypatch):
    def fails(matrix):
        raise np.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(np.linalg, "eigh", fails)
    monkeypatch.setattr(np.linalg, "eigvalsh", fails)
    matrix = SYMMETRIC["indefinite"]
    for method in METHODS:
        for value in ("sigma_max", "lambda_max"):
            assert proved_upper(matrix, value, method=method) == frobenius_upper(matrix)


@pytest.mark.parametrize("method", METHODS)
def test_lambda_max_at_the_edges_of_range(method):
    top = lambda matrix: proved_upper(matrix, "lambda_max", method=method)
    assert top(np.zeros((3, 3))) == 0.0
    assert top(np.full((2, 2), 1.7e308)) == math.inf
    assert 0.0 <= top(np.full((2, 2), -1.7e308)) <= 1e300
    assert -1.7e308 <= top(np.diag([-1.7e308, -1.7e308])) <= -1.6e308
    assert -5e-324 <= top(np.array([[-5e-324]])) <= 5e-324
    for bad in (np.nan, np.inf, -np.inf):
        assert top(np.array([[1.0, bad], [bad, 1.0]])) == math.inf


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1 / 3, 0.9])
@pytest.mark.parametrize("method", METHODS)
def test_proved_upper_pays_for_the_rounding_of_a_long_gram(value, method):
    """One row of equal entries: a long sum whose rounding goes the same way at every step."""
    length = 500_000
    exact = length * Fraction(value) ** 2
    assert exact <= Fraction(proved_upper(np.full((1, length), value), method=method)) ** 2


def positive_semidefinite(matrix):
    """By exact elimination: no pivot negative, and a zero pivot only with a zero row."""
    while matrix:
        pivot, row = matrix[0][0], matrix[0][1:]
        if pivot < 0 or (pivot == 0 and any(row)):
            return False
        matrix = [
            [v - (row[i] * row[j] / pivot if pivot else 0) for j, v in enumerate(below[1:])]
            for i, below in enumerate(matrix[1:])
        ]
    return True


def test_the_test_of_semidefiniteness_tells_them_apart():
    assert positive_semidefinite([[1, 1], [1, 1]])
    assert not positive_semidefinite([[Fraction(1), Fraction(2)], [Fraction(2), Fraction(1)]])
    assert not positive_semidefinite([[0, 1], [1, 0]])


@pytest.mark.parametrize("name", ["tall", "wide", "clustered", "ones", "huge"])
def test_without_a_proof_the_frobenius_norm_remains(name, monkeypatch):
    monkeypatch.setattr(linalg._proved, "_cholesky_runs", lambda matrix: False)
    assert proved_upper(MATRICES[name]) == frobenius_upper(MATRICES[name])


def test_a_candidate_from_below_is_not_believed(monkeypatch):
    """An eigenvalue solver that answers too small only costs retries."""
    matrix = MATRICES["tall"]
    true = proved_upper(matrix)
    honest = np.linalg.eigvalsh
    monkeypatch.setattr(np.linalg, "eigvalsh", lambda gram: honest(gram) * (1 - 1e-9))
    assert true * (1 - 1e-9) <= proved_upper(matrix) <= true * (1 + 1e-6)
    monkeypatch.setattr(np.linalg, "eigvalsh", lambda gram: 0.0 * honest(gram))
    assert proved_upper(matrix) >= true * (1 - 1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("norm", [proved_upper, frobenius_upper])
def test_non_finite_input_gives_infinity(bad, norm):
    matrix = np.ones((3, 4))
    matrix[1, 2] = bad
    assert norm(matrix) == math.inf


@pytest.mark.parametrize("norm", [proved_upper, frobenius_upper])
def test_edges_of_range_and_shape(norm):
    assert norm(np.zeros((3, 4))) == 0.0
    assert norm(np.zeros((0, 4))) == 0.0
    assert norm(np.full((2, 2), 1.7e308)) == math.inf
    least = 5e-324  # all rounding is visible here
    assert 2 * least <= norm(np.full((2, 2), least)) <= 4 * least


@given(
    arrays(np.float64, st.integers(1, 8), elements=st.floats(-1e100, 1e100, allow_subnormal=False))
)
@settings(max_examples=60, deadline=None)
def test_frobenius_upper_holds_in_rational_arithmetic(values):
    upper = frobenius_upper(values)
    exact = sum(Fraction(v) ** 2 for v in values.tolist())
    assert exact <= Fraction(upper) ** 2 <= exact * (1 + Fraction(1, 10**12))


@given(st.integers(0, 2**54))
@settings(max_examples=60, deadline=None)
def test_gamma_is_rounded_upwards(n):
    exact = 1 - n * Fraction(2) ** -53
    if exact <= 0:
        assert gamma(n) == math.inf
    else:
        assert Fraction(gamma(n)) >= n * Fraction(2) ** -53 / exact


@given(arrays(np.float64, (2, 6), elements=st.floats(0, 1e3) | st.floats(0, 1e-300)))
@settings(max_examples=60, deadline=None)
def test_raised_is_above_the_exact_inner_product(pair):
    exact = sum(Fraction(a) * Fraction(b) for a, b in pair.T.tolist())
    assert exact <= Fraction(float(raised(pair[0] @ pair[1], 6)))


def test_float32_and_jax_arrays_are_taken_exactly():
    matrix = rng(10).normal(size=(6, 4)).astype(np.float32)
    assert proved_upper(matrix) == proved_upper(jnp.asarray(matrix))
    assert proved_upper(matrix) == proved_upper(matrix.astype(np.float64))
    assert proved_upper(jnp.ones((1, 1), jnp.bfloat16)) == pytest.approx(1.0)


@pytest.mark.usefixtures("untyped")
def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="matrix is traced"):
        jax.jit(proved_upper)(jnp.ones((2, 2)))
    with pytest.raises(ValueError, match=r"float64 or a narrower .* got int64"):
        proved_upper(np.ones((2, 2), np.int64))
    with pytest.raises(ValueError, match="got complex128"):
        proved_upper(np.ones((2, 2), complex))
    with pytest.raises(ValueError, match=r"two dimensions; got shape \(3,\)"):
        proved_upper(np.ones(3))
    for misshapen in (np.ones((2, 3)), np.ones((0, 0))):
        with pytest.raises(ValueError, match="matrix must be square for lambda_max"):
            proved_upper(misshapen, "lambda_max")
    with pytest.raises(ValueError, match="matrix must be exactly symmetric"):
        proved_upper(np.array([[1.0, 1.0], [1.0 + 2.0**-52, 1.0]]), "lambda_max")
    with pytest.raises(ValueError, match=r"value must be one of .* got 'norm'"):
        proved_upper(np.ones((2, 2)), "norm")
    with pytest.raises(ValueError, match="method must be one of cholesky, eigh; got 'qr'"):
        proved_upper(np.ones((2, 2)), method="qr")


def test_extreme_input_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for matrix in MATRICES.values():
            proved_upper(matrix)
        proved_upper(np.array([[np.nan, np.inf]]))
