"""Neural ODEs, what they are trained with, and the layers that paper 001 puts around them."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxrobust as jr
from jaxrobust.models._ode import rates
from jaxrobust.models._ode_solve import solved

ADAPTIVE = {"solver": diffrax.Dopri5(), "controller": diffrax.PIDController(rtol=1e-5, atol=1e-5)}
ADJOINTS = {
    "steps": None,
    "direct": diffrax.DirectAdjoint(),
    "checkpointed": diffrax.RecursiveCheckpointAdjoint(),
    "adjoint ODE": diffrax.BacksolveAdjoint(),
}


def images(num=3, side=8, seed=0):
    rows = np.random.default_rng(seed).uniform(size=(num, side, side, 1))
    return jnp.asarray(rows, jnp.float32)


def started(model, x, seed=1):
    return model.init(jax.random.key(seed), x)


def by_hand(variables, x, width, timed, step, num):
    """The network written out: convolutions of XLA, Euler's recurrence in a Python loop."""
    params = variables["params"]

    def conv(z, of, stride=1, padding="SAME"):
        out = jax.lax.conv_general_dilated(
            z, of["kernel"], (stride, stride), padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest",
        )  # fmt: skip
        return out + of["bias"] if "bias" in of else out

    def norm(z, of):
        groups = z.reshape(*z.shape[:3], min(32, width // 2), -1)
        centred = groups - groups.mean((1, 2, 4), keepdims=True)
        var = (centred**2).mean((1, 2, 4), keepdims=True)
        return (centred / jnp.sqrt(var + 1e-5)).reshape(z.shape) * of["scale"] + of["bias"]

    def field(t, z):
        of = params["field"]
        for i in range(2):
            if timed:
                z = jnp.concatenate([jnp.full_like(z[..., :1], t), z], -1)
            z = jax.nn.relu(norm(conv(z, of[f"Conv3x3_{i}"]), of[f"GroupNorm_{i}"]))
        return z

    z = jax.nn.relu(norm(conv(x, params["front_0"], padding="VALID"), params["front_1"]))
    z = conv(z, params["front_2"], 2, ((1, 1), (1, 1)))
    z = jax.nn.relu(norm(z, params["front_3"]))
    path = [z]
    for i in range(num):
        path.append(path[-1] + step * field(step * i, path[-1]))
    head = params["head"]
    return path[-1].mean((1, 2)) @ head["kernel"] + head["bias"], path


@pytest.mark.parametrize(
    ("model", "timed", "step"),
    [
        (jr.models.odenet(4, step=0.25), True, 0.25),
        (jr.models.tisode(6, 3, step=0.25), False, 0.25),
        (jr.models.residual_cnn(64), False, 1.0),
    ],
)
def test_euler_is_the_hand_recurrence(model, timed, step):
    x = images()
    variables = jax.tree.map(lambda leaf: leaf + 0.1, started(model, x))  # biases that are seen
    expected, _ = by_hand(variables, x, model.width, timed, step, round(1 / step))
    np.testing.assert_allclose(model.apply(variables, x), expected, rtol=1e-4, atol=1e-4)
    assert ("bias" in variables["params"]["field"]["Conv3x3_0"]) == timed


@pytest.mark.parametrize("solver", [None, diffrax.Heun()])
def test_diffeqsolve_takes_the_same_steps(solver):
    slope = lambda t, state, weight: (jnp.sin(weight * state[0] + 3 * t),)
    found = {
        (step, adjoint is None): solved(
            slope, (jnp.ones(2),), 2.0, 0.0, 1.0, step, solver, None, adjoint, 1
        )[0]
        for step in (0.1, 0.25, 0.3)
        for adjoint in (None, diffrax.DirectAdjoint())
    }
    for step in (0.1, 0.25, 0.3):
        np.testing.assert_allclose(found[step, True], found[step, False], rtol=1e-5)
    np.testing.assert_array_equal(found[0.3, True], found[0.25, True])  # four steps are needed
    assert not np.allclose(found[0.1, True], found[0.25, True], rtol=1e-3)


def along(f, at):
    """A derivative of f, and the difference that it stands for."""
    draws = np.random.default_rng(0)
    way = jax.tree.map(lambda leaf: draws.normal(size=leaf.shape), at)
    gradient = jax.jit(jax.grad(f))(at)
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: jnp.sum(g * d), gradient, way)))
    f = jax.jit(f)
    ahead, behind = (
        f(jax.tree.map(lambda leaf, d, h=h: leaf + h * d, at, way)) for h in (1e-5, -1e-5)
    )
    return slope, (ahead - behind) / 2e-5


