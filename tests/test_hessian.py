"""Second-order directions against dense Hessians."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contracts import problem

import jaxrobust as jr
from jaxrobust import gradients

KEY = jax.random.key(0)
METHODS = ("jvp", "finite_difference")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def network(activation, loss=jr.losses.cross_entropy, dims=9, seed=0):
    """A loss of one example behind two hidden layers, and a point."""
    rng = np.random.default_rng(seed)
    sizes = (dims, 16, 12, 4)
    weights = [jnp.array(rng.normal(size=s) / np.sqrt(s[0])) for s in itertools.pairwise(sizes)]

    def logits(x):
        for w in weights[:-1]:
            x = activation(x @ w)
        return 3 * x @ weights[-1]

    f = lambda x, key: loss(logits(x), jnp.array(1))
    return f, logits, jnp.array(rng.uniform(size=dims))


@functools.partial(jax.jit, static_argnums=(0, 1))
def direction(gradient, f, x, key=KEY):
    value, pullback = gradients.vjp(gradient(f), x, key)
    return value, pullback(jnp.ones_like(value))


def hessian_of(f, x):
    return jax.jit(jax.hessian(f))(x, KEY)


def gauss_newton_of(logits, x):
    jacobian, out = jax.jit(lambda x: (jax.jacobian(logits)(x), logits(x)))(x)
    p = jax.nn.softmax(out)
    return jacobian.T @ (jnp.diag(p) - jnp.outer(p, p)) @ jacobian


def dominant(hessian):
    values, vectors = np.linalg.eigh(hessian)
    index = np.argmax(np.abs(values))
    return values[index], vectors[:, index]


def cosine(a, b):
    return float(jnp.vdot(a, b) / jnp.linalg.norm(a) / jnp.linalg.norm(b))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("activation", [jax.nn.softplus, jax.nn.swish])
def test_many_iterations_find_the_dense_dominant_eigenvector(activation, method):
    for seed in range(2):
        f, _, x = network(activation, seed=seed)
        eigenvalue, vector = dominant(hessian_of(f, x))
        ascent = jax.grad(f)(x, KEY)
        value, found = direction(gradients.hessian_direction(400, method, 1e-5), f, x)
        assert abs(cosine(found, vector)) > 0.999
        np.testing.assert_allclose(jnp.linalg.norm(found), abs(eigenvalue), rtol=1e-3)
        np.testing.assert_allclose(value, f(x, KEY), rtol=1e-12)
        assert jnp.vdot(found, ascent) > 0


def test_in_float32_too():
    f, _, x = network(jax.nn.swish)
    _, vector = dominant(hessian_of(f, x))
    for method in METHODS:
        _, found = direction(gradients.hessian_direction(400, method), f, x)
        assert found.dtype == jnp.float32
        assert abs(cosine(found, vector)) > 0.999


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("num_iters", [1, 2, 5])
def test_iterations_are_products_with_the_hessian(num_iters):
    """Both methods are H applied to the normalised last product, up to the ascending sign."""
    f, _, x = network(jax.nn.swish)
    hessian = hessian_of(f, x)
    d = jax.random.normal(jax.random.split(KEY)[0], x.shape, x.dtype)
    for _ in range(num_iters):
        d = hessian @ (d / jnp.linalg.norm(d))
    d = d * jnp.sign(jnp.vdot(d, jax.grad(f)(x, KEY)))
    _, exact = direction(gradients.hessian_direction(num_iters), f, x)
    _, by_differences = direction(
        gradients.hessian_direction(num_iters, "finite_difference", 1e-6), f, x
    )
    np.testing.assert_allclose(exact, d, rtol=1e-9)
    np.testing.assert_allclose(by_differences, exact, rtol=1e-4, atol=1e-7)


@pytest.mark.usefixtures("x64")
def test_dominant_is_largest_in_modulus_even_where_the_loss_falls():
    f = lambda x, key: jnp.sum(jnp.array([-3.0, 1.0, 2.0]) * x**2) + 0.1 * x[0] + x[2]
    x = jnp.zeros(3)
    for key in jax.random.split(KEY, 4):
        _, found = direction(gradients.hessian_direction(50), f, x, key)
        np.testing.assert_allclose(found, [6.0, 0, 0], atol=1e-5)  # the ascending sign


@pytest.mark.usefixtures("x64")
def test_one_difference_where_the_gradient_vanishes_is_the_papers_equation_3():
    """And the sign is then the draw's: both occur."""
    f = lambda x, key: jnp.sum(jnp.array([1.0, -2.0, 0.5]) * jnp.cosh(x)) + x[0] ** 2 * x[1]
    x = jnp.zeros(3)
    np.testing.assert_array_equal(jax.grad(f)(x, KEY), 0)
    signs = set()
    for key in jax.random.split(KEY, 6):
        _, by_difference = direction(
            gradients.hessian_direction(1, "finite_difference", 0.1), f, x, key
        )
        _, one_step = direction(gradients.perturbed(0.1), f, x, key)
        np.testing.assert_allclose(0.1 * by_difference, one_step, rtol=1e-9)
        d = jax.random.normal(jax.random.split(key)[0], x.shape, x.dtype)
        d = d / jnp.linalg.norm(d)
        np.testing.assert_allclose(one_step, jax.grad(f)(0.1 * d, key), rtol=1e-9)
        signs.add(float(jnp.sign(by_difference[0])))
    assert signs == {-1.0, 1.0}


