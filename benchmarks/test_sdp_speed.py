"""The semidefinite certificate: eigenpairs, training steps, whole networks, and SCS."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cvxpy as cp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse.linalg

import jaxrobust as jr
from benchmarks._clock import Row, round_robin
from jaxrobust.certify import class_pairs, pair_matvec, two_layers
from jaxrobust.certify._sdp_proof import lower, pair_matrix, scaled_upper
from jaxrobust.layers import Dense, Flatten, Layer, Relu
from jaxrobust.types import Batch

KEY = jax.random.key(0)
NINE = 9


@dataclasses.dataclass(frozen=True)
class Setting:
    """A two-layer network.

    Attributes:
        network: npz file of `experiments.certified_mnist` with the weights; random where None.
        sizes: Of a random network.
        num_steps: Lanczos steps of the eigenpairs.
        train_steps: Lanczos steps within a training step.
        dense: Dense eigenvalue problems that stand for ten times as many.
        rival_sizes: Random network that SCS solves one pair of.
    """

    network: Path | None = None
    sizes: tuple[int, int, int] = (784, 500, 10)
    num_steps: int = 20
    train_steps: int = 14
    dense: int = 17
    rival_sizes: tuple[int, int, int] = (180, 120, 2)

    @functools.cached_property
    def layers(self) -> list[Layer]:
        """The network."""
        if self.network is None:
            return random_layers(self.sizes)
        with np.load(self.network) as stored:
            names = sorted({name.split(".")[0] for name in stored})
            first, last = (Dense(stored[f"{n}.kernel"], stored[f"{n}.bias"]) for n in names)
        return [Flatten(), first, Relu(), last]

    @functools.cached_property
    def nine(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Second-layer differences of class 0's pairs, their mixing duals, and their matrices."""
        network = two_layers(self.layers)
        constants = jr.certify.sdp_constants(self.layers)
        first, second = class_pairs(network.last.shape[1])
        v = (network.last[:, first] - network.last[:, second]).T[:NINE]
        c = np.concatenate([constants.left, constants.right], 1)[:NINE]
        matrices = []
        for row, (i, j) in zip(c, zip(first, second, strict=True), strict=False):
            a, _ = pair_matrix(network, int(i), int(j))
            rows, columns = a.shape
            zero = np.zeros((rows, rows)), np.zeros((columns, columns))
            matrices.append(np.block([[zero[0], a], [a.T, zero[1]]]) - np.diag(row))
        return np.float32(v), np.float32(c), matrices


def random_layers(sizes: tuple[int, int, int]) -> list[Layer]:
    """A random network as explicit layers."""
    rng = np.random.default_rng(0)
    inputs, hidden, classes = sizes
    first = rng.normal(size=(inputs, hidden)) / np.sqrt(inputs)
    last = rng.normal(size=(hidden, classes)) / np.sqrt(hidden)
    return [
        Dense(np.float32(first), np.zeros(hidden, np.float32)), Relu(),
        Dense(np.float32(last), np.zeros(classes, np.float32)),
    ]  # fmt: skip


def eigen(setting: Setting) -> dict[str, Callable[[], Any]]:
    """Nine top eigenpairs of `M - diag c` at the mixing duals, where the top is a cluster."""
    v, c, matrices = setting.nine
    kernel = jnp.asarray(two_layers(setting.layers).kernel)
    start = jax.random.normal(KEY, c.shape)

    @jax.jit
    def ours(kernel: Any, v: Any, c: Any, start: Any) -> Any:
        def one(v: Any, c: Any, start: Any) -> Any:
            product = pair_matvec(kernel, v)

            def matvec(z: Any) -> Any:
                return product(z) - c * z

            pair = jr.linalg.top_eigenpair(
                matvec, start, num_steps=setting.num_steps, tol=float("inf")
            )
            return pair.value, pair.vector

        return jax.vmap(one)(v, c, start)

    # ARPACK's tolerance is relative to the eigenvalue, and this one is near zero: shifted by the
    # norm, the tolerance is relative to that, as the residuals below are.
    norms = [np.abs(np.linalg.eigvalsh(m)).max() for m in matrices]
    shifted = [m + norm * np.eye(len(m)) for m, norm in zip(matrices, norms, strict=True)]

    def arpack() -> Any:
        pairs = [
            scipy.sparse.linalg.eigsh(m, k=1, which="LA", v0=np.float64(s), tol=1e-3)
            for m, s in zip(shifted, np.asarray(start), strict=True)
        ]
        values = [p[0][0] - norm for p, norm in zip(pairs, norms, strict=True)]
        return values, np.stack([p[1][:, 0] for p in pairs])

    return {
        "top_eigenpair, nine in one": lambda: ours(kernel, v, c, start),
        "scipy eigsh": arpack,
        "numpy eigvalsh": lambda: ([np.linalg.eigvalsh(m)[-1] for m in matrices], None),
    }