@pytest.mark.parametrize(
    ("name", "adaptive"),
    [*((name, False) for name in ADJOINTS), *((name, True) for name in ("steps", "adjoint ODE"))],
)  # "steps" that adapt are "direct"
def test_gradients_are_finite_differences(name, adaptive):
    """In the state and the weights of a smooth field; the adjoint ODE is right for small steps."""
    step = 1 / 512 if name == "adjoint ODE" and not adaptive else 0.25
    fine = diffrax.PIDController(rtol=1e-9, atol=1e-9) if adaptive else None
    solver = diffrax.Dopri5() if adaptive else None
    with jax.enable_x64(True):

        def loss(at):
            state, weights = at
            slope = lambda t, state, weights: (jnp.sin(weights @ state[0] + t),)
            (end,) = solved(
                slope, (state,), weights, 0.0, 1.0, step, solver, fine, ADJOINTS[name], 512
            )
            return jnp.sum(end**2)

        draws = np.random.default_rng(1)
        at = (jnp.asarray(draws.normal(size=3)), jnp.asarray(draws.normal(size=(3, 3))))
        near = 1e-2 if name == "adjoint ODE" and not adaptive else 1e-5
        np.testing.assert_allclose(*along(loss, at), rtol=near)


def test_gradients_of_the_network_are_finite_differences():
    """In the image and all weights, in float64, by Euler's steps."""
    with jax.enable_x64(True):
        model, x = jr.models.odenet(2, 2, step=0.25), images(1).astype(np.float64)
        start = jax.tree.map(lambda leaf: leaf.astype(float), started(model, x))
        loss = lambda at: model.apply(*at)[0] @ jnp.array([1.0, -2.0])
        np.testing.assert_allclose(*along(loss, (start, x)), rtol=1e-3)
        assert jax.jit(model.apply)(start, x).dtype == np.float64


@functools.cache
def gradient_by(name, step):
    """Of a network's logits in image and weights; by steps that adapt where step is None."""
    small = {"solver": diffrax.Dopri5(), "controller": diffrax.PIDController(1e-7, 1e-7)}
    options = small if step is None else {"step": step}
    with jax.enable_x64(True):
        model = jr.models.tisode(2, 2, adjoint=ADJOINTS[name], **options)
        x = images(1)[:, :6, :6].astype(np.float64)
        start = jax.tree.map(lambda leaf: leaf.astype(float), started(model, x))
        loss = lambda at: model.apply(*at)[0] @ jnp.array([1.0, -2.0])
        leaves = jax.tree.leaves(jax.jit(jax.grad(loss))((start, x)))
        return np.concatenate([np.ravel(leaf) for leaf in leaves])


@pytest.mark.parametrize(
    ("name", "step"),
    [("direct", 0.25), ("checkpointed", 0.25), ("adjoint ODE", 1 / 64),
     ("checkpointed", None), ("adjoint ODE", None)],
)  # fmt: skip
def test_every_adjoint_gives_the_network_its_gradients(name, step):
    """As the steps themselves; the adjoint ODE in the limit of small ones."""
    one, other = gradient_by(name, step), gradient_by("steps", step)
    if name == "adjoint ODE":  # the field has kinks, which the way back meets elsewhere
        assert one @ other > 0.99 * np.linalg.norm(one) * np.linalg.norm(other)
        assert np.linalg.norm(one) == pytest.approx(np.linalg.norm(other), rel=0.05)
    else:
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-7)


def test_only_tisode_is_invariant_to_a_shift_of_time():
    x = images()
    for make, shifts in ((jr.models.tisode, True), (jr.models.odenet, False)):
        variables = started(make(4), x)
        now, later = (
            make(4, interval=interval, step=0.25).apply(variables, x)
            for interval in ((0.0, 1.0), (3.0, 4.0))
        )
        assert np.allclose(now, later, atol=1e-4) == shifts


@pytest.mark.parametrize("options", [{"step": 0.25}, ADAPTIVE])
def test_rows_do_not_feel_each_other(options):
    """Bitwise, beside rows that need other steps; and alone, or under vmap, as in a batch."""
    model = jr.models.odenet(4, **options)
    x = images(3)
    variables = started(model, x)
    apply = jax.jit(model.apply)
    logits = np.asarray(apply(variables, x))
    wild = jnp.concatenate([x[:1], 0 * x[:1], (x[2:] > 0.5).astype(np.float32)])
    np.testing.assert_array_equal(apply(variables, wild)[0], logits[0])
    alone = jax.vmap(jr.per_example(jax.tree_util.Partial(model.apply, variables)), (0, None))
    np.testing.assert_allclose(jax.jit(alone)(x, jax.random.key(0)), logits, rtol=1e-4, atol=1e-5)


def test_a_row_that_needs_too_many_steps_predicts_nothing():
    model = jr.models.OdeNet(4, step=1e-3, max_steps=3, **ADAPTIVE)
    x = images(2)
    logits = model.apply(started(model, x), x)
    assert np.isnan(logits).all()
    assert (jr.types.predicted_class(logits) == -1).all()


