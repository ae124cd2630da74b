"""YOPO against PGD, against the Hamiltonian by hand, and models in two parts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrobust as jr
from jaxrobust import objectives
from jaxrobust.types import Batch

KEY = jax.random.key(3)
BALL = jr.Ball("linf", 0.2)


def stem(params, x):
    return jnp.tanh(x @ params["w"])


def trunk(params, model_state, hidden):
    return jnp.tanh(hidden @ params["u"]) @ params["v"], model_state


def forward(params, model_state, x):
    return trunk(params, model_state, stem(params, x))


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    shapes = {"w": (6, 5), "u": (5, 7), "v": (7, 3)}
    params = {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}
    x = jnp.asarray(rng.uniform(size=(8, 6)), jnp.float32)
    return params, Batch(x, jnp.asarray(rng.integers(0, 3, 8)), jnp.arange(8))


def evaluate(objective, params, batch, model_state=None):
    @jax.jit
    def step(params, batch):
        state = objective.init(params, KEY)
        return objective.value_and_grad(params, model_state or {}, state, batch, key=KEY)

    return step(params, batch)


def close(left, right, **tolerance):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


@pytest.mark.parametrize("ball", [BALL, jr.Ball("l2", 0.5)], ids=["linf", "l2"])
def test_with_one_step_a_pass_the_images_are_those_of_pgd(case, ball):
    """Loss and gradients are the means over PGD after 1 to m steps, same start and step size."""
    params, batch = case
    m, size = 4, 0.3 * float(ball.eps)
    out, grads = evaluate(
        objectives.yopo(stem, trunk, m, 1, ball=ball, step_size=size), params, batch
    )
    losses, slopes = [], []
    for k in range(1, m + 1):
        pgd = functools.partial(jr.attacks.pgd, num_steps=k, step_size=size)
        after, slope = evaluate(objectives.madry(forward, pgd, ball=ball), params, batch)
        losses.append(after.loss)
        slopes.append(slope)
    close(out.loss, sum(losses) / m)
    close(grads, jax.tree.map(lambda *g: sum(g) / m, *slopes))
    close(out.metrics["adversarial_accuracy"], after.metrics["adversarial_accuracy"])


def cross_entropy(params, x, y):
    logits = forward(params, {}, x)[0]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def by_hand(params, batch, m, n, size):
    """Images before and after each n steps, and the costates between, by the Hamiltonian."""
    split = lambda k: jax.random.split(jax.random.fold_in(k, 0))[0]
    keys = [split(jax.random.fold_in(KEY, i)) for i in range(len(batch.x))]
    eta = jnp.stack([BALL.sample(x, k) for x, k in zip(batch.x, keys, strict=True)]) - batch.x
    before, costates, after = [], [], []
    rest = lambda h: optax.softmax_cross_entropy_with_integer_labels(
        trunk(params, {}, h)[0], batch.y
    ).mean()
    for _ in range(m):
        before.append(batch.x + eta)
        p = -jax.grad(rest)(stem(params, batch.x + eta))
        for _ in range(n):
            slope = jax.grad(lambda eta, p=p: jnp.sum(p * stem(params, batch.x + eta)))(eta)
            eta = jnp.clip(eta - size * jnp.sign(slope), -0.2, 0.2)
            eta = jnp.clip(batch.x + eta, 0, 1) - batch.x
        costates.append(p)
        after.append(batch.x + eta)
    return before, costates, after


def test_the_costate_is_frozen_for_n_steps(case):
    params, batch = case
    m, n, size = 3, 4, 0.06
    _, _, after = by_hand(params, batch, m, n, size)
    out, grads = evaluate(
        objectives.yopo(stem, trunk, m, n, ball=BALL, step_size=size), params, batch
    )
    mean = lambda params: sum(cross_entropy(params, x, batch.y) for x in after) / m
    close((out.loss, grads), jax.value_and_grad(mean)(params), rtol=1e-4)
    assert float(jnp.abs(after[0] - after[-1]).max()) > 0.05


def released(params, batch, m, n, size):
    """Gradients as the released code adds them up: the stem's by the Hamiltonian once more."""
    total = jax.tree.map(jnp.zeros_like, params)
    for x, p, moved in zip(*by_hand(params, batch, m, n, size), strict=True):
        twice = jax.grad(lambda params, p=p, x=moved: -jnp.sum(p * stem(params, x)))(params)
        once = jax.grad(cross_entropy)(params, x, batch.y)
        total = jax.tree.map(lambda *g: sum(g), total, once, twice)
    return total


def test_the_released_code_counts_the_first_layer_twice(case):
    """Where the images stand still, that is all the difference, but for the sum over m."""
    params, batch = case
    m, n = 3, 2
    theirs = released(params, batch, m, n, 0.0)
    _, ours = evaluate(objectives.yopo(stem, trunk, m, n, ball=BALL, step_size=0.0), params, batch)
    for name, factor in {"w": 2, "u": 1, "v": 1}.items():
        close(theirs[name], factor * m * ours[name], rtol=1e-4, atol=1e-5)


