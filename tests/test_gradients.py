"""Gradient estimators against closed forms, and the convolution rewrite against the original."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

import jaxrobust as jr
from jaxrobust import gradients

KEY = jax.random.key(0)


def conv_loss(strides=(1, 1), padding="SAME", groups=1):
    module = nn.Conv(6, (3, 3), strides=strides, padding=padding, feature_group_count=groups)
    x = jax.random.normal(jax.random.key(1), (2, 9, 8, 2))
    variables = module.init(jax.random.key(2), x)

    def loss(variables, x):
        return jnp.sum(jnp.sin(module.apply(variables, x)))

    return loss, variables, x


@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("wrt", [0, 1])
def test_canonical_changes_no_value(strides, padding, groups, wrt):
    loss, variables, x = conv_loss(strides, padding, groups)
    derivative = jax.grad(loss, wrt)
    for got, want in zip(
        jax.tree.leaves(jax.jit(gradients.canonical(derivative))(variables, x)),
        jax.tree.leaves(jax.jit(derivative)(variables, x)),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_canonical_rewrites_every_convolution_it_can_see():
    loss, variables, x = conv_loss()
    derivative = jax.jit(jax.grad(loss, 1))
    numbers = {
        tuple(eqn.params["dimension_numbers"])
        for eqn in jax.make_jaxpr(gradients.canonical(derivative))(variables, x).jaxpr.eqns
        if eqn.primitive.name == "conv_general_dilated"
    }
    assert numbers == {((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))}


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (3, 2)])
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((4, 0), (1, 3))])
@pytest.mark.parametrize("window", [(5, 5), (2, 3)])
def test_canonical_needs_no_convolution_where_an_image_has_few_channels(window, padding, strides):
    """Neither forwards, with products of windows, nor back, with sums of shifted products."""
    module = nn.Conv(8, window, strides, padding=padding)
    x = jax.random.normal(jax.random.key(1), (2, 9, 8, 3))
    variables = module.init(jax.random.key(2), x)
    derivative = jax.grad(lambda x: jnp.sum(jnp.sin(module.apply(variables, x))))
    rewritten = gradients.canonical(derivative)
    np.testing.assert_allclose(jax.jit(rewritten)(x), jax.jit(derivative)(x), rtol=1e-4, atol=1e-5)
    names = [eqn.primitive.name for eqn in jax.make_jaxpr(rewritten)(x).jaxpr.eqns]
    assert names.count("conv_general_dilated") == 0
    assert names.count("dot_general") == 2


def test_canonical_composes():
    """With custom_vjp, custom_jvp, scan, cond, remat, jit and jvp of grad."""
    loss, variables, x = conv_loss()

    @jax.custom_vjp
    def halved(x):
        return x / 2

    halved.defvjp(lambda x: (x / 2, None), lambda _, g: (g / 2,))

    def composed(x):
        x = halved(jax.nn.relu(x))
        x, _ = jax.lax.scan(lambda c, _: (jnp.tanh(c), None), x, None, length=2)
        x = jax.lax.cond(x[0, 0, 0, 0] > 0, jnp.sin, jnp.cos, x)
        return jax.checkpoint(jax.jit(loss))(variables, x)

    gradient = jax.grad(composed)
    rewritten = gradients.canonical(gradient)
    np.testing.assert_allclose(rewritten(x), gradient(x), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(jax.jit(rewritten)(x), gradient(x), rtol=1e-4, atol=1e-6)
    tangent = jnp.ones_like(x)
    got = jax.jvp(rewritten, (x,), (tangent,))[1]
    want = jax.jvp(gradient, (x,), (tangent,))[1]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)


def test_vjp_is_jax_vjp():
    f = lambda x, key: jnp.stack([jnp.sum(x**2), jnp.sum(jnp.sin(x))])
    x = jnp.arange(3.0)
    out, pullback = gradients.vjp(f, x, KEY)
    expected, reference = jax.vjp(lambda x: f(x, KEY), x)
    np.testing.assert_allclose(out, expected)
    cotangent = jnp.array([0.5, -2.0])
    np.testing.assert_allclose(pullback(cotangent), reference(cotangent)[0], rtol=1e-6)


def test_eot_is_the_mean_over_its_keys():
    f = lambda x, key: jnp.sum(x * jax.random.normal(key, x.shape))
    x = jnp.ones(4)
    draws = jnp.stack([f(x, k) for k in jax.random.split(KEY, 5)])
    value, pullback = gradients.vjp(gradients.eot(5)(f), x, KEY)
    np.testing.assert_allclose(value, draws.mean(), rtol=1e-6)
    noise = jnp.stack([jax.random.normal(k, x.shape) for k in jax.random.split(KEY, 5)])
    np.testing.assert_allclose(pullback(jnp.ones(())), noise.mean(0), rtol=1e-6)


def test_smoothed_gradient_of_a_square():
    """E |x + d|^2 = |x|^2 + n sigma^2, and its gradient is 2x."""
    x = jnp.array([0.3, -0.7, 1.0])
    f = gradients.smoothed(0.5, 20_000)(lambda x, key: jnp.sum(x**2))
    value, pullback = gradients.vjp(f, x, KEY)
    np.testing.assert_allclose(value, jnp.sum(x**2) + 3 * 0.25, rtol=0.02)
    np.testing.assert_allclose(pullback(jnp.ones(())), 2 * x, atol=0.03)


@pytest.mark.parametrize("estimator", [gradients.eot(5), gradients.smoothed(0.3, 5)])
def test_a_loss_and_a_vector_of_one_have_the_same_mean(estimator):
    """One after another or all at once: the same draws, the same value, the same derivative."""

    def loss(x, key):
        return jnp.sum(jnp.sin(x * jax.random.normal(key, x.shape)))

    x = jnp.linspace(-1, 1, 4)
    one = estimator(loss)
    many = lambda x, key: estimator(lambda x, key: loss(x, key)[None])(x, key)[0]
    for f in (lambda g: jax.jit(g)(x, KEY), lambda g: jax.jit(jax.grad(g))(x, KEY)):
        np.testing.assert_allclose(f(one), f(many), rtol=1e-5, atol=1e-6)
    keys = jax.random.split(KEY, 3)
    rows = jax.jit(jax.vmap(jax.grad(one)))(jnp.tile(x, (3, 1)), keys)
    alone = jax.jit(jax.grad(many))(x, keys[1])
    np.testing.assert_allclose(rows[1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "estimator,derivative",
    [
        (gradients.eot(3), jax.grad),  # in the weights, which the loss closes over
        (gradients.eot(3), lambda f: jax.hessian(f, 1)),
        (
            gradients.smoothed(0.3, 3),
            lambda f: jax.grad(lambda w, x, y: jnp.sum(jax.grad(f, 1)(w, x, y) ** 2)),
        ),
        (gradients.eot(3), lambda f: jax.jacrev(jax.jacfwd(f))),
    ],
    ids=["weights", "hessian", "weights of a gradient", "forward, then reverse"],
)
def test_a_mean_loss_has_every_derivative(estimator, derivative):
    def mean(gradient):
        def loss(weights, x, y):
            noise = lambda key: 0.1 * jax.random.normal(key, (3,))
            f = lambda x, key: jax.nn.softplus(x @ weights + noise(key))[y] ** 2
            return gradient(f)(x, KEY)

        return jax.jit(jax.vmap(derivative(loss), (None, 0, 0)))(weights, x, jnp.arange(3))

    weights = jax.random.normal(jax.random.key(1), (5, 3))
    x = jax.random.normal(jax.random.key(2), (3, 5))
    # A vector of one goes the plain way: a vmap and a mean.
    plain = lambda f: lambda x, key: estimator(lambda *at: f(*at)[None])(x, key)[0]
    np.testing.assert_allclose(mean(estimator), mean(plain), rtol=1e-4, atol=1e-5)


def through_checkpoint(f):
    return lambda x, y, key: jax.grad(jax.checkpoint(f))(x, y, key)


def through_scan(f):
    def loss(x, y, key):
        add = lambda total, at: (total + f(x, *at), None)
        keys = jax.random.split(key, 2)
        return jax.lax.scan(add, jnp.zeros_like(x[0]), (jnp.stack([y, 0 * y]), keys))[0]

    return jax.grad(loss)


@pytest.mark.parametrize(
    "derivative",
    [
        lambda f: jax.grad(jax.jit(f)),
        lambda f: jax.hessian(jax.jit(f)),
        through_checkpoint,
        through_scan,
    ],
    ids=["grad(jit)", "hessian(jit)", "checkpoint", "scan"],
)
def test_a_mean_loss_is_differentiated_after_its_trace(derivative):
    """Labels, keys and indices that it closes over belong to a trace that has ended by then."""
    weights = jax.random.normal(jax.random.key(1), (5, 3))

    def of(wrap):
        def loss(x, y, key):
            inner = jax.random.fold_in(key, y)
            noise = lambda k: 0.1 * jax.random.normal(k, (3,)) + jax.random.normal(inner, (3,))
            f = lambda x, k: jnp.tanh(x @ weights + noise(k))[y] ** 2
            return wrap(f)(x, key)

        return derivative(loss)

    plain = lambda f: lambda x, key: gradients.eot(3)(lambda *at: f(*at)[None])(x, key)[0]
    at = (jnp.linspace(-1, 1, 5), jnp.array(1), jax.random.key(4))
    np.testing.assert_allclose(of(gradients.eot(3))(*at), of(plain)(*at), rtol=1e-4, atol=1e-5)


def test_a_mean_loss_keeps_precision_and_dtypes():
    many = gradients.eot(1000)
    value, slope = jax.value_and_grad(many(lambda x, key: x[0]))(jnp.ones(1, jnp.bfloat16), KEY)
    assert value.dtype == slope.dtype == jnp.bfloat16
    assert float(value) == float(slope[0]) == 1
    in_float32 = lambda x, key: jnp.sum(x.astype(jnp.float32)) / 3
    value, slope = jax.value_and_grad(many(in_float32))(jnp.ones(1, jnp.bfloat16), KEY)
    assert (value.dtype, slope.dtype) == (jnp.float32, jnp.bfloat16)
    assert abs(float(value) - 1 / 3) < 1e-6


@pytest.mark.parametrize("check_vma", [True, False])
def test_draws_of_a_mean_loss_split_over_devices(check_vma):
    """The same image and weights everywhere, a key on each device."""
    keys = jax.random.split(KEY, len(jax.devices()))
    mesh = Mesh(np.array(jax.devices()), ("draws",))

    def derivatives(gradient):
        def on_one(weights, x, key):
            def loss(weights, x):
                noisy = lambda x, k: jnp.sum(jnp.sin(weights * x + jax.random.normal(k, x.shape)))
                return gradient(noisy)(x, key)

            return jax.jvp(loss, (weights, x), (jnp.cos(weights), jnp.sin(x)))[1]

        each = lambda weights, x, keys: on_one(weights, x, keys[0])[None]
        spec = (PartitionSpec(), PartitionSpec(), PartitionSpec("draws"))
        spread = jax.shard_map(
            each, mesh=mesh, in_specs=spec, out_specs=PartitionSpec("draws"), check_vma=check_vma
        )
        weights, x = jnp.linspace(0, 1, 4), jnp.linspace(1, 2, 4)
        one = jax.jit(on_one)
        alone = jnp.stack([one(weights, x, key) for key in keys])
        return jax.jit(spread)(weights, x, keys), alone

    spread, alone = derivatives(gradients.eot(3))
    np.testing.assert_allclose(spread, alone, rtol=1e-5)


@pytest.mark.parametrize("fresh", [True, False])
def test_fresh_noise_changes_from_step_to_step_and_shared_noise_does_not(fresh):
    estimator = gradients.smoothed(1.0, 1, fresh=fresh)
    seen = [
        float(estimator(lambda x, key: x[0])(jnp.zeros(1), gradients.step_key(estimator, KEY, t)))
        for t in range(3)
    ]
    assert (len(set(seen)) == 3) is fresh


def test_shared_noise_reaches_the_search():
    """With a linear loss and one shared draw, every step sees the same gradient of the noise."""
    model = lambda x: jnp.stack([jnp.sin(9 * x).sum(-1), jnp.zeros(x.shape[0])], -1)
    x, y = np.full((1, 2), 0.5, np.float32), np.array([1])
    ball = jr.Ball("linf", 1e-7)  # the image stands still, so only the noise can move the loss
    for fresh in (True, False):
        estimator = gradients.smoothed(0.3, 1, fresh=fresh)
        _, trace = jr.attacks.pgd_trace(
            model, x, y, key=KEY, ball=ball, num_steps=4, gradient=estimator
        )
        spread = float(jnp.std(trace.loss))
        assert (spread > 1e-3) is fresh


@pytest.mark.parametrize("make", [lambda: gradients.eot(0), lambda: gradients.smoothed(-1.0, 2),
                                  lambda: gradients.smoothed(0.1, 0)])  # fmt: skip
def test_wrong_counts_are_refused(make):
    with pytest.raises(ValueError, match="must be"):
        make()
