"""What the second-order experiment measures beside what the library returns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from experiments.second_order import measure
from experiments.second_order.measure import Search

WEIGHTS = jax.random.normal(jax.random.key(0), (6, 3))
X = jax.random.uniform(jax.random.key(1), (4, 6))
Y = jnp.array([0, 1, 2, 0])
BALL = jr.Ball("l2", 0.5)


def model(x: jax.Array) -> jax.Array:
    return jnp.tanh(3 * x) @ WEIGHTS


@pytest.mark.parametrize("gradient", ["smoothed", "shared"])
def test_the_monitored_attack_is_the_attack_and_shows_the_exact_gradient(gradient) -> None:
    search = Search(gradient, sigma=0.3, draws=2, num_steps=4)
    plain = measure.attack_of(search)(model, X, Y, key=jax.random.key(2), ball=BALL)
    arguments = measure._arguments(search, X, BALL)
    arguments["gradient"] = measure.monitored(arguments["gradient"])
    x_adv, trace = jr.attacks.pgd_trace(model, X, Y, **arguments, key=jax.random.key(2), ball=BALL)
    np.testing.assert_allclose(x_adv, plain, atol=1e-6)

    loss = lambda x, y: jr.losses.cross_entropy(model(x[None])[0], y)
    at_start = jnp.linalg.norm(jax.vmap(jax.grad(loss))(X, Y), axis=1)
    np.testing.assert_allclose(trace.loss[:, 0], at_start, rtol=1e-5)
    assert not np.allclose(trace.gradient_norm, trace.loss, rtol=1e-2)


def test_against_a_network_on_noise_eot_is_the_second_order_attack() -> None:
    """Both estimate one expectation."""
    noisy = jr.transforms.gaussian_noise(model, 0.1)
    on_model = lambda x, key: jr.losses.cross_entropy(noisy(x[None], key)[0], Y[0])
    on_image = lambda x, key: jr.losses.cross_entropy(model(x[None])[0], Y[0])
    n = 20_000
    estimates = [
        jax.grad(jr.gradients.eot(n)(on_model))(X[0], jax.random.key(3)),
        jax.grad(jr.gradients.smoothed(0.1, n)(on_image))(X[0], jax.random.key(4)),
    ]
    np.testing.assert_allclose(*estimates, atol=0.03)


@pytest.mark.parametrize(
    "search", [Search("smoothed", 0.1, 10, 20), Search("exact", num_steps=40, num_restarts=5)]
)
def test_gradients_are_those_that_the_jaxpr_holds(search) -> None:
    attacks = {"it": measure.attack_of(search)}
    report = jr.evaluate(model, (X, Y), attacks=attacks, ball=BALL, key=jax.random.key(0))
    judging = search.num_restarts if search.num_restarts > 1 else 0  # of each run
    assert report.attacks["it"].forwards == measure.cost(search) + judging


def test_curvature_is_the_hessians_spectral_norm() -> None:
    weights = jax.random.normal(jax.random.key(3), (12, 3))
    rng = np.random.default_rng(0)
    x, y = rng.random((5, 12)).astype(np.float32), rng.integers(0, 3, 5)
    smooth = lambda x: jax.nn.softplus(x @ weights) ** 2
    hessian = jax.hessian(lambda x, y: jr.losses.margin(smooth(x[None])[0], y))
    largest = np.abs(np.linalg.eigvalsh(jax.vmap(hessian)(x, y))).max(1)
    found = measure.curvature(smooth, x, y, seed=0)["margin"]
    np.testing.assert_allclose(found["hessian"], np.median(largest), rtol=0.02)
    np.testing.assert_allclose(found["largest_hessian"], largest.max(), rtol=0.02)

    piecewise_linear = lambda x: jax.nn.relu(x @ weights)
    found = measure.curvature(piecewise_linear, x, y, seed=0)
    assert found["margin"]["largest_hessian"] == 0 < found["cross_entropy"]["hessian"]