@pytest.mark.parametrize("steady", [(0.75, 1.25), (0.25, 0.75), (1.0, 2.0)])
def test_drift_of_a_field_that_is_not_negative_is_what_features_grow_by(steady):
    """The pitfall: |f| = f, so that the path does not matter; logits are those of the end."""
    model, x = jr.models.tisode(4, step=0.25), images()
    variables = started(model, x)
    logits, drift = model.apply(variables, x, steady, method="outputs")
    expected, path = by_hand(variables, x, 4, False, 0.25, 8)
    del expected
    first, last = (path[round(4 * t)] for t in steady)
    np.testing.assert_allclose(drift, (last - first).mean((1, 2, 3)), rtol=1e-4, atol=1e-6)
    assert (drift > 0).all()
    np.testing.assert_allclose(logits, model.apply(variables, x), rtol=1e-4, atol=1e-5)


def test_drift_is_of_the_absolute_slope():
    """f = 2 cos t, which has both signs: the features come back, the drift adds up."""

    def slope(t, state, args):
        return rates(args * jnp.cos(t) * jnp.ones_like(state[0]), state)

    state = (jnp.ones(2), jnp.zeros(2))
    z, drift = solved(slope, state, 2.0, 0.0, 2 * np.pi, 1e-3, None, None, None, 1)
    np.testing.assert_allclose(z, 1.0, atol=1e-2)  # came back
    np.testing.assert_allclose(drift, 8.0, atol=1e-2)  # 2 * 4


