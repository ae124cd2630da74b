"""What holds of every training method: schedules, gradients, and runs that go on."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrobust as jr
from jaxrobust import attacks, objectives
from jaxrobust.types import Batch

KEY = jax.random.key(0)
SHAPE = (8, 6)
FEW = functools.partial(attacks.pgd, num_steps=2)
SEARCH = functools.partial(attacks.adaptive_norm_pgd, num_steps=3, search="soft_margin")


def stem(params, x):
    return jnp.tanh(x @ params["w"])


def trunk(params, model_state, hidden):
    return hidden @ params["v"], model_state


def forward(params, model_state, x):
    return trunk(params, model_state, stem(params, x))


def linf(eps):
    return jr.Ball("linf", eps)


def moved_up(logits_fn, x, y, *, key, ball, loss=None, start=None):
    """An attack whose images do not depend on the weights."""
    return x + ball.eps


METHODS = {
    "cross_entropy": (
        lambda temperature: objectives.cross_entropy(forward, temperature=temperature),
        {"temperature": 2.0},
    ),
    "madry": (lambda eps: objectives.madry(forward, FEW, ball=linf(eps)), {"eps": 0.1}),
    "smoothed": (
        lambda eps, share: objectives.madry(
            forward, FEW, ball=linf(eps), labels=objectives.smoothed_labels(share)
        ),
        {"eps": 0.1, "share": 0.5},
    ),
    "bilateral": (
        lambda eps, beta, gamma: objectives.bilateral(
            forward, attacks.most_confusing(FEW), ball=linf(eps), beta=beta, gamma=gamma
        ),
        {"eps": 0.1, "beta": 9.0, "gamma": 0.01},
    ),
    "trades": (
        lambda eps, beta, sigma: objectives.trades(
            forward, FEW, ball=linf(eps), beta=beta, sigma=sigma
        ),
        {"eps": 0.1, "beta": 3.0, "sigma": 0.001},
    ),
    "mma": (
        lambda d_max, eps_min, clean_weight: objectives.mma(
            forward, SEARCH, num_examples=32, eps_min=eps_min, d_max=d_max,
            clean_weight=clean_weight,
        ),
        {"d_max": 0.3, "eps_min": 0.05, "clean_weight": 0.3},
    ),
    "yopo": (
        lambda eps, step_size: objectives.yopo(
            stem, trunk, 2, 3, ball=linf(eps), step_size=step_size
        ),
        {"eps": 0.1, "step_size": 0.03},
    ),
    "free": (
        lambda eps, step_size: objectives.free(
            forward, ball=linf(eps), shape=SHAPE, step_size=step_size
        ),
        {"eps": 0.1, "step_size": 0.05},
    ),
    "jacobian": (lambda weight: objectives.jacobian(forward, weight=weight), {"weight": 0.1}),
    "input_gradient": (
        lambda weight: objectives.input_gradient(forward, weight=weight), {"weight": 2.0},
    ),
    "cross_lipschitz": (
        lambda weight: objectives.cross_lipschitz(forward, weight=weight), {"weight": 0.1},
    ),
    "scale": (
        lambda weight: objectives.scale(weight, objectives.cross_entropy(forward)),
        {"weight": 0.5},
    ),
}  # fmt: skip
"""Each with the numbers that may follow a schedule."""


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(6, 5)), "v": rng.normal(size=(5, 4))}
    return jax.tree.map(lambda w: jnp.array(w, jnp.float32), weights)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(32, *SHAPE[1:])).astype(np.float32)
    return x, rng.integers(0, 4, 32).astype(np.int32)


@pytest.fixture(scope="module")
def batch(data):
    x, y = data
    return Batch(jnp.asarray(x[:8]), jnp.asarray(y[:8]), jnp.arange(8))


def step_of(objective, params, batch):
    state = objective.init(params, KEY)
    return objective.value_and_grad(params, {}, state, batch, key=KEY)


def close(left, right, **tolerance):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, **tolerance)


@pytest.mark.parametrize("method", METHODS)
def test_every_number_may_follow_a_schedule(method, params, batch):
    make, numbers = METHODS[method]
    moving = objectives.scheduled(
        make, **{name: optax.linear_schedule(2 * v, v, 4) for name, v in numbers.items()}
    )
    state = moving.init(params, KEY)._replace(step=jnp.array(4))
    step = jax.jit(lambda state: moving.value_and_grad(params, {}, state, batch, key=KEY))
    out, grads = step(state)
    fixed = make(**numbers)
    start = fixed.init(params, KEY)
    if method == "mma":  # whose state began with the radius of step 0
        start = start._replace(radius=2 * start.radius)
    want, want_grads = jax.jit(
        lambda state: fixed.value_and_grad(params, {}, state, batch, key=KEY)
    )(start)
    close((out.loss, grads), (want.loss, want_grads), rtol=1e-4, atol=1e-6)
    for name, value in numbers.items():
        np.testing.assert_allclose(out.metrics[name], value, rtol=1e-6)


@pytest.mark.parametrize("method", ["free", "mma", "trades", "yopo"])
def test_a_sum_is_that_of_its_members_and_keeps_their_states(method, params, batch):
    make, numbers = METHODS[method]
    members = [make(**numbers), objectives.jacobian(forward, weight=0.5, num_projections=None)]
    both = objectives.add(*members)
    state = both.init(params, KEY)
    out, grads = both.value_and_grad(params, {}, state, batch, key=KEY)
    alone = [
        one.value_and_grad(params, {}, state[i], batch, key=jax.random.fold_in(KEY, i))
        for i, one in enumerate(members)
    ]
    close(out.loss, sum(one.loss for one, _ in alone), rtol=1e-5)
    close(grads, jax.tree.map(jnp.add, *(slope for _, slope in alone)), rtol=1e-4, atol=1e-6)
    close(out.state, tuple(one.state for one, _ in alone), rtol=1e-6)
    assert {"jacobian", *alone[0][0].metrics} == set(out.metrics)


@pytest.mark.parametrize("method", METHODS)
def test_a_training_that_stopped_goes_on_to_the_same_bits(method, params, data, tmp_path):
    make, numbers = METHODS[method]
    moving = objectives.scheduled(
        make, **{name: optax.linear_schedule(v / 2, v, 8) for name, v in numbers.items()}
    )
    options = {
        "params": params, "optimizer": optax.sgd(0.1, momentum=0.9), "data": data, "key": KEY,
        "batch_size": 8,
    }  # fmt: skip
    straight = jr.train.fit(moving, num_epochs=2, **options)
    jr.train.fit(moving, num_epochs=1, directory=tmp_path, **options)
    resumed = jr.train.fit(moving, num_epochs=2, directory=tmp_path, resume=True, **options)
    for one, other in zip(*map(jax.tree.leaves, (straight[:3], resumed[:3])), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(straight.params["w"], params["w"])


FIXED = {
    "cross_entropy": METHODS["cross_entropy"][0](2.0),
    "madry": objectives.madry(forward, moved_up, ball=linf(0.1)),
    "smoothed": objectives.madry(
        forward, moved_up, ball=linf(0.1), labels=objectives.smoothed_labels(0.3)
    ),
    "trades": objectives.trades(forward, moved_up, ball=linf(0.1), beta=3.0),
    "yopo": objectives.yopo(stem, trunk, 3, 2, ball=linf(0.1), step_size=0.02),
    "free": objectives.free(forward, ball=linf(0.1), shape=SHAPE),
    "jacobian": objectives.jacobian(forward, weight=0.1),
    "one projection": objectives.jacobian(forward, weight=0.1, num_projections=1),
    "input_gradient": objectives.input_gradient(forward, weight=2.0),
    "cross_lipschitz": objectives.cross_lipschitz(forward, weight=0.1),
    "sum": objectives.add(
        objectives.cross_entropy(forward),
        objectives.scale(0.5, objectives.madry(forward, moved_up, ball=linf(0.1))),
        objectives.input_gradient(forward, weight=1.0),
    ),
}
"""Methods whose attacked images are no function of the weights, so that the loss is what falls."""


@pytest.mark.parametrize("method", FIXED)
def test_gradients_are_finite_differences(method, params, batch):
    """Along a random direction, central differences in float64."""
    wide = lambda tree: jax.tree.map(
        lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
    )
    objective = FIXED[method]
    with jax.enable_x64(True):
        params, batch = wide(params), wide(batch)
        rng = np.random.default_rng(2)
        way = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)

        @jax.jit
        def at(t):
            moved = jax.tree.map(lambda p, d: p + t * d, params, way)
            out, grads = step_of(objective, moved, batch)
            slopes = jax.tree.map(jnp.vdot, grads, way)
            return out.loss, sum(jax.tree.leaves(slopes))

        (high, _), (low, _), (_, slope) = at(1e-5), at(-1e-5), at(0.0)
        np.testing.assert_allclose((high - low) / 2e-5, slope, rtol=1e-6)


def test_a_failure_is_told_with_the_name_of_its_method(params, data):
    """Of all it is made of; the labels are of classes that the model has not."""
    x, y = data
    sums = objectives.add(
        objectives.scale(0.5, objectives.trades(forward, FEW, ball=linf(0.1))),
        objectives.scheduled(METHODS["bilateral"][0], **dict.fromkeys(
            ("eps", "beta", "gamma"), optax.constant_schedule(0.1))),
        objectives.jacobian(forward, weight=0.1),
    )  # fmt: skip
    with pytest.raises(FloatingPointError, match="trades \\+ bilateral, scheduled \\+ jacobian;"):
        jr.train.fit(sums, params, optax.sgd(0.1), (x, y + 4), key=KEY, num_epochs=1, batch_size=8)
    for method in ("input_gradient", "smoothed", "bilateral"):
        make, numbers = METHODS[method]
        batch = Batch(jnp.asarray(x[:8]), jnp.asarray(y[:8] + 4), jnp.arange(8))
        out, _ = jax.jit(functools.partial(step_of, make(**numbers)))(params, batch)
        assert np.isnan(out.loss)


@pytest.mark.usefixtures("untyped")
def test_what_is_no_forward_function_is_told():
    """A Flax module's bare `apply`, nothing at all, a function of the images alone."""
    module, pgd, ball = jr.models.mlp((3,)), jr.attacks.pgd, jr.Ball("linf", 0.1)
    made = "forward must be a function of (params, model_state, x), which objectives.from_module"
    x, y = np.full((4, 2, 2, 1), 0.5, np.float32), np.zeros(4, int)
    params = module.init(jax.random.key(0), x)["params"]
    for forward in (module.apply, None, lambda x: x):
        with pytest.raises(ValueError, match=re.escape(made)):
            jr.objectives.cross_entropy(forward)
        adversarial = jr.objectives.madry(forward, pgd, ball=ball)
        with pytest.raises(ValueError, match=re.escape(made)):
            jr.train.fit(
                adversarial, params, optax.sgd(0.1), (x, y), key=jax.random.key(0), num_epochs=1,
                batch_size=4,
            )  # fmt: skip
    with pytest.raises(ValueError, match=r"eps must be an optax schedule.* got 0.1"):
        jr.objectives.scheduled(lambda eps: None, eps=0.1)
