"""Eigenpairs of operators: against dense decompositions, closed forms and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxrobust import linalg
from jaxrobust.linalg import lanczos, power_iteration, top_eigenpair

INF = float("inf")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def rng(seed):
    return np.random.default_rng(seed)


def symmetric(n, seed, batch=()):
    square = rng(seed).normal(size=(*batch, n, n))
    return (square + square.swapaxes(-1, -2)) / 2


def with_eigenvalues(values, seed=0):
    q = np.linalg.qr(rng(seed).normal(size=(len(values), len(values))))[0]
    return (q * np.asarray(values, np.float64)) @ q.T


def product(matrix):
    return lambda v: matrix @ v


def tridiagonal(form):
    return (
        np.diag(np.float64(form.diagonal))
        + np.diag(np.float64(form.off_diagonal), 1)
        + np.diag(np.float64(form.off_diagonal), -1)
    )


@functools.partial(jax.jit, static_argnames=("num_steps", "tol"))
def top(matrix, v0=None, num_steps=20, tol=1e-3):
    n = matrix.shape[-1]
    v0 = jnp.cos(3.0 * jnp.arange(n, dtype=matrix.dtype)) if v0 is None else v0
    return top_eigenpair(product(matrix), v0, num_steps=num_steps, tol=tol)


# ---- Lanczos


@pytest.mark.parametrize("num_steps", [1, 4, 9])
def test_lanczos_compresses_the_operator(num_steps, x64):
    matrix = symmetric(9, 0)
    form = lanczos(product(jnp.asarray(matrix)), jnp.ones(9), num_steps)
    basis, t = np.asarray(form.basis), tridiagonal(form)
    np.testing.assert_allclose(basis @ basis.T, np.eye(num_steps), atol=1e-14)
    np.testing.assert_allclose(basis @ matrix @ basis.T, t, atol=1e-13)
    np.testing.assert_allclose(basis[0], np.ones(9) / 3, atol=1e-14)
    left = matrix @ basis.T - basis.T @ t
    np.testing.assert_allclose(left[:, :-1], 0, atol=1e-13)
    np.testing.assert_allclose(np.linalg.norm(left[:, -1]), form.remainder, atol=1e-13)


SPECTRA = {
    "clustered": 1 + 1e-6 * np.arange(30),
    "one apart": [2.0] + [1.0] * 29,
    "graded": 10.0 ** -np.arange(30),
    "negative": -1.0 - np.arange(30),
    "mirrored": np.linspace(-1, 1, 30),
}


@jax.jit
def twenty_five(matrix, starts):
    return jax.vmap(lambda v0: lanczos(product(matrix), v0, 25))(starts)


@pytest.mark.parametrize("name", SPECTRA)
def test_ritz_values_never_exceed_the_largest_eigenvalue(name):
    values = np.sort(SPECTRA[name])
    matrix = jnp.asarray(with_eigenvalues(values), jnp.float32)
    norm = np.abs(values).max()
    forms = twenty_five(matrix, jnp.asarray(rng(1).normal(size=(8, 30)), jnp.float32))
    for i in range(8):
        form = jax.tree.map(lambda leaf, i=i: leaf[i], forms)
        np.testing.assert_allclose(form.basis @ form.basis.T, np.eye(25), atol=2e-6)
        ritz = np.linalg.eigvalsh(tridiagonal(form))
        assert ritz[-1] <= values[-1] + 2e-6 * norm
        assert ritz[0] >= values[0] - 2e-6 * norm


INVARIANT = {
    "identity": np.eye(6),
    "minus identity": -np.eye(6),
    "zero": np.zeros((6, 6)),
    "rank one": np.ones((6, 6)),
    "projection": np.diag([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
    "top beyond the start": np.diag([1.0, 2.0, 3.0, 3.0, 2.0, 7.0]),
    "rotated ties": with_eigenvalues([3.0, 3.0, 3.0, 1.0, 1.0, 0.0]),
    "one by one": np.full((1, 1), -3.0),
}


@pytest.mark.usefixtures("untyped")
def test_a_start_of_numpys_is_taken_as_what_jax_computes_in():
    """Without a warning of truncation, which would be an error here."""
    found = top_eigenpair(lambda v: 2.0 * v, np.ones(5), num_steps=2, tol=1e-3)
    assert found.vector.dtype == jnp.float32
    np.testing.assert_allclose(found.value, 2.0, rtol=1e-6)


whole = jax.jit(lambda matrix, v0: lanczos(product(matrix), v0, len(matrix) + 5))


@pytest.mark.parametrize("name", INVARIANT)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_breakdown_goes_on_to_the_whole_spectrum(name, dtype, x64):
    matrix = jnp.asarray(INVARIANT[name], dtype)
    n = len(matrix)
    tiny = 40 * np.finfo(dtype).eps
    eigenvector = jnp.asarray(np.linalg.eigh(INVARIANT[name])[1][:, 0], dtype)
    for v0 in (jnp.zeros(n, dtype), jnp.ones(n, dtype), jnp.eye(n, dtype=dtype)[0], eigenvector):
        form = whole(matrix, v0)
        assert form.basis.shape == (n, n)
        assert form.basis.dtype == dtype
        np.testing.assert_allclose(form.basis @ form.basis.T, np.eye(n), atol=tiny)
        true = np.linalg.eigvalsh(INVARIANT[name])
        np.testing.assert_allclose(np.linalg.eigvalsh(tridiagonal(form)), true, atol=8 * tiny)
        assert (form.off_diagonal >= 0).all()
        assert form.remainder <= 8 * tiny


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e18, 1e30])
def test_no_scale_is_lost_in_float32(scale):
    matrix = symmetric(8, 2)
    scaled = jnp.asarray(matrix * scale, jnp.float32)
    pair = top(scaled, jnp.ones(8) / scale, num_steps=8, tol=1e-5)
    assert pair.value / scale == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-5)
    assert pair.residual / scale < 1e-5


# ---- the pair


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_pair_is_the_dense_one_for_every_row(dtype, x64):
    matrices = symmetric(10, 3, (5,))
    pairs = jax.jit(jax.vmap(top))(jnp.asarray(matrices, dtype))
    values, vectors = np.linalg.eigh(matrices)
    tiny = 50 * np.finfo(dtype).eps
    np.testing.assert_allclose(pairs.value, values[:, -1], rtol=tiny)
    np.testing.assert_allclose(np.abs(np.sum(pairs.vector * vectors[..., -1], -1)), 1, rtol=tiny)
    np.testing.assert_allclose(pairs.residual, 0, atol=5 * tiny)
    assert pairs.value.dtype == pairs.vector.dtype == pairs.residual.dtype == dtype


def test_the_residual_is_that_of_the_pair():
    matrix = jnp.asarray(symmetric(10, 4), jnp.float32)
    value, vector, residual = top(matrix, num_steps=3, tol=INF)
    assert residual > 0.01
    left = np.linalg.norm(matrix @ vector - value * vector)
    assert residual == pytest.approx(left, rel=1e-4)


@pytest.mark.parametrize("num_steps", [1, 2])
def test_too_large_a_residual_makes_the_operator_dense(num_steps):
    matrices = symmetric(10, 5, (3,))
    run = lambda tol: jax.jit(jax.vmap(lambda m: top(m, num_steps=num_steps, tol=tol)))
    low = run(INF)(jnp.asarray(matrices, jnp.float32))
    pairs = run(1e-4)(jnp.asarray(matrices, jnp.float32))
    true = np.linalg.eigvalsh(matrices)[:, -1]
    assert (low.value < true - 0.05).all()
    np.testing.assert_allclose(pairs.value, true, rtol=1e-5)
    assert (pairs.residual < 1e-5).all()


def test_only_rows_that_need_it_are_replaced():
    easy, hard = np.diag([5.0, 0, 0, 0, 0, 0]), symmetric(6, 6)
    matrices = jnp.asarray(np.stack([easy, hard]), jnp.float32)
    start = jnp.eye(6)[0]
    one = lambda m, tol: top(m, start, num_steps=2, tol=tol)
    run = lambda tol: jax.jit(jax.vmap(lambda m: one(m, tol)))(matrices)
    low, pairs = run(INF), run(1e-4)
    np.testing.assert_array_equal(low.vector[0], pairs.vector[0])
    assert pairs.value[1] > low.value[1]


def counted(matrix, calls):
    def host(v):
        calls.append(v.shape)
        return np.einsum("...ij,...j->...i", np.asarray(matrix), v)

    return lambda v: jax.pure_callback(
        host, jax.ShapeDtypeStruct(v.shape, v.dtype), v, vmap_method="broadcast_all"
    )


def test_the_dense_operator_is_made_only_where_some_row_needs_it():
    matrix = symmetric(8, 7).astype(np.float32)
    calls = []

    def run(starts, tol):
        calls.clear()
        one = lambda v0: top_eigenpair(counted(matrix, calls), v0, num_steps=3, tol=tol)
        jax.block_until_ready(jax.jit(jax.vmap(one))(starts))
        return [shape for shape in calls if 8 in shape[:-1]], len(calls)

    near = np.linalg.eigh(matrix)[1][:, -1] + 1e-4 * rng(8).normal(size=(4, 8))
    near = jnp.asarray(near, jnp.float32)
    dense, made = run(near, 1e-3)
    assert dense == []
    assert made <= 3 + 1 + 1  # the steps, the residual, and one that shows a shape
    assert run(near, INF) == ([], made)
    dense, more = run(near.at[2].set(jnp.ones(8)), 1e-3)
    assert len(dense) == 1
    assert more == made + 2


def test_with_tol_inf_no_dense_code_is_compiled():
    text = lambda tol: str(
        jax.make_jaxpr(lambda m: top(m, num_steps=3, tol=tol))(jnp.eye(8, dtype=jnp.float32))
    )
    assert text(INF).count(" = eigh[") == 1
    assert text(1.0).count(" = eigh[") == 2


def test_a_warm_start_needs_fewer_steps():
    matrix = symmetric(60, 9)
    moved = matrix + 1e-3 * symmetric(60, 10)
    before = top(jnp.asarray(matrix, jnp.float32), num_steps=60)
    cold = top(jnp.asarray(moved, jnp.float32), num_steps=4, tol=INF)
    warm = top(jnp.asarray(moved, jnp.float32), before.vector, num_steps=4, tol=INF)
    assert warm.residual < 1e-3 < 0.1 < cold.residual
    assert warm.value == pytest.approx(np.linalg.eigvalsh(moved)[-1], rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_operator_that_is_not_finite_is_seen_and_spares_other_rows(bad):
    matrices = jnp.asarray(symmetric(6, 11, (2,)), jnp.float32)
    pairs = jax.vmap(top)(matrices.at[1, 2, 3].set(bad).at[1, 3, 2].set(bad))
    assert not pairs.residual[1] <= 1e30
    assert pairs.value[0] == pytest.approx(np.linalg.eigvalsh(matrices[0])[-1], rel=1e-5)


# ---- derivatives


def directions(n, count, seed):
    return jnp.asarray(symmetric(n, seed, (count,)))


def along(matrix, moves, what):
    """Value or vector as a function of coordinates."""

    def f(t):
        pair = top(matrix + jnp.tensordot(t, moves, 1))
        # The sign of Lanczos' vector is arbitrary, but the same all around.
        return getattr(pair, what)

    return f


def at(t, *functions):
    """All in one program: most of the time goes into compilation."""
    return jax.jit(lambda t: [f(t) for f in functions])(t)


def test_first_and_second_derivatives_of_the_value_are_the_closed_forms(x64):
    matrix, moves = jnp.asarray(symmetric(7, 12)), directions(7, 3, 13)
    values, vectors = np.linalg.eigh(matrix)
    v, others = vectors[:, -1], vectors[:, :-1]
    gradient = np.einsum("i,kij,j->k", v, moves, v)
    across = np.einsum("ia,kij,j->ka", others, moves, v)
    hessian = 2 * np.einsum("ka,la,a->kl", across, across, 1 / (values[-1] - values[:-1]))
    f, zero = along(matrix, moves, "value"), jnp.zeros(3)
    for found in at(zero, jax.jacfwd(f), jax.jacrev(f)):
        np.testing.assert_allclose(found, gradient, rtol=1e-10, atol=1e-10)
    modes = [jax.jacfwd, jax.jacrev]
    seconds = [outer(inner(f)) for outer in modes for inner in modes]
    for found in at(zero, *seconds, jax.hessian(jax.checkpoint(f))):
        np.testing.assert_allclose(found, hessian, rtol=1e-6, atol=1e-8)
    batch = jax.jit(jax.vmap(jax.hessian(f)))(jnp.zeros((2, 3)))
    np.testing.assert_allclose(batch[1], hessian, rtol=1e-6, atol=1e-8)


def test_the_third_derivative_of_the_value_against_finite_differences(x64):
    matrix, moves = jnp.asarray(symmetric(7, 14)), directions(7, 1, 15)
    f = lambda s: along(matrix, moves, "value")(s[None])
    d2f = jax.grad(jax.grad(f))
    step = 1e-5
    second = jax.jit(d2f)
    slope = (second(jnp.array(step)) - second(jnp.array(-step))) / (2 * step)
    third = jax.jit(jax.grad(d2f))(jnp.array(0.0))
    assert third == pytest.approx(float(slope), rel=1e-6)


def test_derivatives_of_the_vector(x64):
    matrix, moves = jnp.asarray(symmetric(7, 16)), directions(7, 2, 17)
    f, step = along(matrix, moves, "vector"), jnp.array([1e-5, 0.0])
    all_of = jax.jit(lambda t: (f(t), jax.jacfwd(f)(t), jax.jacrev(f)(t), jax.hessian(f)(t)))
    v, forward, reverse, second = all_of(jnp.zeros(2))
    values, vectors = np.linalg.eigh(matrix)
    assert abs(v @ vectors[:, -1]) == pytest.approx(1)
    inverse = (vectors[:, :-1] / (values[-1] - values[:-1])) @ vectors[:, :-1].T
    expected = np.einsum("ij,kjl,l->ik", inverse, moves, v)
    for found in (forward, reverse):
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
    slope = (all_of(step)[1] - all_of(-step)[1]) / (2 * step[0])
    np.testing.assert_allclose(second[:, 0], slope, rtol=1e-6, atol=1e-6)


def test_first_derivatives_under_every_transformation():
    """With an integer closed over, as a label is, and a weight that all rows share."""
    weights = jnp.asarray(symmetric(6, 18, (3,)), jnp.float32)
    shifts = jnp.asarray(rng(19).normal(size=(3, 6)), jnp.float32)

    def value(weights, shift, label):
        matvec = lambda v: weights[label] @ v - shift * v
        return top_eigenpair(matvec, jnp.ones(6), num_steps=6, tol=1e-3).value

    labels = jnp.array([2, 0, 1])
    vectors = np.stack(
        [
            np.linalg.eigh(weights[k] - jnp.diag(s))[1][:, -1]
            for k, s in zip(labels, shifts, strict=True)
        ]
    )
    by_shift = -(vectors**2)
    by_weights = np.zeros_like(weights)
    by_weights[labels] = vectors[:, :, None] * vectors[:, None, :]
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)

    rows = jax.jit(jax.vmap(jax.grad(value, (0, 1)), (None, 0, 0)))(weights, shifts, labels)
    close(rows[0].sum(0), by_weights)
    close(rows[1], by_shift)
    batch = lambda w, s: jax.jit(jax.vmap(value, (None, 0, 0)))(w, s, labels).sum()

    def scanned(w, s):
        step = lambda total, row: (total + value(w, *row), None)
        return jax.lax.scan(step, 0.0, (s, labels))[0]

    move = jnp.asarray(rng(20).normal(size=(3, 6)), jnp.float32)

    def both(f, s, t):
        by_all = jax.grad(jax.checkpoint(f), (0, 1))(weights, s)
        return by_all, jax.jvp(lambda s: f(weights, s), (s,), (t,))[1]

    for f in (batch, scanned):
        (g_weights, g_shift), slope = jax.jit(functools.partial(both, f))(shifts, move)
        close(g_weights, by_weights)
        close(g_shift, by_shift)
        assert slope == pytest.approx(float(np.sum(by_shift * move)), abs=1e-4)
    # What is traced once and differentiated afterwards must not keep the label.
    close(jax.grad(batch, 1)(weights, shifts), by_shift)


def test_the_start_and_the_residual_are_constants():
    matrix = jnp.asarray(symmetric(6, 21), jnp.float32)
    by_start = jax.jacrev(lambda v0: top(matrix, v0, num_steps=3, tol=INF))(jnp.ones(6))
    by_matrix = jax.grad(lambda m: top(m, num_steps=3, tol=INF).residual)(matrix)
    for leaf in jax.tree.leaves((by_start, by_matrix)):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize("ties", [2, 3, 6])
@pytest.mark.parametrize("num_steps", [1, 6])
def test_at_a_tie_the_derivative_is_a_subgradient(ties, num_steps, x64):
    matrix = jnp.asarray(with_eigenvalues([2.0] * ties + [0.5, -1.0, -3.0, 0.0][: 6 - ties], 22))
    moves = directions(6, 4, 23)
    f = lambda t: top(matrix + jnp.tensordot(t, moves, 1), num_steps=num_steps, tol=1e-9).value
    slopes = jax.jit(jax.grad(f))(jnp.zeros(4))
    basis = np.linalg.eigh(matrix)[1][:, -ties:]
    for slope, move in zip(slopes, moves, strict=True):
        low, *_, high = np.linalg.eigvalsh(basis.T @ move @ basis)
        assert low - 1e-9 <= slope <= high + 1e-9
    forward = jax.jit(lambda t: jax.jvp(f, (jnp.zeros(4),), (t,))[1])(jnp.eye(4)[1])
    np.testing.assert_allclose(forward, slopes[1], atol=1e-12)


def test_no_derivative_is_nan_at_a_tie():
    matrices = jnp.asarray(np.stack([m for m in INVARIANT.values() if len(m) == 6]), jnp.float32)
    f = lambda m: top(m, num_steps=4)
    all_of = lambda m: (jax.jacrev(f)(m), jax.jacfwd(f)(m), jax.hessian(lambda m: f(m).value)(m))
    for leaf in jax.tree.leaves(jax.jit(jax.vmap(all_of))(matrices)):
        assert np.isfinite(leaf).all()


# ---- singular values


def test_power_iteration_finds_the_triple_and_its_derivative(x64):
    matrices = jnp.asarray(rng(24).normal(size=(3, 5, 8)))
    run = lambda m: power_iteration(product(m), jnp.ones(8), 400)
    found = jax.jit(jax.vmap(run))(matrices)
    left, values, right = np.linalg.svd(matrices)
    np.testing.assert_allclose(found.value, values[:, 0], rtol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(found.left, axis=-1), 1, rtol=1e-12)
    mapped = np.einsum("bij,bj->bi", matrices, found.right)
    np.testing.assert_allclose(mapped, found.value[:, None] * found.left, atol=1e-6)
    outer = left[:, :, 0, None] * right[:, None, 0, :]
    gradient = jax.jit(jax.vmap(jax.grad(lambda m: run(m).value)))(matrices)
    np.testing.assert_allclose(gradient, outer, atol=1e-6)
    move = jnp.asarray(rng(25).normal(size=(3, 5, 8)))
    values_of = lambda m: jax.vmap(run)(m).value
    slopes = jax.jit(lambda move: jax.jvp(values_of, (matrices,), (move,))[1])(move)
    np.testing.assert_allclose(slopes, np.sum(outer * move, (1, 2)), atol=1e-6)
    vector = jax.jit(jax.jacrev(lambda m: run(m).right))(matrices[0])
    np.testing.assert_array_equal(vector, 0)


def test_power_iteration_of_a_convolution():
    kernel = jnp.asarray(rng(26).normal(size=(3, 3, 2, 4)), jnp.float32)

    def conv(x):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x[None], kernel, (2, 2), "SAME", dimension_numbers=dims
        )[0]

    value, left, right = jax.jit(lambda v0: power_iteration(conv, v0, 100))(jnp.zeros((6, 6, 2)))
    assert left.shape == (3, 3, 4)
    assert right.shape == (6, 6, 2)
    dense = jax.jit(jax.jacfwd(conv))(right).reshape(36, 72)
    assert value == pytest.approx(float(np.linalg.norm(dense, 2)), rel=1e-4)


def test_power_iteration_from_a_warm_start_and_of_nothing():
    matrix = jnp.asarray(with_eigenvalues(np.linspace(1, 2, 20)), jnp.float32)
    values, vectors = np.linalg.eigh(matrix)
    once = jax.jit(lambda v0: power_iteration(product(matrix), v0, 1))
    warm = once(jnp.asarray(vectors[:, -1]) + 1e-3)
    assert warm.value == pytest.approx(float(values[-1]), rel=1e-4)
    assert once(jnp.ones(20)).value < 1.9
    zero = lambda m: power_iteration(product(m), jnp.ones(3), 2)
    found = zero(jnp.zeros((2, 3)))
    assert found.value == 0
    np.testing.assert_array_equal(found.left, 0)
    np.testing.assert_array_equal(jax.grad(lambda m: zero(m).value)(jnp.zeros((2, 3))), 0)


# ---- both


def test_all_of_it_runs_in_a_default_shard_map():
    """With a start that all devices share and operators that they do not."""
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    matrices = jnp.asarray(symmetric(6, 27, (4,)), jnp.float32)

    def one(matrix, v0):
        first = lambda m: top(m, v0, num_steps=6).vector[0]
        pair = top(matrix, v0, num_steps=2)
        singular = power_iteration(product(matrix), v0, 20)
        return pair.value, singular.value, jax.grad(first)(matrix)

    on_device = lambda m, v0: jax.tree.map(lambda leaf: leaf[None], one(m[0], v0))
    specs = {"in_specs": (P("d"), P()), "out_specs": P("d")}
    sharded = jax.jit(jax.shard_map(on_device, mesh=mesh, **specs))(matrices, jnp.ones(6))
    plain = jax.jit(jax.vmap(one, (0, None)))(matrices, jnp.ones(6))
    for a, b in zip(sharded, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("untyped")
def test_wrong_input_is_refused():
    identity = lambda v: v
    with pytest.raises(ValueError, match=r"shape \(n,\), n >= 1; got shape \(2, 2\)"):
        lanczos(identity, jnp.ones((2, 2)), 1)
    with pytest.raises(ValueError, match=r"got shape \(0,\)"):
        lanczos(identity, jnp.ones(0), 1)
    with pytest.raises(ValueError, match=r"num_steps .* got 0"):
        lanczos(identity, jnp.ones(2), 0)
    with pytest.raises(ValueError, match=r"v0 must be float32 or float64; got int32"):
        power_iteration(identity, jnp.ones(2, jnp.int32), 1)
    with pytest.raises(ValueError, match=r"float32 of shape \(2,\); got float32 of shape \(1,\)"):
        top_eigenpair(lambda v: v[:1], jnp.ones(2), num_steps=1, tol=0.1)
    with pytest.raises(ValueError, match=r"got bfloat16 of shape"):
        top_eigenpair(lambda v: v.astype(jnp.bfloat16), jnp.ones(2), num_steps=1, tol=0.1)
    for tol in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="tol must be at least 0"):
            top_eigenpair(identity, jnp.ones(2), num_steps=1, tol=tol)


def test_exports():
    assert {"Lanczos", "Eigenpair", "Singular"} <= set(linalg.__all__)