@pytest.mark.usefixtures("x64")
def test_a_relu_network_keeps_the_gauss_newton_part_of_the_cross_entropy():
    f, logits, x = network(jax.nn.relu)
    gauss_newton = gauss_newton_of(logits, x)
    np.testing.assert_allclose(hessian_of(f, x), gauss_newton, atol=1e-12)
    eigenvalue, vector = dominant(gauss_newton)
    assert eigenvalue > 0.01
    for method in METHODS:
        _, found = direction(gradients.hessian_direction(400, method, 1e-6), f, x)
        assert abs(cosine(found, vector)) > 0.999
    # A smooth network has more to its Hessian than that.
    f, logits, x = network(jax.nn.swish)
    gauss_newton = gauss_newton_of(logits, x)
    hessian = hessian_of(f, x)
    assert jnp.linalg.norm(hessian - gauss_newton) > 0.1 * jnp.linalg.norm(hessian)


@pytest.mark.parametrize("method", METHODS)
def test_without_curvature_it_is_the_gradient(method):
    """A ReLU network with the margin loss, in float32, at the default step."""
    f, _, x = network(jax.nn.relu, jr.losses.margin)
    np.testing.assert_array_equal(hessian_of(f, x), 0)
    estimator = gradients.hessian_direction(3, method, 1e-3)
    value, found = direction(estimator, f, x)
    np.testing.assert_allclose(found, jax.grad(f)(x, KEY), rtol=1e-5)
    np.testing.assert_allclose(value, f(x, KEY), rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_flat_loss_moves_nothing(method):
    f = lambda x, key: 0.0 * jnp.sum(x)
    value, found = direction(gradients.hessian_direction(2, method), f, jnp.ones(3))
    assert float(value) == 0
    np.testing.assert_array_equal(found, 0)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", METHODS)
def test_through_convolutions_and_pooling_under_vmap_and_jit(method):
    """With strided max pooling, whose gradient scatters; each row as if alone."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.max_pool(nn.swish(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
            return nn.Dense(3)(nn.swish(nn.Conv(4, (3, 3))(x)).reshape(len(x), -1))

    x = jax.random.uniform(jax.random.key(1), (3, 6, 6, 1))
    variables = Net().init(KEY, x)
    f = lambda x, key: jr.losses.cross_entropy(Net().apply(variables, x[None])[0], jnp.array(2))
    estimator = gradients.hessian_direction(3, method, 1e-6)
    keys = jax.random.split(KEY, 3)
    _, found = jax.jit(jax.vmap(functools.partial(direction, estimator, f)))(x, keys)
    hessians = jax.jit(jax.vmap(jax.hessian(f), (0, None)))(x, KEY).reshape(3, 36, 36)
    slopes = jax.jit(jax.vmap(jax.grad(f), (0, None)))(x, KEY)
    for i in range(3):
        d = jax.random.normal(jax.random.split(keys[i])[0], x[i].shape, x.dtype).ravel()
        for _ in range(3):
            d = hessians[i] @ (d / jnp.linalg.norm(d))
        d = d * jnp.sign(jnp.vdot(d, slopes[i]))
        np.testing.assert_allclose(found[i].ravel(), d, rtol=1e-3, atol=1e-6)


def test_the_work_is_counted_and_nothing_is_retraced():
    for method, forwards in zip(METHODS, (1, 3), strict=True):
        estimator = gradients.hessian_direction(2, method)
        assert estimator is gradients.hessian_direction(2, method)
        logits_fn, _, x, y = problem(0)
        report = jr.evaluate(
            logits_fn, (x, y), ball=jr.Ball("l2", 0.3), key=KEY,
            attacks={"it": functools.partial(jr.attacks.pgd, num_steps=5, gradient=estimator)},
        )  # fmt: skip
        assert (report.attacks["it"].gradients, report.attacks["it"].forwards) == (15, 5 * forwards)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gradients.hessian_direction(0), "num_iters must be an integer of at least 1"),
        (lambda: gradients.hessian_direction(1, "lanczos"), "method must be one of jvp, finite_"),
        (lambda: gradients.hessian_direction(1, "jvp", 0.0), "xi must be positive"),
        (lambda: gradients.perturbed(float("nan")), "xi must be positive"),
    ],
)
def test_what_cannot_be_meant_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
