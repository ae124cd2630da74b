"""Differences of values against closed forms, and stand-ins for what has no derivative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrobust as jr
from jaxrobust import gradients

KEY = jax.random.key(0)
A = jnp.array([[2.0, 0.5, 0.0], [0.5, -1.0, 0.3], [0.0, 0.3, 0.7]])
B = jnp.array([1.0, -2.0, 0.5])


def quadratic(x, key):
    return x @ A @ x / 2 + B @ x


def slope(gradient, f, x, key=KEY):
    value, pullback = gradients.vjp(gradient(f), x, key)
    return pullback(jnp.ones_like(value))


@pytest.mark.parametrize("make", [gradients.spsa, gradients.nes])
def test_unbiased_on_a_quadratic_at_any_width(make):
    """The mean over many keys is `A x + b`, to six standard errors."""
    x = jnp.array([0.3, -0.7, 1.0])
    draws = jax.jit(jax.vmap(lambda key: slope(make(4, 0.5), quadratic, x, key)))(
        jax.random.split(KEY, 4000)
    )
    error = draws.std(0) / np.sqrt(len(draws))
    assert float(error.max()) < 0.06
    np.testing.assert_array_less(np.abs(draws.mean(0) - (A @ x + B)), 6 * error)


@pytest.mark.parametrize("make", [gradients.spsa, gradients.nes])
def test_on_a_linear_function_the_estimate_is_the_projection_of_the_gradient(make):
    """`mean v v' g` whatever the width, so `g` for many draws; and its value is exact."""
    plane = lambda x, key: B @ x
    x = jnp.array([0.3, -0.7, 1.0])
    near, far = (slope(make(3, width), plane, x) for width in (0.05, 5.0))
    np.testing.assert_allclose(near, far, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(make(3, 0.1)(plane)(x, KEY), B @ x, rtol=1e-5)
    np.testing.assert_allclose(slope(make(20_000, 1.0), plane, x), B, atol=0.1)


def test_spsa_of_one_pixel_is_the_central_difference():
    f = lambda x, key: jnp.sum(x**3)
    got = slope(gradients.spsa(2, 0.1), f, jnp.array([2.0]))
    np.testing.assert_allclose(got, [3 * 4 + 0.01], rtol=1e-4)


@pytest.mark.parametrize("make", [gradients.spsa, gradients.nes])
def test_a_vector_is_its_entries(make):
    """Outputs of any shape share the draws, so each has the derivative it has alone."""
    several = lambda x, key: (jnp.stack([quadratic(x, key), B @ x]), jnp.sum(x**2))
    x = jnp.array([0.3, -0.7, 1.0])
    (vector, square), pullback = gradients.vjp(make(5, 0.2)(several), x, KEY)
    assert (vector.shape, square.shape) == ((2,), ())
    got = pullback((jnp.array([1.0, 0.0]), jnp.array(2.0)))
    want = slope(make(5, 0.2), quadratic, x) + 2 * slope(
        make(5, 0.2), lambda x, key: jnp.sum(x**2), x
    )
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_both_sides_of_a_draw_see_the_same_randomness():
    noisy = lambda x, key: B @ x + 100 * jax.random.normal(key)
    x = jnp.array([0.3, -0.7, 1.0])
    quiet = slope(gradients.spsa(3, 0.5), lambda x, key: B @ x, x)
    np.testing.assert_allclose(slope(gradients.spsa(3, 0.5), noisy, x), quiet, atol=1e-3)


def quantised(x):
    """A model without a gradient: pixels in five steps, and a derivative that raises."""
    return jnp.stack([steps(x).sum((-1, -2)), x.shape[-1] ** 2 / 2 + 0 * x[:, 0, 0]], -1)


@jax.custom_jvp
def steps(x):
    return jnp.round(4 * x) / 4


@steps.defjvp
def _(primals, tangents):
    raise AssertionError("differentiated")


@pytest.mark.parametrize("gradient", [gradients.spsa(16, 0.1), gradients.nes(16, 0.1)])
def test_pgd_succeeds_where_nothing_can_be_differentiated(gradient):
    x, y = np.full((4, 4, 4), 0.65, np.float32), np.zeros(4, np.int32)
    attack = functools.partial(
        jr.attacks.pgd, num_steps=8, loss=jr.losses.margin, key=KEY, ball=jr.Ball("linf", 0.3)
    )
    x_adv = attack(quantised, x, y, gradient=gradient)
    assert (np.asarray(quantised(x_adv)).argmax(1) == 1).all()
    assert np.abs(np.asarray(x_adv) - x).max() <= 0.3 + 1e-6
    with pytest.raises(AssertionError, match="differentiated"):
        attack(quantised, x, y)


def test_deepfool_works_on_estimated_logits():
    model = lambda x: jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)
    f = gradients.spsa(4, 0.1)(lambda x, key: model(x[None])[0])
    _, pullback = gradients.vjp(f, jnp.full(3, 0.5), KEY)
    both = jax.vmap(pullback)(jnp.eye(2))
    np.testing.assert_allclose(both[0], -both[1], atol=1e-5)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("make", [gradients.spsa, gradients.nes])
def test_wrong_settings_are_refused(make):
    with pytest.raises(ValueError, match="n must be"):
        make(0)
    for wrong in (0.0, -1.0, np.inf, np.nan):
        with pytest.raises(ValueError, match="must be positive and finite"):
            make(3, wrong)
    assert make(3) is make(3)  # nothing is retraced


def test_bpda_has_the_value_of_one_and_the_derivative_of_the_other():
    through = gradients.bpda(jnp.round, jnp.sin)
    x = jnp.array([0.2, 1.7, -2.4])
    np.testing.assert_array_equal(through(x), jnp.round(x))
    np.testing.assert_allclose(jax.jit(jax.grad(lambda x: through(x).sum()))(x), jnp.cos(x))
    tangent = jnp.array([1.0, 2.0, -1.0])
    value, pushed = jax.jvp(jax.vmap(through), (x,), (tangent,))
    np.testing.assert_array_equal(value, jnp.round(x))
    np.testing.assert_allclose(pushed, tangent * jnp.cos(x), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(through))(x), jnp.cos(x), rtol=1e-6)


def test_bpda_keeps_the_value_where_the_stand_in_has_none():
    through = gradients.bpda(jnp.round, jnp.log)
    np.testing.assert_array_equal(jax.jit(through)(jnp.array([0.0, 0.7, 2.0])), [0, 1, 2])
    np.testing.assert_allclose(jax.grad(through)(2.0), 0.5)
    count = gradients.bpda(lambda x: jnp.round(x).astype(int))
    assert jax.value_and_grad(lambda x: 2 * count(x))(1.6) == (4.0, 2.0)


def test_bpda_lets_gradients_through_a_quantiser():
    weights = jnp.array([1.0, -2.0, 0.5])
    model = lambda part: lambda x: jnp.stack([part(x) @ weights, 0.2 + 0 * x[:, 0]], -1)
    blind = model(lambda x: jnp.round(4 * x) / 4)
    seeing = model(gradients.bpda(lambda x: jnp.round(4 * x) / 4))
    x, y = np.full((2, 3), 0.5, np.float32) * np.array([1, 0.2, 1], np.float32), np.zeros(2, int)
    attack = functools.partial(
        jr.attacks.pgd, key=KEY, ball=jr.Ball("linf", 0.3), num_steps=10, random_start=False
    )
    np.testing.assert_array_equal(attack(blind, x, y), x)
    x_adv = attack(seeing, x, y)
    np.testing.assert_allclose(x_adv, x - 0.3 * np.sign(weights), atol=1e-6)
    assert (np.asarray(blind(x_adv)).argmax(1) == 1).all()


def test_bpda_takes_weights_and_functions_of_the_host():
    """Weights behind the forward part are trained; a NumPy function needs no derivative."""

    def doubled(x):
        return jax.pure_callback(lambda x: 2 * np.asarray(x), jax.ShapeDtypeStruct((), x.dtype), x)

    assert float(jax.grad(gradients.bpda(doubled))(3.0)) == 1.0
    scaled = lambda w, x: gradients.bpda(lambda x: w * jnp.round(x))(x)
    assert float(jax.jit(jax.grad(scaled))(5.0, 1.8)) == 2.0
    assert float(jax.grad(scaled, 1)(5.0, 1.8)) == 1.0


@pytest.mark.usefixtures("untyped")
def test_bpda_refuses_another_shape():
    with pytest.raises(ValueError, match=r"backward must return .* \(3,\); got \(\)"):
        gradients.bpda(lambda x: x, jnp.sum)(jnp.ones(3))


@pytest.mark.usefixtures("untyped")
def test_bpda_is_no_gradient_of_an_attack():
    def model(x):
        return jnp.stack([x.sum(-1), 1 - x.sum(-1)], -1)

    x, y = jnp.full((1, 2), 0.6), jnp.array([0])
    for gradient in (gradients.bpda, gradients.bpda(jnp.round)):
        with pytest.raises(ValueError, match="must be put into the model"):
            jr.attacks.pgd(
                model, x, y, key=jax.random.key(0), ball=jr.Ball("linf", 0.1), gradient=gradient
            )
