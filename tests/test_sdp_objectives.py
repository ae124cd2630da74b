"""Training on the semidefinite certificate: values and gradients against solved programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrobust as jr
from jaxrobust import objectives
from jaxrobust.certify import class_pairs, sdp_constants, two_layers
from jaxrobust.objectives._sdp import _square
from jaxrobust.types import Batch

MODEL = jr.models.mlp((12,), num_classes=4)
FORWARD = objectives.from_module(MODEL.apply)
KEY = jax.random.key(0)
SOLVERS = {
    "mixing": objectives.warm_mixing(8, num_steps=3),
    "dual": objectives.lanczos_dual(optax.adam(1e-2), num_steps=20),  # on 13 rows
}


def layers(params):
    return MODEL.layers({"params": params})


def start(seed=0, batch=20):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.uniform(size=(batch, 7)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 4, size=batch))
    return MODEL.init(jax.random.key(seed), x)["params"], Batch(x, y, jnp.arange(batch))


def pair(params, i, j):
    network = two_layers(layers(params))
    return network.kernel, network.last[:, i] - network.last[:, j], network.slopes


def optimum(params, i, j):
    """Solved to 1e-7 by another method, in float64."""
    return sdp_constants(layers(params), solver="dual", tol=1e-7).upper[i, j]


@pytest.mark.parametrize("name", SOLVERS)
def test_the_solvers_settle_at_the_optimum(name):
    """With the network at rest; mixing from below, the dual from above."""
    params, _ = start()
    solver = SOLVERS[name]
    kernel, v, slopes = pair(params, 0, 2)
    state, first = solver.init(kernel, v, slopes, KEY)
    step = jax.jit(lambda state: solver.step(jnp.asarray(kernel), jnp.asarray(v), slopes, state))
    value = first
    for _ in range(300):
        value, state = step(state)
    true = optimum(params, 0, 2)
    assert float(value) == pytest.approx(true, rel=1e-5 if name == "mixing" else 5e-3)
    assert (float(value) <= true * (1 + 1e-5)) if name == "mixing" else (float(value) >= true)


@pytest.mark.parametrize("name", SOLVERS)
def test_the_gradient_of_a_value_is_that_of_the_optimum(name):
    """Central differences of the solved program along a random direction."""
    params, _ = start()
    solver = SOLVERS[name]
    direction = jax.tree.map(
        lambda a: np.float32(np.random.default_rng(1).normal(size=a.shape)), params
    )

    def moved(t):
        return jax.tree.map(lambda a, b: a + t * b, params, direction)

    kernel, v, slopes = pair(params, 1, 3)
    state, _ = solver.init(kernel, v, slopes, KEY)

    def value_at(t, state):
        kernel, v, slopes = pair(moved(t), 1, 3)
        return solver.step(kernel, v, slopes, state)

    step = jax.jit(jax.jacfwd(value_at, has_aux=True))
    slopes_seen = []
    for turn in range(600):
        slope, state = step(0.0, state)
        if turn >= 200:
            slopes_seen.append(float(slope))
    h = 1e-2
    true = (optimum(moved(h), 1, 3) - optimum(moved(-h), 1, 3)) / (2 * h)
    # Single eigenvectors of a clustered eigenvalue are subgradients: right on average.
    assert np.mean(slopes_seen) == pytest.approx(true, rel=2e-3 if name == "mixing" else 5e-2)


def test_the_dual_value_is_the_papers_formula():
    params, _ = start()
    kernel, v, slopes = pair(params, 0, 1)
    solver = objectives.lanczos_dual(optax.sgd(0.0), num_steps=40)
    state, _ = solver.init(kernel, v, slopes, KEY)
    log_c = state.log_c + 0.1 * jax.random.normal(KEY, state.log_c.shape)
    c = np.exp(np.float64(log_c))
    step = jax.jit(lambda kernel, v, state: solver.step(kernel, v, slopes, state))
    value, _ = step(kernel, v, state._replace(log_c=log_c))
    w = np.float64(kernel).T
    a = np.vstack([np.float64(v) @ w, np.float64(v)[:, None] * w])
    m = np.block([[np.zeros((13, 13)), a], [a.T, np.zeros((7, 7))]])
    top = np.linalg.eigvalsh(m - np.diag(c))[-1]
    assert float(value) == pytest.approx(20 * max(top, 0) + c.sum(), rel=1e-4)
    assert float(value) >= optimum(params, 0, 1)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_random_row_is_right_on_average(name):
    """The mean over the rows of the scaled gradients is the gradient of all pairs."""
    params, batch = start()
    make = functools.partial(
        objectives.sdp_regularized, FORWARD, layers, SOLVERS[name], weight=0.7, eps=0.1
    )
    whole, row = make(all_pairs=True), make()
    state = whole.init(params, KEY)
    if name == "dual":  # away from the optimum, where the top eigenvalue is simple
        moved = state.solver.log_c + 0.2 * jax.random.normal(KEY, state.solver.log_c.shape)
        state = state._replace(solver=state.solver._replace(log_c=moved))
    step = jax.jit(row.value_and_grad)
    seen = {}
    for seed in range(40):
        out, grads = step(params, {}, state, batch, key=jax.random.key(seed))
        changed = tuple(np.flatnonzero(np.asarray(out.state.values != state.values)))
        seen[changed] = grads
    assert len(seen) == 4
    mean = jax.tree.map(lambda *g: sum(g) / 4, *seen.values())
    _, full = jax.jit(whole.value_and_grad)(params, {}, state, batch, key=KEY)
    for got, want in zip(jax.tree.leaves(mean), jax.tree.leaves(full), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_the_sum_is_what_the_docstring_says():
    params, batch = start()
    objective = objectives.sdp_regularized(
        FORWARD, layers, SOLVERS["mixing"], weight=0.3, eps=0.1, all_pairs=True
    )
    state = objective.init(params, KEY)
    out, _ = jax.jit(objective.value_and_grad)(params, {}, state, batch, key=KEY)
    logits = MODEL.apply({"params": params}, batch.x)
    hinge = jnp.mean(jax.vmap(jr.losses.hinge)(logits, batch.y))
    assert float(out.loss) == pytest.approx(float(hinge + 0.3 * out.state.values.mean()), rel=1e-5)


def test_weights_become_the_shares_of_the_worst_pairs():
    params, batch = start()
    objective = objectives.sdp_regularized(
        FORWARD, layers, SOLVERS["mixing"], weight=0.3, eps=0.1, renew_every=3
    )
    state = objective.init(params, KEY)
    counts = np.zeros(6)
    first, second = class_pairs(4)
    take = jax.jit(objective.value_and_grad)
    for step in range(3):
        np.testing.assert_allclose(state.weights, 1 / 6)
        out, _ = take(params, {}, state, batch, key=jax.random.key(step))
        state = out.state
        logits = np.array(MODEL.apply({"params": params}, batch.x))
        bound = logits + 0.1 / 4 * np.asarray(_square(state.values))[batch.y]
        bound[np.arange(20), batch.y] = -np.inf
        for worst, true in zip(bound.argmax(1), np.asarray(batch.y), strict=True):
            counts[(first == min(worst, true)) & (second == max(worst, true))] += 1
    np.testing.assert_allclose(state.weights, counts / 60, rtol=1e-6)
    assert int(state.counts.sum()) == 0


def test_robust_logits_are_the_certified_ones():
    params, batch = start()
    objective = objectives.sdp_robust(
        FORWARD, layers, objectives.warm_mixing(8, num_steps=300), eps=0.2, all_pairs=True
    )
    state = objective.init(params, KEY)
    out, _ = jax.jit(objective.value_and_grad)(params, {}, state, batch, key=KEY)
    bound = jr.certify.sdp(layers(params), np.asarray(batch.x), np.asarray(batch.y), eps=0.2)
    worst = -np.where(np.isinf(bound.margins), 0.0, bound.margins)
    losses = np.log(np.exp(worst).sum(1))
    assert float(out.loss) == pytest.approx(losses.mean(), rel=1e-4)
    assert float(out.metrics["sdp_error"]) == pytest.approx(1 - bound.certified.mean())


DIGITS = jr.models.mlp((16,))


def trained(objective):
    """What is not certified after training on digits, and the last metrics."""
    train = jr.data.load("digits", "train[:600]")
    held = jr.data.load("digits", "train[600:900]")
    params = DIGITS.init(jax.random.key(0), train.x[:1])["params"]
    fit = jr.train.fit(
        objective, params, optax.adam(3e-3), (train.x, train.y), key=KEY, num_epochs=20,
        batch_size=50,
    )  # fmt: skip
    learned = DIGITS.layers({"params": fit.params})
    bound = jr.certify.sdp(learned, held.x, held.y, eps=0.05)
    return 1 - bound.certified.mean(), fit.metrics[-1]


@pytest.fixture(scope="module")
def plain_error():
    error, _ = trained(objectives.cross_entropy(objectives.from_module(DIGITS.apply)))
    return error


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("kind", ["regularized", "robust"])
def test_training_certifies_more(name, kind, plain_error):
    forward = objectives.from_module(DIGITS.apply)
    read = lambda params: DIGITS.layers({"params": params})
    certified = {
        "regularized": lambda solver: objectives.sdp_regularized(
            forward, read, solver, weight=0.002, eps=0.05, renew_every=96
        ),
        "robust": lambda solver: objectives.scheduled(
            lambda eps: objectives.sdp_robust(
                forward, read, solver, eps=eps, loss=jr.losses.generalized_cross_entropy(0.5)
            ),
            eps=optax.linear_schedule(0.0, 0.05, 120),
        ),
    }[kind](SOLVERS[name])  # fmt: skip
    error, metrics = trained(certified)
    assert error < plain_error - 0.1
    assert 0 <= metrics["sdp_error"] <= 1


@pytest.mark.parametrize("q", [0.0, -1.0, 1.5])
def test_generalized_cross_entropy_wants_its_range(q):
    with pytest.raises(ValueError, match="q must lie"):
        jr.losses.generalized_cross_entropy(q)


def test_generalized_cross_entropy_tends_to_cross_entropy():
    logits, y = jnp.array([1.0, -0.5, 0.2]), jnp.array(1)
    near = jr.losses.generalized_cross_entropy(1e-4)(logits, y)
    assert float(near) == pytest.approx(float(jr.losses.cross_entropy(logits, y)), rel=1e-3)
    assert float(jr.losses.generalized_cross_entropy(1.0)(logits, y)) == pytest.approx(
        1 - float(jax.nn.softmax(logits)[1]), rel=1e-6
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o: o.warm_mixing(0), "num_columns"),
        (lambda o: o.warm_mixing(3, 0), "num_steps"),
        (lambda o: o.lanczos_dual(optax.sgd(1.0), 0), "num_steps"),
        (lambda o: o.sdp_robust(FORWARD, layers, SOLVERS["mixing"], eps=-0.1), "eps"),
        (lambda o: o.sdp_robust(FORWARD, layers, o.warm_mixing, eps=0.1), "solver must be"),
        (
            lambda o: o.sdp_regularized(
                FORWARD, layers, SOLVERS["mixing"], weight=float("nan"), eps=0.1
            ),
            "weight",
        ),
        (
            lambda o: o.sdp_regularized(
                FORWARD, layers, SOLVERS["mixing"], weight=0.1, eps=0.1, renew_every=0
            ),
            "renew_every",
        ),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(objectives)


def test_norms_are_norms_and_differentiate():
    params, batch = start()
    kernels = [np.float64(layer.kernel) for layer in layers(params) if hasattr(layer, "kernel")]
    for make, norm in (
        (objectives.frobenius_norm, lambda k: np.linalg.norm(k)),
        (
            functools.partial(objectives.spectral_norm, num_steps=300),
            lambda k: np.linalg.norm(k, 2),
        ),
    ):
        objective = make(layers, 0.3)
        state = objective.init(params, KEY)
        out, grads = jax.jit(objective.value_and_grad)(params, {}, state, batch, key=KEY)
        assert float(out.loss) == pytest.approx(0.3 * sum(map(norm, kernels)), rel=1e-4)
        # Norms are homogeneous: <W, grad> = norm.
        inner = sum(
            float(jnp.vdot(a, b))
            for a, b in zip(*map(jax.tree.leaves, (params, grads)), strict=True)
        )
        assert inner == pytest.approx(float(out.loss), rel=1e-3)
    zero = jax.tree.map(jnp.zeros_like, params)
    for make in (objectives.frobenius_norm, objectives.spectral_norm):
        objective = make(layers, 1.0)
        state = objective.init(zero, KEY)
        _, grads = jax.jit(objective.value_and_grad)(zero, {}, state, batch, key=KEY)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("change", ["grown", "inputs come alive", "from zero"])
def test_the_dual_value_follows_a_network_that_jumps(change):
    """What the last refresh knew is wrong: the value comes back to the dense one in a few more."""
    rng = np.random.default_rng(0)
    kernel = np.float32(rng.normal(size=(60, 40)) / np.sqrt(60))
    v = np.float32(rng.normal(size=40))
    before = {
        "grown": (kernel / 3, v),
        "inputs come alive": (np.where(np.arange(60)[:, None] < 5, 0, kernel), v),
        "from zero": (kernel, 0 * v),
    }[change]
    solver = objectives.lanczos_dual(optax.adam(2e-2))
    slopes = (0.0, 1.0)
    state, _ = solver.init(*map(jnp.asarray, before), slopes, KEY)
    step = jax.jit(lambda state: solver.step(jnp.asarray(kernel), jnp.asarray(v), slopes, state))
    hidden = kernel @ np.diag(v)
    a = np.concatenate([(kernel @ v)[None], hidden.T]).astype(np.float64)
    m = np.block([[np.zeros((41, 41)), a], [a.T, np.zeros((60, 60))]])
    off = []
    for _ in range(8):
        c = np.exp(np.float64(state.log_c))
        dense = len(c) * max(np.linalg.eigvalsh(m - np.diag(c))[-1], 0.0) + c.sum()
        value, state = step(state)
        off.append(abs(float(value) / dense - 1))
    assert off[0] < 0.12
    assert max(off[2:]) < 0.01
