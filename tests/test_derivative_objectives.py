"""Regularisers of the input's derivative, against Jacobians that are written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrobust as jr
from jaxrobust import objectives
from jaxrobust.types import Batch

KEY = jax.random.key(0)
CLASSES = 4


def forward(params, model_state, x):
    hidden = jnp.tanh(x.reshape(len(x), -1) @ params["w"])
    return hidden @ params["v"], {name: value + 1 for name, value in model_state.items()}


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(6, 5)), "v": rng.normal(size=(5, CLASSES))}
    x = jnp.asarray(rng.uniform(size=(7, 3, 2)), jnp.float32)
    batch = Batch(x, jnp.asarray(rng.integers(0, CLASSES, 7)), jnp.arange(7))
    return jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), params), batch


def evaluate(objective, params, batch, key=KEY, model_state=None):
    @jax.jit
    def step(params, key):
        return objective.value_and_grad(params, model_state or {}, (), batch, key=key)

    return step(params, key)


def close(left, right, rtol=1e-4):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5)


def jacobians(params, x):
    """`(batch, classes, inputs)`."""
    one = lambda x: forward(params, {}, x[None])[0][0]
    return jax.vmap(jax.jacfwd(one))(x).reshape(len(x), CLASSES, -1)


def half_frobenius(params, batch):
    return jnp.sum(jacobians(params, batch.x) ** 2) / (2 * len(batch.x))


def all_pairs(params, batch):
    rows = jacobians(params, batch.x)
    pairs = [jnp.sum((rows[:, i] - rows[:, j]) ** 2) for i in range(4) for j in range(4)]
    return sum(pairs) / (len(batch.x) * CLASSES**2)


def ross(params, batch):
    """Lambda / 2 times the squared derivative of the mean loss, for lambda = 2 x batch."""

    def mean_loss(x):
        logits = forward(params, {}, x)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.y).mean()

    return len(batch.x) * jnp.sum(jax.grad(mean_loss)(batch.x) ** 2)


EXACT = {
    "jacobian": (
        lambda f, **kw: objectives.jacobian(f, num_projections=None, **kw),
        half_frobenius,
    ),
    "cross_lipschitz": (objectives.cross_lipschitz, all_pairs),
    "input_gradient": (objectives.input_gradient, ross),
}
exact = pytest.mark.parametrize("name", EXACT)


@exact
def test_the_formula_written_out_and_its_gradient(name, case):
    make, formula = EXACT[name]
    value, slope = jax.value_and_grad(formula)(*case)
    out, grads = evaluate(make(forward, weight=0.3), *case)
    close((out.loss, grads), jax.tree.map(lambda leaf: 0.3 * leaf, (value, slope)))
    close(out.metrics, {name: value})


@exact
def test_a_model_without_a_forward_mode_has_the_same_gradient(name, case):
    own = jax.custom_vjp(jnp.tanh)
    own.defvjp(lambda z: (jnp.tanh(z), z), lambda z, g: (g * (1 - jnp.tanh(z) ** 2),))
    models = [lambda params, s, x, f=f: (forward(params, s, f(x))[0], s) for f in (jnp.tanh, own)]
    plain, reverse = (evaluate(EXACT[name][0](model, weight=0.3), *case) for model in models)
    close(reverse, plain)


@exact
def test_a_member_of_a_sum_leaves_the_models_state_alone(name, case):
    params, batch = case
    clean = objectives.cross_entropy(forward)
    member = EXACT[name][0](forward, weight=2.0)
    both = objectives.add(clean, member)
    state = {"calls": jnp.array(0)}
    out, grads = both.value_and_grad(params, state, both.init(params, KEY), batch, key=KEY)
    alone = [evaluate(one, params, batch, model_state=state) for one in (clean, member)]
    close(out.loss, sum(one.loss for one, _ in alone))
    close(grads, jax.tree.map(jnp.add, alone[0][1], alone[1][1]))
    assert int(out.model_state["calls"]) == 1
    assert set(out.metrics) == {"accuracy", name}


def test_published_weights_are_the_defaults(case):
    factor = {"jacobian": 0.01, "cross_lipschitz": 0.1, "input_gradient": 110.0}
    for name, (make, formula) in EXACT.items():
        close(evaluate(make(forward), *case)[0].loss, factor[name] * formula(*case))


def linear(params, model_state, x):
    return x.reshape(len(x), -1) @ params, model_state


def test_projections_of_a_linear_model(case):
    """Exact with as many as classes; with any number where the logits' slopes are orthonormal."""
    _, batch = case
    kernel = jnp.asarray(np.random.default_rng(1).normal(size=(6, CLASSES)), jnp.float32)
    value = lambda kernel, n, key=KEY: evaluate(
        objectives.jacobian(linear, weight=1.0, num_projections=n), kernel, batch, key
    )
    frobenius = float(jnp.sum(kernel**2) / 2)
    for n in (None, CLASSES):
        out, grads = value(kernel, n)
        close((out.loss, grads), (frobenius, kernel))
    assert float(value(kernel, 1)[0].loss) != pytest.approx(frobenius, rel=1e-3)
    orthonormal = 3 * jnp.linalg.qr(kernel)[0]
    for n in (1, 2):
        close(value(orthonormal, n)[0].loss, 9 * CLASSES / 2)