def residuals(setting: Setting, answer: Any) -> dict[str, float]:
    """Largest residual over the norm, and how far the value is from the dense one."""
    _, _, matrices = setting.nine
    values, vectors = answer
    spectra = [np.linalg.eigvalsh(m) for m in matrices]
    norms = [np.abs(spectrum).max() for spectrum in spectra]
    below = max(
        (spectrum[-1] - float(w)) / norm
        for spectrum, w, norm in zip(spectra, values, norms, strict=True)
    )
    if vectors is None:
        return {"residual": 0.0, "below_dense": float(below)}
    left = [
        np.linalg.norm(m @ np.float64(z) - float(w) * np.float64(z)) / norm
        for m, w, z, norm in zip(matrices, values, vectors, norms, strict=True)
    ]
    return {"residual": float(max(left)), "below_dense": float(below)}


def steps(setting: Setting) -> dict[str, Callable[[], Any]]:
    """One compiled training step at batch 100, without the regulariser and with nine pairs."""
    network = setting.layers
    affine = [layer for layer in network if isinstance(layer, Dense)]
    params = [(jnp.asarray(layer.kernel), jnp.asarray(layer.bias)) for layer in affine]
    read = lambda params: [Flatten(), Dense(*params[0]), Relu(), Dense(*params[1])]
    forward = lambda params, state, x: (jr.layers.apply(read(params), x), state)
    inputs, classes = affine[0].kernel.shape[0], affine[1].kernel.shape[1]
    rng = np.random.default_rng(0)
    batch = Batch(
        jnp.asarray(rng.uniform(size=(100, inputs)), jnp.float32),
        jnp.asarray(rng.integers(0, classes, 100)),
        jnp.arange(100),
    )
    o = jr.objectives
    common = {"weight": 0.01, "eps": 0.1}
    dual = o.lanczos_dual(optax.adam(2e-2), setting.train_steps)
    return {
        "hinge alone": _step(o.hinge(forward), params, batch),
        "Eq. 15, Lanczos": _step(o.sdp_regularized(forward, read, dual, **common), params, batch),
        "Eq. 15, warm mixing": _step(
            o.sdp_regularized(forward, read, o.warm_mixing(), **common), params, batch
        ),
    }


def _step(objective: jr.Objective, params: Any, batch: Batch) -> Callable[[], Any]:
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params: Any, opt_state: Any, state: Any) -> Any:
        out, grads = objective.value_and_grad(params, {}, state, batch, key=KEY)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), out

    carried = optimizer.init(params), objective.init(params, KEY)

    def run() -> Any:
        for _ in range(20):
            answer = step(params, *carried)
        return answer

    return run


def training_gap(setting: Setting, answer: Any) -> dict[str, float]:
    """How far training's eigenvalues are from dense ones; 0 where there are none.

    Fifty refreshes of class 0's pairs first, so that the duals and the warm vectors are those of a
    training and not of a solver. `lambda_off` is relative to the operator's norm and the worst of
    the nine; `value_off` is what it does to the dual value, on average and at worst.
    """
    if not hasattr(getattr(answer[1].state, "solver", None), "log_c"):
        return {"lambda_off": 0.0, "value_off": 0.0, "value_off_worst": 0.0}
    v, c, matrices = setting.nine
    network = two_layers(setting.layers)
    kernel, slopes = jnp.asarray(network.kernel), network.slopes
    solver = jr.objectives.lanczos_dual(optax.adam(2e-2), setting.train_steps)
    keys = jax.random.split(KEY, len(v))
    state, _ = jax.vmap(lambda v, key: solver.init(kernel, v, slopes, key))(jnp.asarray(v), keys)
    step = jax.jit(jax.vmap(lambda v, state: solver.step(kernel, v, slopes, state)))
    for _ in range(50):
        value, after = step(jnp.asarray(v), state)
        before, state = state, after
    scaled, relative = [], []
    for n, matrix in enumerate(matrices):
        duals = np.exp(np.float64(before.log_c[n]))
        spectrum = np.linalg.eigvalsh(matrix + np.diag(np.float64(c[n]) - duals))
        true = len(duals) * max(spectrum[-1], 0.0) + duals.sum()
        error = abs(float(value[n]) - true)
        scaled.append(error / len(duals) / np.abs(spectrum).max())
        relative.append(error / true)
    return {
        "lambda_off": float(max(scaled)),
        "value_off": float(np.mean(relative)),
        "value_off_worst": float(max(relative)),
    }