def test_the_models_state_goes_through_m_passes_and_eps_follows_its_schedule(case):
    params, batch = case

    def counting(params, model_state, hidden):
        return trunk(params, {}, hidden)[0], {"calls": model_state["calls"] + 1}

    schedule = optax.linear_schedule(0.0, 0.2, 2)
    objective = objectives.scheduled(
        lambda eps: objectives.yopo(stem, counting, 3, 2, ball=dataclasses.replace(BALL, eps=eps)),
        eps=schedule,
    )
    out, _ = evaluate(objective, params, batch, {"calls": jnp.array(0)})
    assert int(out.model_state["calls"]) == 3
    assert float(out.metrics["eps"]) == 0
    close(out.loss, cross_entropy(params, batch.x, batch.y))
    out, _ = objective.value_and_grad(params, out.model_state, out.state, batch, key=KEY)
    assert float(out.metrics["eps"]) == pytest.approx(0.1)
    assert int(out.state.step) == 2


SMALL = jr.models.ResNet((4, 4, 8, 8), 1, num_classes=3)


@pytest.mark.parametrize(
    ("model", "hidden"),
    [
        (jr.models.mlp((7, 5), num_classes=3), (7,)),
        (jr.models.small_cnn(3), (8, 8, 16)),
        (jr.models.madry_cnn(3), (8, 8, 32)),
        (SMALL, (8, 8, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_parts_are_the_model_and_their_gradients_its_gradients(model, hidden):
    x = jax.random.uniform(KEY, (4, 8, 8, 1))
    y = jnp.array([0, 1, 2, 0])
    variables = dict(model.init(jax.random.key(1), x))
    params = variables.pop("params")
    first, rest = objectives.from_split_module(model)
    assert first(params, x).shape == (4, *hidden)
    if variables:
        forward, _ = objectives.from_stateful_module(model.apply)
    else:
        forward = objectives.from_module(model.apply)
    objective = objectives.yopo(first, rest, 1, 1, ball=jr.Ball("linf", 0.0))
    out, grads = evaluate(objective, params, Batch(x, y, jnp.arange(4)), variables)
    clean = objectives.cross_entropy(forward)
    plain, expected = evaluate(clean, params, Batch(x, y, jnp.arange(4)), variables)
    close((out.loss, grads), (plain.loss, expected), rtol=1e-3, atol=1e-4)
    close(out.model_state, plain.model_state, rtol=1e-4)


def test_training_survives_a_resume_and_withstands_pgd(tmp_path):
    data = jr.data.load("digits", "train")
    x, y = data.x[:512], data.y[:512]
    model = jr.models.mlp((32,))
    ball = jr.Ball("linf", 0.2)
    parts = objectives.from_split_module(model)
    forward = objectives.from_module(model.apply)

    def train(objective, num_epochs, **options):
        params = model.init(jax.random.key(1), x[:1])["params"]
        options = {"key": KEY, "batch_size": 64} | options
        return jr.train.fit(
            objective, params, optax.adam(3e-3), (x, y), num_epochs=num_epochs, **options
        )

    yopo = objectives.yopo(*parts, 3, 3, ball=ball)
    straight = train(yopo, 12)
    train(yopo, 5, directory=tmp_path)
    resumed = train(yopo, 12, directory=tmp_path, resume=True)
    for a, b in zip(jax.tree.leaves(straight.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)
    natural = train(objectives.cross_entropy(forward), 12)

    def robust(params):
        logits_fn = jax.tree_util.Partial(lambda p, x: forward(p, {}, x)[0], params)
        x_adv = jr.attacks.pgd(logits_fn, x[:128], y[:128], key=KEY, ball=ball, num_steps=10)
        return float(jnp.mean(jnp.argmax(logits_fn(x_adv), -1) == y[:128]))

    assert robust(straight.params) > robust(natural.params) + 0.1


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stem": None}, r"stem must be a function of \(params, x\), which .*from_split_module"),
        ({"stem": lambda params, x: (x, x)}, "stem must return one array"),
        ({"stem": lambda params, x: x.sum()}, "stem must return one array"),
        ({"stem": forward, "trunk": forward}, r"stem must be a function of \(params, x\)"),
        ({"stem": trunk, "trunk": stem}, r"stem must be a function of \(params, x\)"),
        ({"trunk": stem}, r"trunk must be a function of \(params, model_state, hidden\)"),
        ({"trunk": None}, r"trunk must be given: .*from_split_module"),
        ({"m": 0}, "m must be"),
        ({"n": 2.5}, "n must be"),
        ({"ball": 0.3}, "ball must be"),
        ({"step_size": -1.0}, "step_size must be"),
    ],
)
def test_what_does_not_fit_is_refused(case, change, message):
    options = {"stem": stem, "trunk": trunk, "ball": BALL} | change
    with pytest.raises(ValueError, match=message):
        evaluate(objectives.yopo(**options), *case)


def test_a_model_without_parts_is_refused():
    model = jr.models.spatial_transformer(jr.models.mlp((5,)))
    with pytest.raises(ValueError, match=r"module must have methods stem.* got SpatialTransformer"):
        objectives.from_split_module(model)