@pytest.mark.parametrize("n", [1, 2])
def test_projections_are_unbiased(case, n):
    """Within four standard errors of the exact norm; fewer than classes vary, more vary less."""
    params, batch = case
    objective = objectives.jacobian(forward, weight=1.0, num_projections=n)

    @jax.jit
    @jax.vmap
    def draw(key):
        out, grads = objective.value_and_grad(params, {}, (), batch, key=key)
        return out.loss, grads["v"].sum()

    draws = jax.random.split(KEY, 2000)
    values, slopes = draw(draws)
    expected, grads = jax.value_and_grad(half_frobenius)(params, batch)
    for drawn, mean in ((values, expected), (slopes, grads["v"].sum())):
        error = float(drawn.std()) / np.sqrt(len(draws))
        assert 0 < error < 0.02 * abs(float(mean))
        assert abs(float(drawn.mean() - mean)) < 4 * error


def test_convolutions_and_one_key_one_draw():
    model = jr.models.small_cnn(3)
    forward = objectives.from_module(model.apply)
    x = jax.random.uniform(KEY, (2, 4, 4, 1))
    batch = Batch(x, jnp.array([0, 2]), jnp.arange(2))
    params = model.init(jax.random.key(1), x)["params"]

    def formula(params):
        rows = jax.vmap(jax.jacrev(lambda x: forward(params, {}, x[None])[0][0]))(x)
        return jnp.sum(rows**2) / (2 * len(x))

    out, grads = evaluate(
        objectives.jacobian(forward, weight=1.0, num_projections=None), params, batch
    )
    close((out.loss, grads), jax.value_and_grad(formula)(params), rtol=1e-3)
    draws = [evaluate(objectives.jacobian(forward), params, batch, jax.random.key(k))[0].loss
             for k in (1, 1, 2)]  # fmt: skip
    assert float(draws[0]) == float(draws[1]) != float(draws[2])


def test_no_jacobian_is_kept():
    """Twenty times as many classes take little more memory than their weights do."""

    def temporary(classes):
        model = lambda w, s, x: (jnp.tanh(x.reshape(len(x), -1) @ w), s)
        objective = objectives.jacobian(model, num_projections=None)
        x = jax.ShapeDtypeStruct((64, 1000), "float32")
        y = jax.ShapeDtypeStruct((64,), "int32")

        def step(w, x, y):
            return objective.value_and_grad(w, {}, (), Batch(x, y, y), key=KEY)

        w = jax.ShapeDtypeStruct((1000, classes), "float32")
        used = jax.jit(step).lower(w, x, y).compile().memory_analysis()
        return used.temp_size_in_bytes - 4 * 4 * 1000 * classes

    of_a_class = 4 * 64 * 1000  # one gradient of each image
    assert temporary(40) - temporary(2) < of_a_class


@pytest.mark.usefixtures("untyped")
def test_what_cannot_be_meant_is_refused(case):
    for make in (objectives.jacobian, objectives.cross_lipschitz, objectives.input_gradient):
        with pytest.raises(ValueError, match="weight must be"):
            make(forward, weight=-1.0)
    with pytest.raises(ValueError, match="num_projections must be an integer of at least 1"):
        objectives.jacobian(forward, num_projections=0)
    with pytest.raises(ValueError, match="num_projections must be at most the 4 classes"):
        evaluate(objectives.jacobian(forward, num_projections=5), *case)