def test_steady_state_adds_up_and_begins_when_told():
    model, x = jr.models.tisode(4, 3, step=0.25), images(4)
    y = np.arange(4) % 3
    params = started(model, x)["params"]
    o, batch = jr.objectives, jr.types.Batch(x, jnp.asarray(y), jnp.arange(4))
    forward = o.from_module(functools.partial(model.apply, method="outputs"))
    plain = o.from_module(model.apply)
    key = jax.random.key(0)

    def at(objective, state):
        return jax.jit(objective.value_and_grad)(params, {}, state, batch, key=key)

    one = o.steady_state(forward, weight=0.5, loss=jr.losses.cross_entropy)
    two = o.add(o.cross_entropy(plain), o.steady_state(forward, weight=0.5))
    (out, grads), (added, more) = at(one, ()), at(two, ((), ()))
    np.testing.assert_allclose(out.loss, added.loss, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(more), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert set(out.metrics) == {"accuracy", "drift"}

    late = o.scheduled(
        lambda weight: o.steady_state(forward, weight=weight),
        weight=optax.piecewise_constant_schedule(0.0, {}),
    )
    quiet, _ = at(late, late.init(params, key))
    assert quiet.loss == 0 < quiet.metrics["drift"]


@pytest.mark.usefixtures("untyped")
def test_what_cannot_be_meant_is_refused():
    x, key = images(2), jax.random.key(0)
    for model, word in (
        (jr.models.tisode(80), "width must be"),
        (jr.models.tisode(7), "width must be"),
        (jr.models.tisode(4, step=0.0), "step positive"),
        (jr.models.odenet(4, interval=(1.0, 1.0)), "begin < end"),
        (jr.models.odenet(4, solver="dopri5"), r"solver must be a diffrax.AbstractSolver.*dopri5"),
        (jr.models.odenet(4, adjoint=diffrax.Euler()), "adjoint must be a diffrax"),
        (jr.models.odenet(4, controller=diffrax.PIDController(rtol=0.1, atol=0.1)),
         "solver must estimate its error"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=word):
            model.init(key, x)
    model = jr.models.tisode(4, step=0.5)
    variables = model.init(key, x)
    with pytest.raises(ValueError, match="sides of at least 6"):
        model.apply(variables, x[:, :5])
    with pytest.raises(ValueError, match="steady must be"):
        model.apply(variables, x, (1.0, 0.5), method="outputs")
    o, batch = jr.objectives, jr.types.Batch(x, jnp.zeros(2, int), jnp.arange(2))
    with pytest.raises(ValueError, match="logits alone"):
        o.steady_state(o.from_module(model.apply)).value_and_grad(
            variables["params"], {}, (), batch, key=key
        )
    with pytest.raises(ValueError, match="weight must be"):
        o.steady_state(o.from_module(model.apply), weight=-1.0)
    with pytest.raises(ValueError, match=r"one image \(height, width, channels\)"):
        jr.transforms.resize_and_pad(x[0, ..., 0], key)
    with pytest.raises(ValueError, match="probability must lie"):
        jr.transforms.sometimes_noisy(x[0], key, probability=1.5)


def test_denoising_is_a_softmax_mean_over_places():
    layer = jr.models.FeatureDenoising()
    x = jax.random.normal(jax.random.key(0), (2, 3, 2, 4))
    variables = layer.init(jax.random.key(0), x)
    np.testing.assert_array_equal(layer.apply(variables, x), x)  # scale 0
    params = jax.tree.map(np.asarray, variables["params"])
    params["GroupNorm_0"]["scale"] = np.ones(4, np.float32)
    expected = []
    for row in x.reshape(2, 6, 4):
        likeness = (row @ params["theta"]["kernel"]) @ (row @ params["phi"]["kernel"]).T / 2**0.5
        weights = np.exp(likeness) / np.exp(likeness).sum(1, keepdims=True)
        mean = weights @ row @ params["g"]["kernel"]
        pairs = mean.reshape(6, 2, 2)  # two groups of two channels
        pairs = pairs - pairs.mean((0, 2), keepdims=True)
        pairs /= np.sqrt(pairs.var((0, 2), keepdims=True) + 1e-5)
        expected.append(pairs.reshape(6, 4))
    added = layer.apply({"params": params}, x) - x
    np.testing.assert_allclose(added.reshape(2, 6, 4), expected, rtol=1e-3, atol=1e-4)
    model = jr.models.tisode(4, step=0.5, after=layer)
    assert "after" in model.init(jax.random.key(0), images())["params"]


def test_resized_images_lie_somewhere_on_black():
    """All that may come out for 2 pixels and a padding of 2, by hand; each draw is one of them."""
    x = jnp.array([[1.0], [3.0]])[..., None]
    small, large = [1.0, 3.0], [1.0, 2.0, 3.0]  # 3 pixels: centres at -1/6 (the border), 1/2, 7/6
    columns = {(0.0, *large), (*large, 0.0)}
    columns |= {(*[0.0] * k, *small, *[0.0] * (2 - k)) for k in range(3)}
    change = functools.partial(jr.transforms.resize_and_pad, padding=2)
    draws = jax.vmap(change, (None, 0))(x, jax.random.split(jax.random.key(0), 200))
    assert draws.shape == (200, 4, 3, 1)
    found = {tuple(np.round(d[:, d.any((0, 2))][:, 0, 0], 4).tolist()) for d in np.asarray(draws)}
    assert found == columns
    widths = {int(d.any((0, 2)).sum()) for d in np.asarray(draws)}
    assert widths == {1, 2}


def test_input_randomisation_has_a_key_a_row_and_a_gradient():
    change = functools.partial(jr.transforms.resize_and_pad, padding=3)
    model = jr.transforms.randomized(lambda x: x.reshape(len(x), -1), change)
    x = jnp.repeat(images(1), 4, axis=0)
    seen = np.asarray(model(x, jax.random.key(0)))
    assert len(np.unique(seen, axis=0)) > 1  # equal images, other draws
    np.testing.assert_array_equal(model(x, jax.random.key(0)), seen)
    np.testing.assert_array_equal(model(x[:2], jax.random.key(0)), seen[:2])
    inner = jr.Randomized(lambda x, key: x + jax.random.normal(key, x.shape))
    both = jr.transforms.randomized(inner, lambda x, key: x)
    assert not np.allclose(both(x, jax.random.key(1)), both(x, jax.random.key(2)))

    net = jr.models.tisode(4, step=0.5)
    variables = net.init(jax.random.key(0), change(x[0], jax.random.key(0))[None])
    random = jr.transforms.randomized(jax.tree_util.Partial(net.apply, variables), change)
    attack = functools.partial(jr.attacks.pgd, num_steps=1, gradient=jr.gradients.eot(2))
    y = np.zeros(4, np.int32)
    x_adv = attack(random, x, y, key=jax.random.key(3), ball=jr.Ball("linf", 0.1))
    assert 0 < np.abs(x_adv - x).max() <= 0.1 + 1e-6


def test_every_other_image_gets_noise_of_one_of_three_levels():
    x = jnp.full((28, 28, 1), 0.5)
    change = functools.partial(jr.transforms.sometimes_noisy, sigmas=(0.02, 0.04, 0.08))
    keys = jax.random.split(jax.random.key(0), 600)
    noisy = np.asarray(jax.jit(jax.vmap(change, (None, 0)))(x, keys))
    level = (noisy - x).std((1, 2, 3))
    counts = [np.sum(level < 1e-6), *(np.sum(abs(level - s) < s / 4) for s in (0.02, 0.04, 0.08))]
    assert sum(counts) == 600
    assert np.all(abs(np.array(counts) - [300, 100, 100, 100]) < 5 * np.sqrt(600 / 4))
    assert noisy.min() >= 0
    assert noisy.max() <= 1