def solve(setting: Setting) -> dict[str, Callable[[], Any]]:
    """All pairs of the network to a proved gap of 1e-4, and dense eigenvalue problems beside it."""
    matrix = setting.nine[2][0]
    return {
        "all pairs, proved": lambda: jr.certify.sdp_constants(setting.layers),
        f"{setting.dense} eigvalsh of one M": lambda: [
            np.linalg.eigvalsh(matrix) for _ in range(setting.dense)
        ],
    }


def scs(setting: Setting) -> dict[str, Callable[[], Any]]:
    """One pair of a smaller network by mixing and by SCS, with the gap that each proves."""
    layers = random_layers(setting.rival_sizes)
    network = two_layers(layers)
    a, _ = pair_matrix(network, 0, 1)
    rows, total = len(a), sum(a.shape)
    m = np.zeros((total, total))
    m[:rows, rows:], m[rows:, :rows] = a, a.T

    def by_scs() -> dict[str, float]:
        p = cp.Variable((total, total), PSD=True)  # made anew: a second solve would start warm
        unit = cp.diag(p) <= 1
        problem = cp.Problem(cp.Maximize(cp.trace(m @ p)), [unit])
        problem.solve(solver="SCS", eps_abs=1e-4, eps_rel=1e-4)
        values, vectors = np.linalg.eigh(np.asarray(p.value))
        root = vectors * np.sqrt(np.maximum(values, 0))
        c = np.maximum(np.asarray(unit.dual_value), 1e-3)
        upper = scaled_upper(a, c[:rows], c[rows:])
        return {"gap": 1 - lower(a, root[:rows], root[rows:]) / upper, "upper": upper}

    def by_mixing() -> dict[str, float]:
        constants = jr.certify.sdp_constants(layers)
        return {"gap": constants.gap, "upper": constants.upper[0, 1]}

    return {"mixing": by_mixing, "SCS through cvxpy": by_scs}


def measure(setting: Setting, rounds: int) -> dict[str, list[Row]]:
    """All tables."""
    few, once = min(rounds, 2), 1
    return {
        "nine eigenpairs": round_robin(
            eigen(setting), functools.partial(residuals, setting), rounds
        ),
        "twenty training steps": round_robin(
            steps(setting), functools.partial(training_gap, setting), rounds
        ),
        "a network": round_robin(solve(setting), lambda c: {"gap": getattr(c, "gap", 0.0)}, few),
        "one pair": round_robin(scs(setting), dict, once),
    }


@pytest.fixture(scope="module")
def small() -> Setting:
    """Enough to show that everything runs and agrees."""
    return Setting(sizes=(30, 20, 10), num_steps=32, dense=1, rival_sizes=(12, 9, 2))


def test_eigenpairs_agree(small: Setting) -> None:
    """With eigsh and the dense solver."""
    for run in eigen(small).values():
        found = residuals(small, jax.block_until_ready(run()))
        assert found["residual"] < 1e-3
        assert abs(found["below_dense"]) < 1e-3


@pytest.mark.parametrize("contender", ["hinge alone", "Eq. 15, Lanczos", "Eq. 15, warm mixing"])
def test_steps(benchmark: Any, small: Setting, contender: str) -> None:
    """Each makes finite progress; Lanczos' values are within a percent of dense ones."""
    params, out = benchmark.pedantic(steps(small)[contender], rounds=2, warmup_rounds=1)
    assert training_gap(small, (params, out))["value_off_worst"] < 0.01
    assert np.isfinite(out.loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_solvers_agree(small: Setting) -> None:
    """Mixing and SCS bound the same optimum."""
    ours, theirs = (run() for run in scs(small).values())
    assert ours["gap"] <= 1e-4
    assert ours["upper"] == pytest.approx(theirs["upper"], rel=1e-2)
